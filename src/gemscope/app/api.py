"""Neuronpedia's calls, on this server's atlases: the same addresses, bodies and field names, where we have the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gemscope.app import openapi, steer_call
from gemscope.app.asking import Handler, ask, body_of, index_of, shelf_of, source_of
from gemscope.app.openapi import Call
from gemscope.app.requests import ActivationNew, ActivationSource, ExplanationSearch, SearchAll, Steer, TopByToken
from gemscope.app.responses import data
from gemscope.app.shelf import Source
from gemscope.app.worker import Job
from gemscope.errors import InputError

_PAGE = 20
"""Labels that a search gives at a time."""
CELLS = 1_000_000
"""Activations in one answer: on odd text thousands of features fire on every token."""


async def feature(request: Request) -> Response:
    """Everything that is known of a feature."""
    source = await source_of(request)
    return data(request, shelf_of(request).resolved(source[index_of(request)]).to_dict())


async def activation_new(request: Request) -> Response:
    """One feature's activations on each token of a text, or of several."""
    asked = await body_of(request, ActivationNew)
    place = asked.feature
    name = place.source or place.layer
    if name is None:
        raise InputError("source is missing")
    source = shelf_of(request).get(place.model, name)
    source[place.index]  # a feature that is not there is said to be missing before a model is asked

    def work(job: Job[Any]) -> list[dict[str, Any]]:
        readings = (source.live.read(job, text, features=[place.index]) for text in asked.texts)
        return [activation(reading, place.index, every_token=not asked.ignore_bos) for reading in readings]

    found = await ask(request, work)
    return data(request, found[0] if len(found) == 1 else found)


async def activation_source(request: Request) -> Response:
    """All features of a source that fire on a text, or on each of several: index → [[position, activation], ...]."""
    asked = await body_of(request, ActivationSource)
    source = shelf_of(request).get(asked.model, asked.source)

    def work(job: Job[Any]) -> list[dict[str, Any]]:
        answers, left = [], CELLS
        for text in asked.texts:
            reading = source.live.read(job, text)
            left -= len(reading.found.values)
            if left < 0:
                raise InputError(f"more than {CELLS:,} activations: send less text, or ask for single features")
            answers.append(_active(reading, every_token=not asked.ignore_bos))
            job.check()
        return answers

    return data(request, {"results": await ask(request, work)})


def _active(reading: Any, *, every_token: bool) -> dict[str, Any]:
    active: dict[str, list[list[float]]] = defaultdict(list)
    for index, position, value in reading.cells(every_token=every_token):
        active[str(index)].append([position, value])
    return {"tokens": reading.tokens, "counted": reading.counted, "activeFeatures": active}


async def search_all(request: Request) -> Response:
    """The features that fire most strongly on a text, of all sources that are named, or of all of the model."""
    asked = await body_of(request, SearchAll)
    sources = [source for source in shelf_of(request).of(asked.model) if _is_asked(source, asked)]
    if not sources:
        raise InputError(f"none of {', '.join(asked.sources) or asked.source_set} is served here")

    def work(job: Job[Any]) -> dict[str, Any]:
        readings = [source.live.read(job, asked.text) for source in sources]
        found = [
            (one.value, _strong(source, one))
            for source, reading in zip(sources, readings, strict=True)
            for one in reading.strongest(
                asked.limit,
                every_token=not asked.ignore_bos,
                among=asked.positions,
                without=source.denser_than(asked.density),
            )
        ]
        found.sort(key=lambda pair: -pair[0])
        return {"tokens": readings[0].tokens, "result": [result for _, result in found[: asked.limit]]}

    return data(request, {**await ask(request, work), "sortIndexes": asked.positions})


def _is_asked(source: Source, asked: SearchAll) -> bool:
    name = source.manifest.source_id
    if asked.sources:
        return name in asked.sources
    # {layer}-{set}
    return asked.source_set in ("", name, name.partition("-")[2])


def _strong(source: Source, one: Any) -> dict[str, Any]:
    return {
        "modelId": source.manifest.model_id,
        "layer": source.manifest.source_id,
        "index": str(one.feature),
        "values": one.values,
        "maxValue": one.value,
        "maxValueIndex": one.position,
        "neuron": _neurons(source, [one.feature])[one.feature],
    }


