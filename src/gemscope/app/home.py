"""The start page: which atlases there are, and the whole model that they are of, by layer and kind of site."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from gemscope.activations.site import Site
from gemscope.app.asking import query_of, shelf_of
from gemscope.app.opened import FEW
from gemscope.app.requests import Whole
from gemscope.app.responses import data, page, wants_data
from gemscope.app.shelf import Source
from gemscope.atlas.dashboard import Glance, Summary
from gemscope.errors import FileError, GemscopeError, NotFound, SiteNotFound
from gemscope.features.scope_manifest import SCORE
from gemscope.features.scored import Figures, figures_of
from gemscope.pages.grid import FIGURES, boxes, plots, site_plots
from gemscope.pages.links import ModelLinks, ServerLinks
from gemscope.reports.grid import Grid, Placed, by_site


async def home(request: Request) -> Response:
    """All atlases."""
    served = shelf_of(request)
    return await run_in_threadpool(_home, request, list(served), served.unread)


async def model(request: Request) -> Response:
    """The atlases of one model."""
    served = shelf_of(request)
    return await run_in_threadpool(_home, request, served.of(request.path_params["model"]), served.unread)


def _home(request: Request, sources: list[Source], unread: Mapping[str, Sequence[Placed]]) -> Response:
    asked = query_of(request, Whole)
    grids = grids_of(sources, unread)
    if wants_data(request):
        return data(
            request,
            {
                "sources": [_facts(source, whole=len(sources) <= FEW) for source in sources],
                "grids": {name: one.to_dict() for name, one in grids.items()},
            },
        )
    first = sources[0]
    striking, seen = list[Summary](), dict[int, Glance]()
    with suppress(GemscopeError):  # whoever asks for what cannot be read is told; the other atlases are there
        striking = first.atlas.summaries_of(first.striking)
        seen = first.atlas.glances(first.striking)
    return page(
        request,
        "home.html",
        links=first.links if len(sources) == 1 else ServerLinks(),
        atlases=sources,
        few=len(sources) <= FEW,
        grids=[_shown(name, one, asked, sources) for name, one in grids.items()],
        names=FIGURES,
        striking=striking,
        glances=seen,
        live=first.live.on,
        why=first.live.why,
        texts=TO_TRY,
    )


def grids_of(sources: Iterable[Source], unread: Mapping[str, Sequence[Placed]]) -> dict[str, Grid]:
    """By model, of those that have SAEs of several sites: these by where they read, with those that have no atlas."""
    placed: dict[str, list[Placed]] = defaultdict(list)
    for source in sources:
        with suppress(SiteNotFound):  # an imported atlas may not know
            placed[source.manifest.model_id].append(_placed(source))
    for name in placed:
        placed[name] += unread.get(name, ())
    return {name: by_site(name, saes) for name, saes in placed.items() if len({one.site for one in saes}) > 1}


def _placed(source: Source) -> Placed:
    manifest = source.manifest
    return Placed.of(
        Site.parse(manifest.site),
        manifest.d_sae,
        "/".join(source.address),
        site_out=Site.parse(manifest.site_out),
        scored=scored(source),
    )


def scored(source: Source) -> Figures | None:
    """What is known of its SAE from a score that lies beside the atlas, where there is one and it is of this SAE."""
    with suppress(FileError, NotFound):
        found = figures_of(source.folder.parent / SCORE)
        if not source.manifest.sae_digest or found.digest in ("", source.manifest.sae_digest):
            return found
    return None


def _shown(name: str, whole: Grid, asked: Whole, sources: list[Source]) -> dict[str, Any]:
    """What the page shows of a model."""
    links = ModelLinks(name)
    shown = whole.only(asked.width) if asked.width in whole.widths else whole
    by = asked.by if asked.by in shown.measured or not shown.measured else shown.measured[0]
    urls = {"/".join(source.address): source.links.source() for source in sources}
    rows, scale = boxes(shown, by, lambda one: urls.get(one.name, ""))
    there = [one for one in shown.saes if str(one.site) == asked.site]
    site = None
    if there:
        one = there[0].site
        fronts = {cost: _within(shown, cost, one) for cost in shown.costs}
        site = {
            "name": str(one),
            "saes": [
                (each, urls.get(each.name, ""), {cost: place in found for cost, found in fronts.items()})
                for place, each in enumerate(there)
            ],
            "plots": site_plots(there, fronts),
        }
    return {
        "links": links,
        "grid": shown,
        "whole": whole,
        "by": by,
        "asked": asked,
        "rows": rows,
        "scale": scale,
        "plots": plots(shown),
        "site": site,
    }


def _within(shown: Grid, by: Any, site: Site) -> tuple[int, ...]:
    return Grid(model=shown.model, saes=shown.at(site.layer, site.kind)).fronts(by)


TO_TRY = (
    "Would you be able to travel through time using a wormhole?",
    "The doctor said that my sister's fever would be gone by Monday.",
    "def mean(values):\n    return sum(values) / len(values)",
)
"""Texts for a prompt: a question, something told, and code."""


def _facts(source: Source, *, whole: bool) -> dict[str, Any]:
    """`whole`: with what the atlas has to be opened for."""
    counts = {"living": source.living, "dead": source.dead, **source.standing._asdict()} if whole else {}
    return {
        "modelId": source.manifest.model_id,
        "id": source.manifest.source_id,
        "url": source.links.source(),
        "features": source.manifest.d_sae,
        **counts,
        "live": source.live.state,
        "why": source.live.why,
        "manifest": dataclasses.asdict(source.manifest),
    }
