"""SAELens folders (`cfg.json` and `sae_weights.safetensors`): version 6 read and written, older ones read.

What SAELens does to activations before and after the weights is folded into the weights, exactly, or the folder is
refused; nothing that changes the arithmetic is passed over.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta
from torch import Tensor

from gemscope import checked
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.checked import Positive, declared
from gemscope.disk import claimed, room, synced
from gemscope.errors import CorruptFile, FileError, InputError
from gemscope.features.files.contents import Contents, Folder
from gemscope.features.files.fold import rounded, through, times
from gemscope.features.files.hook_names import hook_of, module_of, scales_embedding, site_of_hook, site_of_module
from gemscope.features.files.json_file import read_json, write_json
from gemscope.features.files.tensors import (
    DTYPES,
    Stream,
    dtype_for,
    read_safetensors,
    stream_of,
    write_safetensors,
)
from gemscope.features.files.transformer_lens import Processing, Said
from gemscope.features.sae import SAE, SAEInfo
from gemscope.features.weights import Gate

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
SCALER = "activation_scaler.json"
WHITENING = "activation_whitening.safetensors"
CROSSCODER = "crosscoder"
"""What our own folders for several sites say in the place of an architecture; see `crosscoder.py`."""

_FORMAT_VERSION = "6.54.12"
"""The SAELens whose format is written."""

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

_BY_A_FACTOR = "expected_average_only_in"
_WHITENED = "covariance_whitening"

_KWARGS = "model_from_pretrained_kwargs"

_KEPT = (
    "model_class_name", "model_from_pretrained_kwargs", "exclude_special_tokens", "seqpos_slice", "dataset_path",
    "sae_lens_training_version", "training_architecture", "training_architecture_details", "num_dead_features",
)  # fmt: skip
"""Metadata that SAEInfo has no field for, kept from version-5 folders, where it lies among all else."""
_OWN = frozenset(
    ("model_name", "hook_name", "hook_name_out", "hf_hook_name", "hf_hook_name_out", "hook_head_index",
     "hook_head_index_out", "prepend_bos", "context_size", "neuronpedia_id", "l0", "sae_lens_version",
     "encoder_is_centred")
)  # fmt: skip
"""Metadata that has its place in SAE or SAEInfo."""


# --- what a configuration says --------------------------------------------------------------------------------------

Factor = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What version 6 says of the model and the text, as far as it is used here."""

    model_name: str | None = None
    model_class_name: str | None = None
    model_from_pretrained_kwargs: Said | None = None
    hook_name: str | None = None
    hook_name_out: str | None = None
    hf_hook_name: str | None = None
    hf_hook_name_out: str | None = None
    hook_head_index: int | None = None
    prepend_bos: bool | None = None
    context_size: int | None = None
    neuronpedia_id: str | None = None
    l0: float | None = None
    norm_scaling_factor: Factor | None = None
    sae_lens_version: str | None = None
    sae_lens_training_version: str | None = None
    encoder_is_centred: bool = False
    """Our own: `Processing.undone_before`."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """`cfg.json` in the names and places of version 6, as far as it is used here."""

    architecture: str
    apply_b_dec_to_input: bool
    metadata: Metadata
    d_in: Positive | None = None
    d_sae: Positive | None = None
    d_out: Positive | None = None
    k: Factor | None = None
    """A whole number for `topk`; that of a `batchtopk` run need not be one."""
    activation_fn: str | None = None
    normalize_activations: str | None = None
    norm_scaling_factor: Factor | None = None
    reshape_activations: str | None = None
    rescale_acts_by_decoder_norm: bool | None = None
    finetuning_scaling_factor: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Scaler:
    """`activation_scaler.json` beside a checkpoint."""

    scaling_factor: Factor | None = None
    has_whitening: bool = True


# --- reading --------------------------------------------------------------------------------------------------------


def read(
    folder: Folder, *, source: str, place: str, site: Site | None = None, model: LanguageModel | None = None
) -> Contents:
    """What a folder holds, which was found at `place` (a repository, a path). `site` stands in for the hook name that
    it gives, `model` is the one that it is for, where that is needed.

    Raises FileError for an architecture, a normalisation or a hook that is not read here, CorruptFile.
    """
    config_path, weights_path = folder(CONFIG), folder(WEIGHTS)
    if config_path is None or weights_path is None:
        raise CorruptFile(f"{source} has no {CONFIG if config_path is None else WEIGHTS}: an SAELens folder has both")
    stored = read_json(config_path)
    if stored.get("architecture") == CROSSCODER:
        raise FileError(f"{source} is a crosscoder, which reads several sites together: load it with load_crosscoder")
    modern = modernised(stored)
    config = declared(modern, Config, where=f"{source}: {CONFIG}")
    metadata = config.metadata
    if config.architecture not in _GATES:
        raise FileError(
            f"{source} is of the architecture {checked.quoted(config.architecture)}, which is not read here: "
            f"read are {', '.join(_GATES)}"
        )
    name = _model_id(metadata.model_name)
    read_at, write_at = _sites(metadata, name, source, site)
    _refuse_what_cannot_be_folded(config, source)
    tensors = read_safetensors(weights_path)
    _complete(tensors, config, source)
    scale = _input_scale(config, folder, source)
    if read_at.layer is None and scales_embedding(name):
        # TransformerLens hands Gemma's embedding out multiplied by √d_model; our site is before that.
        scale *= math.sqrt(tensors["W_enc"].shape[0])
    tensors = _folded(tensors, config, scale, _whitening(config, folder, source), source)
    processing = Processing.of(
        metadata.model_from_pretrained_kwargs or Said(),
        version=metadata.sae_lens_training_version or metadata.sae_lens_version,
        model_class=metadata.model_class_name,
        place=place,
        undone_before=metadata.encoder_is_centred,
    )
    tensors, centred = processing.undone(tensors, (read_at, write_at), name=name, model=model, source=source)
    return Contents(
        source=source,
        tensors=tensors,
        gate=_GATES[config.architecture],
        k=_k(config, source) if config.architecture == "topk" else None,
        centred=centred,
        site=read_at,
        site_out=write_at,
        info=_info(metadata, modern["metadata"], name, source),
    )


def modernised(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration in the names and places of version 6, whatever version wrote it."""
    metadata: dict[str, Any] = config["metadata"] if isinstance(config.get("metadata"), dict) else {}
    defaults: dict[str, Any] = {"architecture": "standard", "apply_b_dec_to_input": True}
    if metadata and not _is_before_6(config.get("sae_lens_version") or metadata.get("sae_lens_version")):
        return {**defaults, **config}
    names = {
        "hook_point": "hook_name",
        "hook_point_head_index": "hook_head_index",
        "activation_fn_str": "activation_fn",
    }
    old: dict[str, Any] = {**defaults, "prepend_bos": True}
    old |= {names.get(key, key): value for key, value in config.items()}
    if isinstance(normalize := old.get("normalize_activations"), bool):
        old["normalize_activations"] = "expected_average_only_in" if normalize else "none"
    if old["architecture"] == "standard" and old.get("activation_fn") == "topk":
        old["architecture"] = "topk"
    if old["architecture"] == "topk" and old.get("k") is None:
        given = old.get("activation_fn_kwargs")
        old["k"] = given.get("k") if isinstance(given, dict) else None
    moved = {key: value for key, value in old.items() if key in _OWN or key in _KEPT}
    return old | {"metadata": moved | metadata}


