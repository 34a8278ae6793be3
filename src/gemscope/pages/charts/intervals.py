"""A chart of estimates with their intervals, one group of marks for each level: SVG that needs no style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDE, HIGH = 420, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 8, 26, 34
_INKS = ("#0f8a5f", "#b4602d", "#4a63c4")
_MARKS = ("M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z", "M-3.2-3.2h6.4v6.4h-6.4z", "M0-4.2L4 3H-4z")
"""A circle, a square, a triangle: series are told apart by shape as well as by colour."""


@dataclass(frozen=True)
class Series:
    """One kind of estimate: by level, the estimate and the ends of its interval."""

    name: str
    points: dict[str, tuple[float, float, float]]


def intervals(
    series: Sequence[Series], *, title: str, across: str, up: str, line: tuple[str, float] | None = None
) -> Markup:
    """Shares between 0 and 1. `across` and `up` name the axes; `line` is a share to compare with, and its name."""
    levels = list(dict.fromkeys(level for one in series for level in one.points))
    if not levels:
        return Markup("")
    lows = [low for one in series for _, low, _ in one.points.values()] + ([line[1]] if line else [])
    step = 0.2 if min(lows) < 0.5 else 0.1 if min(lows) < 0.8 else 0.05
    steps = max(1, math.ceil((1 - min(lows)) / step - 1e-9))
    floor = max(0.0, 1 - steps * step)
    width, height = WIDE - _LEFT - _RIGHT, HIGH - _TOP - _BOTTOM
    each = width / len(levels)

    def y(share: float) -> float:
        return _TOP + (1 - share) / (1 - floor) * height

    out = []
    for index in range(steps + 1):
        share = max(0.0, 1 - index * step)
        out.append(f'<path d="M{_LEFT} {y(share):.1f}h{width}" stroke="currentColor" stroke-opacity=".15"/>')
        out.append(f'<text x="{_LEFT - 5}" y="{y(share) + 3.5:.1f}" text-anchor="end">{share:.2f}</text>')
    if line is not None:
        ink = 'stroke="currentColor" stroke-opacity=".6" stroke-dasharray="4 3"'
        out.append(f'<path d="M{_LEFT} {y(line[1]):.1f}h{width}" {ink}/>')
        out.append(f'<text x="{WIDE - _RIGHT}" y="{y(line[1]) - 3:.1f}" text-anchor="end">{escape(line[0])}</text>')
    for place, level in enumerate(levels):
        middle = _LEFT + (place + 0.5) * each
        out.append(f'<text x="{middle:.1f}" y="{HIGH - _BOTTOM + 14}" text-anchor="middle">{escape(level)}</text>')
        for index, one in enumerate(series):
            if level in one.points:
                share, low, high = one.points[level]
                x = middle + (index - (len(series) - 1) / 2) * min(14, each / (len(series) + 1))
                ink = _INKS[index % len(_INKS)]
                said = f"{one.name}, {level}: {share:.3f} ({low:.3f} to {high:.3f})"
                out.append(
                    f'<g><title>{escape(said)}</title><path d="M{x:.1f} {y(low):.1f}V{y(high):.1f}" stroke="{ink}" '
                    f'stroke-width="1.5"/><path transform="translate({x:.1f} {y(share):.1f})" '
                    f'd="{_MARKS[index % len(_MARKS)]}" fill="{ink}"/></g>'
                )
    for index, one in enumerate(series):
        x = _LEFT + index * width / max(2, len(series))
        mark = f'd="{_MARKS[index % len(_MARKS)]}" fill="{_INKS[index % len(_INKS)]}"'
        out.append(f'<path transform="translate({x + 5:.1f} 10)" {mark}/>')
        out.append(f'<text x="{x + 14:.1f}" y="13.5">{escape(one.name)}</text>')
    out.append(f'<text x="{_LEFT}" y="{HIGH - 4}">{escape(across)} →</text>')
    out.append(f'<text x="{WIDE - _RIGHT}" y="{HIGH - 4}" text-anchor="end">↑ {escape(up)}</text>')
    words = "; ".join(
        f"{one.name}, {level}: {share:.3f} ({low:.3f} to {high:.3f})"
        for one in series
        for level, (share, low, high) in one.points.items()
    )
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDE} {HIGH}" width="{WIDE}" height="{HIGH}" font-size="11" '
        f'fill="currentColor" font-family="sans-serif" role="img"><title>{escape(title)}</title>'
        f"<desc>{escape(words)}</desc>{''.join(out)}</svg>"
    )
