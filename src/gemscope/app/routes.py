"""The pages and the data beside them. Each handler: arguments, a call of the library, a page or JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from msgspec.structs import asdict
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from gemscope.app import acting, api
from gemscope.app.asking import ask, body_of, index_of, pressed, query_of, shelf_of, source_of, worker_of
from gemscope.app.guard import FRAMED
from gemscope.app.requests import Browse, Forget, Label, Prompt, Search, Trial
from gemscope.app.responses import data, page, wants_data, wants_part
from gemscope.app.shelf import Source, summarised
from gemscope.app.static import static
from gemscope.app.worker import Job
from gemscope.errors import GemscopeError
from gemscope.pages.embed import Embed
from gemscope.pages.links import ServerLinks

_STRONG = 30
"""Features shown that fire on a text."""


async def home(request: Request) -> Response:
    """All atlases."""
    return await run_in_threadpool(_home, request, list(shelf_of(request)))


async def model(request: Request) -> Response:
    """The atlases of one model."""
    return await run_in_threadpool(_home, request, shelf_of(request).of(request.path_params["model"]))


def _home(request: Request, sources: list[Source]) -> Response:
    if wants_data(request):
        return data(request, {"sources": [_facts(source) for source in sources]})
    return page(request, "home.html", links=ServerLinks(), atlases=sources)


def _facts(source: Source) -> dict[str, Any]:
    return {
        "modelId": source.manifest.model_id,
        "id": source.manifest.source_id,
        "url": source.links.source(),
        "features": len(source.atlas),
        "living": source.living,
        "dead": source.dead,
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


async def browse(request: Request) -> Response:
    """A table of features."""
    source, asked = source_of(request), query_of(request, Browse)
    # A choice among 131k labels takes tens of milliseconds: beside the loop, on which single pages are made.
    query = asdict(asked)
    summaries = await run_in_threadpool(source.atlas.summaries, **query)
    total = await run_in_threadpool(source.atlas.count, **asked.filters)
    if wants_data(request):
        return data(request, {"total": total, "features": [_line(source, one) for one in summaries]})
    values: dict[str, Any] = {"manifest": source.manifest, "summaries": summaries, "total": total, "query": query}
    if wants_part(request):
        return page(request, "browse_rows.html", links=source.links, **values)
    cells = await run_in_threadpool(lambda: source.cells)
    return await run_in_threadpool(page, request, "browse.html", links=source.links, points=cells, **values)


def _line(source: Source, one: Any) -> dict[str, Any]:
    return {
        "modelId": source.manifest.model_id,
        "layer": source.manifest.source_id,
        "index": str(one.feature),
        "maxActApprox": one.max,
        "frac_nonzero": one.density,
        "count": one.count,
        "mean_activation": one.mean,
        "description": one.label,
        "token": one.token,
    }


# --- a feature --------------------------------------------------------------------------------------------------------


async def feature(request: Request) -> Response:
    """One feature, as a page or for a frame."""
    source, index = source_of(request), index_of(request)
    dashboard = source[index]
    if wants_data(request):
        return data(request, dashboard.to_dict())
    embed = Embed.of(request.query_params)
    # A strength has no measure where nothing ever fired.
    steers = source.live.on and not dashboard.dead and (embed is None or embed.steer)
    asked = acting.first(index)
    return page(
        request,
        "feature.html",
        links=source.links,
        headers=FRAMED if embed else None,
        feature=dashboard,
        manifest=source.manifest,
        live=source.live.on,
        why=source.live.why,
        asked=asked,
        rows=[acting.dial(source, asked, summarised(dashboard))] if steers else [],
        writable=embed is None,
        previous=index - 1 if index else None,
        following=index + 1 if index + 1 < len(source.atlas) else None,
        embed=embed,
        test_text=request.query_params.get("text") or request.query_params.get("defaulttesttext", ""),
        score=source.scores.get(index),
    )


async def trial(request: Request) -> Response:
    """One feature on a text of the reader's."""
    source, index, asked = source_of(request), index_of(request), await body_of(request, Trial)
    dashboard = source[index]
    reading = await ask(request, lambda job: source.live.read(job, asked.text, features=[index]))
    if wants_data(request):
        return data(request, {**api.activation(reading, index, every_token=True), "counted": reading.counted})
    return page(
        request,
        "test_result.html",
        links=source.links,
        tokens=reading.tokens,
        values=reading.of(index, every_token=False),
        counted=reading.counted,
        max=dashboard.max,
        feature=dashboard,
    )


async def explain(request: Request) -> Response:
    """Adds a label."""
    source, index, asked = source_of(request), index_of(request), await body_of(request, Label)
    added = await run_in_threadpool(source.atlas.explain, index, asked.text, author=asked.author)
    if wants_data(request):
        return data(request, api.explanation(added), status=201)
    return _explained(request, source, index)


async def forget(request: Request) -> Response:
    """Takes a label away."""
    source, index = source_of(request), index_of(request)
    label = index_of(request, "label") if "label" in request.path_params else (await body_of(request, Forget)).id
    await run_in_threadpool(source.atlas.forget, index, label)
    if wants_data(request):
        return Response(status_code=204)
    return _explained(request, source, index)


