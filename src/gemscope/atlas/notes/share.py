"""A list as one HTML file that can be sent to anybody: the notes, and the page of each feature that is at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from gemscope.atlas.notes.kept import FeatureList, Kept
from gemscope.pages.links import NoLinks
from gemscope.pages.render import render
from gemscope.pages.standalone import article, document

if TYPE_CHECKING:
    from gemscope.atlas.dashboard import Dashboard

Finder = Callable[[Kept], "tuple[Dashboard, Any] | None"]
"""From an entry to its dashboard and its atlas's manifest; None where that atlas is not at hand."""


def shared(given: FeatureList, find: Finder) -> str:
    """The file. What is not at hand is there with its note, and with its label as it stood."""
    sources = list(dict.fromkeys((one.model, one.source) for one in given))
    within = {at: frozenset(one.index for one in given if (one.model, one.source) == at) for at in sources}
    links = {at: NoLinks(within[at], f"feature-{n}-" if n else "feature-") for n, at in enumerate(sources)}
    entries: list[tuple[Kept, Any, str]] = []
    articles: list[str] = []
    for kept, found in _found(given, find):
        reached = links[kept.model, kept.source]
        entries.append((kept, found and found[0], reached.feature(kept.index)[1:] if found else ""))
        if found:
            articles.append(article(*found, links=reached))
    head = render("list_shared.html", links=NoLinks(), list=given, entries=entries)
    return document("\n".join([head, *articles]), title=given.name)


def _found(given: FeatureList, find: Finder) -> Iterator[tuple[Kept, Any]]:
    for kept in given:
        yield kept, find(kept)
