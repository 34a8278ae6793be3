"""Two features, two texts or two SAEs side by side: a page for each pair, by its address."""

from __future__ import annotations

import re
from contextlib import suppress
from itertools import pairwise
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from gemscope.app.asking import MEASURING, ask, asked_of, pressed, query_of, shelf_of, source_of
from gemscope.app.live import Off
from gemscope.app.requests import Compare, Texts
from gemscope.app.responses import data, moved, page, shared, wants_data, wants_part
from gemscope.app.shelf import Source, short_names
from gemscope.app.worker import Job
from gemscope.errors import GemscopeError, InputError
from gemscope.pages.labels import SHORT, clipped_label
from gemscope.pages.links import ModelLinks, ServerLinks

_FEW = 6
"""Pairs of SAEs that are offered."""
_KEPT = 32
"""Pairs of SAEs whose matches are kept."""
_TO_TRY = (
    ("She put the money in the bank.", "They sat down on the bank of the river."),
    ("The film was wonderful.", "The film was terrible."),
    ("x = [n * n for n in range(10)]", "The squares of the numbers from nought to nine."),
)
"""Pairs of texts: one word in two senses, two feelings about one thing, and one thing in code and in words."""
_ADDRESS = re.compile(r"([^/]{1,200})/([^/]{1,200})(?:/([0-9]{1,9}))?")


async def pair(request: Request) -> Response:
    """Two features, or two SAEs, as `a` and `b` say."""
    asked = query_of(request, Compare)
    if not (asked.a and asked.b):
        if wants_data(request):
            raise InputError("give two things: a=MODEL/SAE/FEATURE and b=..., or a=MODEL/SAE and b=...")
        return await run_in_threadpool(_empty, request, asked)
    (one, first), (other, second) = (_named(request, name) for name in (asked.a, asked.b))
    if first is not None and second is not None:
        return await run_in_threadpool(_features, request, (one, first), (other, second))
    if first is None and second is None:
        return await _atlases(request, one, other, asked)
    raise InputError("one of the two is a feature, the other is none: give MODEL/SAE/FEATURE twice, or MODEL/SAE twice")


def _empty(request: Request, asked: Compare) -> Response:
    """Which two: with a few of what there is to begin with."""
    served = list(shelf_of(request))
    first, features = served[0], list[tuple[str, str]]()
    with suppress(GemscopeError):  # the others are there all the same
        for one in first.striking:
            page_of = first[one]
            near = next((two for two in page_of.neighbours if two.label), None)
            if page_of.label and near is not None:
                labels = [clipped_label(label, SHORT) for label in (page_of.label, near.label or "")]
                features.append((first.links.compare(one, near.feature), " ↔ ".join(labels)))
    names = short_names(served)
    saes = [
        (ModelLinks(one.manifest.model_id).compare(a="/".join(one.address), b="/".join(two.address)), one, two)
        for one, two in pairwise(served)
        if one.manifest.model_id == two.manifest.model_id
    ]
    return page(
        request,
        "compare.html",
        links=ServerLinks(),
        a=asked.a,
        b=asked.b,
        sources=served,
        reading=[one for one in served if one.live.on],
        features=features,
        saes=[(url, f"{names[one.address]} ↔ {names[two.address]}") for url, one, two in saes[:_FEW]],
    )


def _named(request: Request, name: str) -> tuple[Source, int | None]:
    found = _ADDRESS.fullmatch(name.strip().strip("/"))
    if found is None:
        raise InputError(f"{name[:80]!r}: expected MODEL/SAE/FEATURE, or MODEL/SAE")
    return shelf_of(request).get(found[1], found[2]), None if found[3] is None else int(found[3])


def _features(request: Request, one: tuple[Source, int], other: tuple[Source, int]) -> Response:
    from gemscope.reports.feature_pair import compare_features

    (first, a), (second, b) = one, other
    weights = first.live.sae, second.live.sae
    found = compare_features(
        first.atlas,
        a,
        b,
        beside=None if second is first else second.atlas,
        saes=weights if None not in weights and first.manifest.model == second.manifest.model else None,
    )
    if wants_data(request):
        return data(request, found.to_dict())
    return page(request, "compare_features.html", links=first.links, found=found, sides=(first, second))


async def _atlases(request: Request, one: Source, other: Source, asked: Compare) -> Response:
    known: dict[Any, Any] = request.app.state.compared
    key, note = (one.address, other.address, asked.k), ""
    if asked.match and key not in known:
        if pressed(request):
            while len(known) >= _KEPT:
                del known[next(iter(known))]
            known[key] = await ask(
                request, lambda job: _matched(job, one, other, asked.k), seconds=MEASURING, patient=True
            )
        else:
            note = "Press Match their features: a link shows two SAEs, and sets nothing to work."
    found: Any = known[key] if key in known else await run_in_threadpool(_figures, one, other)
    if wants_data(request):
        return data(request, found.to_dict())
    return await run_in_threadpool(
        page, request, "compare_atlases.html", links=one.links, found=found, sides=(one, other), asked=asked, note=note
    )


def _figures(one: Source, other: Source) -> Any:
    from gemscope.reports.atlas_pair import AtlasPair, figures

    pair = (figures(one.atlas), figures(other.atlas))
    return AtlasPair(one=one.manifest, other=other.manifest, figures=pair, matching=None, why="")


def _matched(job: Job[Any], one: Source, other: Source, k: int) -> Any:
    from gemscope.reports.atlas_pair import compare_atlases

    job.check()
    saes = None
    if one.live.on and other.live.on:
        try:
            saes = one.live.pair(job)[1], other.live.pair(job)[1]
        except Off:
            saes = None
    return compare_atlases(one.atlas, other.atlas, saes=saes, k=k)


async def texts(request: Request) -> Response:
    """Two texts through one SAE."""
    source, asked = await source_of(request), await asked_of(request, Texts)
    address = source.links.texts(text=asked.text, other=asked.other, chat=asked.chat or None)
    if (elsewhere := shared(request, address)) is not None:
        return elsewhere
    found, error, note = None, None if source.live.on else source.live.why, ""
    if asked.text and asked.other and error is None:
        if pressed(request):
            try:
                found = await ask(request, lambda job: source.live.compare(job, source.atlas, asked))
            except GemscopeError as raised:
                error = " ".join(str(raised).split())
        else:
            note = "Press Compare: a link shows two texts, and does not have them read."
    status = 400 if error and source.live.on else 200
    if wants_data(request):
        return data(
            request,
            {**({} if found is None else found.to_dict()), **({"error": error} if error else {})},
            status=status,
        )
    return await run_in_threadpool(
        page,
        request,
        "compare_texts_result.html" if wants_part(request) else "compare_texts.html",
        links=source.links,
        headers=moved(request, address),
        status=status,
        manifest=source.manifest,
        live=source.live.on,
        chats=source.live.chats,
        asked=asked,
        found=found,
        address=address,
        tries=[(source.links.texts(text=one, other=two), f"{one} ↔ {two}") for one, two in _TO_TRY],
        error=error,
        note=note,
    )
