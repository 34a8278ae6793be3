"""The SAEs of a whole model by where they read: layers × kinds of site, the best figure of each, and which of them buy
their sparsity cheaply.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from gemscope.activations.site import KINDS, Site, described
from gemscope.errors import InputError
from gemscope.features.scored import Figures
from gemscope.pages.grid import COSTS, FIGURES
from gemscope.pages.numbers import wide
from gemscope.pages.plain import Paged
from gemscope.pages.tables import Cell, Table
from gemscope.reports.front import on_front

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gemscope.features.scope import Scope

By = Literal["fvu", "delta_loss", "dead", "l0", "unlike_fvu", "unlike_delta_loss"]
BYS: tuple[By, ...] = ("fvu", "delta_loss", "dead", "l0", "unlike_fvu", "unlike_delta_loss")
"""What a cell can show. Of each less is better, or sparser."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An SAE, where it reads, and what its score says; None where that was not measured."""

    site: Site
    site_out: Site
    width: int
    """Features; 0 where only the file itself would tell."""
    name: str
    """What it is called where it comes from; an atlas's address on a server."""
    l0: float | None = None
    fvu: float | None = None
    delta_loss: float | None = None
    dead: float | None = None
    unlike_fvu: float | None = None
    """On a text unlike what it learned from; so the next."""
    unlike_delta_loss: float | None = None
    corpus: str = ""
    tokens: int = 0
    """Counted ones that the figures are over."""

    @classmethod
    def of(cls, site: Site, width: int, name: str, *, site_out: Site | None = None, scored: Figures | None) -> Placed:
        """With the figures of a score, where there is one."""
        one = cls(site=site, site_out=site_out or site, width=width, name=name)
        if scored is None:
            return one
        known = {of: getattr(scored, of) for of in ("l0", "fvu", "delta_loss", "dead", "corpus", "tokens")}
        if scored.unlike is not None:
            known |= {"unlike_fvu": scored.unlike.fvu, "unlike_delta_loss": scored.unlike.delta_loss}
        return replace(one, **known)

    def value(self, by: By) -> float | None:
        """One of its figures."""
        found: float | None = getattr(self, by)
        return found

    def said(self, by: By) -> str:
        """The same in few characters, of one form in all cells."""
        value = self.value(by)
        if value is None:
            return ""
        forms = {"fvu": ".3f", "delta_loss": "+.3f", "dead": ".1%", "l0": ".1f"}
        return format(value, forms[by.removeprefix("unlike_")]).replace("-", "\N{MINUS SIGN}")

    @property
    def about(self) -> str:
        """It and all its figures in one line."""
        figures = [f"{FIGURES[by]} {self.said(by)}" for by in BYS if self.value(by) is not None]
        return f"{described(self.site, self.site_out)} {wide(self.width)}: {', '.join(figures) or 'not scored'}"

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {"site": str(self.site), "site_out": str(self.site_out)}


