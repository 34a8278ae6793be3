"""Two SAEs' features on the same rows of text: which fire on the same tokens, and which features belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gemscope.features.pool import Pool, activations

Array = np.ndarray[Any, np.dtype[Any]]

LEAST = 2
"""Tokens on which two features have to fire both: one is chance."""


@dataclass(frozen=True)
class Best:
    """For each feature of one SAE the feature of another that is most like it; -1 and 0 where there is none."""

    ids: Array
    """int64 [F]"""
    values: Array
    """float32 [F]"""


class Together:
    """The R rows that two pools have in common, which may be one pool twice."""

    def __init__(self, one: Pool, other: Pool) -> None:
        self._pools = one, other
        length = min(one.ids.shape[1], other.ids.shape[1])
        self.length = length
        if one is other:
            rows = np.arange(len(one))
            mine, theirs = rows, rows
        elif one.ids.shape[1] != other.ids.shape[1]:
            mine = theirs = np.zeros(0, np.int64)
        else:
            known = {ids.tobytes(): row for row, ids in enumerate(other.ids.astype(np.int64))}
            pairs = [
                (row, known[key]) for row, ids in enumerate(one.ids.astype(np.int64)) if (key := ids.tobytes()) in known
            ]
            mine, theirs = np.array(pairs, np.int64).reshape(-1, 2).T
        self._rows = mine, theirs
        self.ids: Array = one.ids[mine, :length]
        self.counted: Array = one.counted[mine, :length] & other.counted[theirs, :length]
        """bool [R, T]: tokens that count for both."""
        self._places = tuple(_places(len(pool), rows) for pool, rows in zip(self._pools, self._rows, strict=True))

    @property
    def tokens(self) -> int:
        """How many tokens count."""
        return int(self.counted.sum())

    def firings(self, which: int, feature: int) -> tuple[Array, Array]:
        """Of a feature of pool 0 or 1: flat places [n] in the common rows, ascending, and its activations there."""
        places, coded = self._pools[which].firings(feature)
        rows, columns = np.divmod(places.astype(np.int64), max(1, self.length))
        here = self._places[which][rows]
        flat = here * self.length + columns
        kept = here >= 0
        kept[kept] &= self.counted.reshape(-1)[flat[kept]]
        flat, values = flat[kept], activations(coded[kept])
        order = np.argsort(flat, kind="stable")
        return flat[order], values[order]

    def matched(self, features: int, others: int) -> tuple[Best, Best]:
        """For each of the features the other that fires on the most of the same tokens (Jaccard's index: tokens where
        both fire over tokens where either does), and the reverse. Of equals the lower id.
        """
        there = [self.firings(1, feature)[0] for feature in range(others)]
        sizes = np.array([len(places) for places in there], np.int64)
        places = np.concatenate([np.zeros(0, np.int64), *there])
        order = np.argsort(places, kind="stable")
        by_place = np.repeat(np.arange(others), sizes)[order]
        ends = np.searchsorted(places[order], np.arange(self.counted.size + 1))
        ids, values = np.full(features, -1, np.int64), np.zeros(features, np.float32)
        back_ids, back = np.full(others, -1, np.int64), np.zeros(others, np.float32)
        for feature in range(features):
            mine = self.firings(0, feature)[0]
            starts, counts = ends[mine], ends[mine + 1] - ends[mine]
            beside = by_place[np.repeat(starts - (counts.cumsum() - counts), counts) + np.arange(int(counts.sum()))]
            found, both = np.unique(beside, return_counts=True)
            found, both = found[both >= LEAST], both[both >= LEAST]
            if not len(found):
                continue
            jaccard = (both / (len(mine) + sizes[found] - both)).astype(np.float32)
            best = int(jaccard.argmax())
            ids[feature], values[feature] = found[best], jaccard[best]
            better = jaccard > back[found]
            back_ids[found[better]], back[found[better]] = feature, jaccard[better]
        return Best(ids, values), Best(back_ids, back)


def _places(rows: int, common: Array) -> Array:
    """[rows] Which of the common rows each row is; -1 for one that is none."""
    found = np.full(rows, -1, np.int64)
    found[common] = np.arange(len(common))
    return found
