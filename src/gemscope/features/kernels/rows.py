"""Sparse matrices by rows, and how pieces of them go together."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from gemscope.shapes import Bool, Float, Int


@dataclass(frozen=True)
class Rows:
    """A sparse matrix in compressed rows: row r has `values[offsets[r]:offsets[r + 1]]` in the columns `ids[...]`,
    which ascend within a row."""

    offsets: Int[Tensor, "starts"]
    """int64, one more than there are rows."""
    ids: Int[Tensor, "Z"]
    """int32."""
    values: Float[Tensor, "Z"]
    """float32."""

    @property
    def rows(self) -> Int[Tensor, "Z"]:
        """For every entry, its row."""
        return torch.repeat_interleave(self.offsets.diff(), output_size=len(self.ids))

    def to(self, device: torch.device) -> Rows:
        """The same on another device; itself where it is there."""
        if self.ids.device == device:
            return self
        return Rows(self.offsets.to(device), self.ids.to(device), self.values.to(device))

    def where(self, kept: Bool[Tensor, "Z"]) -> Rows:
        """The entries that a mask keeps."""
        places = kept.nonzero()[:, 0]  # once: a GPU is waited for to learn how many there are
        return Rows(offsets_of(kept)[self.offsets], self.ids[places], self.values[places])

    def transposed(self, n_columns: int) -> tuple[Rows, Int[Tensor, "Z"]]:
        """Columns as rows, and for each new entry which old one it was."""
        order = stable_order(self.ids)
        return Rows(starts_of(self.ids[order], n_columns), self.rows[order].to(torch.int32), self.values[order]), order


def by_strength(
    offsets: Int[Tensor, "starts"], rows: Int[Tensor, "Z"], values: Float[Tensor, "Z"]
) -> tuple[Int[Tensor, "Z"], Int[Tensor, "Z"]]:
    """What sorts entries by row and, within one, strongest first; and the rank of each in its row, in that order."""
    # Two stable sorts, the less important first.
    order = values.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    return order, torch.arange(len(order), device=order.device) - offsets[:-1][rows]


def below(parts: list[Rows]) -> Rows:
    """Blocks of rows below each other."""
    if len(parts) == 1:
        return parts[0]
    counts = torch.cat([part.offsets.diff() for part in parts])
    return Rows(offsets_of(counts), torch.cat([part.ids for part in parts]), torch.cat([part.values for part in parts]))


def beside(parts: list[Rows], widths: list[int]) -> Rows:
    """Blocks of columns beside each other, each with its number of columns."""
    if len(parts) == 1:
        return parts[0]
    starts = accumulate(widths, initial=0)
    ids = torch.cat([part.ids + start for part, start in zip(parts, starts, strict=False)])
    order = stable_order(torch.cat([part.rows for part in parts]))
    counts = torch.stack([part.offsets.diff() for part in parts]).sum(0)
    return Rows(offsets_of(counts), ids[order], torch.cat([part.values for part in parts])[order])


def empty(n_rows: int, device: torch.device) -> Rows:
    """Rows without entries."""
    return Rows(
        torch.zeros(n_rows + 1, dtype=torch.int64, device=device),
        torch.zeros(0, dtype=torch.int32, device=device),
        torch.zeros(0, device=device),
    )


def offsets_of(counts: Tensor) -> Int[Tensor, "starts"]:
    """Where each row starts, and the end, from how many entries rows have."""
    offsets = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    return offsets


def starts_of(ascending: Int[Tensor, "Z"], n_keys: int) -> Int[Tensor, "starts"]:
    """Where each key begins among keys in order, and the end."""
    keys = torch.arange(n_keys + 1, dtype=ascending.dtype, device=ascending.device)
    return torch.searchsorted(ascending, keys)


def totals(ids: Int[Tensor, "Z"], values: Float[Tensor, "Z"], n_columns: int) -> Float[Tensor, "F"]:
    """For each column the sum of its values, one after another as they come."""
    if ids.device.type == "cpu":
        return torch.zeros(n_columns).index_add_(0, ids, values)
    order = stable_order(ids)  # a GPU would add in any order
    return torch.segment_reduce(values[order], "sum", offsets=starts_of(ids[order], n_columns))


def stable_order(keys: Int[Tensor, "Z"]) -> Int[Tensor, "Z"]:
    """What sorts keys that are not negative, equal ones in the order in which they came."""
    if keys.device.type != "cpu" or not len(keys):
        return keys.argsort(stable=True)
    # numpy sorts 16 bits by counting: several times faster than comparing, also when it takes two rounds.
    digits = keys.numpy()
    order = (digits & 0xFFFF).astype(np.uint16).argsort(kind="stable")
    for shift in range(16, int(digits.max()).bit_length(), 16):
        order = order[(digits[order] >> shift & 0xFFFF).astype(np.uint16).argsort(kind="stable")]
    return torch.from_numpy(order)
