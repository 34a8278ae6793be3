"""How the features of one SAE lie with the ranks that train it: dealt in turn, like cards, so that each holds as many
of every Matryoshka prefix. Rank r of N has the features r, r + N, r + 2N, ...
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gemscope.features.sliced import PIECE, Sliced
from gemscope.training.group import ALONE, Group


@dataclass(frozen=True)
class Deal:
    """`width` features with the ranks of a group."""

    width: int
    group: Group = ALONE

    @property
    def held(self) -> int:
        """Features of this rank."""
        return self.of_first(self.width)

    @property
    def most(self) -> int:
        """Features of the rank that has most."""
        return -(-self.width // self.group.size)

    def of_first(self, count: int) -> int:
        """How many of the first `count` features are this rank's."""
        return len(range(self.group.rank, count, self.group.size))

    def mine(self, whole: Tensor, start: int = 0) -> Tensor:
        """This rank's rows of a tensor [n, ...] whose first row is feature `start`."""
        return whole[(self.group.rank - start) % self.group.size :: self.group.size]

    def whole(self, part: Tensor, dim: int = 0, *, to_first: bool = False) -> Tensor:
        """All ranks' features in their order, from what each has of them along `dim`. Where it goes `to_first` alone
        others keep their own.
        """
        if self.group.size == 1:
            return part
        parts = self.group.gather(part.movedim(dim, 0), to_first=to_first)
        if not parts:
            return part
        out = torch.empty(self.width, *parts[0].shape[1:], dtype=part.dtype, device=part.device)
        for rank, one in enumerate(parts):
            out[rank :: self.group.size] = one
        return out.movedim(0, dim)


class Dealt(Sliced):
    """A tensor of all features, in the parts that ranks have of it: to be written, a piece at a time."""

    def pieces(self) -> Iterator[Tensor]:
        """The whole in row-major order, in pieces of a few megabytes on the processor. What has been read of parts that
        are mapped from files is let go of after each.
        """
        n, d = len(self.slices), self.shape[1 - self.axis] if len(self.shape) > 1 else 1
        each = max(1, PIECE // (n * d if self.axis == 0 else len(self)))
        for start in range(0, max(len(part) for part in self.slices), each):
            parts = [part[start : start + each] for part in self.slices]
            shape = list(parts[0].shape)
            shape[self.axis] = sum(part.shape[self.axis] for part in parts)
            whole = torch.empty(shape, dtype=self.dtype)
            for rank, part in enumerate(parts):
                whole.movedim(self.axis, 0)[rank::n] = part.movedim(self.axis, 0)
            yield whole
            self.release()
