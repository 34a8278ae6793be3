"""A continuation as text whose tokens show how an edit changes their log-probability: by colour, or by a figure where
there are no colours. Hostile text is made harmless here.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from gemscope.text.printable import clipped, readable, visible

if TYPE_CHECKING:
    from rich.text import Text

SHOWN = 0.5
"""Changes in log-probability (in nats) from which a figure is shown."""

_STYLES = ((3.0, "bold green", "bold red"), (1.0, "green", "red"), (0.3, "cyan", "yellow"))
_FULL = 4.0
"""The change that has the strongest shade in HTML."""


def terminal(tokens: Sequence[str], changes: Sequence[float], *, figures: bool) -> Text:
    """For a terminal: in colours, or with figures in brackets."""
    from rich.text import Text

    out = Text()
    for token, change in _pieces(tokens, changes):
        shown = readable(clipped(token))
        if shown.isspace():
            shown = visible(shown)
        if not figures:
            out.append(shown, style=_style(change))
        else:
            out.append(f"{shown}[{change:+.1f}]" if abs(change) >= SHOWN else shown)
    if not tokens:
        out.append("(nothing)", style="dim")
    return out


def notebook(tokens: Sequence[str], changes: Sequence[float]) -> str:
    """As HTML: shades, with the figures in a tooltip."""
    out = []
    for token, change in _pieces(tokens, changes):
        text = html.escape(readable(clipped(token)))
        alpha = min(0.6, 0.6 * abs(change) / _FULL)
        if alpha < 0.03:
            out.append(text)
            continue
        # Blue and orange, which those who see no red or green can tell apart.
        colour = f"rgba(40,120,220,{alpha:.2f})" if change > 0 else f"rgba(235,120,20,{alpha:.2f})"
        out.append(f"<span style='background:{colour};border-radius:3px' title='{change:+.2f}'>{text}</span>")
    return f"<span style='white-space:pre-wrap' dir='auto'>{''.join(out) or '(nothing)'}</span>"


def _pieces(tokens: Sequence[str], changes: Sequence[float]) -> list[tuple[str, float]]:
    """Tokens that complete something, each with the change of all that it completes."""
    ends = [index + 1 for index, token in enumerate(tokens) if token]
    return [(tokens[end - 1], sum(changes[start:end])) for start, end in pairwise([0, *ends])]


def _style(change: float) -> str:
    for bound, up, down in _STYLES:
        if abs(change) >= bound:
            return up if change > 0 else down
    return ""
