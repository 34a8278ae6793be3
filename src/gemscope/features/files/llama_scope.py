"""Llama Scope as first published (fnlp/Llama3_1-8B-Base-LXR-8x and its kin): `hyperparams.json` in an SAE's folder, the
weights in `checkpoints/final.safetensors` below it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from gemscope.activations.site import Site
from gemscope.checked import Positive, quoted, read_json
from gemscope.errors import CorruptFile, FileError
from gemscope.features.files.contents import Contents
from gemscope.features.files.fold import fold_decoder_norms, fold_input_bias, times
from gemscope.features.files.format import Format, Found
from gemscope.features.files.hook_names import site_of_hook
from gemscope.features.files.taken import Table, taken

CONFIG = "hyperparams.json"
WEIGHTS = "checkpoints/final.safetensors"
_MODEL = "meta-llama/Llama-3.1-8B"
_CONTEXT = 1024
"""Tokens a row of its training text (He et al. 2024)."""
_TABLE: Table = {
    "W_enc": ("encoder.weight", "F D"),
    "b_enc": ("encoder.bias", "F"),
    "W_dec": ("decoder.weight", "O F"),
    "b_dec": ("decoder.bias", "O"),
}

_Norm = Annotated[float, Meta(gt=0, le=1e30)]


@dataclass(frozen=True, kw_only=True)
class Config:
    """`hyperparams.json`, as far as it changes what is computed."""

    d_model: Positive
    d_sae: Positive
    act_fn: str
    norm_activation: str
    hook_point_in: str
    hook_point_out: str
    jump_relu_threshold: Annotated[float, Meta(ge=0)] | None = None
    top_k: Positive | None = None
    dataset_average_activation_norm: dict[str, _Norm] | None = None
    sparsity_include_decoder_norm: bool = True
    use_decoder_bias: bool = True
    apply_decoder_bias_to_pre_encoder: bool = False
    use_glu_encoder: bool = False


def read(found: Found) -> Contents:
    """One SAE. Raises FileError for norms of each token by itself and for other kinds, CorruptFile."""
    source = found.source
    path = found.folder(CONFIG) or found.folder(f"../{CONFIG}")
    if path is None:
        raise CorruptFile(f"{source} has no {CONFIG}, which lies above checkpoints/ : fetch the whole folder")
    config = read_json(path, Config, remedy="fetch it again")
    _refuse_others(config, source)
    table = dict(_TABLE)
    if not config.use_decoder_bias:
        del table["b_dec"]
    tensors = taken(found.stored, table, source=source)
    if (config.d_model, config.d_sae) != tuple(tensors["W_enc"].shape):
        there = " to ".join(map(str, tensors["W_enc"].shape))
        raise CorruptFile(f"{source}: {CONFIG} says {config.d_model} to {config.d_sae}, the weights have {there}")
    tensors.setdefault("b_dec", tensors["W_dec"].new_zeros(tensors["W_dec"].shape[1]))
    if config.apply_decoder_bias_to_pre_encoder:
        fold_input_bias(tensors)
    scale_in, scale_out = _scales(config, source)
    # (s·x) @ W + b is s times x @ W + b/s: its features are the latter, in units of the model's own activations.
    tensors["b_enc"] = times(tensors["b_enc"], 1 / scale_in)
    tensors["W_dec"] = times(tensors["W_dec"], scale_in / scale_out)
    tensors["b_dec"] = times(tensors["b_dec"], 1 / scale_out)
    if config.sparsity_include_decoder_norm:
        fold_decoder_norms(tensors)
    # The threshold is compared with what comes of all that, in those units.
    if config.jump_relu_threshold is not None:
        tensors["threshold"] = tensors["b_enc"].new_full(tensors["b_enc"].shape, config.jump_relu_threshold)
    read_at, write_at = _sites(found, config)
    l0 = {} if config.top_k is None else {"declared_l0": float(config.top_k)}
    return Contents(
        source=source,
        tensors=tensors,
        gate="topk" if config.jump_relu_threshold is None else "jumprelu",
        k=config.top_k if config.jump_relu_threshold is None else None,
        site=read_at,
        site_out=write_at,
        info=found.info(_MODEL, **l0, context_size=_CONTEXT, prepend_bos=True),
    )


def _scales(config: Config, source: str) -> tuple[float, float]:
    if config.norm_activation == "inference":
        return 1.0, 1.0
    norms = config.dataset_average_activation_norm or {}
    if missing := [end for end in ("in", "out") if end not in norms]:
        raise CorruptFile(f"{source}: {CONFIG} has no dataset_average_activation_norm for {' and '.join(missing)}")
    root = math.sqrt(config.d_model)
    return root / norms["in"], root / norms["out"]


def _sites(found: Found, config: Config) -> tuple[Site, Site | None]:
    read_at = found.site or site_of_hook(config.hook_point_in, _MODEL, found.source)
    if config.hook_point_out == config.hook_point_in:
        return read_at, None
    return read_at, site_of_hook(config.hook_point_out, _MODEL, found.source)


def _refuse_others(config: Config, source: str) -> None:
    if config.use_glu_encoder:
        raise FileError(f"{source} has a gated linear unit for an encoder (use_glu_encoder), which is no SAE of ours")
    if config.norm_activation not in ("inference", "dataset-wise"):
        raise FileError(
            f"{source} has norm_activation={quoted(config.norm_activation)}, a norm of each token or batch by itself: "
            "'dataset-wise' is read"
        )
    if config.jump_relu_threshold is None and (config.act_fn != "topk" or config.top_k is None):
        raise FileError(f"{source} has act_fn={quoted(config.act_fn)} and no jump_relu_threshold: not read")


FORMAT = Format(
    name="Llama Scope",
    weights=r"final\.safetensors",
    called=CONFIG,
    beside={CONFIG: WEIGHTS},
    is_its=lambda found: found.file.suffix == ".safetensors" and found.folder(CONFIG, needed=False) is not None,
    read=read,
)