async def top_by_token(request: Request) -> Response:
    """The strongest features of each token of a text."""
    asked = await body_of(request, TopByToken)
    source = shelf_of(request).get(asked.model, asked.source)

    def work(job: Job[Any]) -> list[dict[str, Any]]:
        reading = source.live.read(job, asked.text)
        dense = source.denser_than(asked.density)
        rows = []
        for position, counted in enumerate(reading.counted):
            strong = reading.at(position) if counted or not asked.ignore_bos else []
            rows.append([pair for pair in strong if dense is None or not dense[pair[0]]][: asked.limit])
        neurons = _neurons(source, {index for row in rows for index, _ in row})
        return [
            {
                "position": position,
                "token": token,
                "isSpecial": not counted,
                "topFeatures": [
                    {"activationValue": value, "featureIndex": index, "feature": neurons[index]} for index, value in row
                ],
            }
            for position, (token, counted, row) in enumerate(zip(reading.tokens, reading.counted, rows, strict=True))
        ]

    return data(request, {"source": asked.source, "results": await ask(request, work)})


async def explanation_search(request: Request) -> Response:
    """Features by what their labels say, the best match first (BM25, not an embedding)."""
    asked = await body_of(request, ExplanationSearch)
    sources = [
        source
        for source in shelf_of(request).of(asked.model)
        if not asked.sources or source.manifest.source_id in asked.sources
    ]
    found: list[dict[str, Any]] = []
    needed = asked.offset + _PAGE + 1
    for source in sources:
        for summary in await run_in_threadpool(source.atlas.search, asked.query, limit=needed):
            found.append(
                {
                    "modelId": source.manifest.model_id,
                    "layer": source.manifest.source_id,
                    "index": str(summary.feature),
                    "description": summary.label,
                    "neuron": _neuron(source, summary.feature, summary.density, summary.max, summary.label),
                }
            )
    results = found[asked.offset : asked.offset + _PAGE]
    following = asked.offset + len(results)
    return data(
        request,
        {
            "results": results,
            "resultsCount": len(results),
            "hasMore": following < len(found),
            "nextOffset": following,
        },
    )


async def describe(request: Request) -> Response:
    """This description."""
    return data(request, openapi.describe(CALLS))


# --- values as Neuronpedia writes them --------------------------------------------------------------------------------


def activation(reading: Any, index: int, *, every_token: bool) -> dict[str, Any]:
    """One feature on one text."""
    values = reading.of(index, every_token=every_token)
    best = max(range(len(values)), key=values.__getitem__)
    return {
        "tokens": reading.tokens,
        "values": values,
        "maxValue": values[best],
        "minValue": min(values),
        "maxValueTokenIndex": best,
        "index": str(index),
    }


def _neurons(source: Source, features: Collection[int]) -> dict[int, dict[str, Any]]:
    labels = source.atlas.labels(features)
    densities, maxima = source.figures
    return {
        index: _neuron(source, index, float(densities[index]), float(maxima[index]), labels.get(index))
        for index in features
    }


def _neuron(source: Source, index: int, density: float, top: float, label: str | None) -> dict[str, Any]:
    return {
        "modelId": source.manifest.model_id,
        "layer": source.manifest.source_id,
        "index": str(index),
        "maxActApprox": top,
        "frac_nonzero": density,
        "explanations": [] if label is None else [{"description": label}],
    }


# --- where they are ---------------------------------------------------------------------------------------------------

CALLS: list[Call[Handler]] = [
    Call("GET", "/api/feature/{model}/{source}/{index}", feature),
    Call("POST", "/api/activation/new", activation_new, ActivationNew),
    Call("POST", "/api/activation/source", activation_source, ActivationSource),
    Call("POST", "/api/search-all", search_all, SearchAll),
    Call("POST", "/api/search-topk-by-token", top_by_token, TopByToken),
    Call("POST", "/api/explanation/search", explanation_search, ExplanationSearch),
    Call("POST", "/api/steer", steer_call.steer, Steer),
    Call("GET", "/api/openapi.json", describe),
]

ROUTES: list[Route] = [Route(call.path, call.handler, methods=[call.method]) for call in CALLS]
