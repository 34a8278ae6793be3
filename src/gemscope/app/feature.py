"""One feature: its page, its labels, a text to try it on, and what it does to the output."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gemscope.app import api
from gemscope.app.asking import MEASURING, ask, body_of, index_of, pressed, reading_time, shelf_of, source_of
from gemscope.app.guard import FRAMED
from gemscope.app.keeping import keeping
from gemscope.app.kept import lists_of
from gemscope.app.renderers import Wanted
from gemscope.app.requests import Forget, Label, Trial
from gemscope.app.responses import data, document, page, wants_data, wants_part
from gemscope.app.shelf import Shelf, Source
from gemscope.app.steer_view import dial, first
from gemscope.atlas.output import OutputScore
from gemscope.errors import GemscopeError
from gemscope.pages.embed import Embed
from gemscope.pages.render import render


async def feature(request: Request) -> Response:
    """One feature, as a page or for a frame."""
    source, index = await source_of(request), index_of(request)
    if wants_data(request):
        return data(request, shelf_of(request).resolved(source[index]).to_dict())
    if wants_part(request):
        return page(request, "panels/ranges.html", links=source.links, feature=source[index])
    embed = Embed.of(request.query_params)
    kept = None if embed else keeping(lists_of(request), source, index)
    live, norm = source.live, source.median_norm
    wanted = Wanted(*source.address, index, dict(request.query_params), live.on, live.why, norm, kept)
    if index in source.scores:  # which no other process knows of
        html: str | bytes = made(shelf_of(request), wanted)
    else:
        html = await request.app.state.renderers.page(wanted)
    return document(html, headers=FRAMED if embed else None)


def made(served: Shelf, wanted: Wanted) -> str:
    """The page of a feature. Raises NotFound, CorruptFile."""
    source, index = served.get(wanted.model, wanted.source), wanted.index
    # The many examples of its ranges are fetched by who scrolls as far as that, or follows a link.
    dashboard = served.resolved(source.dashboard(index, ranges=wanted.query.get("ranges") == "true"))
    embed = Embed.of(wanted.query)
    # A strength has no measure where nothing ever fired.
    steers = wanted.live and not dashboard.dead and (embed is None or embed.steer)
    asked = first(index)
    return render(
        "feature.html",
        links=source.links,
        feature=dashboard,
        manifest=source.manifest,
        live=wanted.live,
        why=wanted.why,
        asked=asked,
        rows=[dial(source, asked, dashboard, norm=wanted.median_norm)] if steers else [],
        writable=embed is None,
        previous=index - 1 if index else None,
        following=index + 1 if index + 1 < len(source.atlas) else None,
        embed=embed,
        test_text=wanted.query.get("text") or wanted.query.get("defaulttesttext", ""),
        score=dashboard.output or source.scores.get(index),
        keeping=wanted.kept,
    )


async def trial(request: Request) -> Response:
    """One feature on a text of the reader's."""
    source, index, asked = await source_of(request), index_of(request), await body_of(request, Trial)
    dashboard = source[index]
    reading = await ask(
        request, lambda job: source.live.read(job, asked.text, features=[index]), seconds=reading_time(asked.text)
    )
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
    source, index, asked = await source_of(request), index_of(request), await body_of(request, Label)
    added = await run_in_threadpool(source.atlas.explain, index, asked.text, author=asked.author)
    if wants_data(request):
        return data(request, added.to_dict(), status=201)
    return _explained(request, source, index)


async def forget(request: Request) -> Response:
    """Takes a label away."""
    source, index = await source_of(request), index_of(request)
    label = index_of(request, "label") if "label" in request.path_params else (await body_of(request, Forget)).id
    await run_in_threadpool(source.atlas.forget, index, label)
    if wants_data(request):
        return Response(status_code=204)
    return _explained(request, source, index)


def _explained(request: Request, source: Source, index: int) -> Response:
    if wants_part(request):
        return page(request, "explanations.html", links=source.links, feature=source[index], writable=True)
    return RedirectResponse(source.links.feature(index), 303)


def _kept(source: Source, score: OutputScore) -> OutputScore:
    """With the atlas; where nothing can be written there, as long as it is served."""
    try:
        source.atlas.keep_outputs([score])
        return source.atlas.outputs([score.feature])[score.feature]
    except GemscopeError:
        source.scores[score.feature] = score
        return score


async def output_score(request: Request) -> Response:
    """Whether steering with a feature does to the output what the tokens that it promotes suggest."""
    source, index = await source_of(request), index_of(request)
    dashboard = source[index]
    score, why = dashboard.output or source.scores.get(index), ""
    if dashboard.dead:
        why = "it fired nowhere, so its strength has no measure"
    elif not (dashboard.promoted or (dashboard.writes and dashboard.writes.agreed)):
        why = "no logits are known for it"
    elif score is None and pressed(request):
        measured = await ask(
            request,
            lambda job: source.live.output_score(job, source.atlas, dashboard),
            seconds=MEASURING,
            patient=True,
        )
        score = await run_in_threadpool(_kept, source, measured)
    if wants_data(request):
        return data(request, {"feature": index, "why": why, **({} if score is None else score.to_dict())})
    return page(
        request,
        "output_score.html" if wants_part(request) else "effect.html",
        links=source.links,
        manifest=source.manifest,
        feature=dashboard,
        score=score,
        why=why,
    )
