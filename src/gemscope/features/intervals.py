"""Intervals of shares, and of what is made of shares."""

from __future__ import annotations

import math
from typing import NamedTuple

_Z = 1.959964
"""Standard deviations on either side that hold 95 % of a normal distribution."""


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, `hits` of `n` (Wilson 1927): never empty, and within 0 to 1, at 0 and 1 as well."""
    share, z2 = hits / n, _Z**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


class Interval(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


def balanced_accuracy(hits: int, positives: int, rejected: int, negatives: int) -> Interval:
    """The mean of two shares, `hits` of `positives` and `rejected` of `negatives`; chance is one half.

    The interval comes from Wilson's of both, which are independent (Zou and Donner 2008).
    """
    one, other = hits / positives, rejected / negatives
    (one_low, one_high), (other_low, other_high) = wilson(hits, positives), wilson(rejected, negatives)
    below, above = math.hypot(one - one_low, other - other_low), math.hypot(one_high - one, other_high - other)
    value = (one + other) / 2
    return Interval(value, max(0.0, value - below / 2), min(1.0, value + above / 2))
