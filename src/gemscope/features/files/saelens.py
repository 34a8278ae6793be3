"""SAELens folders (`cfg.json` and `sae_weights.safetensors`): version 6 read and written, older ones read.

What SAELens does to activations before and after the weights is folded into the weights, exactly, or the folder is
refused; nothing that changes the arithmetic is passed over.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gemscope.activations.site import Site
from gemscope.disk import claimed, room, synced
from gemscope.errors import CorruptFile, FileError, InputError
from gemscope.features.files.contents import Contents, Folder
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
from gemscope.features.sae import SAE, Gate, SAEInfo

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
SCALER = "activation_scaler.json"
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

_KEPT = (
    "model_class_name", "model_from_pretrained_kwargs", "exclude_special_tokens", "seqpos_slice", "dataset_path",
    "sae_lens_training_version", "training_architecture", "training_architecture_details", "num_dead_features",
)  # fmt: skip
"""Metadata that SAEInfo has no field for, kept from version-5 folders, where it lies among all else."""
_OWN = frozenset(
    ("model_name", "hook_name", "hook_name_out", "hf_hook_name", "hf_hook_name_out", "hook_head_index",
     "hook_head_index_out", "prepend_bos", "context_size", "neuronpedia_id", "l0", "sae_lens_version")
)  # fmt: skip
"""Metadata that has its place in SAE or SAEInfo."""


# --- reading --------------------------------------------------------------------------------------------------------


def read(folder: Folder, *, source: str, site: Site | None = None) -> Contents:
    """What a folder holds. `site` stands in for the hook name that the folder gives.

    Raises FileError for an architecture, a normalisation or a hook that is not read here, CorruptFile.
    """
    config_path, weights_path = folder(CONFIG), folder(WEIGHTS)
    if config_path is None or weights_path is None:
        raise CorruptFile(f"{source} has no {CONFIG if config_path is None else WEIGHTS}: an SAELens folder has both")
    stored = read_json(config_path)
    if stored.get("architecture") == CROSSCODER:
        raise FileError(f"{source} is a crosscoder, which reads several sites together: load it with load_crosscoder")
    config = modernised(stored)
    metadata = config["metadata"]
    architecture = config["architecture"]
    if architecture not in _GATES:
        raise FileError(
            f"{source} is of the architecture {architecture!r}, which is not read here: read are {', '.join(_GATES)}"
        )
    model = _model_id(metadata.get("model_name"))
    read_at, write_at = _sites(metadata, model, source, site)
    _refuse_what_cannot_be_folded(config, source)
    scale = _input_scale(config, folder, source)
    if read_at.layer is None and scales_embedding(model):
        # TransformerLens hands Gemma's embedding out multiplied by √d_model; our site is before that.
        scale *= math.sqrt(_number(config, "d_in", source))
    tensors = _folded(read_safetensors(weights_path), config, scale, source)
    _check_sizes(config, tensors, source)
    return Contents(
        source=source,
        tensors=tensors,
        gate=_GATES[architecture],
        k=int(_number(config, "k", source)) if architecture == "topk" else None,
        site=read_at,
        site_out=write_at,
        info=_info(metadata, model, source),
    )


def modernised(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration in the names and places of version 6, whatever version wrote it."""
    metadata: dict[str, Any] = config["metadata"] if isinstance(config.get("metadata"), dict) else {}
    if metadata and not _is_before_6(config.get("sae_lens_version") or metadata.get("sae_lens_version")):
        return {"architecture": "standard", "apply_b_dec_to_input": True, **config}
    names = {
        "hook_point": "hook_name",
        "hook_point_head_index": "hook_head_index",
        "activation_fn_str": "activation_fn",
    }
    old: dict[str, Any] = {"architecture": "standard", "apply_b_dec_to_input": True, "prepend_bos": True}
    old |= {names.get(key, key): value for key, value in config.items()}
    if isinstance(normalize := old.get("normalize_activations"), bool):
        old["normalize_activations"] = "expected_average_only_in" if normalize else "none"
    if old["architecture"] == "standard" and old.get("activation_fn") == "topk":
        old["architecture"] = "topk"
        old["k"] = (old.get("activation_fn_kwargs") or {}).get("k")
    moved = {key: value for key, value in old.items() if key in _OWN or key in _KEPT}
    return old | {"metadata": moved | metadata}


def _is_before_6(version: object) -> bool:
    major = str(version or "0").partition(".")[0]
    return not major.isdecimal() or int(major) < 6


