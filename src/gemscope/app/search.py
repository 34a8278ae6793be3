"""Features by whatever a reader typed: a number, words of labels, a token that they fire on or promote, or a text on
which they fire.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gemscope.app.asking import ask, asked_of, pressed, reading_time, source_of
from gemscope.app.kept import names_of
from gemscope.app.lists import line
from gemscope.app.requests import Search, said
from gemscope.app.responses import data, moved, page, shared, wants_data, wants_part
from gemscope.app.shelf import Source
from gemscope.app.worker import Job
from gemscope.atlas.tokens import Promoter
from gemscope.errors import GemscopeError

_STRONG = 30
"""Features shown that fire on a text: those that say most about it."""
_LONG = 300
"""Characters beyond which what was typed can be nothing but a text."""
_NUMBER = re.compile(r"\s*#?([0-9]{1,12})\s*")


class Reading(NamedTuple):
    """One way to understand what was typed."""

    kind: str
    features: int | None
    """How many it finds; None where only the model can tell."""
    token: str | None = None
    """The token that it is taken for."""


async def search(request: Request) -> Response:
    """Features by number, by label, by a token that they fire on or promote, or by a text on which they fire."""
    source, asked = await source_of(request), await asked_of(request, Search)
    address = source.links.search(**said(asked))
    if (elsewhere := shared(request, address)) is not None:
        return elsewhere
    readings = await run_in_threadpool(_readings, source, asked) if asked.text.strip() else []
    kind = _understood(source, asked, readings)
    if kind == "feature" and not wants_data(request):
        url = source.links.feature(_number(asked.text))
        return Response(headers={"hx-redirect": url}) if wants_part(request) else RedirectResponse(url, 303)
    found: dict[str, Any] = {}
    if kind == "text":
        found = await _firing(request, source, asked.text)
    elif readings:
        found = await run_in_threadpool(_FOUND[kind], source, asked)
    values: dict[str, Any] = {
        "kind": kind,
        "asked": asked.kind,
        "text": asked.text,
        "readings": readings,
        "missing": _missing(source, asked),
        **_NOTHING,
        **found,
    }
    if wants_data(request):
        return data(request, _search_data(source, values))

    def made() -> Response:
        shown = [*values["summaries"], *(one.summary for name in ("hits", "promoters") for one in values[name])]
        return page(
            request,
            "search_results.html" if wants_part(request) else "search.html",
            links=source.links,
            headers=moved(request, address),
            manifest=source.manifest,
            live=source.live.on,
            why=source.live.why,
            outputs=source.atlas.outputs(one.summary.feature for one in values["promoters"]),
            glances=source.atlas.glances(one.feature for one in shown),
            names=names_of(request),
            offset=asked.offset,
            limit=asked.limit,
            **values,
        )

    return await run_in_threadpool(made)


_NOTHING: dict[str, Any] = {
    "note": "",
    "summaries": [],
    "total": 0,
    "tokens": [],
    "token": None,
    "hits": [],
    "promoters": [],
    "found": [],
    "firing": None,
    "strings": [],
    "counted": [],
}


# --- how it is understood ---------------------------------------------------------------------------------------------


def _readings(source: Source, asked: Search) -> list[Reading]:
    """All ways to understand it, and what each would find."""
    if len(asked.text) > _LONG:
        return [Reading("text", None)]
    numbered = [Reading("feature", 1)] if 0 <= _number(asked.text) < len(source.atlas) else []
    tokens = [Reading("token", features, token) for _, token, features in source.atlas.tokens_like(asked.text, 1)]
    alike = [one for one in source.atlas.tokens_like(asked.text, 1, promoted=True) if one[2]]
    promoted = [Reading("promoted", len(source.atlas.promoting(asked.text)), token) for _, token, _ in alike]
    labels = Reading("label", source.atlas.count(text=asked.text))
    return [*numbered, labels, *tokens, *promoted, Reading("text", None)]


def _understood(source: Source, asked: Search, readings: list[Reading]) -> str:
    """What was asked for; else the first that finds something, a text where a model is there to read it."""
    if asked.kind != "any":
        return asked.kind
    found = next((one.kind for one in readings if one.features), None)
    return found or ("text" if readings and source.live.on and _missing(source, asked) is None else "label")


def _number(text: str) -> int:
    """The number that a text is, or -1."""
    found = _NUMBER.fullmatch(text)
    return int(found[1]) if found else -1


def _missing(source: Source, asked: Search) -> int | None:
    """The number of a feature that there is not."""
    number = _number(asked.text) if asked.kind == "any" else -1
    return number if number >= len(source.atlas) else None


# --- what is found ----------------------------------------------------------------------------------------------------


def _feature(source: Source, asked: Search) -> dict[str, Any]:
    return {"summaries": [source.summary(_number(asked.text))], "total": 1}


def _by_label(source: Source, asked: Search) -> dict[str, Any]:
    return {
        "summaries": source.atlas.search(asked.text, limit=asked.limit, offset=asked.offset),
        "total": source.atlas.count(text=asked.text),
    }


def _by_token(source: Source, asked: Search) -> dict[str, Any]:
    tokens = source.atlas.tokens_like(asked.text)
    token = asked.token if asked.token is not None else next((id_ for id_, _, _ in tokens), None)
    hits = [] if token is None else source.atlas.by_token(token, limit=asked.limit)
    return {"tokens": tokens, "token": token, "hits": hits}


def _promoting(source: Source, asked: Search) -> dict[str, Any]:
    """By one token, or at first by all that read so."""
    if source.manifest.effect is None:
        why = source.manifest.no_effect or "it was made before there were any"
        return {"note": f"This atlas has no measured effect by which its features promote tokens: {why}."}
    return {
        "tokens": [one for one in source.atlas.tokens_like(asked.text, promoted=True) if one[2]],
        "token": asked.token,
        "promoters": source.atlas.promoting(asked.text if asked.token is None else asked.token, limit=asked.limit),
    }


_FOUND: dict[str, Callable[[Source, Search], dict[str, Any]]] = {
    "feature": _feature,
    "label": _by_label,
    "token": _by_token,
    "promoted": _promoting,
}
"""What the atlas alone can tell."""


async def _firing(request: Request, source: Source, text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    if not source.live.on:
        return {"note": source.live.why}
    if not pressed(request):
        return {"note": "Press Search to have the model read this text: an address alone does not set it to work."}

    def work(job: Job[Any]) -> dict[str, Any]:
        reading = source.live.read(job, text)
        from gemscope.atlas.meaning import Meanings  # brings torch, which a server starts without

        strong = reading.foremost(_STRONG, Meanings(source.atlas, source.live.pair(job)[1]))
        found = [{"summary": source.summary(one.feature), "values": one.values} for one in strong]
        return {"found": found, "firing": reading.firing, "strings": reading.tokens, "counted": reading.counted}

    try:
        return await ask(request, work, seconds=reading_time(text))
    except GemscopeError as error:
        return {"note": " ".join(str(error).split())}


def _search_data(source: Source, values: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": values["kind"],
        "text": values["text"],
        "note": values["note"] or ("" if values["missing"] is None else missing(source, values["missing"])),
        "readings": [one._asdict() for one in values["readings"]],
        "total": values["total"],
        "features": [line(source, one) for one in values["summaries"]],
        "tokens": [{"id": id_, "token": token, "features": count} for id_, token, count in values["tokens"]],
        "token": values["token"],
        "hits": [
            {**line(source, one.summary), "strength": one.strength, "examples": one.examples} for one in values["hits"]
        ],
        "promoting": _promoters(source, values["promoters"]),
        "strings": values["strings"],
        "counted": values["counted"],
        "fire": values["firing"],
        "firing": [{**line(source, one["summary"]), "values": one["values"]} for one in values["found"]],
    }


def _promoters(source: Source, promoters: list[Promoter]) -> list[dict[str, Any]]:
    known = source.atlas.outputs(one.summary.feature for one in promoters)
    return [
        {
            **line(source, one.summary),
            "value": one.value,
            "stands_out": one.stands_out,
            "place": one.place,
            "output": known[one.summary.feature].to_dict() if one.summary.feature in known else None,
        }
        for one in promoters
    ]


def missing(source: Source, number: int) -> str:
    """In words, that there is no such feature."""
    return f"no feature {number}: this SAE has features 0 to {len(source.atlas) - 1}"
