"""Things by two figures of which less is better, and a line along the front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from gemscope.pages.charts.axes import BOTTOM, LEFT, RIGHT, TOP, WIDE, steps
from gemscope.pages.numbers import figure

if TYPE_CHECKING:
    pass


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
    width, height = WIDE - LEFT - RIGHT, _TALL - TOP - BOTTOM
    floor = TOP + height

    def x(value: float) -> float:
        return LEFT + (math.log10(value) - left) / (right - left) * width

    def y(value: float) -> float:
        return floor - (value - low) / (high - low) * height

    out = [f'<path class="axis" d="M{LEFT} {floor}h{width}"/>']
    for value in _round_between(10**left, 10**right):
        out.append(f'<path class="axis" d="M{x(value):.1f} {floor}v3"/>')
        out.append(f'<text x="{x(value):.1f}" y="{floor + 14}" text-anchor="middle">{figure(value)}</text>')
    for value in steps(low, high, 5):
        out.append(f'<path class="rule" d="M{LEFT} {y(value):.1f}h{width}"/>')
        out.append(f'<text x="{LEFT - 5}" y="{y(value) + 3.5:.1f}" text-anchor="end">{figure(value)}</text>')
    front = sorted({(dot.x, dot.y) for dot in shown if dot.front})
    if len(front) > 1:
        path = f"M{x(front[0][0]):.1f} {y(front[0][1]):.1f}" + "".join(f"H{x(a):.1f}V{y(b):.1f}" for a, b in front[1:])
        out.append(f'<path class="front" d="{path}"/>')
    for dot in sorted(shown, key=lambda dot: dot.front):  # those on the front over the others
        kind = "dot" if dot.front else "dot behind"
        name = escape(f"{dot.name}: {across} {figure(dot.x)}, {up} {figure(dot.y)}")
        out.append(
            f'<circle class="{kind}" cx="{x(dot.x):.1f}" cy="{y(dot.y):.1f}" r="4"><title>{name}</title></circle>'
        )
        if dot.front or len(shown) <= _NAMED:
            late = x(dot.x) + 6 + _LETTER * len(dot.label) > WIDE  # it would be cut off
            place = f'x="{x(dot.x) - 6:.1f}" text-anchor="end"' if late else f'x="{x(dot.x) + 6:.1f}"'
            out.append(f'<text {place} y="{y(dot.y) - 5:.1f}">{escape(dot.label)}</text>')
    out.append(f'<text x="{LEFT}" y="{_TALL - 4}">{escape(across)}, log scale →</text>')
    out.append(f'<text x="{WIDE - RIGHT}" y="{_TALL - 4}" text-anchor="end">↑ {escape(up)}</text>')
    best = ", ".join(dot.label for dot in shown if dot.front)
    words = (
        f"{len(shown)} by {across} and {up}; on the front, where neither can be had lower without the other: {best}."
    )
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDE} {_TALL}" role="img"><title>{escape(title)}</title>'
        f"<desc>{escape(words)}</desc>{''.join(out)}</svg>"
    )


_TALL = 240
_LETTER = 6.5
"""Pixels of a letter, about."""
_NAMED = 16
"""Dots that are all named; of more those on the front are."""


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
    return list(steps(low, high, 4))
