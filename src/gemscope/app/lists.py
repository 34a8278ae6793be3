"""What is there: the features of an atlas, one at random, and how the server is."""

from __future__ import annotations

import secrets
from typing import Any

from msgspec.structs import asdict
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gemscope.app.asking import query_of, shelf_of, source_of, worker_of
from gemscope.app.kept import names_of
from gemscope.app.requests import Browse
from gemscope.app.responses import data, page, wants_data, wants_part
from gemscope.app.shelf import Source


async def anywhere(request: Request) -> Response:
    """To some living feature."""
    source = await source_of(request)
    living = (await run_in_threadpool(lambda: source.points))[0]
    index = int(secrets.choice(living)) if len(living) else secrets.randbelow(len(source.atlas))
    return RedirectResponse(source.links.feature(index), 303, {"cache-control": "no-store"})


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
    source, asked = await source_of(request), query_of(request, Browse)
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
