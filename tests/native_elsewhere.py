"""The native kernels of another kind of processor, compiled for it and run by an emulator, as `Kernels` here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gemscope.features.kernels import Packed, Rows


class Elsewhere:
    """`Kernels` in a process of its own, that of tests/features/native_elsewhere.cpp."""

    name = "native"
    sparse_below = 1 / 5

    def __init__(self, command: list[str | Path], isa: str) -> None:
        self.isa = isa
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        self._process.communicate()

    def pack(self, W: Tensor, b: Tensor, floor: Tensor) -> Packed:
        return Packed(W, b, floor, None)

    def above(self, packed: Packed, x: Tensor, token_floor: Tensor | None = None) -> Rows:
        own = [] if token_floor is None else [token_floor]
        self._ask(0, len(x), len(packed.W), x.shape[1], len(own), [packed.W, packed.b, packed.floor, x, *own])
        count = int(self._answer(np.int64, 1))
        offsets = self._answer(np.int64, len(x) + 1)
        return Rows(offsets, self._answer(np.int32, count), self._answer(np.float32, count))

    def dots(self, offsets: Tensor, ids: Tensor, left: Tensor, right: Tensor) -> Tensor:
        self._ask(1, len(offsets) - 1, len(right), right.shape[1], len(ids), [offsets, ids, left, right])
        return self._answer(np.float32, len(ids))

    def sums(self, entries: Rows, rows: Tensor) -> Tensor:
        n_rows, d = len(entries.offsets) - 1, rows.shape[1]
        self._ask(2, n_rows, len(rows), d, len(entries.ids), [entries.offsets, entries.ids, entries.values, rows])
        return self._answer(np.float32, n_rows * d).view(n_rows, d)

    def transposed(self, entries: Rows, n_columns: int) -> tuple[Rows, Tensor]:
        count = len(entries.ids)
        self._ask(3, len(entries.offsets) - 1, n_columns, 0, count, [entries.offsets, entries.ids])
        starts, rows = self._answer(np.int64, n_columns + 1), self._answer(np.int32, count)
        origin = self._answer(np.int64, count)
        return Rows(starts, rows, entries.values[origin]), origin

    def _ask(self, what: int, rows: int, columns: int, d: int, count: int, arrays: list[Tensor]) -> None:
        assert self._process.stdin is not None
        head = np.array([what, rows, columns, d, torch.get_num_threads(), count], dtype=np.int64)
        self._process.stdin.write(head.tobytes() + b"".join(one.contiguous().numpy().tobytes() for one in arrays))
        self._process.stdin.flush()

    def _answer(self, kind: type[np.generic], count: int) -> Tensor:
        assert self._process.stdout is not None
        size = np.dtype(kind).itemsize * count
        read = self._process.stdout.read(size)
        assert len(read) == size, f"the process ended with {self._process.wait()}"
        return torch.from_numpy(np.frombuffer(read, dtype=kind).copy())
