"""saprmarks' dictionary_learning, which SAEBench's and many others' SAEs are made with: `ae.pt`, a pickle of tensors,
and `config.json`, in folders such as resid_post_layer_3/trainer_0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gemscope.activations.site import Site
from gemscope.checked import Count, Positive, quoted
from gemscope.errors import CorruptFile, FileError
from gemscope.features.files.contents import Contents
from gemscope.features.files.fold import fold_decoder_norms, fold_gate, fold_input_bias, times
from gemscope.features.files.format import Format, Found
from gemscope.features.files.hook_names import site_of_part
from gemscope.features.files.taken import Table, number, taken, whole
from gemscope.features.weights import Gate

CONFIG = "config.json"
_SUBMODULE = r"(resid_post|resid_out|resid|mlp_out|mlp|attn_out|attn|att_out|att)_?layer_?(\d{1,9})"
_PARTS = {"resid": "res", "mlp": "mlp", "attn": "att_out", "att": "att_out"}

_LINEAR: Table = {
    "W_enc": ("encoder.weight", "F D"),
    "b_enc": ("encoder.bias", "F"),
    "W_dec": ("decoder.weight", "O F"),
    "b_dec": ("b_dec", "O"),
}
_OURS: Table = {
    "W_enc": ("W_enc", "D F"),
    "b_enc": ("b_enc", "F"),
    "W_dec": ("W_dec", "F O"),
    "b_dec": ("b_dec", "O"),
}


@dataclass(frozen=True)
class _Kind:
    """One of its classes: the names in the file, and what is done around the weights."""

    gate: Gate
    table: Table
    ignored: tuple[str, ...] = ()
    input_bias: bool = True
    unit_rows: bool = False
    """Its `from_pretrained` makes decoder rows of norm 1, and features larger by as much."""
    one_threshold: bool = False
    """`threshold` is one number, for all features."""


_KINDS: Mapping[str, _Kind] = {
    "AutoEncoder": _Kind(gate="relu", table={**_LINEAR, "b_dec": ("bias", "O")}, unit_rows=True),
    "AutoEncoderNew": _Kind(gate="relu", table={**_LINEAR, "b_dec": ("decoder.bias", "O")}, input_bias=False),
    "GatedAutoEncoder": _Kind(
        gate="jumprelu",
        table={
            "W_enc": ("encoder.weight", "F D"),
            "b_gate": ("gate_bias", "F"),
            "b_mag": ("mag_bias", "F"),
            "r_mag": ("r_mag", "F"),
            "W_dec": ("decoder.weight", "O F"),
            "b_dec": ("decoder_bias", "O"),
        },
    ),
    "AutoEncoderTopK": _Kind(gate="topk", table=_LINEAR, ignored=("k", "threshold")),
    "BatchTopKSAE": _Kind(gate="jumprelu", table=_LINEAR, ignored=("k", "threshold"), one_threshold=True),
    "MatryoshkaBatchTopKSAE": _Kind(
        gate="jumprelu", table=_OURS, ignored=("k", "threshold", "group_sizes"), one_threshold=True
    ),
    "JumpReluAutoEncoder": _Kind(gate="jumprelu", table={**_OURS, "threshold": ("threshold", "F")}, input_bias=False),
}
"""By `dict_class`."""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """What a configuration says of the SAE."""

    dict_class: str | None = None
    activation_dim: Positive | None = None
    dict_size: Positive | None = None
    layer: Count | None = None
    lm_name: str | None = None
    submodule_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """What it says of the activations."""

    io: str | None = None
    ctx_len: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """`config.json`."""

    trainer: Trainer
    buffer: Buffer = Buffer()


def _is_its(found: Found) -> bool:
    stored = found.stored
    if found.file.suffix == ".safetensors" or not stored:
        return False
    held = stored.get("ae", stored)
    return isinstance(held, dict) and _kind_by_names(held) is not None


def read(found: Found) -> Contents:
    """An ae.pt and its configuration. Raises FileError for a class that is not read, or that cannot be told;
    CorruptFile, UnsafeFile.
    """
    source = found.source
    config = Config(trainer=Trainer())
    if found.folder(CONFIG, needed=False) is not None:
        config = found.declared(CONFIG, Config)
    held, factor = _whole(found.stored, source)
    kind = _kind(config.trainer.dict_class, held, source)
    tensors: dict[str, Tensor] = taken(held, kind.table, source=source, ignored=kind.ignored)
    if kind.one_threshold:
        threshold = number(held.get("threshold"), "threshold", source)
        tensors["threshold"] = tensors["b_enc"].new_full(tensors["b_enc"].shape, threshold)
    if factor != 1:  # what scale_biases would have done at the end of the run
        tensors |= {name: times(one, factor) for name, one in tensors.items() if one.ndim == 1 and name != "r_mag"}
    stated, there = (config.trainer.activation_dim, config.trainer.dict_size), tuple(tensors["W_enc"].shape)
    if any(said not in (None, size) for said, size in zip(stated, there, strict=True)):
        raise CorruptFile(
            f"{source}: {CONFIG} says {stated[0]} to {stated[1]}, the weights have {there[0]} to {there[1]}"
        )
    if kind.gate == "jumprelu" and "r_mag" in tensors:
        fold_gate(tensors)
    if kind.input_bias:
        fold_input_bias(tensors)
    if kind.unit_rows:
        fold_decoder_norms(tensors)
    return Contents(
        source=source,
        tensors=tensors,
        gate=kind.gate,
        k=whole(held.get("k"), "k", source) if kind.gate == "topk" else None,
        site=_site(found, config),
        info=found.info(
            config.trainer.lm_name, context_size=config.buffer.ctx_len, metadata=_untrained(held, kind)
        ),
    )  # fmt: skip


def _whole(stored: Mapping[str, Any], source: str) -> tuple[Mapping[str, Any], float]:
    """The weights, and what their biases have still to be multiplied by: a run that was interrupted keeps more than
    weights, and activations scaled.
    """
    if "ae" not in stored:
        return stored, 1
    if not isinstance(stored["ae"], dict):
        raise CorruptFile(f"{source}: ae is a {type(stored['ae']).__name__}, expected a dictionary of tensors")
    factor = stored.get("norm_factor")
    return stored["ae"], 1 if factor is None else number(factor, "norm_factor", source)


def _kind(said: str | None, held: Mapping[str, Any], source: str) -> _Kind:
    by_names = _kind_by_names(held)
    if said is None:
        if by_names == "":
            raise FileError(
                f"{source} may be an AutoEncoderTopK or a BatchTopKSAE, which have the same names: {CONFIG} beside it "
                "says which, and is not there"
            )
        if by_names is None:
            names = ", ".join(sorted(map(str, held))[:12]) or "nothing"
            raise CorruptFile(f"{source} is of no class of dictionary_learning's that is read: it holds {names}")
        return _KINDS[by_names]
    if said not in _KINDS:
        raise FileError(f"{source} is of the class {quoted(said)}, which is not read: read are {', '.join(_KINDS)}")
    return _KINDS[said]


def _kind_by_names(held: Mapping[str, Any]) -> str | None:
    """The class whose names these are; "" where they are of two, None where of none."""
    names = set(held)
    fitting = [
        name
        for name, kind in _KINDS.items()
        if name != "AutoEncoderNew"  # others have those names, too
        and {theirs for theirs, _ in kind.table.values()} | set(kind.ignored) == names
    ]
    return fitting[0] if len(fitting) == 1 else "" if fitting else None


def _untrained(held: Mapping[str, Any], kind: _Kind) -> dict[str, object]:
    """What is to be known of a threshold that was never set, in runs too short for it: all that is positive counts."""
    if not kind.one_threshold or float(held["threshold"]) >= 0:
        return {}
    return {"threshold": "never set: the run was too short for it, so that every positive feature is active"}


def _site(found: Found, config: Config) -> Site:
    if found.site is not None:
        return found.site
    named = found.hit(_SUBMODULE, config.trainer.submodule_name)
    if config.buffer.io not in (None, "out"):
        raise FileError(
            f"{found.source} is of what {quoted(config.buffer.io)} of a module: those of what comes out are read; "
            "for one of what goes in say where that is, as in site='20.res'"
            if config.buffer.io == "in"
            else f"{found.source} is a transcoder of dictionary_learning's, whose place is not known here"
        )
    if named is None:
        return found.required_site()
    part = _PARTS[named[1].partition("_")[0]]
    return site_of_part(part, int(named[2]), found.builds(config.trainer.lm_name), found.source)


FORMAT = Format(
    name="dictionary_learning",
    weights=r"ae\.pt",
    called="ae.pt",
    beside={CONFIG: None},
    is_its=_is_its,
    read=read,
)
