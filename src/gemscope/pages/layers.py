"""A text through all layers as HTML: a row for each site, a column for each token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemscope.pages.labels import clipped_label
from gemscope.pages.links import NoLinks
from gemscope.pages.numbers import figure, percent
from gemscope.pages.render import render
from gemscope.pages.standalone import document
from gemscope.text.printable import visible

SHADES = 10
"""Of which the fullest stands for a feature's maximum: those of marked text (`gemscope.css`)."""
LABEL = 60
"""Characters of a label in a cell, which shows two or three lines of it."""
SPAN = 40
"""Tokens that a page shows at a time."""


@dataclass(frozen=True)
class Fired:
    """What a cell shows: the first feature of a token."""

    feature: int
    label: str
    hint: str
    """The token that it fires on most, where it has no label."""
    about: str
    """The whole label and the figures, for who hovers."""
    shade: int
    url: str
    pinned: bool


@dataclass(frozen=True)
class Layer:
    """A row."""

    site: str
    name: str
    """Without the kind, where all rows are of one."""
    url: str
    l0: float
    fvu: float
    cells: Sequence[Fired | None]
    """One a token; None where none counts or nothing fires."""
    key: str
    """What its features are called in an address."""


Url = Callable[[int], str]


def rows_of(
    looks: Any,
    *,
    part: slice = slice(None),
    keys: Sequence[str] | None = None,
    urls: Sequence[tuple[str, Url]] | None = None,
    hints: Sequence[Mapping[int, str]] | None = None,
    pin: tuple[str, int] | None = None,
) -> list[Layer]:
    """A `Looks` as a table. In the order of its sites: `keys` name their SAEs, `urls` are where their pages lie and
    those of their features, `hints` are tokens that features without a label fire on.
    """
    one_kind = len({one.site.partition(".")[2] for one in looks}) == 1
    found = []
    for place, one in enumerate(looks):
        source, feature_url = urls[place] if urls else ("", lambda _: "")
        hint = hints[place] if hints else {}
        key = keys[place] if keys else one.site
        cells: list[Fired | None] = []
        for token in one.tokens[part]:
            if not token.counted or not token.features:
                cells.append(None)
                continue
            first = token.features[0]
            token_of = f"on “{visible(hint[first.feature])}”" if first.feature in hint else ""
            share = "" if first.share is None else f", {percent(first.share)} of its max"
            said = first.label or (f"strongest {token_of}" if token_of else "no label")
            about = f"{one.site}, feature {first.feature}: {said}; {figure(first.activation)}{share}"
            cells.append(
                Fired(
                    first.feature,
                    clipped_label(first.label, LABEL) if first.label else "",
                    token_of,
                    about,
                    round((SHADES - 1) * min(1.0, first.share or 0.0)),
                    feature_url(first.feature),
                    pin == (key, first.feature),
                )
            )
        name = one.site.partition(".")[0] if one_kind else one.site
        found.append(Layer(one.site, name, source, one.l0, 1 - one.explained_variance, cells, key))
    return found


def layers_document(looks: Any) -> str:
    """A look through all layers as one file."""
    body = render("layers_report.html", links=NoLinks(), looks=looks, rows=rows_of(looks))
    return document(body, title=f"A text through {len(looks)} sites of {looks.looks[0].model}", styled=("whole.css",))
