"""Which rows make up which batch: a pure function of (seed, step), so a resumed run reads on where it stopped."""

from __future__ import annotations

import torch
from torch import Tensor

from gemscope.shapes import Int


class Shuffle:
    """`count` rows in batches of `batch`, each epoch in an order of its own, every row once an epoch."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self._count, self._batch, self._seed = count, batch, seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def __getitem__(self, step: int) -> Int[Tensor, "B"]:
        """Indices of the rows of one batch; it may straddle two epochs."""
        start = step * self._batch
        out: list[Tensor] = []
        need = self._batch
        while need:
            epoch, place = divmod(start, self._count)
            piece = self._permutation(epoch)[place : place + need]
            out.append(piece)
            start += len(piece)
            need -= len(piece)
        return torch.cat(out)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._order = torch.randperm(self._count, generator=generator)
            self._epoch = epoch
        return self._order
