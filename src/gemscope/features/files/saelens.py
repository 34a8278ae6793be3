"""SAELens folders (`cfg.json` and `sae_weights.safetensors`), of version 6 and before, read. What cannot be folded into
weights exactly is refused: nothing that changes the arithmetic is passed over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gemscope import checked
from gemscope.activations.site import Site
from gemscope.checked import declared
from gemscope.errors import CorruptFile, FileError
from gemscope.features.files.contents import Contents
from gemscope.features.files.fold import mean_free
from gemscope.features.files.format import Folder, Format, Found
from gemscope.features.files.hook_names import model_id, scales_embedding, site_of_hook, site_of_module
from gemscope.features.files.json_file import read_json
from gemscope.features.files.saelens_config import (
    CONFIG,
    CROSSCODER,
    NORMS,
    OWN,
    SCALER,
    WEIGHTS,
    WHITENING,
    Config,
    Metadata,
    Scaler,
    modernised,
)
from gemscope.features.files.saelens_fold import Whitening, folded, require_complete
from gemscope.features.files.tensors import read_safetensors
from gemscope.features.files.transformer_lens import Processing, Said
from gemscope.features.sae import SAEInfo
from gemscope.features.weights import Gate, Norm

_GATES: Mapping[str, Gate] = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "jumprelu",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
"""What each architecture that is read does with pre-activations, once its weights are folded."""

_CLOSED = {
    "abstopk": "the k largest by size, whose features may be negative",
    "matching_pursuit": "which finds one feature after another in what the others have left",
    "temporal": "whose features depend on earlier tokens",
}
"""Architectures that are no function of this kind, and why."""

_NORMS: Mapping[str, Norm] = {theirs: ours for ours, theirs in NORMS.items()}
_CONSTANT_NORM = "Mistral-7B-Residual-Stream-SAEs"
"""A repository whose folders leave that to SAELens's registry."""
_BY_A_FACTOR = "expected_average_only_in"
_WHITENED = "covariance_whitening"


def read(found: Found) -> Contents:
    """What a folder holds. A site that the user gave stands in for the hook name in it, a model is asked where one is
    needed.

    Raises FileError for an architecture, a normalisation or a hook that is not read here, CorruptFile.
    """
    config_path = found.folder(CONFIG)
    if config_path is None:
        raise CorruptFile(f"{found.source} has no {CONFIG}: an SAELens folder has it beside {WEIGHTS}")
    config = read_json(config_path)
    if config.get("architecture") == CROSSCODER:
        raise FileError(
            f"{found.source} is a crosscoder, which reads several sites together: load it with load_crosscoder"
        )
    return described(found, modernised(config), found.stored)


