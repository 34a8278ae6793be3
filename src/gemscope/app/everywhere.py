"""Features of all atlases by what their labels say."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from gemscope.app.asking import query_of, shelf_of
from gemscope.app.requests import Everywhere, said
from gemscope.app.responses import data, page, wants_data, wants_part
from gemscope.app.shelf import Source, short_names
from gemscope.atlas.labels.across import Found, Hit, across
from gemscope.pages.links import ModelLinks, ServerLinks


async def everywhere(request: Request) -> Response:
    """Labels of all atlases, or of those of one model."""
    asked, served = query_of(request, Everywhere), shelf_of(request)
    sources = served.of(asked.model) if asked.model else list(served)
    found = await run_in_threadpool(_found, sources, asked)
    if wants_data(request):
        return data(request, _data(sources, asked, found))
    counted = [(source, count) for source, count in zip(sources, found.counts, strict=True) if count]
    return await run_in_threadpool(
        page,
        request,
        "everywhere_results.html" if wants_part(request) else "everywhere.html",
        links=ServerLinks(),
        ways=ModelLinks(asked.model),
        asked=asked,
        said=said(asked),
        found=found,
        hits=[(sources[one.place], one) for one in found.hits],
        counted=counted,
        names=short_names(source for source, _ in counted),
        models=sorted({source.manifest.model_id for source in served}),
        many=len(sources),
        amiss=[sources[place] for place in found.amiss],
    )


def _found(sources: list[Source], asked: Everywhere) -> Found:
    if not asked.text.strip():
        return Found((0,) * len(sources), (), ())
    atlases = [source.folder if (here := source.at_hand()) is None else here.atlas for source in sources]
    return across(atlases, asked.text, limit=asked.limit, offset=asked.offset)


def _data(sources: list[Source], asked: Everywhere, found: Found) -> dict[str, Any]:
    return {
        "text": asked.text,
        "total": found.total,
        "sources": [
            {"modelId": source.manifest.model_id, "id": source.manifest.source_id, "features": count}
            for source, count in zip(sources, found.counts, strict=True)
            if count
        ],
        "features": [_line(sources[one.place], one) for one in found.hits],
        "unread": ["/".join(sources[place].address) for place in found.amiss],
    }


def _line(source: Source, one: Hit) -> dict[str, Any]:
    manifest = source.manifest
    return {
        "modelId": manifest.model_id,
        "layer": manifest.source_id,
        "site": manifest.site,
        "index": str(one.feature),
        "description": one.label,
        "promotes": one.promotes,
        "score": one.score,
        "maxActApprox": one.max,
        "count": one.count,
        "frac_nonzero": one.count / max(1, manifest.tokens),
    }
