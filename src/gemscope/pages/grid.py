"""A whole model's SAEs as HTML: a table of layers × kinds of site, coloured by a figure, and what sparsity costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from gemscope.pages.charts.tradeoff import Dot, tradeoff
from gemscope.pages.links import NoLinks
from gemscope.pages.numbers import wide
from gemscope.pages.render import render
from gemscope.pages.standalone import document

FIGURES = {
    "fvu": "FVU",
    "delta_loss": "delta loss",
    "dead": "dead",
    "l0": "L0",
    "unlike_fvu": "FVU on unlike text",
    "unlike_delta_loss": "delta loss on unlike text",
}
"""What a cell can show, in words. Of each less is better, or sparser."""
SHADES = 10
"""Of which the fullest stands for the lowest figure: those of marked text (`gemscope.css`)."""
COSTS = ("fvu", "delta_loss")
"""What L0 is set against."""

Url = Callable[[Any], str]
"""Where an SAE's pages lie; "" for one without."""


@dataclass(frozen=True)
class Box:
    """A site in the table: its best SAE."""

    text: str
    shade: int | None
    """None where nothing was measured."""
    about: str
    """All figures of the SAE, for who hovers."""
    url: str
    many: int
    """SAEs of the site."""
    site: str


@dataclass(frozen=True)
class Scale:
    """What the colours say: the figure at the fullest shade, and at the faintest."""

    lowest: str
    highest: str


def boxes(grid: Any, by: str, url: Url) -> tuple[list[tuple[str, list[Box | None]]], Scale | None]:
    """The rows of the table, each after its layer, and the scale of its colours; None where nothing was measured."""
    rows = [
        ("embedding" if layer is None else str(layer), [grid.best(layer, kind, by) for kind in grid.kinds])
        for layer in grid.layers
    ]
    known = [one for _, row in rows for one in row if one is not None and one.value(by) is not None]
    ranked = sorted({one.value(by): one for one in known}.items(), reverse=True)
    ranks = {value: rank for rank, (value, _) in enumerate(ranked)}

    def shade(value: float | None) -> int | None:
        """By rank: one site that is far worse than all others would leave these alike."""
        if value is None:
            return None
        return round((SHADES - 1) * ranks[value] / (len(ranks) - 1)) if len(ranks) > 1 else SHADES // 2

    def box(one: Any) -> Box:
        many = len(grid.at(one.site.layer, one.site.kind))
        text = one.said(by) or ("—" if known else wide(one.width))
        return Box(text, shade(one.value(by)), one.about, url(one), many, str(one.site))

    scale = Scale(ranked[-1][1].said(by), ranked[0][1].said(by)) if ranked else None
    return [(layer, [None if one is None else box(one) for one in row]) for layer, row in rows], scale


def plots(grid: Any) -> list[tuple[str, list[Markup]]]:
    """L0 against what it costs: of all SAEs, and of each kind of site where there are several; those with a plot."""
    found = []
    for kind in (None, *(grid.kinds if len(grid.kinds) > 1 else ())):
        drawn = [_plot(grid, by, kind) for by in COSTS if by in grid.measured]
        if any(drawn):
            found.append(("all sites" if kind is None else kind, [one for one in drawn if one]))
    return found


def site_plots(saes: Sequence[Any], fronts: Mapping[Any, Iterable[int]]) -> list[Markup]:
    """The same of the SAEs of one site, each named by its width."""
    return [
        plot
        for by in COSTS
        if by in fronts and (plot := _drawn(saes, by, set(fronts[by]), lambda one: wide(one.width)))
    ]


def _plot(grid: Any, by: str, kind: str | None) -> Markup:
    front = {id(grid.saes[place]) for place in grid.fronts(by, kind)}
    some = [one for one in grid.saes if kind in (None, one.site.kind)]
    places = {place for place, one in enumerate(some) if id(one) in front}
    return _drawn(some, by, places, lambda one: str(one.site) if kind is None else str(one.site.layer))


def _drawn(saes: Sequence[Any], by: str, front: set[int], label: Callable[[Any], str]) -> Markup:
    dots = [
        Dot(one.l0, one.value(by), f"{one.site} {wide(one.width)}", label(one), place in front)
        for place, one in enumerate(saes)
        if one.l0 is not None and one.value(by) is not None
    ]
    return (
        tradeoff(dots, title=f"L0 against {FIGURES[by]}", across="L0", up=FIGURES[by]) if len(dots) > 1 else Markup("")
    )


def grid_document(grid: Any) -> str:
    """A grid as one file: a table for each figure that was measured, and the plots."""
    tables = [(by, *boxes(grid, by, lambda _: "")) for by in grid.measured or ("fvu",)]
    body = render("grid_report.html", links=NoLinks(), grid=grid, tables=tables, names=FIGURES, plots=plots(grid))
    return document(body, title=f"{len(grid.saes)} SAEs of {grid.model}", styled=("whole.css",))
