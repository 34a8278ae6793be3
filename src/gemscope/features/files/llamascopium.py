"""OpenMOSS's llamascopium (lm-saes before): `config.json` and `sae_weights.safetensors`, or a pickle of the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta
from torch import Tensor

from gemscope.activations.site import Site
from gemscope.checked import Positive, quoted
from gemscope.errors import CorruptFile, FileError
from gemscope.features.files.contents import Contents
from gemscope.features.files.fold import fold_decoder_norms, fold_input_bias, fold_scales, rounded
from gemscope.features.files.format import Format, Found
from gemscope.features.files.hook_names import site_of_hook
from gemscope.features.files.taken import Table, number, taken
from gemscope.features.weights import Gate

CONFIG = "config.json"
_NORM = "dataset_average_activation_norm"
_LOG = "activation_function.log_jumprelu_threshold"
_TABLE: Table = {
    "W_enc": ("W_E", "D F"),
    "b_enc": ("b_E", "F"),
    "W_dec": ("W_D", "F O"),
    "b_dec": ("b_D", "O"),
    "log_threshold": (_LOG, "F"),
}
_OLDER: Table = {
    "W_enc": ("encoder.weight", "F D"),
    "b_enc": ("encoder.bias", "F"),
    "W_dec": ("decoder.weight", "O F"),
    "b_dec": ("decoder.bias", "O"),
    "log_threshold": (_LOG, "F"),
}
_OTHERS = {
    "crosscoder": "reads several places together",
    "clt": "writes at several layers (a cross-layer transcoder)",
    "lorsa": "takes the place of attention, and reads earlier tokens",
    "molt": "is a mixture of linear maps",
}
_GATES: Mapping[str, Gate] = {"relu": "relu", "jumprelu": "jumprelu", "topk": "topk"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """`config.json`, as far as it changes what is computed."""

    sae_type: str = "sae"
    d_model: Positive
    expansion_factor: Annotated[float, Meta(gt=0, le=1e6)]
    act_fn: str
    norm_activation: str
    sparsity_include_decoder_norm: bool
    top_k: Positive | None = None
    use_decoder_bias: bool = True
    use_glu_encoder: bool = False
    apply_decoder_bias_to_pre_encoder: bool = False
    hook_point_in: str | None = None
    hook_point_out: str | None = None
    dataset_average_activation_norm: dict[str, float] | None = None


def _held(found: Found) -> Mapping[str, Any]:
    held = found.stored.get("sae", found.stored)
    return held if isinstance(held, dict) else {}


def _is_its(found: Found) -> bool:
    held = _held(found)
    older = all(name in held for name, _ in (_OLDER["W_enc"], _OLDER["W_dec"]))
    return "W_E" in held or "W_D" in held or (older and found.folder(CONFIG, needed=False) is not None)


def read(found: Found) -> Contents:
    """One SAE or transcoder of a layer. Raises FileError for other kinds, and for norms that differ from token to
    token; CorruptFile.
    """
    source = found.source
    config = found.declared(CONFIG, Config)
    _refuse_others(config, source)
    held = _held(found)
    table = dict(_TABLE if "W_E" in held else _OLDER)
    if not config.use_decoder_bias:
        del table["b_dec"]
    ignored = [name for name in held if str(name).startswith(f"{_NORM}.")]
    tensors = taken(held, table, source=source, optional=("log_threshold",), ignored=ignored)
    d_in, d_sae = tensors["W_enc"].shape
    if (d_in, d_sae) != (config.d_model, int(config.d_model * config.expansion_factor)):
        raise CorruptFile(
            f"{source}: {CONFIG} says {config.d_model} times {config.expansion_factor:g}, "
            f"the weights have {d_in} to {d_sae}"
        )
    tensors.setdefault("b_dec", tensors["W_dec"].new_zeros(tensors["W_dec"].shape[1]))
    _threshold(tensors, config, source)
    if config.apply_decoder_bias_to_pre_encoder:
        fold_input_bias(tensors)
    if config.sparsity_include_decoder_norm:  # as stored; behind them is the threshold
        fold_decoder_norms(tensors)
    fold_scales(tensors, *_scales(config, held, d_in, source))
    read_at, write_at = _sites(found, config)
    return Contents(
        source=source,
        tensors=tensors,
        gate=_GATES[config.act_fn],
        k=config.top_k if config.act_fn == "topk" else None,
        site=read_at,
        site_out=write_at,
        info=found.info(None),
    )


def _threshold(tensors: dict[str, Tensor], config: Config, source: str) -> None:
    log = tensors.pop("log_threshold", None)
    if config.act_fn != "jumprelu":
        return
    if log is None:
        raise CorruptFile(f"{source} has no {_LOG}, and {CONFIG} says jumprelu")
    tensors["threshold"] = rounded(log.double().exp(), log)


def _scales(config: Config, held: Mapping[str, Any], d: int, source: str) -> tuple[float, float]:
    """What is read is multiplied by the first, what is written is divided by the second."""
    if config.norm_activation == "inference":
        return 1.0, 1.0

    def scale(hook: str | None, end: str) -> float:
        name = f"{_NORM}.{hook}"
        said = (config.dataset_average_activation_norm or {}).get(end, held.get(name))
        norm = number(said, name, source)
        if not 0 < norm < math.inf:
            raise CorruptFile(f"{source}: {name} is {norm:g}, expected the length of an average activation")
        return math.sqrt(d) / norm

    return scale(config.hook_point_in, "in"), scale(config.hook_point_out, "out")


def _sites(found: Found, config: Config) -> tuple[Site, Site | None]:
    name = found.info(None).model or found.repo
    hook_in, hook_out = config.hook_point_in, config.hook_point_out
    read_at = found.site or (site_of_hook(hook_in, name, found.source) if hook_in else found.required_site())
    return read_at, site_of_hook(hook_out, name, found.source) if hook_out and hook_out != hook_in else None


def _refuse_others(config: Config, source: str) -> None:
    if config.sae_type != "sae":
        why = _OTHERS.get(config.sae_type, "is not read")
        raise FileError(f"{source} is a {config.sae_type} of llamascopium's, which {why}: SAEs of one place are read")
    if config.use_glu_encoder:
        raise FileError(f"{source} has a gated linear unit for an encoder (use_glu_encoder), which is no SAE of ours")
    if config.norm_activation not in ("inference", "dataset-wise"):
        raise FileError(
            f"{source} has norm_activation={quoted(config.norm_activation)}, a norm of each token or batch by itself: "
            "'inference' and 'dataset-wise' are read"
        )
    if config.act_fn not in _GATES:
        raise FileError(
            f"{source} has act_fn={quoted(config.act_fn)}: read are {', '.join(_GATES)} (a batchtopk has no threshold "
            "for a token by itself)"
        )
    if config.act_fn == "topk" and config.top_k is None:
        raise CorruptFile(f"{source}: {CONFIG} says topk and not how many (top_k)")


FORMAT = Format(
    name="llamascopium",
    weights=r"sae_weights\.(?:safetensors|pt)",
    called="",
    beside={CONFIG: None},
    is_its=_is_its,
    read=read,
)
