"""Counts by size, as bars."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, compress

from markupsafe import Markup, escape

from gemscope.features.histogram import Histogram, is_logarithmic
from gemscope.pages.charts.axes import BOTTOM, LEFT, RIGHT, TOP, WIDE, steps
from gemscope.pages.numbers import figure, short

HIGH = 148
_NARROW = 1e-300
"""What cannot be parted further: bins of no width, or lost beside where they begin."""


def histogram(data: Histogram, *, title: str, across: str, things: str, until: float | None = None) -> Markup:
    """Bars. `across` names the horizontal axis, `things` what is counted ("firings", "tokens"); `until` is where the
    axis ends, so that two charts can have one.

    Where the fullest bin holds more than 50 times what the emptiest holds that is not empty, bars show the logarithm of
    their counts, and the axis says so.
    """
    counts, low, step = data.counts, data.low, data.step
    if until is not None and step > 0 and until > low:
        counts = counts[: math.ceil((until - low) / step)]
    high, top = low + step * len(counts), max(counts, default=0)
    if not top or not high - low > _NARROW:
        return Markup("")
    logarithmic = is_logarithmic(counts)
    end, high = high, high if until is None else until
    width, height = WIDE - LEFT - RIGHT, HIGH - TOP - BOTTOM

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * width

    floor = TOP + height
    unit = height / (math.log10(1 + top) if logarithmic else top)

    def y(count: float) -> float:
        return floor - unit * (math.log10(1 + count) if logarithmic else count)

    drawn = compress(_bars(len(counts), (end - low) / (high - low)), counts)
    bars = "".join(drawn) % tuple([y(count) for count in counts if count])  # all at once: there are many
    out = [f'<path class="axis" d="M{LEFT} {floor:.1f}h{width}"/>']
    for value in steps(low, high, 5):
        out.append(f'<path class="axis" d="M{x(value):.1f} {floor:.1f}v3"/>')
        out.append(f'<text x="{x(value):.1f}" y="{floor + 14:.1f}" text-anchor="middle">{figure(value)}</text>')
    for count in _levels(top, logarithmic):
        out.append(f'<path class="rule" d="M{LEFT} {y(count):.1f}h{width}"/>')
        out.append(f'<text x="{LEFT - 5}" y="{y(count) + 3.5:.1f}" text-anchor="end">{short(count)}</text>')
    out.append(f'<path class="bars" d="{bars}"/>')
    scale = ", log scale" if logarithmic else ""
    if low < 0 < high:
        out.append(f'<path class="zero" d="M{x(0):.1f} {TOP}V{floor:.1f}"/>')
    out.append(f'<text x="{LEFT}" y="{HIGH - 4}">{escape(across)} →</text>')
    out.append(f'<text x="{WIDE - RIGHT}" y="{HIGH - 4}" text-anchor="end">↑ {escape(things)}{scale}</text>')
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDE} {HIGH}" role="img"><title>{escape(title)}</title>'
        f"<desc>{escape(_in_words(counts, low, step, across, things))}</desc>{''.join(out)}</svg>"
    )


@lru_cache(maxsize=64)
def _bars(count: int, share: float) -> list[str]:
    """What draws each of so many bars, which take a share of the axis, but for its height."""
    wide, floor = (WIDE - LEFT - RIGHT) * share / count, HIGH - BOTTOM
    ends = f"h{max(wide - 0.8, wide / 2):.2f}V{floor}z"
    return [f"M{LEFT + index * wide:.1f} {floor}V%.1f{ends}" for index in range(count)]


def _in_words(counts: Sequence[int], low: float, step: float, across: str, things: str) -> str:
    seen = [*accumulate(counts)]
    total = seen[-1]
    middle = low + (bisect_left(seen, total / 2) + 0.5) * step
    filled = [*compress(range(len(counts)), counts)]
    return (
        f"{total:,} {things} with {across} from {figure(low + filled[0] * step)} to "
        f"{figure(low + (filled[-1] + 1) * step)}, half of them below about {figure(middle)}; "
        f"the fullest of {len(counts)} bins holds {max(counts):,}."
    )


def _levels(top: int, logarithmic: bool) -> list[float]:
    if not logarithmic:
        return [value for value in steps(0, top, 3) if value and value == int(value)] or [top]
    powers = [10**power for power in range(int(math.log10(top)) + 1)]
    return [float(power) for power in powers[:: max(1, math.ceil(len(powers) / 4))]]
