"""What lies in files as SAEs do and cannot be opened as one: told by its name, with the reason."""

from __future__ import annotations

from gemscope.errors import FileError
from gemscope.features.files.contents import Contents
from gemscope.features.files.format import Format, Found


def _closed(name: str, weights: str, why: str, *keys: str, instead: str = "not read as an SAE") -> Format:
    """`keys` tell its weights where they have another name."""

    def refuse(found: Found) -> Contents:
        raise FileError(f"{found.source} is {why}: {instead}")

    return Format(
        name=name,
        weights=weights,
        called="",
        is_its=lambda found: bool(keys) and found.has(*keys),
        read=refuse,
        is_closed=True,
    )


CLOSED = (
    _closed(
        "temporal SAEs",
        r"latest_ckpt\.safetensors",
        "a temporal SAE, whose features depend on earlier tokens and are no function of one activation",
        "D",
        "b",
    ),
    _closed(
        "circuit-tracer's cross-layer transcoders",
        r"W_(?:enc|dec)_\d+\.safetensors",
        "part of a cross-layer transcoder, which writes at every later layer",
        instead="no SAE; load_clt opens all of its layers",
    ),
    _closed(
        "Gemma Scope 2's cross-layer transcoders and crosscoders",
        r"params_layer_\d+\.safetensors",
        "part of a cross-layer transcoder or crosscoder, which writes at several layers",
        instead="no SAE; load_clt opens all layers of the former",
    ),
    _closed(
        "ckkissane's crosscoder",
        r"cc_weights\.pt",
        "a crosscoder of two models, which reads both together",
    ),
)
"""By the name of a file or by what is in it."""