def _is_before_6(version: object) -> bool:
    major = str(version or "0").partition(".")[0]
    return not major.isdecimal() or int(major[:9]) < 6


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
        metadata={key: value for key, value in everything.items() if key not in _OWN},
    )


def _model_id(name: str | None) -> str | None:
    """TransformerLens leaves the owner off."""
    if name is None or "/" in name:
        return name
    if name.startswith("gemma-"):
        return f"google/{name}"
    if name.startswith("gpt2"):
        return f"openai-community/{name.removesuffix('-small')}"
    if name.startswith("pythia-"):
        return f"EleutherAI/{name}"
    return name


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
    if normalize not in (None, "none", _BY_A_FACTOR, _WHITENED):
        raise FileError(
            f"{source} has normalize_activations={checked.quoted(normalize)}, which depends on each token and cannot "
            f"be folded into weights: only 'none', {_BY_A_FACTOR!r} and {_WHITENED!r} are read"
        )
    if normalize in (_BY_A_FACTOR, _WHITENED) and config.architecture.endswith("transcoder"):
        raise FileError(
            f"{source} is a transcoder with normalize_activations={normalize!r}, whose output scale is not said"
        )


def _k(config: Config, source: str) -> int:
    if config.k is None or not config.k.is_integer():
        raise CorruptFile(f"{source}: {CONFIG} has k={checked.quoted(config.k)}, expected a whole number")
    return int(config.k)


