"""Features that were found, as lines for a terminal or a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gemscope.pages.blocks import bars
from gemscope.pages.feature import number
from gemscope.pages.labels import STANDS, said
from gemscope.pages.links import Links, NoLinks
from gemscope.pages.numbers import figure, percent
from gemscope.pages.plain import Shown
from gemscope.pages.tables import Cell, Table
from gemscope.text.printable import clipped, visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True)
class Found(Shown):
    """An atlas's `Summary`s below a title; or its `TokenHit`s, with how strongly each fires on the token, or its
    `Promoter`s, with how far the token stands out among what each promotes.
    """

    title: str
    ones: Sequence[Any]
    links: Links = field(default_factory=NoLinks)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield Text(self.title, style="bold")
        yield self._table(console.is_terminal)

    def _table(self, drawn: bool) -> Table:
        summaries = [getattr(one, "summary", one) for one in self.ones]
        strengths = [one.strength for one in self.ones if hasattr(one, "strength")]
        heads = ["feature", "density", "max", "fires on", STANDS]
        columns: list[Sequence[Cell | str]] = [
            [number(one.feature, self.links) for one in summaries],
            [percent(one.density) for one in summaries],
            [figure(one.max) for one in summaries],
            [visible(clipped(one.token or "", 40)) for one in summaries],
            [said(one.meaning) if one.meaning else Cell("no label", "dim") for one in summaries],
        ]
        if heights := [one.stands_out for one in self.ones if hasattr(one, "stands_out")]:
            heads[3:3] = ["stands out"]
            columns[3:3] = [[f"{one:.1f}" for one in heights]]
        if strengths:
            heads[3:3] = ["× max"]
            columns[3:3] = [[f"{one:.2f}" for one in strengths]]
            if drawn:
                heads[4:4] = [""]
                columns[4:4] = [[Cell(bar, "green") for bar in bars(strengths, [False] * len(strengths), most=1.0)]]
        return Table(heads, list(zip(*columns, strict=True)), left=("", "fires on", STANDS), wraps=(STANDS,))
