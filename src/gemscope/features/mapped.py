"""Tensors that lie in a file on disk, mapped into memory: telling them, and letting go of what has been read of them.

What has been read counts as memory of this process until it is let go of. The file's pages stay in the system's cache,
so reading them again is cheap. Linux alone tells enough; elsewhere no tensor counts as mapped.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from dataclasses import dataclass
from functools import cache
from itertools import dropwhile
from pathlib import Path

from torch import Tensor

_LARGE = 1 << 20
"""Bytes of a tensor that are worth letting go of."""


@dataclass(frozen=True)
class Mapped:
    """The part of a file's map in which a tensor lies."""

    start: int
    length: int

    @classmethod
    def of(cls, tensor: Tensor) -> Mapped | None:
        """None for a tensor in ordinary memory, and for a map that has been written into.

        Such a map is private: what was written exists nowhere else, and would be lost on letting go.
        """
        if sys.platform != "linux" or tensor.device.type != "cpu" or not tensor.numel():
            return None
        storage = tensor.untyped_storage()
        first, last = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
        if (map_ := _map_around(first, last)) is None or _is_written(map_):
            return None
        aligned = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
        return cls(aligned, max(0, last // mmap.PAGESIZE * mmap.PAGESIZE - aligned))

    def release(self) -> None:
        """Lets go of all that has been read."""
        _libc().madvise(ctypes.c_void_p(self.start), ctypes.c_size_t(self.length), mmap.MADV_DONTNEED)


class Scattered:
    """Rows of a tensor that are read here and there. Where it is mapped from a file these alone are brought from the
    disk, and not what lies around them, which would soon be all of it.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self._mapped = tensor, Mapped.of(tensor)
        inside = ((size - 1) * stride for size, stride in zip(tensor.shape[1:], tensor.stride()[1:], strict=True))
        self._row = (1 + sum(inside)) * tensor.itemsize
        if self._mapped is not None:
            self._advise(mmap.MADV_RANDOM, 0, len(tensor) - 1)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """A copy of the rows of these numbers, ascending."""
        if self._mapped is None:
            return self.tensor[rows]
        for row in rows.tolist():
            self._advise(mmap.MADV_WILLNEED, row, row)
        found = self.tensor[rows]
        self._mapped.release()
        return found

    def _advise(self, what: int, first: int, last: int) -> None:
        """Says of rows what will be done with them."""
        step = self.tensor.stride(0) * self.tensor.itemsize
        start, end = self.tensor.data_ptr() + first * step, self.tensor.data_ptr() + last * step + self._row
        start -= start % mmap.PAGESIZE
        _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), what)


def _map_around(first: int, last: int) -> str | None:
    """The addresses of the file's map that these lie in."""
    with Path("/proc/self/maps").open() as maps:
        for addresses, _, _, _, inode, *_ in map(str.split, maps):
            begin, end = (int(address, 16) for address in addresses.split("-"))
            if first < end:
                return addresses if begin <= first and last <= end and inode != "0" else None
    return None


def _is_written(addresses: str) -> bool:
    """Takes milliseconds: of each map up to this one all pages are looked at."""
    with Path("/proc/self/smaps").open() as lines:
        facts = dropwhile(lambda line: not line.startswith(addresses), lines)
        return next((line.split()[1] != "0" for line in facts if line.startswith("Anonymous:")), True)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def release(tensor: Tensor) -> None:
    """Lets go of what has been read of a tensor, if it is mapped and large: to tell takes milliseconds."""
    mapping = Mapped.of(tensor) if tensor.nbytes > _LARGE else None
    if mapping is not None:
        mapping.release()
