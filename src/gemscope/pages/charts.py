"""Charts from numbers: SVG with a title and a description in words, coloured by the style sheet alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from gemscope.features.histogram import Histogram
from gemscope.pages.strips import figure

if TYPE_CHECKING:
    import numpy as np

WIDE, HIGH = 360, 148
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 6, 8, 34

GRID = (240, 96)
"""Cells of a scatter: features that would lie on the same few pixels share one."""


_NARROW = 1e-300
"""What cannot be parted further: bins of no width, or lost beside where they begin."""


def histogram(data: Histogram, *, title: str, across: str, things: str) -> Markup:
    """Bars. `across` names the horizontal axis, `things` what is counted ("firings", "tokens").

    Where the fullest bin holds more than 50 times what the emptiest holds that is not empty, bars show the logarithm of
    their counts, and the axis says so.
    """
    counts, low, step = data.counts, data.low, data.step
    high, top = low + step * len(counts), max(counts, default=0)
    if not top or not high - low > _NARROW:
        return Markup("")
    logarithmic = top > 50 * min(count for count in counts if count)
    width, height = WIDE - _LEFT - _RIGHT, HIGH - _TOP - _BOTTOM

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * width

    floor = _TOP + height
    unit = height / (math.log10(1 + top) if logarithmic else top)

    def y(count: float) -> float:
        return floor - unit * (math.log10(1 + count) if logarithmic else count)

    starts, ends = _bars(len(counts))
    bars = "".join([f"{start}{y(count):.1f}{ends}" for start, count in zip(starts, counts, strict=True) if count])
    out = [f'<path class="axis" d="M{_LEFT} {floor:.1f}h{width}"/>']
    for value in _steps(low, high, 5):
        out.append(f'<path class="axis" d="M{x(value):.1f} {floor:.1f}v3"/>')
        out.append(f'<text x="{x(value):.1f}" y="{floor + 14:.1f}" text-anchor="middle">{figure(value)}</text>')
    for count in _levels(top, logarithmic):
        out.append(f'<path class="rule" d="M{_LEFT} {y(count):.1f}h{width}"/>')
        out.append(f'<text x="{_LEFT - 5}" y="{y(count) + 3.5:.1f}" text-anchor="end">{short(count)}</text>')
    out.append(f'<path class="bars" d="{bars}"/>')
    scale = ", log scale" if logarithmic else ""
    if low < 0 < high:
        out.append(f'<path class="zero" d="M{x(0):.1f} {_TOP}V{floor:.1f}"/>')
    out.append(f'<text x="{_LEFT}" y="{HIGH - 4}">{escape(across)} →</text>')
    out.append(f'<text x="{WIDE - _RIGHT}" y="{HIGH - 4}" text-anchor="end">↑ {escape(things)}{scale}</text>')
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDE} {HIGH}" role="img"><title>{escape(title)}</title>'
        f"<desc>{escape(_in_words(counts, low, step, across, things))}</desc>{''.join(out)}</svg>"
    )


@lru_cache(maxsize=64)
def _bars(count: int) -> tuple[list[str], str]:
    """What draws each of so many bars up to its height, and what draws the rest of it."""
    wide, floor = (WIDE - _LEFT - _RIGHT) / count, HIGH - _BOTTOM
    starts = [f"M{_LEFT + index * wide:.1f} {floor}V" for index in range(count)]
    return starts, f"h{max(wide - 0.8, wide / 2):.2f}V{floor}z"


def bar(share: float, *, both: bool = False) -> Markup:
    """A value as the length of a line; the number stands beside it, so screen readers are spared it.

    Above 0 it grows to the right, below 0 to the left and in another colour: from the ends, or for values of `both`
    signs from the middle.
    """
    long, minus = 100 * min(1.0, abs(share)), share < 0
    left, wide, zero = (-100, 200, '<rect class="zero" x="-2" width="4" height="4"/>') if both else (0, 100, "")
    start = (0 if both else 100) - long if minus else 0
    return Markup(
        f'<svg class="bar" viewBox="{left} 0 {wide} 4" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect{" class=minus" if minus else ""} x="{start:.0f}" width="{long:.0f}" height="4"/>{zero}</svg>'
    )


@dataclass(frozen=True)
class Cells:
    """Features gathered into the cells of a grid, so that a page stays small for any number of them."""

    extent: tuple[float, float, float, float]
    """Powers of ten: least and greatest density, least and greatest maximum."""
    cells: str
    """Each cell as its distance from the one before, how many features it holds, and one of them."""
    summary: Markup
    """How the two figures are spread: what a reader without scripts, or without sight of the chart, gets."""


def gathered(ids: np.ndarray[Any, Any], densities: np.ndarray[Any, Any], maxima: np.ndarray[Any, Any]) -> Cells | None:
    """Living features by density and maximum, both logarithmic; None where there is none."""
    import numpy as np

    kept = (densities > 0) & (maxima > 0) & np.isfinite(maxima)
    ids, densities, maxima = ids[kept], densities[kept], maxima[kept]
    if not len(ids):
        return None
    (left, right), (low, high) = _extent(np.log10(densities)), _extent(np.log10(maxima))
    columns, rows = GRID
    across = ((np.log10(densities) - left) / (right - left) * columns).astype(int).clip(0, columns - 1)
    up = ((np.log10(maxima) - low) / (high - low) * rows).astype(int).clip(0, rows - 1)
    cells, first, counts = np.unique(up * columns + across, return_index=True, return_counts=True)
    gaps = np.diff(cells, prepend=0)
    triples = zip(gaps.tolist(), counts.tolist(), ids[first].tolist(), strict=True)
    data = " ".join([f"{gap},{count},{one}" for gap, count, one in triples])
    return Cells((left, right, low, high), data, _quantiles(densities, maxima))


def scatter(points: Cells | tuple[Any, Any, Any], *, feature: str, browse: str) -> Markup:
    """Density against maximum as a `<feature-scatter>`, of cells or of ids, densities and maxima.

    `feature` and `browse` are the addresses of feature 0, which a cell of one feature turns into that one's, and of the
    table, which a cell of several leads to.
    """
    cells = points if isinstance(points, Cells) else gathered(*points)
    if cells is None:
        return Markup("")
    return Markup(
        '<feature-scatter data-grid="{}" data-extent="{}" data-feature="{}" data-browse="{}" data-cells="{}">{}'
        "</feature-scatter>"
    ).format(
        "{} {}".format(*GRID),
        " ".join(f"{bound:.6g}" for bound in cells.extent),
        feature,
        browse,
        cells.cells,
        cells.summary,
    )


def short(count: float) -> str:
    """A count in few characters: 950, 12k, 3.4M."""
    for bound, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= bound:
            return f"{count / bound:.3g}{letter}"
    return f"{count:.0f}"


def _extent(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low - 0.02, high + 0.02) if high - low > 0.1 else (low - 0.5, high + 0.5)


def _quantiles(densities: np.ndarray[Any, Any], maxima: np.ndarray[Any, Any]) -> Markup:
    import numpy as np

    rows = Markup("").join(
        Markup('<tr><th scope="row">{}</th><td>{}</td><td>{}</td></tr>').format(name, percent(density), figure(top))
        for name, density, top in zip(
            ("least", "a tenth is below", "half is below", "nine tenths are below", "most"),
            np.quantile(densities, (0, 0.1, 0.5, 0.9, 1)).tolist(),
            np.quantile(maxima, (0, 0.1, 0.5, 0.9, 1)).tolist(),
            strict=True,
        )
    )
    return Markup(
        '<table class="quantiles"><caption>Density and maximum of {} living features</caption><thead><tr><td></td>'
        '<th scope="col">density</th><th scope="col">max</th></tr></thead><tbody>{}</tbody></table>'
    ).format(f"{len(densities):,}", rows)


def percent(share: float) -> str:
    """A share in per cent, three significant digits."""
    return f"{figure(100 * share)} %"


def _in_words(counts: Sequence[int], low: float, step: float, across: str, things: str) -> str:
    total, seen, middle = sum(counts), 0, low
    for index, count in enumerate(counts):
        seen += count
        if 2 * seen >= total:
            middle = low + (index + 0.5) * step
            break
    filled = [index for index, count in enumerate(counts) if count]
    return (
        f"{total:,} {things} with {across} from {figure(low + filled[0] * step)} to "
        f"{figure(low + (filled[-1] + 1) * step)}, half of them below about {figure(middle)}; "
        f"the fullest of {len(counts)} bins holds {max(counts):,}."
    )


def _steps(low: float, high: float, most: int) -> Iterator[float]:
    """Round numbers within a range, about `most` of them."""
    size = 10 ** math.floor(math.log10((high - low) / most))
    size *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (size * factor) <= most)
    for index in range(math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9) + 1):
        yield index * size


def _levels(top: int, logarithmic: bool) -> list[float]:
    if not logarithmic:
        return [value for value in _steps(0, top, 3) if value and value == int(value)] or [top]
    powers = [10**power for power in range(int(math.log10(top)) + 1)]
    return [float(power) for power in powers[:: max(1, math.ceil(len(powers) / 4))]]


@dataclass(frozen=True)
class Dot:
    """One thing by two figures of which less is better."""

    x: float
    y: float
    name: str
    label: str
    """A few characters beside the dot; the name is shown on hovering."""
    front: bool
    """Whether nothing else is as good in both figures and better in one."""


def tradeoff(dots: Sequence[Dot], *, title: str, across: str, up: str) -> Markup:
    """Things by two figures, and a line along the front. `across` is on a logarithmic scale; dots without a place on it
    are left out."""
    shown = [dot for dot in dots if dot.x > 0 and math.isfinite(dot.x) and math.isfinite(dot.y)]
    if not shown:
        return Markup("")
    left, right = _widened(math.log10(min(dot.x for dot in shown)), math.log10(max(dot.x for dot in shown)))
    low, high = _widened(min(dot.y for dot in shown), max(dot.y for dot in shown))
    width, height = WIDE - _LEFT - _RIGHT, _TALL - _TOP - _BOTTOM
    floor = _TOP + height

    def x(value: float) -> float:
        return _LEFT + (math.log10(value) - left) / (right - left) * width

    def y(value: float) -> float:
        return floor - (value - low) / (high - low) * height

    out = [f'<path class="axis" d="M{_LEFT} {floor}h{width}"/>']
    for value in _round_between(10**left, 10**right):
        out.append(f'<path class="axis" d="M{x(value):.1f} {floor}v3"/>')
        out.append(f'<text x="{x(value):.1f}" y="{floor + 14}" text-anchor="middle">{figure(value)}</text>')
    for value in _steps(low, high, 5):
        out.append(f'<path class="rule" d="M{_LEFT} {y(value):.1f}h{width}"/>')
        out.append(f'<text x="{_LEFT - 5}" y="{y(value) + 3.5:.1f}" text-anchor="end">{figure(value)}</text>')
    front = sorted({(dot.x, dot.y) for dot in shown if dot.front})
    if len(front) > 1:
        path = f"M{x(front[0][0]):.1f} {y(front[0][1]):.1f}" + "".join(f"H{x(a):.1f}V{y(b):.1f}" for a, b in front[1:])
        out.append(f'<path class="front" d="{path}"/>')
    for dot in shown:
        kind = "dot" if dot.front else "dot behind"
        name = escape(f"{dot.name}: {across} {figure(dot.x)}, {up} {figure(dot.y)}")
        out.append(
            f'<circle class="{kind}" cx="{x(dot.x):.1f}" cy="{y(dot.y):.1f}" r="4"><title>{name}</title></circle>'
        )
        out.append(f'<text x="{x(dot.x) + 6:.1f}" y="{y(dot.y) - 5:.1f}">{escape(dot.label)}</text>')
    out.append(f'<text x="{_LEFT}" y="{_TALL - 4}">{escape(across)}, log scale →</text>')
    out.append(f'<text x="{WIDE - _RIGHT}" y="{_TALL - 4}" text-anchor="end">↑ {escape(up)}</text>')
    best = ", ".join(dot.label for dot in shown if dot.front)
    words = (
        f"{len(shown)} by {across} and {up}; on the front, where neither can be had lower without the other: {best}."
    )
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDE} {_TALL}" role="img"><title>{escape(title)}</title>'
        f"<desc>{escape(words)}</desc>{''.join(out)}</svg>"
    )


_TALL = 240


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range with some room at either end."""
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _round_between(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic scale."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for leads in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        found = [lead * 10.0**power for power in powers for lead in leads if low <= lead * 10.0**power <= high]
        if len(found) > 2:
            return found[:: max(1, len(found) // 6)]
    return list(_steps(low, high, 4))
