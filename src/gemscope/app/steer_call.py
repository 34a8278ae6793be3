"""Neuronpedia's steer call, on this server's atlases: a text continued as the model would, and steered."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gemscope.app.asking import ask, body_of, shelf_of
from gemscope.app.events import Events, as_data
from gemscope.app.requests import Steer, Steering
from gemscope.app.responses import data
from gemscope.app.shelf import Source
from gemscope.app.worker import Job
from gemscope.errors import InputError

SECONDS = 300.0
"""How long the texts may take to be written."""


async def steer(request: Request) -> Response:
    """A text continued twice, with and without features of any sources of one model; streamed if asked for.

    A strength is raw, as a number alone is everywhere here: times the multiplier, times the decoder row, it is added
    (ORTHOGONAL_DECOMP: it is the factor of what lies along that row).
    Special tokens, the first position and attention sinks are left alone.
    """
    asked = await body_of(request, Steer)
    sources = [shelf_of(request).get(one.model, one.layer) for one in asked.features]
    for source, one in zip(sources, asked.features, strict=True):
        if one.model != asked.model:
            raise InputError(f"modelId is {asked.model[:80]!r}, but feature {one.index} is of {one.model[:80]!r}")
        source[one.index]  # a feature that is not there is said to be missing before a model is asked
    beside = {"id": _id(asked), "shareUrl": _share(request, asked, sources), "limit": None}

    def work(job: Job[Any]) -> dict[str, Any]:
        from gemscope.app import steering

        pairs = [source.live.pair(job) for source in sources]
        model = pairs[0][0]
        if any(other is not model for other, _ in pairs):
            raise InputError("these sources are read by different models here: steer with features of one")
        return _answer(asked, steering.both(job, model, asked, [sae for _, sae in pairs])) | beside

    if not asked.stream:
        return data(request, await ask(request, work, seconds=SECONDS))
    empty = {"steeredLogProbs": None, "defaultLogProbs": None, **beside}
    return Events(
        request,
        work,
        seconds=SECONDS,
        news=lambda frame: as_data(
            {"STEERED": asked.prompt + frame.steered[0], "DEFAULT": asked.prompt + frame.default[0], **empty}
        ),
        end=as_data,
        named=False,
    )


def _answer(asked: Steer, both: Any) -> dict[str, Any]:
    (pair,) = both.steered.pairs
    return {
        "STEERED": asked.prompt + pair.steered.text,
        "DEFAULT": asked.prompt + pair.default.text,
        "steeredLogProbs": _logprobs(pair.steered.tokens, pair.steered.edited, both.steered_top),
        "defaultLogProbs": _logprobs(pair.default.tokens, pair.default.logprobs, both.default_top),
    }


def _logprobs(
    tokens: Sequence[str], logprobs: Sequence[float], top: Sequence[Sequence[tuple[str, float]]]
) -> list[dict[str, Any]]:
    """Each under the model that wrote it."""
    return [
        {
            "token": token,
            "logprob": logprob,
            "topLogprobs": [{"token": other, "logprob": theirs} for other, theirs in likeliest],
        }
        for token, logprob, likeliest in zip(tokens, logprobs, top, strict=True)
    ]


def _id(asked: Steer) -> str:
    """The same for the same request: nothing is kept here that it could be the number of."""
    return hashlib.sha256(msgspec.json.encode(asked)).hexdigest()[:24]


def _share(request: Request, asked: Steer, sources: Sequence[Source]) -> str | None:
    """The steer view with the same features: None where they are of several sources, or one is named twice."""
    (source, *others) = sources
    indices = tuple(one.index for one in asked.features)
    if any(other is not source for other in others) or len(set(indices)) < len(indices):
        return None
    sizes = [one.strength * asked.multiplier for one in asked.features]
    projects = asked.method == "ORTHOGONAL_DECOMP"
    shown = Steering(
        features=indices,
        strengths=() if projects else tuple(sizes),
        factors=tuple(sizes) if projects else (),
        how="project" if projects else "add",
        prompt=asked.prompt,
        temperature=asked.temperature,
        seed=asked.seed,
        tokens=asked.tokens,
    )
    return f"{str(request.base_url).rstrip('/')}{source.links.steer(**shown.query())}"