def _input_scale(config: Config, folder: Folder, source: str) -> float:
    """What activations are multiplied by before the encoder, and divided by behind the decoder."""
    if config.normalize_activations != _BY_A_FACTOR:
        return 1.0
    factor = config.norm_scaling_factor or config.metadata.norm_scaling_factor or _scaler(folder).scaling_factor
    if factor is None:
        raise FileError(
            f"{source} has normalize_activations={_BY_A_FACTOR!r} and no usable factor: its activations cannot be "
            f"scaled rightly without norm_scaling_factor in {CONFIG} or scaling_factor in {SCALER}"
        )
    return factor


def _scaler(folder: Folder) -> Scaler:
    path = folder(SCALER, needed=False)
    return Scaler() if path is None else checked.read_json(path, Scaler, remedy="fetch it again")


@dataclass(frozen=True)
class Whitening:
    """(x − mean) @ matrix goes into the encoder, and what comes out of the decoder is mapped back by the inverse."""

    mean: Tensor
    matrix: Tensor
    inverse: Tensor


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


def _folded(
    stored: Mapping[str, Tensor], config: Config, scale: float, whitening: Whitening | None, source: str
) -> dict[str, Tensor]:
    """The weights of an SAE that does the same on plain activations. What is not folded stays mapped from the file."""
    tensors = dict(stored)
    _drop_scaling_factor(tensors, source)
    if config.architecture == "gated":
        _fold_gate(tensors)
    if "log_threshold" in tensors:
        stored_log = tensors.pop("log_threshold")
        tensors["threshold"] = rounded(stored_log.double().exp(), stored_log)
    if "topk_threshold" in tensors:
        tensors["threshold"] = tensors.pop("topk_threshold").reshape(1).expand(tensors["W_enc"].shape[1]).contiguous()
    if config.apply_b_dec_to_input:
        _fold_input_bias(tensors, source)
    if whitening is not None:
        if config.rescale_acts_by_decoder_norm:
            _fold_decoder_norms(tensors, 1.0)  # they were learned as stored
        _fold_whitening(tensors, whitening)
        return tensors
    if scale != 1.0:
        # (s·x) @ W_enc = x @ (s·W_enc), and what comes out is in units of s·x
        tensors["W_enc"] = times(tensors["W_enc"], scale)
        tensors["W_dec"] = times(tensors["W_dec"], 1 / scale)
        tensors["b_dec"] = times(tensors["b_dec"], 1 / scale)
    if config.rescale_acts_by_decoder_norm:
        _fold_decoder_norms(tensors, scale)
    return tensors


def _fold_decoder_norms(tensors: dict[str, Tensor], scale: float) -> None:
    """Pre-activations are multiplied by their decoder row's norm, and features divided by it again: as if it were 1."""
    norm = tensors["W_dec"].double().norm(dim=1)
    tensors["W_enc"] = times(tensors["W_enc"], norm)
    tensors["b_enc"] = times(tensors["b_enc"], norm)
    tensors["W_dec"] = times(tensors["W_dec"], torch.where(norm > 0, 1 / norm, 0.0).unsqueeze(1))
    if "threshold" in tensors:
        # It was learned beside the norm of W_dec as stored, which `scale` has divided since.
        tensors["threshold"] = times(tensors["threshold"], 1 / scale)


def _fold_whitening(tensors: dict[str, Tensor], whitening: Whitening) -> None:
    """((x − m) M) @ W_enc = x @ (M W_enc) − m @ (M W_enc), and x̂ = (f @ W_dec + b_dec) M⁻¹ + m."""
    W_enc = whitening.matrix @ tensors["W_enc"].double()
    tensors["b_enc"] = rounded(tensors["b_enc"].double() - whitening.mean @ W_enc, tensors["b_enc"])
    tensors["W_enc"] = rounded(W_enc, tensors["W_enc"])
    tensors["W_dec"] = rounded(tensors["W_dec"].double() @ whitening.inverse, tensors["W_dec"])
    tensors["b_dec"] = rounded(tensors["b_dec"].double() @ whitening.inverse + whitening.mean, tensors["b_dec"])