def _explained(request: Request, source: Source, index: int) -> Response:
    if wants_part(request):
        return page(request, "explanations.html", links=source.links, feature=source[index], writable=True)
    return RedirectResponse(source.links.feature(index), 303)


# --- search and prompt ------------------------------------------------------------------------------------------------


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
        strong = reading.strongest(_STRONG)
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
        "features": [_line(source, one) for one in values["summaries"]],
        "tokens": [{"id": id_, "token": token, "features": count} for id_, token, count in values["tokens"]],
        "token": values["token"],
        "hits": [
            {**_line(source, one.summary), "strength": one.strength, "examples": one.examples} for one in values["hits"]
        ],
        "strings": values["strings"],
        "counted": values["counted"],
        "firing": [{**_line(source, one["summary"]), "values": one["values"]} for one in values["found"]],
    }


async def prompt(request: Request) -> Response:
    """A text, and on each of its tokens the strongest features."""
    source = source_of(request)
    asked = await body_of(request, Prompt) if request.method == "POST" else query_of(request, Prompt)
    looked, pinned = None, None
    labels: dict[int, str] = {}
    hints: dict[int, str] = {}
    error = None if source.live.on else source.live.why
    here = not asked.text or error is not None or pressed(request)
    if asked.text and error is None and here:
        try:
            looked, pinned, labels, hints = await ask(request, lambda job: _look(source, asked, job))
        except GemscopeError as raised:
            error = " ".join(str(raised).split())
    status = 400 if error and source.live.on else 200
    if wants_data(request):
        found = {} if looked is None else looked.to_dict()
        beside = {
            "labels": {str(index): label for index, label in labels.items()},
            "pinned": asked.pin,
            "values": pinned,
        }
        return data(request, {**found, **beside, **({"error": error} if error else {})}, status=status)
    return await run_in_threadpool(  # a long text makes a long page
        page,
        request,
        "prompt_result.html" if wants_part(request) else "prompt.html",
        links=source.links,
        status=status,
        manifest=source.manifest,
        live=source.live.on,
        chats=source.live.chats,
        text=asked.text,
        chat=asked.chat,
        look=looked,
        labels=labels,
        hints=hints,
        pinned=asked.pin,
        pinned_values=pinned and _counted(looked, pinned),
        error=error,
        note="" if here else "Press Look: a link shows a text, and does not have it read.",
    )


def _counted(looked: Any, values: list[float]) -> list[float]:
    """0 where a token does not count: a first position's activation would make all others look faint."""
    return [value if token.counted else 0.0 for value, token in zip(values, looked.tokens, strict=True)]


def _look(
    source: Source, asked: Prompt, job: Job[Any]
) -> tuple[Any, list[float] | None, dict[int, str], dict[int, str]]:
    """What is seen, the pinned feature's activations, and the labels of all that is shown; where one has
    none, the token that it fires on most."""
    looked, pinned = source.live.look(job, asked.text, k=asked.k, chat=asked.chat), None
    shown = {one.feature for token in looked.tokens for one in token.features}
    if asked.pin is not None:
        pinned = source.live.read(job, asked.text, features=[asked.pin], chat=asked.chat).of(asked.pin)
        shown.add(asked.pin)
    labels = source.atlas.labels(shown)
    return looked, pinned, labels, source.atlas.strongest_on(shown - labels.keys())


async def everywhere(request: Request) -> Response:
    """Labels of all atlases."""
    asked = query_of(request, Search)
    found = []
    for source in shelf_of(request):
        summaries = await run_in_threadpool(source.atlas.search, asked.text, limit=asked.limit) if asked.text else []
        found += [_line(source, one) for one in summaries]
    return data(request, {"text": asked.text, "features": found})


# --- where they are ---------------------------------------------------------------------------------------------------

_AT = "/{model}/{source}"
_ONE = f"{_AT}/{{index}}"

ROUTES: list[Route] = [
    Route("/", home),
    Route("/.json", home),
    Route("/index.json", home),
    Route("/health", health),
    Route("/search.json", everywhere),
    Route("/static/{name:path}", static),
    Route("/favicon.ico", static),
    *api.ROUTES,
    Route("/{model}.json", model),
    Route("/{model}", model),
    Route(f"{_AT}/search.json", search),
    Route(f"{_AT}/search", search),
    Route(f"{_AT}/prompt.json", prompt, methods=["GET", "POST"]),
    Route(f"{_AT}/prompt", prompt, methods=["GET", "POST"]),
    *acting.ROUTES,
    Route(f"{_AT}/browse.json", browse),
    Route(f"{_AT}.json", browse),
    Route(_AT, browse),
    Route(f"{_ONE}.json", feature),
    Route(_ONE, feature),
    Route(f"{_ONE}/test", trial, methods=["POST"]),
    Route(f"{_ONE}/labels", explain, methods=["POST"]),
    Route(f"{_ONE}/labels/{{label}}", forget, methods=["DELETE"]),
    # Forms can only post.
    Route(f"{_ONE}/explain", explain, methods=["POST"]),
    Route(f"{_ONE}/forget", forget, methods=["POST"]),
]
