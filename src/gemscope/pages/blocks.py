"""Pictures of a terminal: bars, a column of them at a time, the longest for the largest value; and histograms of one
line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gemscope.features.histogram import Histogram, is_logarithmic

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


def spark(data: Histogram, room: int, *, high: float | None = None) -> tuple[str, float, bool]:
    """A histogram as one line of at most `room` signs, up to `high` or to the last bin that is not empty: the line,
    where it ends, and whether heights are logarithms of counts (as `charts.histogram` has it).

    A sign stands for as many bins as it must; one that holds anything is never blank.
    """
    used = next((index for index, count in reversed([*enumerate(data.counts, 1)]) if count), 0)
    if high is not None and data.step > 0:
        used = max(used, math.ceil(round((high - data.low) / data.step, 6)))
    counts = [*data.counts[:used], *[0] * (used - len(data.counts))]
    each = math.ceil(used / max(1, room)) or 1
    sums = [sum(counts[start : start + each]) for start in range(0, used, each)]
    top = max(sums, default=0)
    logarithmic = is_logarithmic(sums)
    heights = [math.log1p(one) / math.log1p(top) if logarithmic else one / top for one in sums] if top else []
    line = "".join(_HEIGHTS[max(1, round(8 * height)) if height else 0] for height in heights)
    return line, data.low + len(sums) * each * data.step, logarithmic


_HEIGHTS = " ▁▂▃▄▅▆▇█"


def _bar(share: float, pale: bool) -> str:
    share = min(1.0, max(0.0, share)) if math.isfinite(share) else 1.0
    eighths = round(share * _LONGEST * 8)
    if pale:
        return "░" * round(eighths / 8) or "·"
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()) or "·"
