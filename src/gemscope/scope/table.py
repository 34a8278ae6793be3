"""A scope as a table: every SAE with its figures, and what failed with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemscope.activations.site import described
from gemscope.features.listing import load_scope
from gemscope.features.scope import Member, Scope
from gemscope.features.scope_manifest import Failed
from gemscope.features.scored import Figures
from gemscope.pages.numbers import many
from gemscope.pages.plain import Shown
from gemscope.pages.tables import Table
from gemscope.reports.score import number
from gemscope.scope.placing import MEASURING

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class ScopeTable(Shown):
    """What a scope of one's own holds, by the depth of its sites."""

    folder: Path
    scope: Scope
    failed: tuple[Failed, ...]
    """What is not there, or could not be measured."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "folder": str(self.folder),
            "saes": [member.to_dict() for member in self.scope],
            "failed": [asdict(one) for one in self.failed],
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        heads: tuple[str, ...] = ("site", "features", "L0", "FVU", "delta loss", "dead")
        both = any(one.figures is not None and one.figures.unlike is not None for one in self.scope)
        if both:
            heads = (*heads, "unlike: L0", "FVU", "delta loss")
        rows = [
            (
                described(one.site, one.site_out),
                f"{one.width:,}",
                *_figures(one, one.figures),
                *(_unlike(one.figures) if both else ()),
            )
            for one in self.scope
        ]
        parts: list[RenderableType] = [
            Text(f"{many(len(self.scope), 'SAE')} in {self.folder}", style="bold"),
            Table(heads, rows, left=heads[:1], bold=False, indent=2),
            *(Text(f"  {line}", style="dim") for line in self._read()),
        ]
        if self.failed:
            parts.append(Text(f"\n{len(self.failed)} failed", style="bold yellow"))
            parts += [Text(f"  {_failing(one)}: {one.reason}") for one in self.failed]
        return Group(*parts)

    def _read(self) -> Iterator[str]:
        """What the figures are of."""
        figures = [one.figures for one in self.scope if one.figures is not None]
        if names := dict.fromkeys(one.corpus for one in figures if one.corpus):
            yield f"read: {', '.join(names)}"
        if others := dict.fromkeys(one.unlike.corpus for one in figures if one.unlike is not None):
            yield f"unlike text: {', '.join(others)}"
        elif names:
            yield f"no text unlike that: {MEASURING} has the figures on some"


def table_of(folder: str | Path) -> ScopeTable:
    """The table of a scope of one's own. Raises NotFound, AccessError, CorruptFile."""
    scope = load_scope(str(folder))
    return ScopeTable(Path(folder), scope, scope.failed)


def _failing(one: Failed) -> str:
    features = "" if one.width is None else f"{one.width:,} features"
    return ", ".join(filter(None, (one.site, features, "" if one.l0 is None else f"L0 {one.l0:g}")))


def _figures(member: Member, figures: Figures | None) -> tuple[str, ...]:
    if figures is None:
        return (number(member.l0, ".1f"), "", "", "")
    return (
        number(figures.l0, ".1f"),
        number(figures.fvu, ".4f"),
        number(figures.delta_loss, "+.4f"),
        f"{figures.dead:.2%}",
    )


def _unlike(figures: Figures | None) -> tuple[str, ...]:
    other = None if figures is None else figures.unlike
    if other is None:
        return ("", "", "")
    return number(other.l0, ".1f"), number(other.fvu, ".4f"), number(other.delta_loss, "+.4f")
