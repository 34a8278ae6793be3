"""Figures that speak for something or against it, and texts whose tokens bear such: in a terminal and in HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from gemscope.pages.tables import Cell
from gemscope.text.printable import visible

if TYPE_CHECKING:
    from rich.text import Text


def signed(value: float, digits: int = 3) -> str:
    """With its sign; 0 without."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def cell(value: float) -> Cell:
    """For a table, in the colour of its sign."""
    # Mixed with the text's own colour it is read on paper and in the dark.
    ink = f"color-mix(in srgb,currentColor 45%,rgb({'16,160,110' if value > 0 else '210,110,30'}))"
    return Cell(signed(value), _style(value), f"<span style='color:{ink}'>{signed(value)}</span>")


def code(token: str) -> str:
    """A token as HTML."""
    return f"<code style='white-space:pre'>{escape(visible(token))}</code>"


def strip(tokens: Sequence[str], counted: Sequence[bool], values: Sequence[float]) -> Text:
    """For a terminal: tokens with their figures."""
    from rich.text import Text

    out = Text()
    for token, counts, value in zip(tokens, counted, values, strict=True):
        if counts:
            out.append(visible(token), style=f"bold {_style(value)}")
            out.append(f" {signed(value, 2)}  ")
        else:
            out.append(f"{visible(token)} (not counted)  ", style="dim")
    return out


def html_strip(tokens: Sequence[str], counted: Sequence[bool], values: Sequence[float]) -> str:
    """As HTML: shades and lines, with the figures in a tooltip."""
    most = max(map(abs, values), default=0.0)
    pieces = []
    for token, counts, value in zip(tokens, counted, values, strict=True):
        if not counts:
            pieces.append(f"<span style='opacity:.65' title='not counted'>{code(token)}</span>")
            continue
        ink = f"rgba({'16,160,110' if value >= 0 else '210,110,30'},{0.6 * abs(value) / most if most else 0:.2f})"
        line = "solid" if value >= 0 else "dotted"  # not by colour alone
        style = f"background:{ink};border-bottom:2px {line} {ink};border-radius:3px"
        pieces.append(f"<span style='{style}' title='{signed(value)}'>{code(token)}</span>")
    return "".join(pieces)


def _style(value: float) -> str:
    return "green" if value > 0 else "yellow" if value < 0 else ""
