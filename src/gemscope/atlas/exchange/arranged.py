"""Examples of other tools as an atlas wants them: each window once, each in the interval that its value lies in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from gemscope.atlas.entry import Entry, Floats
from gemscope.atlas.exchange.intake import Shown, Taken

_ROUNDED = 1e-3
"""The activations of windows are rounded by as large a share as this."""
_CLOSE = 1e-6
"""Bounds that differ by less than this share of the maximum are one bound."""


@dataclass(frozen=True)
class Arranged:
    """Examples of one feature as an atlas wants them: the strongest first, then from the highest interval down."""

    shown: list[Shown] = field(default_factory=list)
    intervals: list[int] = field(default_factory=list)
    edges: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    counts: list[int] = field(default_factory=list)


def arranged(examples: Iterable[Shown], firings: int, taken: Taken, edges: Floats | None = None) -> Arranged:
    """Each window once, each example in the interval that its value lies in, whatever it was filed under.

    The bounds of the intervals are `edges`, or those that the examples tell of.
    """
    kept: dict[int, Shown] = {}
    for one in sorted(examples, key=lambda one: one.low is not None):  # the strongest before all else
        if one.window in kept:
            taken.duplicates += 1
        else:
            kept[one.window] = one
    strongest = sorted((one for one in kept.values() if one.low is None), key=lambda one: -one.value)
    others = [one for one in kept.values() if one.low is not None]
    if not others:
        return Arranged(strongest, [-1] * len(strongest))
    bounds = _edges(others) if edges is None else edges
    if len(bounds) < 2:
        everything = sorted([*strongest, *others], key=lambda one: -one.value)
        return Arranged(everything, [-1] * len(everything))
    placed = [(_interval(one.value, bounds), one) for one in others]
    if edges is None:
        taken.rebinned += sum(not _within(one, bounds, interval) for interval, one in placed)
    placed.sort(key=lambda pair: (-pair[0], -pair[1].value))
    top = max(one.value for one in others)
    if top >= bounds[-1]:  # the last bound is the maximum itself, or was rounded below it
        bounds = bounds.copy()
        bounds[-1] = np.nextafter(np.float32(top), np.float32(np.inf))
    return Arranged(
        [*strongest, *(one for _, one in placed)],
        [-1] * len(strongest) + [interval for interval, _ in placed],
        bounds,
        _counts(others, bounds, firings),
    )


def _edges(others: list[Shown]) -> Floats:
    bounds = np.unique(np.array([(one.low, one.high) for one in others], np.float64))
    bounds = bounds[np.isfinite(bounds) & (bounds >= 0)]
    if len(bounds) < 2:
        return np.zeros(0, np.float32)
    apart = np.diff(bounds, prepend=-np.inf) > _CLOSE * bounds[-1]
    return np.unique(bounds[apart].astype(np.float32))


def _interval(value: float, bounds: Floats) -> int:
    return int(np.clip(np.searchsorted(bounds, np.float32(value), side="right") - 1, 0, len(bounds) - 2))


def _within(one: Shown, bounds: Floats, interval: int) -> bool:
    """Whether it was filed under an interval that holds it; bounds are told with a few digits."""
    assert one.low is not None
    slack = 1e-3 * float(bounds[-1])
    return one.low - slack <= one.value <= (one.high or one.low) + slack or one.low == float(bounds[interval])


def _counts(others: list[Shown], bounds: Floats, firings: int) -> list[int]:
    """Firings in each interval, as its share says; where there is none, 0."""
    shares = np.zeros(len(bounds) - 1)
    for one in others:
        if one.share is not None and one.low is not None and one.high is not None:
            shares[_interval((one.low + one.high) / 2, bounds)] = min(1.0, max(0.0, one.share))
    counts = np.rint(shares / max(1.0, shares.sum()) * firings).astype(np.int64)
    while counts.sum() > firings:  # by rounding up
        counts[counts.argmax()] -= 1
    out: list[int] = counts.tolist()
    return out


def with_examples(entry: Entry, found: Arranged, length: int) -> Entry:
    """The entry, and the cells of its examples in a corpus of rows of `length`."""
    shown = found.shown
    if not shown:
        return entry
    return replace(
        entry,
        edges=found.edges,
        interval_counts=np.array(found.counts, np.int64),
        positions=np.array([one.window * length + one.own for one in shown], np.int64),
        intervals=np.array(found.intervals, np.int64),
        owners=np.repeat(np.arange(len(shown)), [len(one.columns) for one in shown]),
        columns=np.concatenate([one.columns for one in shown]).astype(np.int64),
        values=np.concatenate([one.values for one in shown]).astype(np.float32),
    )


def highest(told: float | None, examples: Iterable[Shown]) -> float:
    """A feature's maximum: as told, unless its examples show more than rounding makes of it."""
    shown = max((float(one.values.max()) for one in examples), default=0.0)
    return told if told is not None and shown <= told * (1 + _ROUNDED) else shown
