"""The k places of highest rank of each group, kept as places come in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_NONE = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Places:
    """C places in the corpus, each of one group (a feature, or one range of a feature's activations)."""

    group: Array
    """int64 [C]"""
    rank: Array
    """int64 [C]: the higher, the sooner kept."""
    key: Array
    """int64 [C]: equal for equal texts."""
    position: Array
    """int64 [C]: of equals, the earlier is kept."""
    value: Array
    """float32 [C]: the activation."""
    window: Array
    """float16 [C, W]: activations around it, in parts of its own."""

    def __getitem__(self, chosen: Array | slice) -> Places:
        return Places(*(getattr(self, name)[chosen] for name in FIELDS))

    def __len__(self) -> int:
        return len(self.group)


FIELDS = ("group", "rank", "key", "position", "value", "window")


class Best:
    """The k places of highest rank of each of G groups, no two with the same key."""

    def __init__(self, groups: int, k: int, width: int) -> None:
        self.k = k
        self._rank = np.full((groups, k), _NONE)
        self._key = np.zeros((groups, k), np.int64)
        self._position = np.zeros((groups, k), np.int64)
        self._value = np.zeros((groups, k), np.float32)
        self._window = np.zeros((groups, k, width), np.float16)
        self.floor = np.full(groups, _NONE)
        """[G] what a place must reach to be looked at: the lowest rank kept, once there are k."""

    def offer(
        self, *, group: Array, rank: Array, key: Array, position: Array, value: Array, window: Callable[[Array], Array]
    ) -> None:
        """Places that might be kept. `window` gives the activations around those that it is asked for, by index."""
        if not self.k:
            return
        chosen = np.flatnonzero(rank >= self.floor[group])
        if not len(chosen):
            return
        group, rank, key, position = group[chosen], rank[chosen], key[chosen], position[chosen]
        touched = np.unique(group)
        old = self._rank[touched] != _NONE
        slots = np.broadcast_to(touched[:, None] * self.k + np.arange(self.k), old.shape)[old]
        n_old = len(slots)

        def joined(kept: Array, new: Array) -> Array:
            return np.concatenate([kept.reshape(-1)[slots], new])

        groups = np.concatenate([slots // self.k, group])
        ranks, keys = joined(self._rank, rank), joined(self._key, key)
        positions = joined(self._position, position)
        winners = _winners(groups, ranks, keys, positions, self.k)
        # What stays keeps its slot; what is new takes the slots of its group that are free.
        kept = np.zeros(len(groups), bool)
        kept[winners] = True
        self._rank.reshape(-1)[slots[~kept[:n_old]]] = _NONE
        new = np.flatnonzero(kept[n_old:])
        new = new[np.argsort(group[new], kind="stable")]
        self._fill(Places(group[new], rank[new], key[new], position[new], value[chosen[new]], window(chosen[new])))
        self.floor[touched] = self._rank[touched].min(1)

    def _fill(self, places: Places) -> None:
        """New places, ascending by group, into free slots."""
        group = places.group
        holders, first = np.unique(group, return_index=True)
        free = np.argsort(self._rank[holders] != _NONE, axis=1, kind="stable")  # free slots first
        nth = np.arange(len(group)) - np.repeat(first, np.diff(np.append(first, len(group))))
        slot = group * self.k + free[np.searchsorted(holders, group), nth]
        for name in FIELDS[1:5]:
            getattr(self, f"_{name}").reshape(-1)[slot] = getattr(places, name)
        self._window.reshape(-1, self._window.shape[-1])[slot] = places.window

    def take(self, groups: Array) -> Places:
        """What is kept of some groups, in no order; it is forgotten here."""
        there = self._rank[groups] != _NONE
        slots = (groups[:, None] * self.k + np.arange(self.k))[there]
        places = self._at(slots)
        self._rank[groups] = _NONE
        self.floor[groups] = _NONE
        return places

    def sorted(self) -> Places:
        """All that is kept: by group, and highest rank first within it; of equal ranks the earlier position."""
        places = self._at(np.flatnonzero(self._rank.reshape(-1) != _NONE))
        # ~rank, not -rank: the lowest int64 has no negative.
        return places[np.lexsort((places.position, ~places.rank, places.group))]

    def _at(self, slots: Array) -> Places:
        rank, key, position, value = (getattr(self, f"_{name}").reshape(-1)[slots] for name in FIELDS[1:5])
        window = self._window.reshape(-1, self._window.shape[-1])[slots]
        return Places(slots // self.k, rank, key, position, value, window)

    def state(self) -> dict[str, Array]:
        """What is kept, to be stored."""
        places = self.sorted()
        return {name: getattr(places, name) for name in FIELDS}

    def restore(self, state: Mapping[str, Array]) -> None:
        """What was stored, where nothing is kept yet. Raises ValueError for what was none."""
        places = Places(*(state[name] for name in FIELDS))
        group = places.group
        if not (
            len({len(getattr(places, name)) for name in FIELDS}) == 1
            and (not len(group) or (group[0] >= 0 and group[-1] < len(self.floor) and (np.diff(group) >= 0).all()))
            and (np.bincount(group, minlength=1) <= self.k).all()
        ):
            raise ValueError("its places are not as they are kept")
        self._fill(places)
        if self.k:
            self.floor = self._rank.min(1)


def _winners(group: Array, rank: Array, key: Array, position: Array, k: int) -> Array:
    """Indices of the k best of each group, no two with one key."""
    order = np.lexsort((position, ~rank, group))
    # Of equal keys in a group the first in this order stays: a stable sort by (group, key) leaves it in front.
    by_key = order[np.lexsort((key[order], group[order]))]
    same = (group[by_key][1:] == group[by_key][:-1]) & (key[by_key][1:] == key[by_key][:-1])
    twice = np.zeros(len(group), bool)
    twice[by_key[1:][same]] = True
    order = order[~twice[order]]
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    nth = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    winners: Array = order[nth < k]
    return winners
