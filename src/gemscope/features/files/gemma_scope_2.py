"""Gemma Scope 2 (Gemma 3): `params.safetensors`, and mostly a `config.json` beside it that says where the SAE reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gemscope.activations.site import Site
from gemscope.errors import CorruptFile, FileError
from gemscope.features.catalog import Entry
from gemscope.features.files.contents import Contents, info_of, renamed
from gemscope.features.files.hook_names import site_of_module
from gemscope.features.files.json_file import read_json
from gemscope.features.files.tensors import read_safetensors

WEIGHTS = "params.safetensors"
CONFIG = "config.json"
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec", "affine_skip_connection": "W_skip"}


def read(
    path: Path, config_path: Path | None, *, entry: Entry | None, source: str, site: Site | None = None
) -> Contents:
    """A params.safetensors and its configuration. Without one, `entry` (what the names said) stands in.

    Raises CorruptFile, FileError for a kind that is not read here (crosscoders, cross-layer transcoders).
    """
    config = {} if config_path is None else read_json(config_path)
    _refuse_others(config, source)
    tensors = _oriented(read_safetensors(path))
    width = config.get("width")
    if width is not None and "b_enc" in tensors and width != tensors["b_enc"].numel():
        raise CorruptFile(f"{source}: {CONFIG} says {width} features, the weights have {tensors['b_enc'].numel()}")
    affine = config.get("affine_connection")
    if isinstance(affine, bool) and affine != ("W_skip" in tensors):
        has = "has none" if affine else "has one"
        raise CorruptFile(f"{source}: {CONFIG} says affine_connection={str(affine).lower()}, {WEIGHTS} {has}")
    info = replace(info_of(entry, source), prepend_bos=True)
    if isinstance(model := config.get("model_name"), str):
        info = replace(info, model=model)
    if isinstance(l0 := config.get("l0"), (int, float)):
        info = replace(info, declared_l0=float(l0))
    read_at, write_at = _sites(config, info.model, entry, source, site)
    return Contents(source=source, tensors=tensors, site=read_at, site_out=write_at, info=info)


def _sites(
    config: dict[str, Any], model: str | None, entry: Entry | None, source: str, given: Site | None
) -> tuple[Site | None, Site | None]:
    """Where it reads and writes, from the configuration; where that is silent, from the names. `given` goes first."""
    hook_in, hook_out = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    read_at, write_at = (None, None) if entry is None else (entry.site, entry.site_out)
    if read_at == write_at:
        write_at = None
    if hook_in is not None and given is None:
        read_at = site_of_module(str(hook_in), model, source)
    if hook_out is not None and hook_out != hook_in:
        write_at = site_of_module(str(hook_out), model, source)
    return given or read_at, write_at


def _refuse_others(config: dict[str, Any], source: str) -> None:
    kind, architecture = config.get("type"), config.get("architecture", "jump_relu")
    if str(kind).lower() in {"crosscoder", "clt", "cross_layer_transcoder"}:
        raise FileError(f"{source} is a {kind}: SAEs and transcoders of a single layer are read")
    if str(architecture).lower().replace("_", "") != "jumprelu":
        raise FileError(f"{source} has the architecture {architecture!r}: Gemma Scope 2's jump_relu is read")


def _oriented(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names; the skip as W_skip [d_out, d_in], where the file has [d_in, d_out]."""
    tensors = renamed(stored, _NAMES)
    if "affine_skip_connection" in stored:
        tensors["W_skip"] = tensors["W_skip"].T
    return tensors
