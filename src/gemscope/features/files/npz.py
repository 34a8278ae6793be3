"""The npz container (a zip of npy arrays), without ever unpickling: arrays stored raw are mapped where they lie in the
file, compressed ones are unpacked once into a safetensors file in a cache. What the arrays mean is not known here.
"""

from __future__ import annotations

import ast
import hashlib
import lzma
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from gemscope.disk import claimed, room, tidied
from gemscope.errors import CorruptFile, GemscopeError, UnsafeFile
from gemscope.features.files.tensors import Stream, read_safetensors, write_safetensors
from gemscope.progress import Advance, Progress, silent

_PIECE = 1 << 22
"""Bytes unpacked at a time; a multiple of every item size."""

_LONGEST_HEADER = 1 << 16

_DTYPES = {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64}


@runtime_checkable
class _Readable(Protocol):
    """As much of a file as reading needs."""

    def read(self, n: int, /) -> bytes: ...


@dataclass(frozen=True)
class _Member:
    """One array in the zip."""

    name: str
    info: zipfile.ZipInfo
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    header: int
    """Bytes of npy header before the data, inside the member."""

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def mappable(self) -> bool:
        return self.info.compress_type == zipfile.ZIP_STORED and self.dtype.isnative


def read_npz(path: Path, cache: Path, *, progress: Progress = silent) -> dict[str, Tensor]:
    """Every array as a tensor that the disk backs.

    A raw file is mapped in place: nothing is copied, whatever the offset (zip does not align; processors and torch do
    not mind). A compressed one is unpacked into `cache` the first time, through memory of a few megabytes.

    Raises CorruptFile for a damaged file or arrays that are no floats, UnsafeFile for pickled contents, StorageFull.
    """
    with _translated(path):
        members = _members(path)
        if all(member.mappable for member in members):
            return {member.name: _mapped(path, member) for member in members}
        unpacked = cache / f"{path.stem}-{_key(path)}.safetensors"
        stored = _stored(unpacked)
        if stored is not None:
            tidied(unpacked)
        else:
            with claimed(unpacked, wait=True) as place, room(unpacked, place):
                stored = _stored(unpacked)  # another process may have been at it
                if stored is None:
                    _unpack(path, members, place / unpacked.name, progress)
                    os.replace(place / unpacked.name, unpacked)
                    stored = read_safetensors(unpacked)
    # Fortran order is the transpose of row-major order.
    return {member.name: _turned(stored[member.name]) if member.fortran else stored[member.name] for member in members}


def _stored(unpacked: Path) -> dict[str, Tensor] | None:
    try:
        return read_safetensors(unpacked) if unpacked.exists() else None
    except CorruptFile:  # only something from outside can have damaged it; what it was made from is still here
        return None


