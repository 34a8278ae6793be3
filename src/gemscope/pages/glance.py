"""A feature's strongest example in a line: the text around the token that fires, which is marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from markupsafe import Markup, escape

from gemscope.text.pieces import whole
from gemscope.text.printable import clipped, readable

_LEFT, _TOKEN, _RIGHT = 30, 40, 60
"""Characters that are shown."""


@runtime_checkable
class Glance(Protocol):
    """What is read of a glance."""

    @property
    def tokens(self) -> Sequence[str]: ...
    @property
    def peak(self) -> int: ...


def snippet(one: Glance | None) -> Markup:
    """Nothing where there is no example."""
    if one is None or not one.tokens:
        return Markup("")
    peak = whole(one.tokens, one.peak)
    before = readable("".join(one.tokens[:peak])[-_LEFT:])
    token = readable(clipped(one.tokens[peak], _TOKEN)) or "◦"  # a piece of a character that none completes
    after = readable("".join(one.tokens[peak + 1 :])[:_RIGHT])
    marked = f'<mark class="a7">{escape(token)}</mark>'
    return Markup(f'<span class="snip" dir="auto"><i>{escape(before)}</i>{marked}{escape(after)}</span>')