def _sites(metadata: dict[str, Any], model: str | None, source: str, given: Site | None) -> tuple[Site, Site | None]:
    def named(end: str) -> Site | None:
        module, hook = metadata.get(f"hf_hook_name{end}"), metadata.get(f"hook_name{end}")
        if module:  # some folders give a Gemma Scope 2 transcoder the hook of another tensor, and the right module
            return site_of_module(str(module), model, source)
        return site_of_hook(str(hook), model, source) if hook else None

    read_at = given or named("")
    if read_at is None:
        raise FileError(f"{source} does not say where in the model it reads: say it with site='20.res'")
    is_transcoder = metadata.get("hook_name_out") != metadata.get("hook_name")
    return read_at, named("_out") if is_transcoder else None


def _info(metadata: dict[str, Any], model: str | None, source: str) -> SAEInfo:
    l0, context = metadata.get("l0"), metadata.get("context_size")
    return SAEInfo(
        name=source,
        model=model,
        declared_l0=float(l0) if isinstance(l0, (int, float)) else None,
        neuronpedia_id=metadata.get("neuronpedia_id"),
        prepend_bos=metadata.get("prepend_bos"),
        context_size=context if isinstance(context, int) else None,
        metadata={key: value for key, value in metadata.items() if key not in _OWN},
    )


def _model_id(name: object) -> str | None:
    """TransformerLens leaves the owner off."""
    if not isinstance(name, str) or "/" in name:
        return name if isinstance(name, str) else None
    if name.startswith("gemma-"):
        return f"google/{name}"
    if name.startswith("gpt2"):
        return f"openai-community/{name.removesuffix('-small')}"
    if name.startswith("pythia-"):
        return f"EleutherAI/{name}"
    return name


def _refuse_what_cannot_be_folded(config: dict[str, Any], source: str) -> None:
    if config["metadata"].get("hook_head_index") is not None:
        raise FileError(f"{source} reads a single attention head: SAEs over all heads are read")
    if config.get("finetuning_scaling_factor"):
        raise FileError(f"{source} scales its features by a finetuning_scaling_factor, which is not read here")
    if config.get("reshape_activations") not in (None, "none", "hook_z"):
        raise FileError(
            f"{source} reshapes activations by {config['reshape_activations']!r}: 'none' and 'hook_z' are read"
        )
    activation = config.get("activation_fn", "relu")
    if config["architecture"] == "standard" and activation not in (None, "relu"):
        raise FileError(f"{source} has the activation function {activation!r}: 'relu' and 'topk' are read")


def _input_scale(config: dict[str, Any], folder: Folder, source: str) -> float:
    """What activations are multiplied by before the encoder, and divided by behind the decoder."""
    normalize = config.get("normalize_activations")
    if normalize in (None, "none"):
        return 1.0
    if normalize != "expected_average_only_in":
        raise FileError(
            f"{source} has normalize_activations={normalize!r}, which depends on each token and cannot be folded into "
            "weights: only 'none' and 'expected_average_only_in' are read"
        )
    if config["architecture"].endswith("transcoder"):
        raise FileError(
            f"{source} is a transcoder with normalize_activations={normalize!r}, whose output scale is not said"
        )
    factor = config.get("norm_scaling_factor", config["metadata"].get("norm_scaling_factor"))
    if factor is None and (scaler := folder(SCALER, needed=False)) is not None:
        factor = read_json(scaler).get("scaling_factor")
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not (math.isfinite(factor) and factor > 0):
        raise FileError(
            f"{source} has normalize_activations={normalize!r} and no usable factor: its activations cannot be scaled "
            f"rightly without norm_scaling_factor in {CONFIG} or scaling_factor in {SCALER}"
        )
    return float(factor)


def _folded(stored: Mapping[str, Tensor], config: dict[str, Any], scale: float, source: str) -> dict[str, Tensor]:
    """The weights of an SAE that does the same on plain activations. What is folded is computed in float64 and kept in
    float32 or better, whatever the file is in; the rest stays mapped from it.
    """
    tensors = dict(stored)
    _drop_scaling_factor(tensors, source)
    _complete(tensors, config["architecture"], source)
    if config["architecture"] == "gated":
        _fold_gate(tensors)
    if "log_threshold" in tensors:
        stored_log = tensors.pop("log_threshold")
        tensors["threshold"] = _rounded(stored_log.double().exp(), stored_log)
    if "topk_threshold" in tensors:
        tensors["threshold"] = tensors.pop("topk_threshold").reshape(1).expand(tensors["W_enc"].shape[1]).contiguous()
    if config["apply_b_dec_to_input"]:
        _fold_input_bias(tensors, source)
    if scale != 1.0:
        # (s·x) @ W_enc = x @ (s·W_enc), and what comes out is in units of s·x
        tensors["W_enc"] = _times(tensors["W_enc"], scale)
        tensors["W_dec"] = _times(tensors["W_dec"], 1 / scale)
        tensors["b_dec"] = _times(tensors["b_dec"], 1 / scale)
    if config.get("rescale_acts_by_decoder_norm"):
        # Pre-activations are multiplied by their decoder row's norm, and features divided by it again: as if it were 1.
        norm = tensors["W_dec"].double().norm(dim=1)
        tensors["W_enc"] = _times(tensors["W_enc"], norm)
        tensors["b_enc"] = _times(tensors["b_enc"], norm)
        tensors["W_dec"] = _times(tensors["W_dec"], torch.where(norm > 0, 1 / norm, 0.0).unsqueeze(1))
        if "threshold" in tensors:
            # It was learned beside the norm of W_dec as stored, which `scale` has divided since.
            tensors["threshold"] = _times(tensors["threshold"], 1 / scale)
    return tensors