def _key(path: Path) -> str:
    """Another file, or the same changed, gets another key. In the Hub's cache the real path holds the file's hash."""
    real = path.resolve()
    stat = real.stat()
    return hashlib.sha256(f"{real}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:16]


def _members(path: Path) -> list[_Member]:
    with path.open("rb") as file:
        _refuse_pickle(path, "it", file.read(2))
    with zipfile.ZipFile(path) as archive:
        members = [_member(path, archive, info) for info in archive.infolist()]
    if not members:
        raise CorruptFile(f"{path} is an npz without arrays")
    return members


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as file:
        start = file.read(2)
        _refuse_pickle(path, name, start)
        if info.filename.endswith((".pkl", ".pickle")):
            raise UnsafeFile(f"{path} holds a pickle ({info.filename}): refused, since unpickling can run anything")
        if start != b"\x93N":
            raise CorruptFile(f"{path}: {info.filename} is no npy array")
        shape, fortran, dtype, header = _npy_header(start, file)
    if dtype.hasobject:
        raise UnsafeFile(f"{path}: {name} is an array of pickled objects: refused, since unpickling can run anything")
    if dtype.str[1:] not in _DTYPES:
        raise CorruptFile(f"{path}: {name} is of dtype {dtype}, expected floats of 16, 32 or 64 bits")
    member = _Member(name, info, dtype, shape, fortran and len(shape) > 1, header)
    if info.file_size != header + member.n_bytes:
        raise CorruptFile(
            f"{path}: {name} of shape {shape} needs {member.n_bytes:,} bytes, the file has {info.file_size - header:,}"
        )
    return member


def _npy_header(start: bytes, file: _Readable) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, Fortran order, dtype, and how many bytes came before the data."""
    rest = file.read(6)
    if start + rest[:4] != b"\x93NUMPY":
        raise CorruptFile("its header is no npy header")
    try:
        form = "<H" if rest[4] == 1 else "<I"
        prefix = file.read(struct.calcsize(form))
        (length,) = struct.unpack(form, prefix)
        described = ast.literal_eval(file.read(min(length, _LONGEST_HEADER)).decode("latin1"))
        shape, fortran, dtype = described["shape"], described["fortran_order"], np.dtype(described["descr"])
    except (
        struct.error,
        ValueError,
        SyntaxError,
        KeyError,
        TypeError,
        IndexError,
        RecursionError,
        MemoryError,
    ) as error:
        raise CorruptFile(f"its header is no npy header: {type(error).__name__}") from error
    if not (isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)):
        raise CorruptFile(f"an npy header with the shape {shape!r}")
    return shape, bool(fortran), dtype, 2 + len(rest) + len(prefix) + length


def _refuse_pickle(path: Path, what: str, start: bytes) -> None:
    if start[:1] == b"\x80":  # how every pickle since protocol 2 begins
        raise UnsafeFile(f"{path}: {what} is a pickle: refused, since unpickling can run anything")


def _mapped(path: Path, member: _Member) -> Tensor:
    offset = _data_offset(path, member)
    if offset + member.n_bytes > path.stat().st_size:
        raise CorruptFile(f"{path} is truncated: {member.name} reaches beyond its end; fetch it again")
    if member.n_bytes == 0:
        return torch.empty(member.shape, dtype=_DTYPES[member.dtype.str[1:]])
    # Copy on write: what a program changes in the tensor stays its own, and never reaches the file.
    in_order = member.shape[::-1] if member.fortran else member.shape
    array = torch.from_numpy(np.memmap(path, member.dtype, mode="c", offset=offset, shape=in_order))
    return _turned(array) if member.fortran else array


def _turned(array: Tensor) -> Tensor:
    """All axes in reverse order."""
    return array.permute(*range(array.ndim - 1, -1, -1))


def _data_offset(path: Path, member: _Member) -> int:
    """Where the numbers begin: a zip's directory says where a member begins, and that says how long its own head is."""
    with path.open("rb") as file:
        file.seek(member.info.header_offset)
        head = file.read(30)
    name, extra = struct.unpack("<HH", head[26:30])
    return int(member.info.header_offset) + 30 + int(name) + int(extra) + member.header


def _unpack(path: Path, members: list[_Member], target: Path, progress: Progress) -> None:
    total = sum(member.n_bytes for member in members)
    with zipfile.ZipFile(path) as archive, progress(f"unpack {path.name}", total, "B") as advance:
        streams = {}
        for member in members:
            shape = member.shape[::-1] if member.fortran else member.shape
            streams[member.name] = Stream(_DTYPES[member.dtype.str[1:]], shape, _pieces(archive, member, advance))
        write_safetensors(target, streams)


def _pieces(archive: zipfile.ZipFile, member: _Member, advance: Advance) -> Iterator[Any]:
    with archive.open(member.info) as file:
        file.read(member.header)
        left = member.n_bytes
        while left:
            piece = _exactly(file, min(left, _PIECE), member)
            left -= len(piece)
            yield piece if member.dtype.isnative else np.frombuffer(piece, member.dtype).byteswap().data
            advance(len(piece))
        file.read(1)  # past the end: now the checksum is compared


def _exactly(file: _Readable, n: int, member: _Member) -> bytes:
    parts, left = [], n
    while left:
        part = file.read(left)
        if not part:
            raise CorruptFile(f"{member.name} ends early")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except CorruptFile as error:
        if str(path) in str(error) or ".safetensors" in str(error):
            raise
        raise CorruptFile(f"{path} is damaged ({error}): delete it and fetch it again") from error
    except GemscopeError:
        raise
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, struct.error,
            ValueError, OSError) as error:  # fmt: skip
        reason = " ".join(str(error).split())
        raise CorruptFile(f"{path} is no whole npz file ({reason}): delete it and fetch it again") from error