def described(found: Found, modern: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Contents:
    """Of a configuration of version 6, and the weights that it describes. Raises what `read` raises."""
    folder, source, model = found.folder, found.source, found.model
    config = declared(modern, Config, where=f"{source}: {CONFIG}")
    metadata = config.metadata
    if why := _CLOSED.get(config.architecture):
        raise FileError(f"{source} is of the architecture {checked.quoted(config.architecture)}, {why}: not read here")
    if config.architecture not in _GATES:
        raise FileError(
            f"{source} is of the architecture {checked.quoted(config.architecture)}, which is not read here: "
            f"read are {', '.join(_GATES)}"
        )
    name = model_id(metadata.model_name)
    read_at, write_at = _sites(metadata, name, source, found.site)
    _refuse_what_cannot_be_folded(config, source)
    require_complete(stored, config, source)
    scale = _input_scale(config, found)
    if read_at.layer is None and scales_embedding(name):
        # TransformerLens hands Gemma's embedding out multiplied by √d_model; our site is before that.
        scale *= math.sqrt(stored["W_enc"].shape[0])
    tensors = folded(stored, config, scale, _whitening(config, folder, source), source)
    processing = Processing.of(
        metadata.model_from_pretrained_kwargs or Said(),
        version=metadata.sae_lens_training_version or metadata.sae_lens_version,
        model_class=metadata.model_class_name,
        place=str(found.place),
        undone_before=metadata.encoder_is_centred,
    )
    tensors, centred = processing.undone(tensors, (read_at, write_at), name=name, model=model, source=source)
    norm = _norm(config, found, read_at)
    if norm and ((centred and norm == "length") or (read_at.kind == "att" and processing.values_folded)):
        raise FileError(f"{source} has a norm of each token of a model that TransformerLens had rewritten: not read")
    if norm == "deviation" and not centred and not metadata.encoder_is_centred:
        tensors = {**tensors, "W_enc": mean_free(tensors["W_enc"])}
    return Contents(
        source=source,
        tensors=tensors,
        norm=norm,
        gate=_GATES[config.architecture],
        k=_k(config, source) if config.architecture == "topk" else None,
        centred=centred or norm == "deviation",
        site=read_at,
        site_out=write_at,
        info=_info(metadata, modern["metadata"], name, source),
    )


def _sites(metadata: Metadata, model: str | None, source: str, given: Site | None) -> tuple[Site, Site | None]:
    def named(module: str | None, hook: str | None) -> Site | None:
        if module:  # some folders give a Gemma Scope 2 transcoder the hook of another tensor, and the right module
            return site_of_module(module, model, source)
        return site_of_hook(hook, model, source) if hook else None

    read_at = given or named(metadata.hf_hook_name, metadata.hook_name)
    if read_at is None:
        raise FileError(f"{source} does not say where in the model it reads: say it with site='20.res'")
    if metadata.hook_name_out == metadata.hook_name:
        return read_at, None
    return read_at, named(metadata.hf_hook_name_out, metadata.hook_name_out)


def _info(metadata: Metadata, everything: Mapping[str, Any], model: str | None, source: str) -> SAEInfo:
    return SAEInfo(
        name=source,
        model=model,
        declared_l0=metadata.l0,
        neuronpedia_id=metadata.neuronpedia_id,
        prepend_bos=metadata.prepend_bos,
        context_size=metadata.context_size,
        metadata={key: value for key, value in everything.items() if key not in OWN},
    )


def _refuse_what_cannot_be_folded(config: Config, source: str) -> None:
    if config.metadata.hook_head_index is not None:
        raise FileError(f"{source} reads a single attention head: SAEs over all heads are read")
    if config.finetuning_scaling_factor:
        raise FileError(f"{source} scales its features by a finetuning_scaling_factor, which is not read here")
    if config.reshape_activations not in (None, "none", "hook_z"):
        raise FileError(
            f"{source} reshapes activations by {checked.quoted(config.reshape_activations)}: "
            "'none' and 'hook_z' are read"
        )
    if config.architecture == "standard" and config.activation_fn not in (None, "relu"):
        raise FileError(
            f"{source} has the activation function {checked.quoted(config.activation_fn)}: 'relu' and 'topk' are read"
        )
    normalize = config.normalize_activations
    if normalize not in (None, "none", _BY_A_FACTOR, _WHITENED, *_NORMS):
        raise FileError(
            f"{source} has normalize_activations={checked.quoted(normalize)}, which is not read: read are 'none', "
            f"{_BY_A_FACTOR!r}, {_WHITENED!r}, {', '.join(map(repr, _NORMS))}"
        )
    if normalize in (_BY_A_FACTOR, _WHITENED, *_NORMS) and config.architecture.endswith("transcoder"):
        raise FileError(
            f"{source} is a transcoder with normalize_activations={normalize!r}, whose output scale is not said"
        )


def _norm(config: Config, found: Found, read_at: Site) -> Norm | None:
    said = config.normalize_activations
    if said in (None, "none") and _CONSTANT_NORM in found.parts:
        return "length"
    norm = _NORMS.get(said or "")
    if norm is not None and read_at.layer is None:
        raise FileError(f"{found.source} has a norm of each token at the embedding, which models scale: not read")
    return norm


def _k(config: Config, source: str) -> int:
    if config.k is None or not config.k.is_integer():
        raise CorruptFile(f"{source}: {CONFIG} has k={checked.quoted(config.k)}, expected a whole number")
    return int(config.k)


def _input_scale(config: Config, found: Found) -> float:
    """What activations are multiplied by before the encoder, and divided by behind the decoder."""
    if config.normalize_activations != _BY_A_FACTOR:
        return 1.0
    factor = config.norm_scaling_factor or config.metadata.norm_scaling_factor or _scaler(found.folder).scaling_factor
    if factor is None and found.entry is not None:
        factor = found.entry.factor
    if factor is None:
        raise FileError(
            f"{found.source} has normalize_activations={_BY_A_FACTOR!r} and no usable factor: activations cannot be "
            f"scaled rightly without norm_scaling_factor in {CONFIG} or scaling_factor in {SCALER}"
        )
    return factor


def _scaler(folder: Folder) -> Scaler:
    path = folder(SCALER, needed=False)
    return Scaler() if path is None else checked.read_json(path, Scaler, remedy="fetch it again")


def _whitening(config: Config, folder: Folder, source: str) -> Whitening | None:
    """Of a checkpoint: SAELens folds it itself at the end of a run."""
    if config.normalize_activations != _WHITENED:
        return None
    path = folder(WHITENING, needed=False) if _scaler(folder).has_whitening else None
    if path is None:
        raise FileError(
            f"{source} has normalize_activations={_WHITENED!r} and no {WHITENING}: its activations cannot be whitened "
            "without the mean and the matrices in it"
        )
    found = read_safetensors(path)
    d = config.d_in
    shapes: dict[str, tuple[int | None, ...]] = {"mean": (d,), "matrix": (d, d), "inverse_matrix": (d, d)}
    for name, shape in shapes.items():
        if name not in found or tuple(found[name].shape) != shape or not found[name].isfinite().all():
            raise CorruptFile(f"{source}: {WHITENING} has no {name} of shape {shape} in finite numbers: fetch it again")
    return Whitening(*(found[name].double() for name in shapes))


def _is_its(found: Found) -> bool:
    return found.file.name == WEIGHTS and (found.folder(CONFIG) is not None or found.has("W_dec"))


FORMAT = Format(
    name="SAELens",
    called=f"{CONFIG} and {WEIGHTS}",
    weights=re.escape(WEIGHTS),
    beside={CONFIG: None},
    is_its=_is_its,
    read=read,
)
