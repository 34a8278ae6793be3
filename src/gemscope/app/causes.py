"""Which features, at which tokens of a text, cause the logit of what comes next."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from gemscope.app.asking import MEASURING, ask, asked_of, pressed, reading_time, source_of
from gemscope.app.requests import Cause, said
from gemscope.app.responses import SHORT, data, page, shared, wants_data, wants_part
from gemscope.app.shelf import Source
from gemscope.app.worker import Job
from gemscope.errors import GemscopeError


async def attribute(request: Request) -> Response:
    """Which features, at which tokens of a text, cause the logit of what comes next."""
    source, asked = await source_of(request), await asked_of(request, Cause)
    address = source.links.attribute(**said(asked))
    if (elsewhere := shared(request, address)) is not None:
        return elsewhere
    found, error = None, None if source.live.on else source.live.why
    labels: dict[int, str] = {}
    hints: dict[int, str] = {}
    here = not asked.text or error is not None or pressed(request)
    if asked.text and error is None and here:
        try:
            found, labels, hints = await ask(
                request, lambda job: _causes(source, asked, job), seconds=max(MEASURING, reading_time(asked.text) or 0)
            )
        except GemscopeError as raised:
            error = " ".join(str(raised).split())
    status = 400 if error and source.live.on else 200
    if wants_data(request):
        beside = {"labels": {str(index): label for index, label in labels.items()}}
        return data(
            request,
            {**(found.to_dict() if found else {}), **beside, **({"error": error} if error else {})},
            status=status,
        )
    return await run_in_threadpool(
        page,
        request,
        "attribution.html" if wants_part(request) else "attribute.html",
        links=source.links,
        status=status,
        manifest=source.manifest,
        live=source.live.on,
        asked=asked,
        address=address if len(address) <= SHORT else "",
        found=found,
        labels=labels,
        hints=hints,
        error=error,
        note="" if here else "Press Explain what comes next: a link shows what to explain.",
    )


def _causes(source: Source, asked: Cause, job: Job[Any]) -> tuple[Any, dict[int, str], dict[int, str]]:
    found = source.live.attribute(job, source.atlas, asked)
    shown = {row.feature for row in found.rows}
    labels = source.atlas.meanings(shown)
    return found, labels, source.atlas.strongest_on(shown - labels.keys())
