"""The steer view: what to steer with, the texts that come of it, and their stream. Texts are written for who presses a
button here, or for a program (`asking.pressed`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from gemscope.app.asking import MEASURING, ask, body_of, pressed, query_of, source_of
from gemscope.app.events import Events
from gemscope.app.kept import lists_of
from gemscope.app.lists import line
from gemscope.app.presets import presets
from gemscope.app.requests import EDITED, Steering
from gemscope.app.responses import data, page, wants_data, wants_part
from gemscope.app.shelf import Source, summarised
from gemscope.app.worker import Job
from gemscope.atlas.dashboard import Dashboard, Summary
from gemscope.edits import defaults
from gemscope.edits.strength import Amount, Strength
from gemscope.edits.ways import require_added
from gemscope.errors import GemscopeError, InputError, NotFound
from gemscope.pages.render import render

WRITING = 300.0
"""Seconds that texts may take to be written: more than a text may take to be read."""
_FOUND = 8
"""Features that are shown to choose from."""


@dataclass(frozen=True)
class Dial:
    """A feature that is steered with: how strongly, and the address of the page without it."""

    summary: Summary
    amount: Amount
    factor: float
    norm: float | None
    """Its greatest activation as a share of the median norm, where that is known already."""
    without: str

    @property
    def share(self) -> float:
        """Where its slider stands: the amount as a share of the median norm, 0 where that is not known."""
        known = self.strength and self.strength.of_norm
        return known or (self.amount.value if self.amount.unit == "norm" else 0.0)

    @property
    def strength(self) -> Strength | None:
        """The amount in all units that are known; None where its own has no measure yet."""
        value, top, norm = self.amount.value, self.summary.max or None, self.norm
        match self.amount.unit:
            case "raw":
                raw: float | None = value
            case "max":
                raw = top and value * top
            case "norm":
                raw = top and norm and value / norm * top
        if raw is None:
            return None
        return Strength(raw, top and raw / top, top and norm and raw / top * norm)


def dials(source: Source, asked: Steering) -> list[Dial]:
    """One for each feature. Raises NotFound."""
    norm = source.median_norm
    return [dial(source, asked, source[feature], by, factor, norm=norm) for feature, by, factor in asked.rows]


def dial(
    source: Source,
    asked: Steering,
    one: Dashboard,
    amount: Amount = defaults.STRENGTH,
    factor: float = 0.0,
    *,
    norm: float | None,
) -> Dial:
    """The one of a feature. Where nobody knows the median `norm` yet, shares of it are left out: pages do not wait."""
    share = one.max * one.decoder_norm / norm if norm and one.decoder_norm else None
    share = share if share is not None and math.isfinite(share) else None
    rest = asked.query([row for row in asked.rows if row[0] != one.index])
    return Dial(summarised(one), amount, factor, share, source.links.steer(**rest))


def first(index: int) -> Steering:
    """What a feature's page begins with."""
    return Steering(features=(index,), prompt=_BEGUN)


_BEGUN = "I think that"


async def steer(request: Request) -> Response:
    """The steer view, and the texts where the address asks for them."""
    source = await source_of(request)
    posted = request.method == "POST"
    asked = await body_of(request, Steering) if posted else query_of(request, Steering)
    wanted = (asked.run or posted) and not asked.add
    asked, suggestions, said = await run_in_threadpool(_taken_in, source, asked)
    runs, error, note = None, None, ""
    if wanted and not pressed(request):
        note = "Press Generate: a link shows what to write, and does not write it."
    elif wanted:
        try:
            _check(source, asked)
            runs = await ask(request, lambda job: source.live.steer(job, source.atlas, asked), seconds=WRITING)
        except GemscopeError as raised:
            error = " ".join(str(raised).split())
    rows = await run_in_threadpool(dials, source, asked)  # whoever steers first has the norm measured
    status = 400 if error else 200
    if wants_data(request):
        found = _data(source, asked, rows)
        beside = {
            "runs": None if runs is None else _runs(runs),
            "suggestions": [line(source, one) for one in suggestions],
        }
        return data(request, found | beside | ({"error": error} if error else {}), status=status)
    return await run_in_threadpool(
        page,
        request,
        "steer_rows.html" if wants_part(request) else "steer.html",
        links=source.links,
        status=status,
        manifest=source.manifest,
        live=source.live.on,
        chats=source.live.chats,
        why=source.live.why,
        several=True,
        asked=asked,
        rows=rows,
        suggestions=suggestions,
        suggestions_note=said,
        presets=[] if rows else await run_in_threadpool(presets, source, asked, lists_of(request)),
        runs=runs,
        error=error,
        note=note,
    )


