"""Bars of a terminal, a column of them at a time: the longest stands for the largest value."""

from __future__ import annotations

import math
from collections.abc import Sequence

_LONGEST = 12
"""Characters."""


def bars(values: Sequence[float], light: Sequence[bool], *, most: float | None = None) -> list[str]:
    """Bars for values, the `light` ones in a lighter ink. One below 0 has none, one that is not finite the longest."""
    most = most or max((abs(value) for value in values if math.isfinite(value)), default=0.0) or 1.0
    return [_bar(value / most, pale) for value, pale in zip(values, light, strict=True)]


def signed_bars(values: Sequence[float], light: Sequence[bool]) -> list[str]:
    """The same for sizes, with a minus sign before those below 0."""
    found = bars([abs(value) for value in values], light)
    return [f"{'−' if value < 0 else ' '}{bar}" for value, bar in zip(values, found, strict=True)]


def _bar(share: float, pale: bool) -> str:
    share = min(1.0, max(0.0, share)) if math.isfinite(share) else 1.0
    eighths = round(share * _LONGEST * 8)
    if pale:
        return "░" * round(eighths / 8) or "·"
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()) or "·"
