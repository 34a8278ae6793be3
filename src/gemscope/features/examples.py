"""Where features fire, kept as text goes by: the strongest places and a sample from each range of activations, each
with the activations around it. No place is kept twice: one text that stands in the corpus again counts once.

What is kept depends on the text alone, not on batches or order: of what would be kept of two texts one can keep what
would be kept of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gemscope.features.best import FIELDS, Array, Best, Places
from gemscope.features.keys import ODD, scrambled
from gemscope.features.tally import NEVER

INTERVALS = 8
"""Ranges of activations that examples are drawn from: equal parts of 0 to the power of two above the maximum."""


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
        for part, best in (("top", self._top), ("drawn", self._drawn)):
            best.restore({name: state[f"{part}.{name}"] for name in FIELDS})
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

    def outside(self, rows: Array) -> Firings:
        """Those that are in none of the rows [R] that are marked."""
        kept = ~rows[self.tokens // self.length]
        if kept.all():
            return self
        return replace(
            self,
            features=self.features[kept],
            values=self.values[kept],
            tokens=self.tokens[kept],
            key=self.key[kept],
        )

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


def _mixed(key: Array, features: Array) -> Array:
    """A draw for every (text, feature): not negative, alike to chance, the same each time."""
    drawn = scrambled(key.view(np.uint64) ^ (features.astype(np.uint64) + np.uint64(1)) * ODD)
    return (drawn >> np.uint64(11)).view(np.int64)  # 53 bits: a float64 can tell them apart


def _bits(values: Array) -> Array:
    """Positive float32 as whole numbers in the same order."""
    return values.view(np.int32).astype(np.int64)


def _first_of(pair: Array, order: Array, tie: Array) -> Array:
    """For each pair the index of its entry that comes first by `order`, then by `tie`."""
    sorting = np.lexsort((tie, order, pair))
    starts = np.flatnonzero(np.diff(pair[sorting], prepend=-1))
    first: Array = sorting[starts]
    return first
