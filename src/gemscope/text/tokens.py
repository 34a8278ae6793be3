"""Rows of token ids, and which positions count. Knows ids only: the model's tokenizer makes them from text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from gemscope.errors import EmptyText, InputError
from gemscope.shapes import Bool, Int

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Tokens:
    """B rows of T token ids.

    `real` is False on padding. `counted` is True where a token enters numbers and "top" lists: real, not special, and
    not the first of its row (models park attention on it, with or without a BOS token: its activations are outliers
    hundreds of times the usual norm, and no SAE is trained on them).
    `document` and `offset` say, for packed text, which document of the corpus a token comes from and its index in it.
    """

    ids: Int[Tensor, "B T"]
    real: Bool[Tensor, "B T"]
    counted: Bool[Tensor, "B T"]
    document: Int[Tensor, "B T"] | None = None
    offset: Int[Tensor, "B T"] | None = None

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[int]],
        *,
        special: Collection[int] = (),
        pad: int = 0,
        side: Side = "right",
        every_token: bool = False,
    ) -> Tokens:
        """Rows of any lengths, padded to the longest on the given side. `every_token` counts all but padding."""
        longest = max((len(row) for row in rows), default=0)
        if longest == 0:
            raise EmptyText("no tokens given: there is nothing to read")
        ids = torch.full((len(rows), longest), pad, dtype=torch.int64)
        real = torch.zeros(len(rows), longest, dtype=torch.bool)
        for index, row in enumerate(rows):
            place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
            ids[index, place] = torch.as_tensor(row, dtype=torch.int64)
            real[index, place] = True
        return cls(ids, real, real if every_token else _content(ids, real, special))

    @property
    def positions(self) -> Int[Tensor, "B T"]:
        """Position of each token in its own row, padding not counted (0 on padding before the row)."""
        return (self.real.cumsum(-1) - 1).clamp(min=0)

    @property
    def padded(self) -> bool:
        """Whether any row is padded."""
        return not bool(self.real.all())

    @property
    def every_token(self) -> Tokens:
        """The same ids with everything but padding counted."""
        return replace(self, counted=self.real)

    @property
    def trimmed(self) -> Tokens:
        """Without what is padding at the end of every row: a short text costs a model no more than its length."""
        return self.first(len(self), int(self.real.any(0).nonzero().max()) + 1)

    @property
    def here(self) -> Tokens:
        """The same in the processor's memory, where all that is known of tokens lies."""
        if self.ids.device.type == "cpu":
            return self
        parts = (self.ids, self.real, self.counted, self.document, self.offset)
        return Tokens(*(None if part is None else part.cpu() for part in parts))  # type: ignore[arg-type]

    def first(self, rows: int, positions: int) -> Tokens:
        """The beginnings of the first rows."""
        return self._cut(slice(rows), slice(positions))

    def every(self, step: int, first: int) -> Tokens:
        """Every so-manieth row, from the first one given on."""
        return self._cut(slice(first, None, step), slice(None))

    def _cut(self, rows: slice, positions: slice) -> Tokens:
        document, offset = (None if part is None else part[rows, positions] for part in (self.document, self.offset))
        ids, real, counted = (part[rows, positions] for part in (self.ids, self.real, self.counted))
        return Tokens(ids, real, counted, document, offset)

    def __len__(self) -> int:
        return len(self.ids)


def _content(ids: Int[Tensor, "B T"], real: Bool[Tensor, "B T"], special: Collection[int]) -> Bool[Tensor, "B T"]:
    first = real & (real.cumsum(-1) == 1)
    return real & ~first & ~torch.isin(ids, torch.tensor(sorted(special), dtype=ids.dtype))


def pack(
    documents: Iterable[Sequence[int]],
    *,
    length: int,
    batch: int,
    special: Collection[int],
    bos: int | None = None,
    separator: int | None = None,
    pad: int = 0,
) -> Iterator[Tokens]:
    """Documents end to end, cut into rows of `length` ids, `batch` rows at a time; only the last row can be padded.

    Each row opens with `bos` where there is one; `separator` stands between documents, never BOS (a BOS in the
    middle of a row is an outlier that no mask by position catches).
    """
    room = length - (bos is not None)
    if room < 1:
        raise InputError(f"rows of {length} tokens leave no room for text: at least {length - room + 1} are needed")
    if batch < 1:
        raise InputError(f"batch={batch}: at least 1 row at a time is needed")
    rows: list[tuple[list[int], list[int], list[int]]] = []
    ids: list[int] = []
    owners: list[int] = []
    offsets: list[int] = []
    for index, document in enumerate(documents):
        ids.extend(document)
        owners.extend([index] * len(document))
        offsets.extend(range(len(document)))
        if separator is not None:
            ids.append(separator)
            owners.append(index)
            offsets.append(len(document))
        start = 0
        while len(ids) - start >= room:
            stop = start + room
            rows.append((ids[start:stop], owners[start:stop], offsets[start:stop]))
            start = stop
            if len(rows) == batch:
                yield _packed(rows, length, special, bos, pad)
                rows = []
        del ids[:start], owners[:start], offsets[:start]
    if ids:
        rows.append((ids, owners, offsets))
    if rows:
        yield _packed(rows, length, special, bos, pad)


def _packed(
    rows: list[tuple[list[int], list[int], list[int]]], length: int, special: Collection[int], bos: int | None, pad: int
) -> Tokens:
    lead = [] if bos is None else [bos]
    tokens = Tokens.of([lead + ids + [pad] * (length - len(lead) - len(ids)) for ids, _, _ in rows], special=special)
    real = torch.ones_like(tokens.real)
    fill = length - len(lead) - len(rows[-1][0])
    if fill:
        real[-1, length - fill :] = False
    document = torch.full((len(rows), length), -1)
    offset = torch.full((len(rows), length), -1)
    for index, (ids, owners, offsets) in enumerate(rows):
        document[index, len(lead) : len(lead) + len(ids)] = torch.tensor(owners)
        offset[index, len(lead) : len(lead) + len(ids)] = torch.tensor(offsets)
    return replace(tokens, real=real, counted=tokens.counted & real, document=document, offset=offset)
