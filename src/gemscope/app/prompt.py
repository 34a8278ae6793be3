"""A text, and on each of its tokens the strongest features."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from gemscope.app.asking import ask, asked_of, pressed, reading_time, source_of
from gemscope.app.home import TO_TRY
from gemscope.app.kept import names_of
from gemscope.app.requests import Prompt, said
from gemscope.app.responses import data, moved, page, shared, wants_data, wants_part
from gemscope.app.shelf import Source
from gemscope.app.worker import Job
from gemscope.errors import GemscopeError

SPAN = 400
"""Tokens that a page shows at a time."""


async def prompt(request: Request) -> Response:
    """A text, and on each of its tokens the strongest features."""
    source, asked = await source_of(request), await asked_of(request, Prompt)
    address = source.links.prompt(**said(asked))
    if (elsewhere := shared(request, address)) is not None:
        return elsewhere
    looked, pinned = None, None
    labels: dict[int, str] = {}
    hints: dict[int, str] = {}
    error = None if source.live.on else f"No text can be read here: {source.live.why}"
    part = slice(None) if wants_data(request) else slice(asked.start, asked.start + SPAN)
    here = not asked.text or error is not None or pressed(request)
    if asked.text and error is None and here:
        try:
            looked, pinned, labels, hints = await ask(
                request, lambda job: _look(source, asked, part, job), seconds=reading_time(asked.text)
            )
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
        headers=moved(request, address),
        start=asked.start,
        span=SPAN,
        manifest=source.manifest,
        names=names_of(request),
        live=source.live.on,
        chats=source.live.chats,
        text=asked.text,
        chat=asked.chat,
        look=looked,
        labels=labels,
        hints=hints,
        pinned=asked.pin,
        pinned_values=pinned and _counted(looked, pinned),
        tries=[(source.links.prompt(text=text), text) for text in TO_TRY],
        error=error,
        note="" if here else "Press Look to have the model read this text: an address alone does not set it to work.",
    )


def _counted(looked: Any, values: list[float]) -> list[float]:
    """0 where a token does not count: a first position's activation would make all others look faint."""
    return [value if token.counted else 0.0 for value, token in zip(values, looked.tokens, strict=True)]


def _look(
    source: Source, asked: Prompt, part: slice, job: Job[Any]
) -> tuple[Any, list[float] | None, dict[int, str], dict[int, str]]:
    """What is seen, the pinned feature's activations, and the labels of all that is shown; where one has
    none, the token that it fires on most."""
    looked, pinned = source.live.look(job, asked.text, k=asked.k, chat=asked.chat, atlas=source.atlas), None
    shown = {one.feature for token in looked.tokens[part] for one in token.features}
    shown.update(one.feature for one in looked.foremost)
    if asked.pin is not None:
        pinned = source.live.read(job, asked.text, features=[asked.pin], chat=asked.chat).of(asked.pin)
        shown.add(asked.pin)
    labels = source.atlas.meanings(shown)
    return looked, pinned, labels, source.atlas.strongest_on(shown - labels.keys())
