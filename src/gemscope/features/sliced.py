"""A tensor with an axis of features, cut along it into slices that may lie on several devices. Of most SAEs there is
one slice, the whole; of others nothing here ever makes a matrix whole.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from gemscope.features.mapped import Mapped

PIECE = 1 << 22
"""Numbers of a matrix in one piece."""


class Sliced:
    """Slices in the order of their features; `axis` is the one of the features. What is asked for is handed out on the
    device of the first.
    """

    def __init__(self, slices: Sequence[Tensor], axis: int = 0) -> None:
        self.slices, self.axis = tuple(slices), axis

    @classmethod
    def of(cls, rows: Tensor | Sliced) -> Sliced:
        """A matrix with one feature a row, whichever way it is given."""
        return rows if isinstance(rows, Sliced) else cls([rows.detach()])

    def __len__(self) -> int:
        """Features."""
        return sum(one.shape[self.axis] for one in self.slices)

    @cached_property
    def spans(self) -> list[slice]:
        """Which features lie in each slice."""
        return spans([one.shape[self.axis] for one in self.slices])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        sizes = list(self.slices[0].shape)
        sizes[self.axis] = len(self)
        return tuple(sizes)

    @property
    def dtype(self) -> torch.dtype:
        return self.slices[0].dtype

    @property
    def device(self) -> torch.device:
        return self.slices[0].device

    def __getitem__(self, features: slice | Tensor) -> Tensor:
        """What belongs to some features, one a row: a span of them, every n-th, or those of given ids."""
        if isinstance(features, slice):
            there = range(*features.indices(len(self)))
            parts = [
                self._rows(one)[within.start : within.stop : within.step]
                for one, span in zip(self.slices, self.spans, strict=True)
                if (within := _within(there, span))
            ]
            return together([part.to(self.device) for part in parts]) if parts else self._rows(self.slices[0])[:0]
        if len(self.slices) == 1:
            return self._rows(self.slices[0])[features]
        first = self._rows(self.slices[0])
        found = first.new_empty((*features.shape, *first.shape[1:]))
        for one, span in zip(self.slices, self.spans, strict=True):
            here = (features >= span.start) & (features < span.stop)
            found[here] = self._rows(one)[(features[here] - span.start).to(one.device)].to(self.device)
        return found

    def pieces(self) -> Iterator[Tensor]:
        """The whole in row-major order, in pieces of a few megabytes on the processor."""
        if self.axis == 0:
            for one in self.slices:
                each = max(1, PIECE // max(1, one[0].numel())) if one.ndim > 1 and len(one) else PIECE
                yield from (piece.cpu() for piece in torch.split(one, each))
        else:
            each = max(1, PIECE // len(self))
            for pieces in zip(*(torch.split(one, each) for one in self.slices), strict=True):
                yield together([piece.cpu() for piece in pieces], dim=self.axis)

    def whole(self) -> Tensor:
        """All of it on the processor."""
        return together([one.cpu() for one in self.slices], dim=self.axis)

    def norms(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Of each feature's row, summed up in a format, on the processor."""
        return together([torch.linalg.vector_norm(self._rows(one), dim=-1, dtype=dtype).cpu() for one in self.slices])

    def each(self, change: Callable[[Tensor], Tensor]) -> Sliced:
        """With every slice changed."""
        return type(self)([change(one) for one in self.slices], self.axis)

    @property
    def T(self) -> Sliced:
        """A matrix with its axes exchanged."""
        return Sliced([one.T for one in self.slices], 1 - self.axis)

    @property
    def content(self) -> Hashable:
        """Another as soon as anything in it is: writing into a tensor raises its version, moving it changes its
        address. Good within one process, while the tensors live.
        """
        return tuple((one.data_ptr(), one._version, one.dtype) for one in self.slices)

    def release(self) -> None:
        """Lets go of what has been read of slices that are mapped from a file."""
        for mapped in self._maps:
            mapped.release()

    @cached_property
    def _maps(self) -> list[Mapped]:
        return [mapped for one in self.slices if (mapped := Mapped.of(one)) is not None]

    def _rows(self, one: Tensor) -> Tensor:
        return one.movedim(self.axis, 0)


def spans(widths: Sequence[int]) -> list[slice]:
    """The features of slices of these widths, beside each other."""
    return [slice(start, stop) for start, stop in pairwise(accumulate(widths, initial=0))]


def together(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors beside each other; one alone as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def shares(d_sae: int, n: int) -> list[int]:
    """How many features each of n slices has: as many as the others, or one more."""
    return [d_sae // n + (index < d_sae % n) for index in range(n)]


def _within(there: range, span: slice) -> range:
    """Those of some ascending numbers that lie in a span, counted from where it starts."""
    first = max(0, -(-(span.start - there.start) // there.step))
    some = there[first:]
    ids = range(some.start, min(some.stop, span.stop), some.step)
    return range(ids.start - span.start, ids.stop - span.start, ids.step)
