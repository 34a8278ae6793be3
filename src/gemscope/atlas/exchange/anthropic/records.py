"""Where features lie: one JSON file each, or a layer in one file, compressed, with `index.json.gz` beside it."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from gemscope.atlas.exchange.numbers import object_of
from gemscope.checked import Count, bytes_of, declared, size_of
from gemscope.errors import CorruptFile, InputError, NotFound

MOST = 1 << 25
"""Bytes that one feature unpacks to at most; real ones have a few hundred thousand."""
_INDEX = 1 << 27
"""Bytes of the largest index: ten for each of all features of a model."""
_FILE = re.compile(r"(\d{1,9})\.json")


def records(path: Path, layer: int | None) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Index and object of every feature, and where it stands. Raises CorruptFile, NotFound, InputError."""
    packed = path / "index.json.gz"
    if packed.exists():
        yield from _packed(packed, layer)
        return
    names = sorted((int(match[1]), one) for one in path.iterdir() if (match := _FILE.fullmatch(one.name)))
    for index, one in names:
        yield index, object_of(bytes_of(one, most=MOST), str(one)), str(one)


def _packed(index: Path, layer: int | None) -> Iterator[tuple[int, dict[str, Any], str]]:
    """`{layer: {filename, offsets}}`, and at each offset a length (uint32, little-endian) and compressed JSON."""
    layers = object_of(_unpacked(bytes_of(index, most=_INDEX), str(index), _INDEX), str(index))
    if layer is None and len(layers) != 1:
        raise InputError(f"{index} holds {len(layers)} layers: choose one by layer=")
    found = layers.get(str(layer)) if layer is not None else next(iter(layers.values()))
    if not isinstance(found, dict) or not isinstance(found.get("offsets"), list):
        raise NotFound(f"{index} has no layer {layer}: it holds {', '.join(layers)}")
    told = declared(found, _Layer, where=str(index))
    name, path = told.filename, index.parent / told.filename
    if "/" in name or "\\" in name or name.startswith("."):
        raise CorruptFile(f"{index} names the file {name[:80]!r}: expected one beside it")
    whole = size_of(path)
    with path.open("rb") as file:
        for number, (start, end) in enumerate(pairwise(told.offsets)):
            if end <= start:  # nothing is known of it
                continue
            where = f"{path}, feature {number}"
            file.seek(min(start, whole))
            raw = file.read(min(end - start, MOST))
            if len(raw) < 4 or (size := struct.unpack("<I", raw[:4])[0]) > len(raw) - 4:
                raise CorruptFile(f"{where} is cut short: fetch the file again")
            yield number, object_of(_unpacked(raw[4 : 4 + size], where, MOST), where), where


@dataclass(frozen=True)
class _Layer:
    """Where the features of a layer lie."""

    filename: str
    offsets: list[Count]


def _unpacked(raw: bytes, where: str, most: int) -> bytes:
    try:
        unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
        out = unpacker.decompress(raw, most)
    except zlib.error as error:
        raise CorruptFile(f"{where} is no gzip ({error}): fetch the file again") from error
    if not unpacker.eof:
        raise CorruptFile(f"{where} is cut short, or unpacks to more than {most >> 20} MB")
    return out
