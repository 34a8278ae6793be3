"""A table of what a report found, the same for a terminal and for a notebook: what stands in it is said once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich import table
    from rich.text import Text


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

    def __rich__(self) -> table.Table:
        from rich.table import Table as RichTable
        from rich.text import Text

        out = RichTable(box=None, pad_edge=False, padding=(0, self.gap, 0, self.indent), show_header=bool(self.heads))
        out.header_style = "bold" if self.bold else "dim"
        for head in self.heads:
            out.add_column(head, justify="left" if head in self.left else "right", no_wrap=head not in self.wraps)
        for row in self._rows():
            texts = [cell.text if isinstance(cell.text, Text) else Text(cell.text, cell.style) for cell in _cells(row)]
            out.add_row(*texts, style="dim" if row.quiet else None)
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
        return f"<table><thead><tr>{names}</tr></thead><tbody>{''.join(body)}</tbody></table>"

    def _form(self, head: str, styled: bool) -> str:
        side = "left" if head in self.left else "right"
        return (f" style='text-align:{side}'" if styled else f" align='{side}'") + " nowrap" * (head not in self.wraps)

    def _rows(self) -> Iterable[Row]:
        return (row if isinstance(row, Row) else Row(row) for row in self.rows)


def _quiet(row: Row) -> str:
    return f" style='opacity:.6'{f' title={chr(39)}{escape(row.why)}{chr(39)}' if row.why else ''}"


def _cells(row: Row) -> list[Cell]:
    return [cell if isinstance(cell, Cell) else Cell(cell) for cell in row.cells]
