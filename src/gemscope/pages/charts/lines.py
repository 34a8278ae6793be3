"""Lines over one axis as SVG: title and description in words, told apart by dashes and marks and not by colour alone.
Colours come from the style sheet where there is one, else from the text around.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from gemscope.pages.charts.axes import steps
from gemscope.pages.numbers import figure

WIDE, HIGH = 360, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 10, 22, 34
_DASHES = ("", "5 4", "2 3", "8 3 2 3")


@dataclass(frozen=True)
class Line:
    """Points of one line, from left to right; one without a finite height is a gap."""

    name: str
    points: Sequence[tuple[float, float]]


def lines(data: Sequence[Line], *, title: str, across: str, up: str, logarithmic: bool = False) -> Markup:
    """A chart of some lines, nothing where none has a point. `across` and `up` name the axes.

    `logarithmic` bends the upright axis; heights that are not positive are gaps then.
    """
    drawn = [Line(line.name, _shown(line.points, logarithmic)) for line in data]
    points = [point for line in drawn for point in line.points]
    if not points:
        return Markup("")
    left, right = _span([x for x, _ in points])
    low, high = _span([_bent(y, logarithmic) for _, y in points])
    width, height = WIDE - _LEFT - _RIGHT, HIGH - _TOP - _BOTTOM
    floor = _TOP + height

    def x(value: float) -> float:
        return _LEFT + (value - left) / (right - left) * width

    def y(value: float) -> float:
        return floor - (_bent(value, logarithmic) - low) / (high - low) * height

    out = [f'<path class="axis" fill="none" stroke="currentColor" d="M{_LEFT} {floor}h{width}"/>']
    for value in steps(left, right, 6):
        out.append(f'<path class="axis" fill="none" stroke="currentColor" d="M{x(value):.1f} {floor}v3"/>')
        out.append(_text(x(value), floor + 14, figure(value), "middle"))
    for bent in steps(low, high, 4):
        value = 10**bent if logarithmic else bent
        out.append(
            f'<path class="rule" fill="none" stroke="currentColor" stroke-opacity=".2" '
            f'd="M{_LEFT} {y(value):.1f}h{width}"/>'
        )
        out.append(_text(_LEFT - 5, y(value) + 3.5, figure(value), "end"))
    for number, line in enumerate(drawn):
        out.append(_drawn([(x(one), y(other)) for one, other in line.points], number))
    out += _key(drawn)
    scale = ", log scale" if logarithmic else ""
    out.append(_text(_LEFT, HIGH - 4, f"{across} →", "start"))
    out.append(_text(WIDE - _RIGHT, HIGH - 4, f"↑ {up}{scale}", "end"))
    return Markup(
        f'<svg class="chart lines" viewBox="0 0 {WIDE} {HIGH}" width="{WIDE}" font-size="11" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(_in_words(drawn, across, up))}</desc>{''.join(out)}</svg>"
    )


def _drawn(points: Sequence[tuple[float, float]], number: int) -> str:
    dash = f' stroke-dasharray="{_DASHES[number % len(_DASHES)]}"' if number % len(_DASHES) else ""
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    marks = "".join(_mark(x, y, number) for x, y in points)
    return (
        f'<g class="line line-{number}"><path fill="none" stroke="currentColor" stroke-width="1.6"{dash} '
        f'd="M{line}"/>{marks}</g>'
    )


def _mark(x: float, y: float, number: int) -> str:
    if number % 2 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="currentColor"/>'
    return f'<rect x="{x - 2.4:.1f}" y="{y - 2.4:.1f}" width="4.8" height="4.8" fill="none" stroke="currentColor"/>'


def _key(drawn: Sequence[Line]) -> Iterator[str]:
    if len(drawn) < 2:
        return
    at = float(_LEFT)
    for number, line in enumerate(drawn):
        yield _drawn([(at, 9), (at + 18, 9)], number) + _text(at + 24, 12.5, line.name, "start")
        at += 40 + 6.2 * len(line.name)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="currentColor" text-anchor="{anchor}">{escape(text)}</text>'


def _shown(points: Sequence[tuple[float, float]], logarithmic: bool) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not logarithmic)]


def _bent(value: float, logarithmic: bool) -> float:
    return math.log10(value) if logarithmic else value


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _in_words(drawn: Sequence[Line], across: str, up: str) -> str:
    told = [
        f"{line.name}: " + ", ".join(f"{figure(y)} at {figure(x)}" for x, y in line.points)
        for line in drawn
        if line.points
    ]
    return f"{up} by {across}. " + "; ".join(told) + "."
