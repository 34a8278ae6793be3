"""What is there: atlases, the features of one, labels of all, and how the server is."""

from __future__ import annotations

import dataclasses
import secrets
from contextlib import suppress
from typing import Any

from msgspec.structs import asdict
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gemscope.app.asking import query_of, shelf_of, source_of, worker_of
from gemscope.app.kept import names_of
from gemscope.app.requests import Browse, Search
from gemscope.app.responses import data, page, wants_data, wants_part
from gemscope.app.shelf import Source
from gemscope.atlas.dashboard import Glance, Summary
from gemscope.errors import GemscopeError
from gemscope.pages.links import ServerLinks


async def home(request: Request) -> Response:
    """All atlases."""
    return await run_in_threadpool(_home, request, list(shelf_of(request)))


async def model(request: Request) -> Response:
    """The atlases of one model."""
    return await run_in_threadpool(_home, request, shelf_of(request).of(request.path_params["model"]))


def _home(request: Request, sources: list[Source]) -> Response:
    if wants_data(request):
        return data(request, {"sources": [_facts(source) for source in sources]})
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
        striking=striking,
        glances=seen,
        live=first.live.on,
        why=first.live.why,
        texts=TO_TRY,
    )


TO_TRY = (
    "Would you be able to travel through time using a wormhole?",
    "The doctor said that my sister's fever would be gone by Monday.",
    "def mean(values):\n    return sum(values) / len(values)",
)
"""Texts for a prompt: a question, something told, and code."""


async def anywhere(request: Request) -> Response:
    """To some living feature."""
    source = source_of(request)
    living = (await run_in_threadpool(lambda: source.points))[0]
    index = int(secrets.choice(living)) if len(living) else secrets.randbelow(len(source.atlas))
    return RedirectResponse(source.links.feature(index), 303, {"cache-control": "no-store"})


def _facts(source: Source) -> dict[str, Any]:
    return {
        "modelId": source.manifest.model_id,
        "id": source.manifest.source_id,
        "url": source.links.source(),
        "features": len(source.atlas),
        "living": source.living,
        "dead": source.dead,
        **source.standing._asdict(),
        "live": source.live.state,
        "why": source.live.why,
        "manifest": dataclasses.asdict(source.manifest),
    }


async def health(request: Request) -> Response:
    """How the server is: who waits for the model, and which models there are."""
    worker = worker_of(request)
    live = [
        {
            "modelId": source.manifest.model_id,
            "source": source.manifest.source_id,
            "live": source.live.state,
            "why": source.live.why,
        }
        for source in shelf_of(request)
    ]
    return data(
        request,
        {
            "ok": True,
            "queue": {"running": worker.busy, "waiting": worker.waiting, "room": worker.room},
            "sources": live,
        },
    )


async def queue(request: Request) -> Response:
    """How many are before what was asked for by this name; null where it waits no longer."""
    return data(request, {"ahead": worker_of(request).place(request.path_params["name"])})


async def browse(request: Request) -> Response:
    """A table of features."""
    source, asked = source_of(request), query_of(request, Browse)
    # A choice among 131k labels takes tens of milliseconds: beside the loop, on which single pages are made.
    query = asdict(asked)
    summaries = await run_in_threadpool(source.atlas.summaries, **query)
    total = await run_in_threadpool(source.atlas.count, **asked.filters)
    if wants_data(request):
        return data(request, {"total": total, "features": [line(source, one) for one in summaries]})
    values: dict[str, Any] = {"manifest": source.manifest, "summaries": summaries, "total": total, "query": query}
    template = "browse_rows.html" if wants_part(request) else "browse.html"

    def table() -> Response:
        if not wants_part(request):
            values["points"] = source.cells
        values["names"] = names_of(request)
        values["glances"] = source.atlas.glances(one.feature for one in summaries)
        return page(request, template, links=source.links, **values)

    return await run_in_threadpool(table)


def line(source: Source, one: Any) -> dict[str, Any]:
    """A feature in a list, as data."""
    return {
        "modelId": source.manifest.model_id,
        "layer": source.manifest.source_id,
        "index": str(one.feature),
        "maxActApprox": one.max,
        "frac_nonzero": one.density,
        "count": one.count,
        "mean_activation": one.mean,
        "description": one.label,
        "promotes": one.promotes,
        "token": one.token,
    }


async def everywhere(request: Request) -> Response:
    """Labels of all atlases."""
    asked = query_of(request, Search)
    found = []
    for source in shelf_of(request):
        summaries = await run_in_threadpool(source.atlas.search, asked.text, limit=asked.limit) if asked.text else []
        found += [line(source, one) for one in summaries]
    return data(request, {"text": asked.text, "features": found})
