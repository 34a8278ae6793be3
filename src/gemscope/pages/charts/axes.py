"""What charts share: the margins, and round numbers along an axis."""

from __future__ import annotations

import math
from collections.abc import Iterator

WIDE = 360
LEFT, RIGHT, TOP, BOTTOM = 40, 6, 8, 34
"""Pixels around what is drawn, for an axis's numbers and names."""


def steps(low: float, high: float, most: int) -> Iterator[float]:
    """Round numbers within a range, about `most` of them."""
    size = 10 ** math.floor(math.log10((high - low) / most))
    size *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (size * factor) <= most)
    for index in range(math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9) + 1):
        yield index * size