@dataclass(frozen=True, kw_only=True)
class Grid(Paged):
    """SAEs of one model by layer and kind of site. `str` gives tables, a notebook shows them with their plots,
    `to_dict` what a server gives as data.
    """

    model: str
    saes: tuple[Placed, ...]
    """By site, then as they were given."""

    width = 160

    @cached_property
    def layers(self) -> tuple[int | None, ...]:
        """Those with an SAE, the first first; None for the embedding."""
        return tuple(sorted({one.site.layer for one in self.saes}, key=lambda layer: -1 if layer is None else layer))

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Those with an SAE, as a block computes them."""
        there = {one.site.kind for one in self.saes}
        return tuple(kind for kind in KINDS if kind in there)

    @cached_property
    def measured(self) -> tuple[By, ...]:
        """The figures that at least one SAE has."""
        return tuple(by for by in BYS if any(one.value(by) is not None for one in self.saes))

    @property
    def costs(self) -> tuple[By, ...]:
        """The measured figures that L0 is set against."""
        return tuple(by for by in self.measured if by in COSTS)

    def at(self, layer: int | None, kind: str) -> tuple[Placed, ...]:
        """The SAEs of a site."""
        return tuple(one for one in self.saes if (one.site.layer, one.site.kind) == (layer, kind))

    def best(self, layer: int | None, kind: str, by: By = "fvu") -> Placed | None:
        """The SAE of a site whose figure is lowest; the first where none has one; None where there is no SAE."""
        there = self.at(layer, kind)
        return min(there, key=lambda one: _or_most(one.value(by)), default=None)

    def fronts(self, by: By, kind: str | None = None) -> tuple[int, ...]:
        """Places in `saes` of those that no other beats in both L0 and a figure; among those of a kind, or all."""
        among = (
            (place, one.l0, value)
            for place, one in enumerate(self.saes)
            if one.l0 is not None and (value := one.value(by)) is not None and kind in (None, one.site.kind)
        )
        return on_front(among)

    def only(self, width: int) -> Grid:
        """Those of one width. Raises InputError where there is none."""
        kept = tuple(one for one in self.saes if one.width == width)
        if not kept:
            there = ", ".join(f"{one:,}" for one in self.widths)
            raise InputError(f"no SAE of {width:,} features: there are {there}")
        return Grid(model=self.model, saes=kept)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """How many features the SAEs have."""
        return tuple(sorted({one.width for one in self.saes}))

    def to_dict(self) -> dict[str, object]:
        """For JSON: the SAEs, and the places in that list of those on the fronts of L0 and a figure."""
        return {
            "model": self.model,
            "layers": list(self.layers),
            "kinds": list(self.kinds),
            "saes": [one.to_dict() for one in self.saes],
            "pareto": {by: list(self.fronts(by)) for by in self.costs},
        }

    def to_html(self) -> str:
        """One HTML file with the tables and plots; nothing in it is fetched."""
        from gemscope.pages.grid import grid_document

        return grid_document(self)

    # --- how it shows itself ----------------------------------------------------------------------------------

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = [
            Text(f"{len(self.saes)} SAEs of {len(self.layers)} layers of {self.model}", style="bold"),
            *(Text(f"  {line}", style="dim") for line in self.conditions),
        ]
        for by in self.measured:
            parts += [Text(), Text(f"{FIGURES[by]}, the lowest of each site", style="bold"), self.table(by)]
        for by in self.costs:
            if self.fronts(by):
                best = ", ".join(self.saes[place].about for place in self.fronts(by))
                parts += [Text(), Text(f"On the front of L0 and {FIGURES[by]}: {best}")]
        return Group(*parts)

    @property
    def conditions(self) -> tuple[str, ...]:
        """On what the figures were measured; more than one where SAEs were scored on different texts."""
        read = dict.fromkeys((one.corpus, one.tokens) for one in self.saes if one.corpus)
        corpora = {corpus: [tokens for name, tokens in read if name == corpus] for corpus, _ in read}
        return tuple(f"{_spread(tokens)} counted tokens of {corpus}" for corpus, tokens in corpora.items())

    def table(self, by: By = "fvu") -> Table:
        """Layers × kinds of site."""
        heads = ("layer", *self.kinds)
        rows = []
        for layer in self.layers:
            cells = []
            for kind in self.kinds:
                one = self.best(layer, kind, by)
                cells.append(Cell("") if one is None else Cell(one.said(by) or "—", "" if one.said(by) else "dim"))
            rows.append((Cell("—" if layer is None else str(layer)), *cells))
        return Table(heads, rows, bold=False, indent=2)


def grid(scope: Scope | str | os.PathLike[str]) -> Grid:
    """A scope's SAEs by where they read, with the figures of the scores beside them. Raises what `load_scope` raises,
    CorruptFile for a score that is none.
    """
    if isinstance(scope, str | os.PathLike):
        from gemscope.features.listing import load_scope

        scope = load_scope(scope)
    saes = [
        Placed.of(one.site, one.width or 0, one.address, site_out=one.site_out, scored=one.figures) for one in scope
    ]
    return by_site(scope.model or scope.name, saes)


def by_site(model: str, saes: Iterable[Placed]) -> Grid:
    """SAEs of one model by where they read. Raises InputError where there are none."""
    ordered = sorted(saes, key=lambda one: one.site)
    if not ordered:
        raise InputError("no SAEs given: a grid wants at least one")
    return Grid(model=model, saes=tuple(ordered))


def _or_most(value: float | None) -> float:
    return math.inf if value is None else value


def _spread(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
