"""What reports say in one manner: as plain text, in JSON, and anybody's words as HTML."""

from __future__ import annotations

import io
import math
from html import escape
from typing import Any, ClassVar

from gemscope.text.printable import readable


class Shown:
    """What shows itself in a terminal (`__rich__`), and in the same words as plain text."""

    width: ClassVar[int] = 120

    def __str__(self) -> str:
        return plain(self, self.width)


class Paged(Shown):
    """What is a page of its own (`to_html`), which a notebook shows in a frame."""

    def to_html(self) -> str:
        """One HTML file; nothing in it is fetched."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        from gemscope.pages.standalone import frame

        return frame(self.to_html())


def plain(report: Any, width: int = 120) -> str:
    """What `str` gives and a pipe gets: without colours, lines of up to `width` characters, no blanks at their ends."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(
        file=out, width=width, color_system=None, legacy_windows=False, highlight=False, force_jupyter=False
    )
    console.print(report, crop=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def known(value: Any) -> Any:
    """For JSON: None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def harmless(text: str) -> str:
    """Anybody's text as HTML, on one line."""
    return escape(readable(text))
