"""Token ids to text: what each token stands for alone, what it completes within a text, which ones a text names.

Tokens are bytes: a character may be spread over several, and bytes may be no text at all.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from hashlib import sha256
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from gemscope.atlas.entry import Ints
from gemscope.atlas.files.packing import pack, unpack
from gemscope.errors import CorruptFile, InputError
from gemscope.text.pieces import completed, spelt

_CHUNK = 1024
"""Tokens packed together."""
MOST = 1 << 22
"""Ids are smaller: what is looked up by id takes room for every id up to the highest, and the largest vocabularies have
a quarter of a million.
"""
UNKNOWN = "\ufffd"


def packed(texts: Mapping[int, bytes], special: Collection[int]) -> Iterator[tuple[int, bytes]]:
    """A vocabulary as records: the first id of each, and the tokens from there on. Raises InputError."""
    ids = np.array(sorted(texts), np.int64)
    if len(ids) and not 0 <= int(ids[0]) <= int(ids[-1]) < MOST:
        raise InputError(f"token {int(ids[-1] if ids[0] >= 0 else ids[0]):,}: ids from 0 to {MOST - 1:,} are kept")
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        tokens = [texts[id_] for id_ in chunk.tolist()]
        yield (
            int(chunk[0]),
            pack(
                (
                    np.diff(chunk),
                    np.array([len(token) for token in tokens], np.int64),
                    np.flatnonzero([id_ in special for id_ in chunk.tolist()]),
                    np.frombuffer(b"".join(tokens), np.uint8),
                )
            ),
        )


class Vocabulary:
    """The tokens that an atlas knows."""

    def __init__(self, records: Iterable[tuple[int, bytes]]) -> None:
        """From what `packed` gave. Raises CorruptFile."""
        self.tokens: dict[int, bytes] = {}
        special: list[int] = []
        for first, record in records:
            steps, lengths, marked, content = unpack(record, 4)
            _require_tokens(first, steps, lengths, marked, content)
            ids = (np.concatenate((np.zeros(1, np.int64), np.cumsum(steps, dtype=np.int64))) + first).tolist()
            whole, ends = content.tobytes(), np.cumsum(lengths, dtype=np.int64).tolist()
            starts = [0, *ends[:-1]]
            self.tokens.update(zip(ids, (whole[a:b] for a, b in zip(starts, ends, strict=True)), strict=True))
            special += [ids[one] for one in marked.tolist()]
        self.special = frozenset(special)
        size = max(self.tokens, default=-1) + 1
        # One beyond the last stands for every id that there is not, -1 among them: lookups need not ask.
        self._texts: list[str] = [UNKNOWN] * (size + 1)
        self.broken = np.zeros(size + 1, np.bool_)
        """[size + 1] Whether a token's bytes are no text by themselves: such are decoded with those around them."""
        for id_, token in self.tokens.items():
            try:
                self._texts[id_] = token.decode()
            except UnicodeDecodeError:
                self._texts[id_] = spelt(token)
                self.broken[id_] = True

    @property
    def size(self) -> int:
        """One more than the highest id."""
        return len(self._texts) - 1

    def alone(self, id_: int) -> str:
        """A token by itself; bytes that are no text are written `\\xe2`."""
        return self._texts[id_] if 0 <= id_ < self.size else UNKNOWN

    def plain(self, ids: Ints) -> list[list[str]]:
        """[n, w] each by itself: the text, where no token is `broken`. Ids as `known` gives them."""
        rows: list[list[str]] = self._table[ids].tolist()
        return rows

    @cached_property
    def _table(self) -> np.ndarray[Any, np.dtype[np.object_]]:
        table = np.empty(len(self._texts), np.object_)
        table[:] = self._texts
        return table

    def text(self, ids: Iterable[int]) -> list[str]:
        """Per token the text that it completes: a `Piece`, which is empty, for one that ends within a character."""
        tokens, unknown = self.tokens, UNKNOWN.encode()
        return completed(tokens.get(id_, unknown) for id_ in ids)

    def like(self, text: str) -> list[list[int]]:
        """Ids of tokens that are this text; that are but for case and blanks around; that begin so. Each once."""
        exact, folded, ordered = self._index
        first = exact.get(text, [])
        bare = text.strip().casefold()
        if not bare:
            return [first, [], []]
        second = [id_ for id_ in folded.get(bare, []) if id_ not in set(first)]
        third: list[int] = []
        for found in ordered[bisect_left(ordered, bare) :]:
            if not found.startswith(bare):
                break
            if found != bare:
                third += folded[found]
        return [first, second, third]

    @cached_property
    def _index(self) -> tuple[dict[str, list[int]], dict[str, list[int]], list[str]]:
        exact: dict[str, list[int]] = {}
        folded: dict[str, list[int]] = {}
        for id_ in self.tokens:
            text = self._texts[id_]
            exact.setdefault(text, []).append(id_)
            if bare := text.strip().casefold():
                folded.setdefault(bare, []).append(id_)
        return exact, folded, sorted(folded)


def shared(records: Collection[tuple[int, bytes]]) -> Vocabulary:
    """One for all atlases that are open with the same: those of a model's sites are. Raises CorruptFile."""
    digest = sha256()
    for first, record in records:
        digest.update(b"%d %d " % (first, len(record)))
        digest.update(record)
    key = digest.digest()
    found = _OPEN.get(key)
    if found is None:
        found = _OPEN[key] = Vocabulary(records)
    return found


_OPEN: WeakValueDictionary[bytes, Vocabulary] = WeakValueDictionary()


def _require_tokens(first: int, steps: Ints, lengths: Ints, marked: Ints, content: Ints) -> None:
    """Before anything is made of them. Raises CorruptFile."""
    if any(one.dtype.kind not in "iu" for one in (steps, lengths, marked)) or content.dtype != np.uint8:
        raise CorruptFile("a packed record is damaged: it is no vocabulary's")
    count, ascending = len(lengths), not len(steps) or int(steps.min()) > 0
    sums = [math.fsum(map(float, one.tolist())) for one in (steps, lengths)]  # which whole numbers might overflow
    if not ascending or not 0 <= first <= first + sums[0] < MOST:
        raise CorruptFile(f"a packed record is damaged: its tokens are not among ids from 0 to {MOST - 1:,}")
    if (
        count != len(steps) + 1
        or int(lengths.min()) < 0
        or sums[1] != len(content)
        or (len(marked) and not 0 <= int(marked.min()) <= int(marked.max()) < count)
    ):
        raise CorruptFile("a packed record is damaged: it holds other tokens than it says")


def known(ids: Ints, size: int) -> Ints:
    """Ids with `size` in place of every one that a vocabulary of that size does not have."""
    # As unsigned numbers the negative ones are the largest.
    return np.minimum(ids.astype(np.int64, copy=False).view(np.uint64), size).view(np.int64)