def _drop_scaling_factor(tensors: dict[str, Tensor], source: str) -> None:
    """Versions before 6 wrote a factor for every feature: ones, unless the SAE was finetuned."""
    factor = tensors.pop("scaling_factor", None)
    if factor is not None and not factor.eq(1).all():
        raise FileError(f"{source} scales its features by a scaling_factor other than 1, which is not read here")


def _complete(tensors: Mapping[str, Tensor], architecture: str, source: str) -> None:
    """Everything that folding reads is there and fits; `build` looks at the rest."""
    needed = ["W_enc", "W_dec", "b_dec", *(["b_gate", "b_mag", "r_mag"] if architecture == "gated" else ["b_enc"])]
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


def _fold_gate(tensors: dict[str, Tensor]) -> None:
    """A gated SAE as a JumpReLU one (Rajamanoharan et al. 2024, appendix H).

    Active where x @ W_enc + b_gate > 0, of strength relu(x @ (W_enc · e^r) + b_mag). Multiplying the gate by e^r > 0
    makes it a threshold on the strength's own pre-activation: z > b_mag − b_gate · e^r.
    """
    grown = tensors.pop("r_mag").double().exp()
    b_gate, b_mag = tensors.pop("b_gate"), tensors.pop("b_mag")
    tensors["W_enc"] = _times(tensors["W_enc"], grown)
    tensors["b_enc"] = b_mag
    tensors["threshold"] = _rounded(b_mag.double() - b_gate.double() * grown, b_mag)


def _fold_input_bias(tensors: dict[str, Tensor], source: str) -> None:
    """(x − b_dec) @ W_enc + b_enc = x @ W_enc + (b_enc − b_dec @ W_enc)."""
    W_enc, b_dec = tensors["W_enc"], tensors["b_dec"]
    if b_dec.numel() != W_enc.shape[0]:
        raise CorruptFile(
            f"{source}: apply_b_dec_to_input takes b_dec of {b_dec.numel()} from inputs of {W_enc.shape[0]}"
        )
    shift = torch.zeros(W_enc.shape[1], dtype=torch.float64)
    for rows, bias in zip(
        torch.split(W_enc, 256), torch.split(b_dec, 256), strict=True
    ):  # a copy in float64 of a piece, not of all
        shift += bias.double() @ rows.double()
    tensors["b_enc"] = _rounded(tensors["b_enc"].double() - shift, tensors["b_enc"])


def _times(tensor: Tensor, factor: float | Tensor) -> Tensor:
    """The product, rounded once."""
    return _rounded(tensor.double() * factor, tensor)


def _rounded(exact: Tensor, stored: Tensor) -> Tensor:
    """What came of a stored tensor, in its format or in float32: half precision would move features across their
    threshold.
    """
    return exact.to(torch.promote_types(stored.dtype, torch.float32))


def _number(config: dict[str, Any], key: str, source: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CorruptFile(f"{source}: {CONFIG} has {key}={value!r}, expected a number")
    return float(value)


def _check_sizes(config: dict[str, Any], tensors: Mapping[str, Tensor], source: str) -> None:
    d_in, d_sae = tensors["W_enc"].shape
    actual = {"d_in": d_in, "d_sae": d_sae, "d_out": tensors["W_dec"].shape[1]}
    for key, size in actual.items():
        if config.get(key, size) != size:
            raise CorruptFile(f"{source}: {CONFIG} says {key}={config[key]}, the weights have {size}")


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
        state["W_enc"] = _times(state["W_enc"], 1 / scale)
        state["W_dec"] = _times(state["W_dec"], scale)
        state["b_dec"] = _times(state["b_dec"], scale)
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
    return metadata | {key: value for key, value in info.metadata.items() if key not in _OWN}
