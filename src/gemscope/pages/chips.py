"""Features on a token, side by side in a table's cell: shaded by how active they are."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from gemscope.pages.tables import Cell


class Chip(NamedTuple):
    """A feature and its activation, as text."""

    feature: str
    activation: str
    share: float
    """Of the strongest activation that there is."""
    url: str | None


def chips_of(chips: Sequence[Chip], wide: int, long: int, aside: str) -> Cell:
    """In a terminal features are `wide` and activations `long` characters, so that they stand below one another, and
    `aside` follows.
    """
    from rich.text import Text

    text = Text()
    for one in chips:
        link = "" if one.url is None else f" link {one.url}"
        text.append(" " * (wide - len(one.feature)))
        text.append(one.feature, style=f"{shade(one.share)}{link}".strip())
        text.append(f":{one.activation:<{long}}  ", style="dim")
    text.append(aside)
    return Cell(text, html="".join(map(_html, chips)))


def _html(one: Chip) -> str:
    green = f"rgba(16,160,110,{0.1 + 0.6 * min(1.0, one.share):.2f})"
    style = f"background:{green};border-radius:3px;padding:0 4px;margin-right:4px"
    text = f"<span style='{style}'>{one.feature}&thinsp;<small>{one.activation}</small></span>"
    if one.url is None:
        return text
    return f"<a href='{escape(one.url)}' target='_blank' rel='noopener' style='color:inherit'>{text}</a>"


def shade(share: float) -> str:
    """How a terminal shows a share of the strongest."""
    for bound, style in ((0.66, "bold bright_green"), (0.33, "green"), (0.15, "cyan")):
        if share >= bound:
            return style
    return ""