def _drop_scaling_factor(tensors: dict[str, Tensor], source: str) -> None:
    """Versions before 6 wrote a factor for every feature: ones, unless the SAE was finetuned."""
    factor = tensors.pop("scaling_factor", None)
    if factor is not None and not factor.eq(1).all():
        raise FileError(f"{source} scales its features by a scaling_factor other than 1, which is not read here")


def _complete(tensors: Mapping[str, Tensor], config: Config, source: str) -> None:
    """Everything that folding reads is there and fits; `build` looks at the rest."""
    gated = ["b_gate", "b_mag", "r_mag"]
    needed = ["W_enc", "W_dec", "b_dec", *(gated if config.architecture == "gated" else ["b_enc"])]
    if missing := [name for name in needed if name not in tensors]:
        held = ", ".join(sorted(tensors)) or "nothing"
        raise CorruptFile(f"{source} has no {' and no '.join(missing)}: it holds {held}")
    W_enc, W_dec = tensors["W_enc"], tensors["W_dec"]
    if W_enc.ndim != 2 or W_dec.ndim != 2 or W_dec.shape[0] != W_enc.shape[1]:
        raise CorruptFile(
            f"{source}: W_dec has the shape {tuple(W_dec.shape)} beside W_enc of {tuple(W_enc.shape)}, "
            "expected [d_sae, d_out] beside [d_in, d_sae]"
        )
    sizes = dict.fromkeys(("b_enc", "b_gate", "b_mag", "r_mag", "log_threshold", "threshold"), W_enc.shape[1])
    sizes["b_dec"] = W_dec.shape[1]
    for name, size in sizes.items():
        if name in tensors and tuple(tensors[name].shape) != (size,):
            raise CorruptFile(f"{source}: {name} has the shape {tuple(tensors[name].shape)}, expected {(size,)}")
    if "topk_threshold" in tensors and tensors["topk_threshold"].numel() != 1:
        raise CorruptFile(
            f"{source}: topk_threshold has the shape {tuple(tensors['topk_threshold'].shape)}, expected one number"
        )
    for key, stated, actual in zip(
        ("d_in", "d_sae", "d_out"),
        (config.d_in, config.d_sae, config.d_out),
        (*W_enc.shape, W_dec.shape[1]),
        strict=True,
    ):
        if stated not in (None, actual):
            raise CorruptFile(f"{source}: {CONFIG} says {key}={stated}, the weights have {actual}")


def _fold_gate(tensors: dict[str, Tensor]) -> None:
    """A gated SAE as a JumpReLU one (Rajamanoharan et al. 2024, appendix H).

    Active where x @ W_enc + b_gate > 0, of strength relu(x @ (W_enc · e^r) + b_mag). Multiplying the gate by e^r > 0
    makes it a threshold on the strength's own pre-activation: z > b_mag − b_gate · e^r.
    """
    grown = tensors.pop("r_mag").double().exp()
    b_gate, b_mag = tensors.pop("b_gate"), tensors.pop("b_mag")
    tensors["W_enc"] = times(tensors["W_enc"], grown)
    tensors["b_enc"] = b_mag
    tensors["threshold"] = rounded(b_mag.double() - b_gate.double() * grown, b_mag)


def _fold_input_bias(tensors: dict[str, Tensor], source: str) -> None:
    """(x − b_dec) @ W_enc + b_enc = x @ W_enc + (b_enc − b_dec @ W_enc)."""
    W_enc, b_dec = tensors["W_enc"], tensors["b_dec"]
    if b_dec.numel() != W_enc.shape[0]:
        raise CorruptFile(
            f"{source}: apply_b_dec_to_input takes b_dec of {b_dec.numel()} from inputs of {W_enc.shape[0]}"
        )
    tensors["b_enc"] = rounded(tensors["b_enc"].double() - through(b_dec, W_enc), tensors["b_enc"])


# --- writing --------------------------------------------------------------------------------------------------------


