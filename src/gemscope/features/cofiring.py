"""Which features fire on the same tokens, from a sample of tokens whose size does not grow with the text.

A token is in the sample when the hash of its text is among the lowest. So the sample is the same however the text was
cut and ordered, samples of two texts merge into the sample of both, and a text short enough is in it whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


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
        self.add(other._hash, other._position + shift, other._sizes, other._features)

    def _settle(self) -> None:
        """Sorts by hash and keeps as many tokens as have room."""
        parts = [(self._hash, self._position, self._sizes, self._features), *self._pending]
        key, position, sizes, features = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.lexsort((position, key))
        # A token takes room itself: of those on which nothing fires there is no end.
        kept = order[: np.searchsorted((sizes[order] + 1).cumsum(), self.room, side="right")]
        if len(kept) < len(order):
            self._below = int(key[order[len(kept)]])
        starts = sizes.cumsum() - sizes
        within = sizes[kept]
        entries = (
            np.arange(within.sum()) - np.repeat(within.cumsum() - within, within) + np.repeat(starts[kept], within)
        )
        self._hash, self._position, self._sizes, self._features = key[kept], position[kept], within, features[entries]
        self._pending, self._held = [], len(kept) + len(entries)

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
        features = self._features.astype(np.int64)
        counts = np.bincount(features, minlength=self.d_sae)
        starts = self._sizes.cumsum() - self._sizes
        token = np.repeat(np.arange(len(self._sizes)), self._sizes)
        by_feature = token[np.argsort(features, kind="stable")]
        ends = counts.cumsum()
        for feature in np.flatnonzero(counts >= least):
            mine = by_feature[ends[feature] - counts[feature] : ends[feature]]
            sizes = self._sizes[mine]
            entries = np.arange(sizes.sum()) + np.repeat(starts[mine] - (sizes.cumsum() - sizes), sizes)
            others, both = _counted(features[entries], self.d_sae)
            both[others == feature] = 0
            others, both = others[both >= least], both[both >= least]
            index = both / (counts[feature] + counts[others] - both)
            # Ids ascend, so a stable sort leaves the lower id first where indices are equal.
            best = np.argsort(-index, kind="stable")[:k]
            ids[feature, : len(best)] = others[best]
            jaccard[feature, : len(best)] = index[best]
            share[feature, : len(best)] = both[best] / counts[feature]
        return ids, jaccard, share

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


def _counted(ids: Array, most: int) -> tuple[Array, Array]:
    """Distinct ids, ascending, and how often each stands there."""
    if len(ids) * 8 < most:
        return np.unique(ids, return_counts=True)
    counts = np.bincount(ids)
    there = np.flatnonzero(counts)
    return there, counts[there]
