"""A table of what a report found, the same for a terminal and for a notebook: what stands in it is said once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table as Columns
    from rich.text import Text

_BROKEN = 16
"""Characters of a column whose lines may be broken, at least."""


@dataclass(frozen=True)
class Cell:
    """Text, and how it looks: `style` in a terminal's words; `html` where that says more than the text."""

    text: str | Text
    style: str = ""
    html: str | None = None


@dataclass(frozen=True)
class Row:
    """Cells; `quiet` for one that is there to be passed over, with the reason where that needs words."""

    cells: Sequence[Cell | str]
    quiet: bool = False
    why: str = ""


@dataclass(frozen=True)
class Table:
    """Rows below heads; without heads, figures with their names."""

    heads: Sequence[str]
    rows: Iterable[Row | Sequence[Cell | str]]
    left: Collection[str] = ()
    """Heads of columns that begin at the left; figures end at the right."""
    wraps: Collection[str] = ()
    """Those whose lines may be broken."""
    bold: bool = True
    """Heads in bold; else dim."""
    indent: int = 0
    gap: int = 2

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """In columns; where these would be cut, what belongs to a row stands below its first cell."""
        if self.heads and self._least() > options.max_width:
            yield from self._below()
        else:
            yield self._columns()

    def _least(self) -> int:
        """Characters that the columns take at least."""
        from rich.cells import cell_len

        rows = [self.heads, *([str(cell.text) for cell in _cells(row)] for row in self._rows())]
        least = 0
        for head, column in zip(self.heads, zip(*rows, strict=True), strict=True):
            wide = max(cell_len(line) for cell in column for line in cell.split("\n"))
            least += min(wide, _BROKEN) if head in self.wraps else wide
        return least + (self.gap + self.indent) * (len(self.heads) - 1)

    def _below(self) -> Iterator[RenderableType]:
        """A line for what the first column says, and one for what the others say of it, each after its head."""
        from rich.padding import Padding
        from rich.text import Text

        for row in self._rows():
            style = "dim" if row.quiet else ""
            first, *others = _cells(row)
            if str(first.text).strip():
                yield Padding(Text.assemble(_text(first), style=style), (0, 0, 0, self.indent))
            said = [
                Text.assemble((self._named(head), "dim"), _text(cell), style=style)
                for head, cell in zip(self.heads[1:], others, strict=True)
                if str(cell.text).strip()
            ]
            if said:
                yield Padding(Text(" · ").join(said), (0, 0, 0, self.indent + 2))

    def _named(self, head: str) -> str:
        """Before what stands below it in columns."""
        return f"{' '.join(head.split())}{':' * (head in self.wraps)} ".lstrip()

    def _columns(self) -> Columns:
        from rich.table import Table as Columns

        out = Columns(box=None, pad_edge=False, padding=(0, self.gap, 0, self.indent), show_header=bool(self.heads))
        out.header_style = "bold" if self.bold else "dim"
        for head in self.heads:
            broken = head in self.wraps
            side: Any = "left" if head in self.left else "right"
            out.add_column(head, justify=side, no_wrap=not broken, overflow="fold" if broken else "ellipsis")
        for row in self._rows():
            out.add_row(*map(_text, _cells(row)), style="dim" if row.quiet else None)
        return out

    def html(self, *, styled: bool = True) -> str:
        """Anybody's text is made harmless here, but for what a cell gives as HTML. Notebooks want styles, without which
        they put text on the right; the policy of a file of its own (`standalone.document`) has none.
        """
        forms = [self._form(head, styled) for head in self.heads]
        names = "".join(f"<th{form}>{escape(head)}</th>" for head, form in zip(self.heads, forms, strict=True))
        body = []
        for row in self._rows():
            cells = "".join(
                f"<td{form}>{escape(str(cell.text)) if cell.html is None else cell.html}</td>"
                for cell, form in zip(_cells(row), forms, strict=True)
            )
            body.append(f"<tr{_quiet(row) if row.quiet else ''}>{cells}</tr>")
        table = f"<table><thead><tr>{names}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        # What is wider than its place is moved within it, by keys too.
        form = "style='overflow-x:auto'" if styled else "class='wide-table'"
        said = escape(", ".join(" ".join(head.split()) for head in self.heads if head.strip()) or "figures")
        return f"<div {form} tabindex='0' role='group' aria-label='{said}'>{table}</div>"

    def _form(self, head: str, styled: bool) -> str:
        side, broken = "left" if head in self.left else "right", head in self.wraps
        room = ";min-width:12em" * broken
        return (f" style='text-align:{side}{room}'" if styled else f" align='{side}'") + " nowrap" * (not broken)

    def _rows(self) -> Iterable[Row]:
        return (row if isinstance(row, Row) else Row(row) for row in self.rows)


def _text(cell: Cell) -> Text:
    from rich.text import Text

    return cell.text if isinstance(cell.text, Text) else Text(cell.text, cell.style)


def _quiet(row: Row) -> str:
    return f" style='opacity:.65'{f' title={chr(39)}{escape(row.why)}{chr(39)}' if row.why else ''}"


def _cells(row: Row) -> list[Cell]:
    return [cell if isinstance(cell, Cell) else Cell(cell) for cell in row.cells]
