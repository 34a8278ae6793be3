"""A report as plain text: what `str` gives and what a pipe gets."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType


def plain(report: RenderableType, width: int = 120) -> str:
    """Without colours, in lines of up to `width` characters with no blanks at their ends."""
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width, color_system=None, legacy_windows=False, highlight=False).print(report)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
