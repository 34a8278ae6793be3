"""Features by label, by token, or by a text on which they fire."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from gemscope.app.asking import ask, pressed, query_of, source_of
from gemscope.app.lists import line
from gemscope.app.requests import Search
from gemscope.app.responses import data, page, wants_data, wants_part
from gemscope.app.shelf import Source
from gemscope.app.worker import Job
from gemscope.errors import GemscopeError

_STRONG = 30
"""Features shown that fire on a text: those that say most about it."""


async def search(request: Request) -> Response:
    """Features by label, by token, or by a text on which they fire."""
    source, asked = source_of(request), query_of(request, Search)
    found: dict[str, Any] = {"note": ""}
    if not asked.text.strip():
        pass
    elif asked.kind == "label":
        found["summaries"] = await run_in_threadpool(
            source.atlas.search, asked.text, limit=asked.limit, offset=asked.offset
        )
    elif asked.kind == "token":
        found |= await run_in_threadpool(_by_token, source, asked)
    else:
        found |= await _firing(request, source, asked.text)
    values: dict[str, Any] = {"kind": asked.kind, "text": asked.text, **_NOTHING, **found}
    if wants_data(request):
        return data(request, _search_data(source, values))
    return await run_in_threadpool(
        page,
        request,
        "search_results.html" if wants_part(request) else "search.html",
        links=source.links,
        manifest=source.manifest,
        live=source.live.on,
        why=source.live.why,
        **values,
    )


_NOTHING: dict[str, Any] = {
    "summaries": [],
    "tokens": [],
    "token": None,
    "hits": [],
    "found": [],
    "strings": [],
    "counted": [],
}


def _by_token(source: Source, asked: Search) -> dict[str, Any]:
    tokens = source.atlas.tokens_like(asked.text)
    token = asked.token if asked.token is not None else next((id_ for id_, _, _ in tokens), None)
    hits = [] if token is None else source.atlas.by_token(token, limit=asked.limit)
    return {"tokens": tokens, "token": token, "hits": hits}


async def _firing(request: Request, source: Source, text: str) -> dict[str, Any]:
    if not source.live.on:
        return {"note": source.live.why}
    if not pressed(request):
        return {"note": "Press Search: a link shows a text, and does not have it read."}

    def work(job: Job[Any]) -> dict[str, Any]:
        reading = source.live.read(job, text)
        from gemscope.atlas.meaning import Meanings  # brings torch, which a server starts without

        strong = reading.strongest(_STRONG, known_of=Meanings(source.atlas, source.live.pair(job)[1]))
        found = [{"summary": source.summary(one.feature), "values": one.values} for one in strong]
        return {"found": found, "strings": reading.tokens, "counted": reading.counted}

    try:
        return await ask(request, work)
    except GemscopeError as error:
        return {"note": " ".join(str(error).split())}


def _search_data(source: Source, values: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": values["kind"],
        "text": values["text"],
        "note": values["note"],
        "features": [line(source, one) for one in values["summaries"]],
        "tokens": [{"id": id_, "token": token, "features": count} for id_, token, count in values["tokens"]],
        "token": values["token"],
        "hits": [
            {**line(source, one.summary), "strength": one.strength, "examples": one.examples} for one in values["hits"]
        ],
        "strings": values["strings"],
        "counted": values["counted"],
        "firing": [{**line(source, one["summary"]), "values": one["values"]} for one in values["found"]],
    }
