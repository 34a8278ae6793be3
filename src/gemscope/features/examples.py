"""Where features fire, kept as text goes by: the strongest places and a sample from each range of activations, each
with the activations around it. No place is kept twice: one text that stands in the corpus again counts once.

What is kept depends on the text alone, not on batches or order: of what would be kept of two texts one can keep what
would be kept of both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemscope.features.tally import NEVER

Array = np.ndarray[Any, np.dtype[Any]]

INTERVALS = 8
"""Ranges of activations that examples are drawn from: equal parts of 0 to the power of two above the maximum."""
REACH = 16
"""Two places are one text where a token and this many before it are the same."""
_NONE = np.iinfo(np.int64).min
_ODD = np.uint64(0x9E3779B97F4A7C15)


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
        return Places(*(getattr(self, name)[chosen] for name in _FIELDS))

    def __len__(self) -> int:
        return len(self.group)


_FIELDS = ("group", "rank", "key", "position", "value", "window")


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
        for name in _FIELDS[1:5]:
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
        rank, key, position, value = (getattr(self, f"_{name}").reshape(-1)[slots] for name in _FIELDS[1:5])
        window = self._window.reshape(-1, self._window.shape[-1])[slots]
        return Places(slots // self.k, rank, key, position, value, window)

    def state(self) -> dict[str, Array]:
        """All of it, to be stored."""
        return {name: getattr(self, f"_{name}") for name in _FIELDS[1:]}

    @classmethod
    def of(cls, state: Mapping[str, Array]) -> Best:
        """What was stored."""
        groups, k, width = state["window"].shape
        best = cls(groups, k, width)
        for name in _FIELDS[1:]:
            getattr(best, f"_{name}")[...] = state[name]
        if k:
            best.floor = best._rank.min(1)
        return best


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


@dataclass(frozen=True)
class Kept:
    """Places without what can be told from them: how an atlas remembers them."""

    features: Array
    """int64 [C]"""
    drawn: Array
    """bool [C]: from a range of activations, not among the strongest."""
    keys: Array
    """int64 [C]"""
    positions: Array
    """int64 [C]"""
    values: Array
    """float32 [C]"""
    windows: Array
    """float16 [C, W]"""


class Examples:
    """The examples of F features: the `top` strongest rows' peaks, and `each` from every range of activations.

    A row of text gives a feature at most two places: where it fires most strongly, for the strongest; and one of its
    firings at random (the same one whenever this text is read), for the range that it falls in.
    """

    def __init__(self, d_sae: int, *, top: int, each: int, before: int, after: int) -> None:
        self.d_sae, self.before, self.after = d_sae, before, after
        width = before + 1 + after
        self._top = Best(d_sae, top, width)
        self._drawn = Best(d_sae * INTERVALS, each, width)
        self._exponents = np.full(d_sae, NEVER)

    def add(self, batch: Firings, exponents: Array) -> None:
        """One batch of whole rows. `exponents` [F]: of the power of two above each feature's maximum by now."""
        self._widen(exponents)
        strong = np.flatnonzero(_bits(batch.values) >= self._top.floor[batch.features])
        peaks = strong[_first_of(batch.pair(strong), -batch.values[strong].astype(np.float64), strong)]
        self._top.offer(**self._of(batch, peaks, batch.features[peaks], _bits(batch.values[peaks])))

        priority = _mixed(batch.key, batch.features)
        group = self._group(batch.features, batch.values)
        likely = priority >= self._drawn.floor[group]
        # A pair's one draw counts, whether or not another of its firings would be kept.
        pairs = np.zeros(batch.rows * self.d_sae, bool)
        pairs[batch.pair(np.flatnonzero(likely))] = True
        among = np.flatnonzero(pairs[batch.pair(slice(None))])
        drawn = among[_first_of(batch.pair(among), -priority[among].astype(np.float64), among)]
        self._drawn.offer(**self._of(batch, drawn, group[drawn], priority[drawn]))

    def merge(self, other: Examples, exponents: Array, shift: int) -> None:
        """What another text gave, whose positions start at `shift` here."""
        self._widen(exponents)
        for mine, theirs in ((self._top, other._top), (self._drawn, other._drawn)):
            places = theirs.sorted()
            group = places.group if mine is self._top else self._group(places.group // INTERVALS, places.value)
            mine.offer(
                group=group,
                rank=places.rank,
                key=places.key,
                position=places.position + shift,
                value=places.value,
                window=places.window.__getitem__,
            )

    def sorted(self) -> tuple[Places, Places]:
        """The strongest, grouped by feature; and those drawn, grouped by feature * INTERVALS + interval."""
        return self._top.sorted(), self._drawn.sorted()

    def keep(self, places: Kept, exponents: Array) -> None:
        """Places that were kept before, such as an atlas's."""
        self._widen(exponents)
        for best, chosen in ((self._top, ~places.drawn), (self._drawn, places.drawn)):
            features, values, keys = places.features[chosen], places.values[chosen], places.keys[chosen]
            strong = best is self._top
            best.offer(
                group=features if strong else self._group(features, values),
                rank=_bits(values) if strong else _mixed(keys, features),
                key=keys,
                position=places.positions[chosen],
                value=values,
                window=places.windows[chosen].__getitem__,
            )

    def _of(self, batch: Firings, at: Array, group: Array, rank: Array) -> dict[str, Any]:
        def windows(chosen: Array) -> Array:
            return batch.windows(at[chosen], self.before, self.after)

        return {
            "group": group,
            "rank": rank,
            "key": batch.key[at],
            "position": batch.tokens[at] + batch.first,
            "value": batch.values[at],
            "window": windows,
        }

    def _group(self, features: Array, values: Array) -> Array:
        # Exact: a power of two times a float32.
        part = np.ldexp(values.astype(np.float64) * INTERVALS, -self._exponents[features])
        group: Array = features * INTERVALS + part.astype(np.int64)
        return group

    def _widen(self, exponents: Array) -> None:
        """Ranges of features whose maximum outgrew them become wider, and what they held goes where it belongs now."""
        grown = np.flatnonzero(exponents > self._exponents)
        self._exponents[grown] = exponents[grown]
        if not len(grown):
            return
        held = self._drawn.take((grown[:, None] * INTERVALS + np.arange(INTERVALS)).reshape(-1))
        group = self._group(held.group // INTERVALS, held.value)
        self._drawn.offer(
            group=group,
            rank=held.rank,
            key=held.key,
            position=held.position,
            value=held.value,
            window=held.window.__getitem__,
        )

    def state(self) -> dict[str, Array]:
        """All of it, to be stored."""
        parts = {"top": self._top, "drawn": self._drawn}
        return {f"{part}.{name}": value for part, best in parts.items() for name, value in best.state().items()} | {
            "exponents": self._exponents
        }

    def restore(self, state: Mapping[str, Array], exponents: Array, end: int) -> None:
        """What was stored of a text that ends at this flat position, by whose tally the exponents are these. Raises
        ValueError for what was none.
        """
        self._top, self._drawn = (
            Best.of({name: state[f"{part}.{name}"] for name in _FIELDS[1:]}) for part in ("top", "drawn")
        )
        self._exponents = np.array(state["exponents"])
        top, drawn = self.sorted()
        for places, features in ((top, top.group), (drawn, drawn.group // INTERVALS)):
            if not (
                ((places.position >= 0) & (places.position < end)).all()
                and ((places.value > 0) & (places.value < np.ldexp(1.0, exponents[features]))).all()
                and (places.window >= 0).all()
                and (places.window[:, self.before] == 1).all()
            ):
                raise ValueError("its examples are no examples of this text")
        if not (
            np.array_equal(self._exponents, exponents)
            and np.array_equal(top.rank, _bits(top.value))
            and (drawn.rank >= 0).all()
            and np.array_equal(drawn.group, self._group(drawn.group // INTERVALS, drawn.value))
        ):
            raise ValueError("its examples are not where they belong")


@dataclass(frozen=True)
class Firings:
    """The firings in a batch of whole rows, on counted tokens: Z entries, ascending by token."""

    features: Array
    """int64 [Z]"""
    values: Array
    """float32 [Z]"""
    tokens: Array
    """int64 [Z]: flat index of the token in the batch."""
    key: Array
    """int64 [Z]: of the text that ends with this token (`text_keys`)."""
    first: int
    """Flat position of the batch in the corpus."""
    rows: int
    length: int
    d_sae: int

    def pair(self, at: Array | slice) -> Array:
        """Which row and feature entries belong to, as one number."""
        pair: Array = self.tokens[at] // self.length * self.d_sae + self.features[at]
        return pair

    def windows(self, at: Array, before: int, after: int) -> Array:
        """[len(at), before + 1 + after] activations of the same feature around entries, in parts of theirs."""
        out = np.zeros((len(at), before + 1 + after), np.float16)
        pairs = self.pair(at)
        wanted = np.zeros(self.rows * self.d_sae, bool)
        wanted[pairs] = True
        every = self.pair(slice(None))
        among = np.flatnonzero(wanted[every])
        among = among[np.argsort(every[among], kind="stable")]
        found = every[among]
        start, stop = np.searchsorted(found, pairs, "left"), np.searchsorted(found, pairs, "right")
        sizes = stop - start
        owner = np.repeat(np.arange(len(at)), sizes)
        entry = among[np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes) + np.repeat(start, sizes)]
        column = self.tokens[entry] - self.tokens[at][owner] + before
        inside = (column >= 0) & (column < out.shape[1])
        owner, entry, column = owner[inside], entry[inside], column[inside]
        ratio = self.values[entry] / self.values[at][owner]
        out[owner, column] = np.minimum(ratio, np.finfo(np.float16).max)
        return out


def text_keys(ids: Array) -> Array:
    """int64 [R, T]: for each token a hash of it and the REACH tokens before it in its row."""
    ids = ids.astype(np.int64)
    padded = np.concatenate([np.full((len(ids), REACH), -1), ids], axis=1).astype(np.uint64)
    key = np.zeros(ids.shape, np.uint64)
    for back in range(REACH + 1):
        # Each place has a weight of its own: the order of tokens matters.
        piece = padded[:, REACH - back : REACH - back + ids.shape[1]]
        key += _scrambled(piece * _ODD + np.uint64(back + 1))
    return key.view(np.int64)


def _mixed(key: Array, features: Array) -> Array:
    """A draw for every (text, feature): not negative, alike to chance, the same each time."""
    drawn = _scrambled(key.view(np.uint64) ^ (features.astype(np.uint64) + np.uint64(1)) * _ODD)
    return (drawn >> np.uint64(11)).view(np.int64)  # 53 bits: a float64 can tell them apart


def _scrambled(x: Array) -> Array:
    """The finisher of splitmix64 (Steele, Lea and Flood 2014): every bit depends on every other."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    done: Array = x ^ (x >> np.uint64(31))
    return done


def _bits(values: Array) -> Array:
    """Positive float32 as whole numbers in the same order."""
    return values.view(np.int32).astype(np.int64)


def _first_of(pair: Array, order: Array, tie: Array) -> Array:
    """For each pair the index of its entry that comes first by `order`, then by `tie`."""
    sorting = np.lexsort((tie, order, pair))
    starts = np.flatnonzero(np.diff(pair[sorting], prepend=-1))
    first: Array = sorting[starts]
    return first
