"""Which features fire on the same tokens, from a sample of tokens whose size does not grow with the text.

A token is in the sample when the hash of its text is among the lowest. So the sample is the same however the text was
cut and ordered, samples of two texts merge into the sample of both, and a text short enough is in it whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_AT_ONCE = 1 << 20
"""Entries gathered or sorted at a time: what is needed beside the sample itself does not grow with it."""


class Sample:
    """The active features of sampled tokens: as many tokens, each with its features, as there is `room` for."""

    def __init__(self, d_sae: int, room: int) -> None:
        self.d_sae, self.room = d_sae, room
        self._hash = np.zeros(0, np.int64)
        self._position = np.zeros(0, np.int64)
        self._sizes = np.zeros(0, np.int64)
        self._features = np.zeros(0, np.uint16 if d_sae <= 1 << 16 else np.int32)
        self._below = np.iinfo(np.int64).max
        """Hashes above this are out for good."""
        self._pending: list[tuple[Array, Array, Array, Array]] = []
        self._held = 0

    def add(self, key: Array, position: Array, sizes: Array, features: Array) -> None:
        """N counted tokens: the keys of their texts, where they stand, how many features are active, and which ones."""
        kept = np.flatnonzero(key <= self._below)
        chosen = np.repeat(key <= self._below, sizes)
        self._pending.append((key[kept], position[kept], sizes[kept], features[chosen].astype(self._features.dtype)))
        self._held += len(kept) + int(sizes[kept].sum())
        if self._held > self.room + self.room // 4:
            self._settle()

    def merge(self, other: Sample, shift: int) -> None:
        """What another text gave, whose positions start at `shift` here."""
        other._settle()
        self._below = min(self._below, other._below)  # what had no room there ends the sample of both as well
        self.add(other._hash, other._position + shift, other._sizes, other._features)

    def _settle(self) -> None:
        """Sorts by hash and keeps as many tokens as have room."""
        if not self._pending:
            return
        parts = [(self._hash, self._position, self._sizes, self._features), *self._pending]
        key, position, sizes, features = (np.concatenate(part) for part in zip(*parts, strict=True))
        # Or what was there before would lie beside all of it, and then beside what is kept.
        self._features, self._pending = features[:0], []
        del parts
        order = np.lexsort((position, key))
        order = order[: np.searchsorted(key[order], self._below, side="right")]
        # A token takes room itself: of those on which nothing fires there is no end.
        kept = order[: np.searchsorted((sizes[order] + 1).cumsum(), self.room, side="right")]
        if len(kept) < len(order):
            self._below = int(key[order[len(kept)]])
        starts, within = sizes.cumsum() - sizes, sizes[kept]
        taken = np.empty(int(within.sum()), features.dtype)
        done = 0
        for some in _blocks(within):
            entries = ranges(starts[kept[some]], within[some])
            taken[done : done + len(entries)] = features[entries]
            done += len(entries)
        self._hash, self._position, self._sizes, self._features = key[kept], position[kept], within, taken
        self._pending, self._held = [], len(kept) + len(taken)

    @property
    def tokens(self) -> int:
        """Tokens in the sample."""
        self._settle()
        return len(self._hash)

    def partners(self, k: int, *, least: int = 2) -> tuple[Array, Array, Array]:
        """For each feature the k others with the highest Jaccard index (tokens where both fire over tokens where either
        does), on the tokens of the sample: ids [F, k] (-1 where there are fewer), the index, and the share of the
        feature's own tokens. Pairs seen together on fewer than `least` tokens are chance and left out.
        """
        self._settle()
        ids = np.full((self.d_sae, k), -1, np.int64)
        jaccard = np.zeros((self.d_sae, k), np.float32)
        share = np.zeros((self.d_sae, k), np.float32)
        starts = self._sizes.cumsum() - self._sizes
        counts, by_feature = self._by_feature()
        ends = counts.cumsum()
        for feature in np.flatnonzero(counts >= least):
            mine = by_feature[ends[feature] - counts[feature] : ends[feature]]
            others, both = self._beside(starts[mine], self._sizes[mine])
            both[others == feature] = 0
            others, both = others[both >= least], both[both >= least]
            index = both / (counts[feature] + counts[others] - both)
            # Ids ascend, so a stable sort leaves the lower id first where indices are equal.
            best = np.argsort(-index, kind="stable")[:k]
            ids[feature, : len(best)] = others[best]
            jaccard[feature, : len(best)] = index[best]
            share[feature, : len(best)] = both[best] / counts[feature]
        return ids, jaccard, share

    def _by_feature(self) -> tuple[Array, Array]:
        """On how many tokens each feature is active, and on which: those of the first, those of the second, ..."""
        counts = np.zeros(self.d_sae, np.int64)
        for start in range(0, len(self._features), _AT_ONCE):
            counts += np.bincount(self._features[start : start + _AT_ONCE], minlength=self.d_sae)
        found = np.empty(len(self._features), np.int32)
        ahead = counts.cumsum() - counts
        done = 0
        for some in _blocks(self._sizes):
            sizes = self._sizes[some]
            features = self._features[done : done + int(sizes.sum())]
            done += len(features)
            order = np.argsort(features, kind="stable")
            here = np.bincount(features, minlength=self.d_sae)
            # Where a feature's tokens of this block go: behind those of the blocks before.
            place = np.arange(len(features)) + np.repeat(ahead - (here.cumsum() - here), here)
            found[place] = np.repeat(np.arange(some.start, some.start + len(sizes), dtype=np.int32), sizes)[order]
            ahead += here
        return counts, found

    def _beside(self, starts: Array, sizes: Array) -> tuple[Array, Array]:
        """Distinct features of some tokens, ascending, and on how many of these tokens each is active."""
        blocks = list(_blocks(sizes))
        if len(blocks) == 1:
            return _counted(self._features[ranges(starts, sizes)], self.d_sae)
        counts = np.zeros(self.d_sae, np.int64)
        for some in blocks:
            counts += np.bincount(self._features[ranges(starts[some], sizes[some])], minlength=self.d_sae)
        there = np.flatnonzero(counts)
        return there, counts[there]

    def state(self) -> dict[str, Array]:
        """All of it, to be stored."""
        self._settle()
        return {
            "hash": self._hash,
            "position": self._position,
            "sizes": self._sizes,
            "features": self._features,
            "room": np.array([self.room]),
            "below": np.array([self._below]),
        }

    @classmethod
    def of(cls, state: Mapping[str, Array], d_sae: int) -> Sample:
        """The sample whose `state` was stored. Raises ValueError for what was none."""
        sizes, features = state["sizes"], state["features"]
        if not (
            len(state["hash"]) == len(state["position"]) == len(sizes)
            and len(state["room"]) == len(state["below"]) == 1
            and (not len(sizes) or 0 <= sizes.min() <= sizes.max() <= len(features))
            and sizes.sum() == len(features)
            and (not len(features) or 0 <= features.min() <= features.max() < d_sae)
            and (not len(sizes) or state["position"].min() >= 0)
        ):
            raise ValueError("its sample of tokens is no such sample")
        sample = cls(d_sae, int(state["room"][0]))
        sample._hash, sample._position, sample._sizes = (
            np.array(state[name]) for name in ("hash", "position", "sizes")
        )
        sample._features = state["features"].astype(sample._features.dtype)
        sample._below = int(state["below"][0])
        sample._held = len(sample._hash) + len(sample._features)
        return sample


def _blocks(sizes: Array) -> Iterator[slice]:
    """Tokens one after another, in blocks of no more than _AT_ONCE entries (or of one token that alone has more)."""
    ends = sizes.cumsum()
    start = 0
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _AT_ONCE, side="right")))
        stop = min(stop, start + _AT_ONCE)
        yield slice(start, stop)
        start = stop


def ranges(starts: Array, sizes: Array) -> Array:
    """Whole numbers from each start on, as many as its size says, one range after another."""
    ranges: Array = np.arange(int(sizes.sum())) + np.repeat(starts - (sizes.cumsum() - sizes), sizes)
    return ranges


def _counted(ids: Array, most: int) -> tuple[Array, Array]:
    """Distinct ids, ascending, and how often each stands there."""
    if len(ids) * 8 < most:
        return np.unique(ids, return_counts=True)
    counts = np.bincount(ids)
    there = np.flatnonzero(counts)
    return there, counts[there]