def _taken_in(source: Source, asked: Steering) -> tuple[Steering, list[Summary], str]:
    """With the feature that is to be added; or those that it could be; or why there is none."""
    wanted = asked.add.strip()
    if not wanted:
        return asked, [], ""
    if len(asked.features) >= EDITED:
        return asked, [], f"At most {EDITED} features can be steered with at once."
    if wanted.isascii() and wanted.isdecimal() and len(wanted) <= 12:
        feature = int(wanted)
        if feature >= len(source.atlas):
            return asked, [], f"No feature {feature}: there are 0 to {len(source.atlas) - 1:,}."
        if feature in asked.features:
            return replace(asked, add=""), [], f"Feature {feature} is there already."
        many = len(asked.features)
        strengths, factors = asked.strengths[:many], asked.factors[:many]
        return replace(asked, add="", features=(*asked.features, feature), strengths=strengths, factors=factors), [], ""
    found = source.atlas.search(wanted, limit=_FOUND)
    return asked, found, "" if found else "No label says that. A number always finds its feature."


def _check(source: Source, asked: Steering) -> None:
    """Raises InputError for what nothing can be written with, and NotFound, before a model is asked."""
    if not asked.features:
        raise InputError("feature is missing: name at least one to steer with")
    if not asked.prompt.strip():
        raise InputError("prompt is empty: the model needs a text to go on with")
    if asked.noise:
        require_added(asked.how)
    for feature in asked.features:
        if not 0 <= feature < len(source.atlas):
            raise NotFound(f"no feature {feature}: there are 0 to {len(source.atlas) - 1}")


def _data(source: Source, asked: Steering, rows: Sequence[Dial]) -> dict[str, Any]:
    return {
        **asked.state,
        "url": source.links.steer(**asked.query()),
        "features": [
            {
                **line(source, one.summary),
                "strength": str(one.amount),
                "factor": one.factor,
                **{unit: getattr(one.strength, unit, None) for unit in ("raw", "of_max", "of_norm")},
            }
            for one in rows
        ],
    }


def _runs(runs: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"name": run.name, **run.steered.to_dict()} for run in runs]


async def stream(request: Request) -> Response:
    """The texts as they come, as server-sent events: `wait`, `frame`, and at last `done` or `failed`."""
    source = await source_of(request)
    asked = await body_of(request, Steering) if request.method == "POST" else query_of(request, Steering)
    _check(source, asked)

    def work(job: Job[Any]) -> dict[str, Any]:
        runs = source.live.steer(job, source.atlas, asked)
        html = render("steer_result.html", links=source.links, runs=runs, asked=asked)
        shares = {str(one.summary.feature): one.norm for one in dials(source, asked)}
        return {"runs": _runs(runs), "url": source.links.steer(**asked.query()), "html": html, "shares": shares}

    return Events(request, work, seconds=WRITING, news=_frame, end=lambda found: ("done", found))


def _frame(news: Any) -> tuple[str, dict[str, Any]]:
    frame = news.frame
    return "frame", {"run": news.run, "default": frame.default, "steered": frame.steered, "n": frame.n}


async def units(request: Request) -> Response:
    """What strengths are measured against: each feature's greatest activation, and its share of the median norm."""
    source, asked = await source_of(request), query_of(request, Steering)
    rows = await run_in_threadpool(dials, source, asked)

    def work(job: Job[Any]) -> dict[str, Any]:
        found = source.live.units(job, source.atlas)
        living = {one.summary.feature for one in rows if one.summary.max > 0}
        return {
            "median_norm": found.median_norm,
            "source": found.source,
            "tokens": found.tokens,
            "features": {
                str(feature): {"max": found.maximum(feature), "of_norm": found.max(feature).of_norm}
                for feature in sorted(living)
            },
        }

    return data(request, await ask(request, work, seconds=MEASURING, patient=True))