def save_sae(sae: SAE, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Writes an SAE as an SAELens 6 folder, which SAELens and `load_sae` read. Returns the folder.

    `dtype` is what the matrices are stored in; biases and thresholds never below float32, where rounding would move
    features across their threshold. Files of the same name are replaced when the new ones are whole; others in the
    folder stay.

    Raises InputError for an SAE without a site, StorageFull, FileError.
    """
    folder = Path(folder).expanduser()
    if sae.site is None or sae.site_out is None:
        raise InputError(f"{sae} has no site: a folder says where its SAE reads; give SAE(..., site='20.res')")
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"weights cannot be stored as {dtype}: choose one of {', '.join(map(str, DTYPES))}")
    state = sae.state_dict()
    if sae.site.layer is None and scales_embedding(sae.info.model):
        scale = math.sqrt(sae.d_in)  # see `read`
        state["W_enc"] = times(state["W_enc"], 1 / scale)
        state["W_dec"] = times(state["W_dec"], scale)
        state["b_dec"] = times(state["b_dec"], scale)
    streams = {name: stream_of(weight, dtype_for(weight, dtype)) for name, weight in state.items()}
    return write_pair(folder, _config(sae, {stream.dtype for stream in streams.values()}), streams)


def write_pair(folder: Path, config: dict[str, Any], streams: Mapping[str, Stream]) -> Path:
    """A configuration and the weights that it describes, in place of those that were there. Returns the folder.

    Raises StorageFull, FileError, AccessError where another process writes it.
    """
    with claimed(folder / CONFIG) as place, room(folder, place):
        write_json(place / CONFIG, config)
        write_safetensors(place / WEIGHTS, streams)
        synced(place / WEIGHTS)
        # The two files belong together: with the configuration taken away first, a crash between them leaves a folder
        # that nobody takes for an SAE, never weights under another's description.
        (folder / CONFIG).unlink(missing_ok=True)
        os.replace(place / WEIGHTS, folder / WEIGHTS)
        os.replace(place / CONFIG, folder / CONFIG)
    return folder


def _config(sae: SAE, dtypes: set[torch.dtype]) -> dict[str, Any]:
    architecture = _architecture(sae)
    # SAELens loads every tensor as the one dtype named here.
    widest = max(dtypes, key=lambda dtype: dtype.itemsize)
    config: dict[str, Any] = {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(widest).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if sae.site is not None and sae.site.kind == "att" else "none",
        "metadata": _metadata(sae),
        "architecture": architecture,
    }
    if architecture == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    if architecture.endswith("transcoder"):
        config["d_out"] = sae.d_out
    return config


def _architecture(sae: SAE) -> str:
    gate: Literal["", "jumprelu", "topk"] = "" if sae.gate == "relu" else sae.gate
    if not (sae.is_transcoder or sae.W_skip is not None or sae.d_in != sae.d_out):
        return gate or "standard"
    if gate == "topk":
        raise InputError(f"{sae} is a transcoder with gate='topk', for which SAELens has no format")
    return "_".join(filter(None, (gate, "skip" if sae.W_skip is not None else "", "transcoder")))


def _metadata(sae: SAE) -> dict[str, Any]:
    info, model = sae.info, sae.info.model
    assert sae.site is not None
    assert sae.site_out is not None
    metadata: dict[str, Any] = {
        "sae_lens_version": _FORMAT_VERSION,
        "sae_lens_training_version": None,
        "model_name": model,
        "model_class_name": "HookedTransformer",
        "hook_name": hook_of(sae.site),
        "hook_head_index": None,
        "prepend_bos": info.prepend_bos,
        "context_size": info.context_size,
        "neuronpedia_id": info.neuronpedia_id,
        "l0": info.declared_l0,
    }
    if module := module_of(sae.site, model):
        metadata["hf_hook_name"] = module
    if sae.is_transcoder:
        metadata["hook_name_out"] = hook_of(sae.site_out)
        if module := module_of(sae.site_out, model):
            metadata["hf_hook_name_out"] = module
    metadata |= {key: value for key, value in info.metadata.items() if key not in _OWN}
    said = metadata.get(_KWARGS)
    if sae.centred or said or metadata["sae_lens_training_version"]:
        # What TransformerLens had done to the model, as far as the SAE still reads it that way.
        now = {"center_writing_weights": sae.centred, "fold_value_biases": False}
        metadata[_KWARGS] = (said if isinstance(said, dict) else {}) | now
    return metadata | ({"encoder_is_centred": True} if sae.centred else {})
