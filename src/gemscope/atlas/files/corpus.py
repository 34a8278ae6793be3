"""The rows of token ids that an atlas points into: `corpus.npy`, in the smallest type that holds them.

uint16 where ids stay below 65535, which then stands for "no token"; int32 with -1 otherwise. Read without loading it.
"""

from __future__ import annotations

import ast
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gemscope.atlas.entry import Ints
from gemscope.checked import size_of
from gemscope.errors import AccessError, CorruptFile, InputError, Mismatch, NotFound

NAME = "corpus.npy"
_HEADER = 128
_SHORT, _LONG = np.dtype("<u2"), np.dtype("<i4")
_NOTHING = 65535
_PIECE = 1 << 22


class Rows:
    """Rows on their way to the disk, those written so far readable. `close` gives the file its header."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._dtype: np.dtype[Any] = _SHORT
        self._file: BinaryIO = path.open("w+b")
        self._file.write(bytes(_HEADER))
        self.length: int | None = None
        """Tokens per row; None before the first."""
        self.count = 0
        self._read: np.ndarray[Any, np.dtype[Any]] = np.zeros(0, _SHORT)

    def append(self, ids: Ints) -> None:
        """[R, length], -1 where there is no token. Raises InputError, Mismatch."""
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise InputError(f"ids of shape {ids.shape} and type {ids.dtype} given: expected whole numbers [R, length]")
        if not ids.shape[1]:
            raise InputError("rows of no tokens given: at least one token per row is needed")
        if self.length not in (None, ids.shape[1]):
            raise Mismatch(f"rows of {ids.shape[1]} tokens given after rows of {self.length}: all must be as long")
        if not len(ids):
            return
        low, high = int(ids.min()), int(ids.max())
        if low < -1 or high > np.iinfo(_LONG).max:
            raise InputError(f"no token {low if low < -1 else high}: ids are 0 to {np.iinfo(_LONG).max}, -1 for none")
        if high >= _NOTHING and self._dtype == _SHORT:
            self._widen()
        # A cast to uint16 makes 65535 of -1.
        self._file.write(np.ascontiguousarray(ids.astype(self._dtype)).data)
        self.length = ids.shape[1]
        self.count += len(ids)

    def _widen(self) -> None:
        """What was written so far, once again in the larger type."""
        self._file.flush()
        aside = self._path.with_name(self._path.name + ".wide")
        with aside.open("w+b") as wide:
            wide.write(bytes(_HEADER))
            self._file.seek(_HEADER)
            while piece := self._file.read(_PIECE):
                wide.write(_signed(np.frombuffer(piece, _SHORT)).astype(_LONG).data)
        self._file.close()
        os.replace(aside, self._path)
        self._file = self._path.open("r+b")
        self._file.seek(0, os.SEEK_END)
        self._dtype = _LONG

    def at(self, positions: Ints) -> Ints:
        """[n] ids at flat positions; -1 where there is no token or no such position."""
        total = self.count * (self.length or 0)
        found = np.full(len(positions), -1, np.int64)
        inside = (positions >= 0) & (positions < total)
        if inside.any():
            if len(self._read) != total or self._read.dtype != self._dtype:
                self._file.flush()
                self._read = np.asarray(np.memmap(self._path, self._dtype, "r", _HEADER, (total,)))
            found[inside] = _signed(self._read[positions[inside]])
        return found

    def close(self) -> None:
        """Complete, header and all."""
        shape = (self.count, self.length or 0)
        facts = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        text = repr(facts).encode().ljust(_HEADER - 11) + b"\n"
        self._file.seek(0)
        self._file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Lets go of the file."""
        with suppress(OSError):  # what there was no room for, once more
            self._file.close()


class Corpus:
    """All rows, in one line."""

    def __init__(self, path: Path, rows: int, length: int) -> None:
        """Opens a file that should hold `rows` rows. Raises CorruptFile."""
        dtype, shape = _header(path)
        if shape != (rows, length) and not (rows == 0 == shape[0]):
            raise CorruptFile(f"{path} holds rows {list(shape)}, its manifest says {[rows, length]}: copy it again")
        expected = _HEADER + rows * length * dtype.itemsize
        if (actual := size_of(path)) != expected:
            raise CorruptFile(f"{path} is of {actual:,} bytes, {expected:,} are expected: copy it again")
        self.length = length
        # A plain array over the map: slices of numpy's own memmap type take several times as long.
        self._flat: Ints = (
            np.asarray(np.memmap(path, dtype, "r", _HEADER, (rows * length,))) if rows * length else np.zeros(0, dtype)
        )

    def __len__(self) -> int:
        return len(self._flat)

    def at(self, positions: Ints) -> Ints:
        """Ids at flat positions, of any shape; -1 where there is no token. All must lie in the corpus."""
        return _signed(self._flat[positions])

    def between(self, start: int, stop: int) -> Ints:
        """[stop - start] ids."""
        return _signed(self._flat[start:stop])


def _signed(ids: np.ndarray[Any, np.dtype[Any]]) -> Ints:
    if ids.dtype != _SHORT:
        return ids.astype(np.int64)
    wide = ids.astype(np.int64)
    wide[ids == _NOTHING] = -1
    return wide


def _header(path: Path) -> tuple[np.dtype[Any], tuple[int, int]]:
    try:
        size_of(path)
        with path.open("rb") as file:
            start = file.read(_HEADER)
        if len(start) != _HEADER or not start.startswith(b"\x93NUMPY\x01\x00\x76\x00"):
            raise ValueError("its header is missing")
        facts = ast.literal_eval(start[10:].decode("latin-1").strip())
        dtype, (rows, length) = np.dtype(facts["descr"]), facts["shape"]
        if dtype not in (_SHORT, _LONG) or facts["fortran_order"]:
            raise ValueError(f"its numbers are {facts['descr']}")
        return dtype, (int(rows), int(length))
    except NotFound:
        raise CorruptFile(f"{path} is missing: the atlas was not copied whole") from None
    except AccessError:
        raise
    except OSError as error:
        raise AccessError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError) as error:
        raise CorruptFile(f"{path} is not an atlas's corpus: {error}") from error
