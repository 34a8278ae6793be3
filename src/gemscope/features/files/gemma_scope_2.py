"""Gemma Scope 2 (Gemma 3): `params.safetensors`, and mostly a `config.json` beside it that says where the SAE reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from gemscope.activations.site import Site
from gemscope.checked import Positive, read_json
from gemscope.errors import CorruptFile, FileError
from gemscope.features.entry import Entry
from gemscope.features.files.contents import Contents, info_of, renamed
from gemscope.features.files.format import Format, Found
from gemscope.features.files.hook_names import site_of_module

WEIGHTS = "params.safetensors"
CONFIG = "config.json"
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec", "affine_skip_connection": "W_skip"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """`config.json`, as far as it is used here."""

    type: str | None = None
    architecture: str = "jump_relu"
    width: Positive | None = None
    affine_connection: bool | None = None
    model_name: str | None = None
    l0: float | None = None
    hf_hook_point_in: str | None = None
    hf_hook_point_out: str | None = None


def read(found: Found) -> Contents:
    """A params.safetensors and its configuration. Without one, what the names said stands in.

    Raises CorruptFile, FileError for a kind that is not read here (crosscoders, cross-layer transcoders).
    """
    source, entry = found.source, found.entry
    beside = found.folder(CONFIG, needed=False)
    config = Config() if beside is None else read_json(beside, Config, remedy="fetch it again")
    _refuse_others(config, source)
    tensors = _oriented(found.stored)
    width = config.width
    if width is not None and "b_enc" in tensors and width != tensors["b_enc"].numel():
        raise CorruptFile(f"{source}: {CONFIG} says {width} features, the weights have {tensors['b_enc'].numel()}")
    affine = config.affine_connection
    if affine is not None and affine != ("W_skip" in tensors):
        has = "has none" if affine else "has one"
        raise CorruptFile(f"{source}: {CONFIG} says affine_connection={str(affine).lower()}, {WEIGHTS} {has}")
    info = replace(info_of(entry, source), prepend_bos=True)
    if config.model_name is not None:
        info = replace(info, model=config.model_name)
    if config.l0 is not None:
        info = replace(info, declared_l0=config.l0)
    read_at, write_at = _sites(config, info.model, entry, source, found.site)
    return Contents(source=source, tensors=tensors, site=read_at, site_out=write_at, info=info)


def _sites(
    config: Config, model: str | None, entry: Entry | None, source: str, given: Site | None
) -> tuple[Site | None, Site | None]:
    """Where it reads and writes, from the configuration; where that is silent, from the names. `given` goes first."""
    hook_in, hook_out = config.hf_hook_point_in, config.hf_hook_point_out
    read_at, write_at = (None, None) if entry is None else (entry.site, entry.site_out)
    if read_at == write_at:
        write_at = None
    if hook_in is not None and given is None:
        read_at = site_of_module(hook_in, model, source)
    if hook_out is not None and hook_out != hook_in:
        write_at = site_of_module(hook_out, model, source)
    return given or read_at, write_at


def _refuse_others(config: Config, source: str) -> None:
    if config.type is not None and config.type.lower() in {"crosscoder", "clt", "cross_layer_transcoder"}:
        raise FileError(f"{source} is a {config.type}: SAEs and transcoders of a single layer are read")
    if config.architecture.lower().replace("_", "") != "jumprelu":
        raise FileError(f"{source} has the architecture {config.architecture!r}: Gemma Scope 2's jump_relu is read")


def _oriented(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names; the skip as W_skip [d_out, d_in], where the file has [d_in, d_out]."""
    tensors = renamed(stored, _NAMES)
    if "affine_skip_connection" in stored:
        tensors["W_skip"] = tensors["W_skip"].T
    return tensors


def _is_its(found: Found) -> bool:
    return found.file.suffix == ".safetensors" and (found.has("w_enc") or found.has("W_enc", "threshold"))


FORMAT = Format(
    name="Gemma Scope 2",
    called=WEIGHTS,
    weights=r"params\.safetensors",
    beside={CONFIG: None},
    is_its=_is_its,
    read=read,
)
