"""Arrays as few bytes: each in the narrowest type that holds it, its byte planes apart, those with a pattern deflated.

Pages of features and the vocabulary are such lists of arrays. Where they are kept is the atlas's work.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemscope.atlas.entry import Floats
from gemscope.errors import CorruptFile, InputError, NotFinite

Array = np.ndarray[Any, np.dtype[Any]]

_INTEGERS = tuple(map(np.dtype, ("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<i8")))
_KINDS = (*_INTEGERS, *map(np.dtype, ("<f2", "<f4", "<f8", "<f2")))
_BOUNDS = [(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for dtype in _INTEGERS]
_HALF = len(_KINDS) - 1
"""The last kind comes with a scale."""
_MOST = 1 << 23
"""Bytes that a record unpacks to, at most: a page takes a few thousand, and deflated zeros would take a thousandth."""


@dataclass(frozen=True)
class Halves:
    """Numbers that are kept to 11 bits each, down to 2^-14 of the largest, and to 2^-25 of it below that.

    They are taken relative to a power of two, so that what was kept once is kept unchanged among other numbers.
    """

    values: Floats


def pack(arrays: Sequence[Array | Halves]) -> bytes:
    """Whole numbers and floats exactly, `Halves` as they say. Raises NotFinite for NaN and infinities, InputError for
    more than a record holds.

    A checksum; deflated: a byte per array for its type and how many of its planes are rough, their lengths, then the
    smooth planes; at last the rough ones as they are. Lower bytes are noise, and deflating noise costs more than it
    saves: it spoils the code for all the rest.
    """
    kinds, lengths = bytearray(), list[int]()
    smooth, rough = list[bytes](), list[bytes]()
    for array in arrays:
        kind, content = _halved(array.values, rough) if isinstance(array, Halves) else _narrowed(array)
        planes = _planes(content)
        noisy = next((number for number, plane in enumerate(planes) if not _noisy(plane)), len(planes))
        kinds.append(kind | noisy << 4)
        lengths.append(len(content))
        rough += planes[:noisy]
        smooth += planes[noisy:]
    if (size := sum(map(len, smooth)) + 5 * len(kinds)) > _MOST:
        raise InputError(f"{size:,} bytes are to go into one record: at most {_MOST:,} are kept")
    deflating = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    deflated = deflating.compress(b"".join((kinds, *_planes(np.array(lengths, "<u4")), *smooth))) + deflating.flush()
    body = b"".join((deflated, *rough))
    return zlib.crc32(body).to_bytes(4, "little") + body


def unpack(blob: bytes, count: int, only: Collection[int] | None = None) -> list[Array]:
    """The arrays that `pack` was given; `Halves` as float32. `only` those of these numbers, which is quicker.

    Raises CorruptFile for anything else.
    """
    if not isinstance(blob, bytes):  # SQLite keeps anything in any column
        raise CorruptFile(f"a packed record is damaged: it is of type {type(blob).__name__}")
    if zlib.crc32(memoryview(blob)[4:]) != int.from_bytes(blob[:4], "little"):
        raise CorruptFile("a packed record is damaged: its checksum is another")
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        smooth, rough = inflating.decompress(memoryview(blob)[4:], _MOST), inflating.unused_data
        if not inflating.eof:
            raise ValueError(f"it ends early, or unpacks to more than {_MOST:,} bytes")
        lengths = np.frombuffer(smooth, "u1", 4 * count, count).reshape(4, count).T.copy().view("<u4").ravel().tolist()
        at, at_rough, arrays = 5 * count, 0, []
        for number, (kind, length) in enumerate(zip(smooth[:count], lengths, strict=True)):
            noisy, dtype = kind >> 4, _KINDS[kind & 15]
            scale = None
            if kind & 15 == _HALF and length:
                scale = np.frombuffer(rough, "<f4", 1, at_rough)
                at_rough += 4
            size = dtype.itemsize
            if noisy > size or at + (size - noisy) * length > len(smooth) or at_rough + noisy * length > len(rough):
                raise ValueError("it holds fewer numbers than it says")
            if only is not None and number not in only:
                at_rough += noisy * length
                at += (size - noisy) * length
                continue
            if size == 1:
                values = np.frombuffer(*((rough, dtype, length, at_rough) if noisy else (smooth, dtype, length, at)))
            else:
                bytes_ = np.empty((length, size), np.uint8)
                if noisy:
                    planes = np.frombuffer(rough, np.uint8, noisy * length, at_rough)
                    bytes_[:, :noisy] = planes.reshape(noisy, length).T
                if noisy < size:
                    planes = np.frombuffer(smooth, np.uint8, (size - noisy) * length, at)
                    bytes_[:, noisy:] = planes.reshape(size - noisy, length).T
                values = bytes_.view(dtype).reshape(length)
            arrays.append(values if scale is None else values.astype(np.float32) * scale)
            at_rough += noisy * length
            at += (size - noisy) * length
    except (zlib.error, ValueError, IndexError) as error:
        raise CorruptFile(f"a packed record is damaged: {error}") from error
    if at != len(smooth) or at_rough != len(rough):
        raise CorruptFile("a packed record is damaged: it holds other arrays")
    return arrays


def _narrowed(array: Array) -> tuple[int, Array]:
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise NotFinite("NaN or Inf among the numbers of a page")
        if array.dtype.itemsize == 2:
            return _KINDS.index(np.dtype("<f2")), array.astype("<f2")
        with np.errstate(over="ignore"):
            single = array.astype("<f4")
        exact = single if (single == array).all() else array.astype("<f8")
        return _KINDS.index(exact.dtype), exact
    low, high = (int(array.min()), int(array.max())) if len(array) else (0, 0)
    for kind, (least, most) in enumerate(_BOUNDS):
        if least <= low and high <= most:
            return kind, array.astype(_INTEGERS[kind])
    raise InputError(f"{high} is too large a whole number for a page: it holds up to {np.iinfo(np.int64).max}")


def _halved(values: Floats, scales: list[bytes]) -> tuple[int, Array]:
    """Ratios to the power of two above them, which goes to the scales."""
    if not len(values):
        return _HALF, np.zeros(0, "<f2")
    largest = float(np.abs(values).max())
    if not math.isfinite(largest):
        raise NotFinite("NaN or Inf among the numbers of a page")
    mantissa, exponent = math.frexp(largest)
    if exponent > 126:
        raise NotFinite(f"{largest:.3g} among the numbers of a page: below 8e37 are kept")
    exponent += int(np.float16(mantissa))  # where it is rounded up to the power of two, that is the next one's half
    scale = 2.0 ** max(-126, exponent)  # from there on float32 has fewer bits itself
    scales.append(np.array([scale], "<f4").tobytes())
    return _HALF, (values / np.float64(scale)).astype("<f2")


def _planes(array: Array) -> list[bytes]:
    """The first bytes of all, the second bytes of all, and so on."""
    size = array.dtype.itemsize
    return [plane.tobytes() for plane in np.ascontiguousarray(array).view(np.uint8).reshape(-1, size).T]


def _noisy(plane: bytes) -> bool:
    return 2 * len(set(plane)) > min(len(plane), 256)
