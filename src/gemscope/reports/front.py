"""What cannot be had cheaper: the Pareto front of L0 against another figure. Knows no SAEs and no models."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Front:
    """The Pareto front of L0 against one figure."""

    figure: str
    """The figure's name in a score."""
    name: str
    """The same in words."""
    places: tuple[int, ...]
    """Which scores no other beats: as low in both, and lower in one."""


def on_front(points: Iterable[tuple[int, float, float]]) -> tuple[int, ...]:
    """Which of these places no other beats: (place, L0, figure) each, of which less is better."""
    found, best = list[int](), math.inf
    for _, same in groupby(sorted(points, key=lambda one: one[1:]), key=lambda one: one[1]):
        lowest, *others = same
        if lowest[2] < best:
            best = lowest[2]
            found += [lowest[0], *(place for place, _, value in others if value == best)]
    return tuple(sorted(found))
