"""Gemma Scope 2 (Gemma 3): `params.safetensors`, and mostly a `config.json` beside it that says where the SAE reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from gemscope.activations.site import Site
from gemscope.errors import CorruptFile, FileError
from gemscope.features.catalog import Entry
from gemscope.features.files.contents import Contents, renamed
from gemscope.features.files.hook_names import site_of_module
from gemscope.features.files.json_file import read_json
from gemscope.features.files.tensors import read_safetensors
from gemscope.features.sae import SAEInfo

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
    model = config.get("model_name") or (entry and entry.model)
    read_at = _site(config, "hf_hook_point_in", model, source) if site is None else site
    write_at = _site(config, "hf_hook_point_out", model, source)
    declared = config.get("l0")
    return Contents(
        source=source,
        tensors=tensors,
        site=read_at or (entry and entry.site),
        site_out=write_at or (entry and site is None and entry.site_out) or None,
        info=SAEInfo(
            name=source,
            model=model,
            declared_l0=declared if isinstance(declared, (int, float)) else entry and entry.l0,
            neuronpedia_id=entry and entry.neuronpedia_id,
            prepend_bos=True,
        ),
    )


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


def _site(config: dict[str, Any], key: str, model: str | None, source: str) -> Site | None:
    name = config.get(key)
    return None if name is None else site_of_module(str(name), model, source)
