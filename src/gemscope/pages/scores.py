"""Scores as HTML: one file with the figures of an SAE and their plots, or with those of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from markupsafe import Markup

from gemscope.features.histogram import Histogram
from gemscope.pages.charts.tradeoff import Dot, tradeoff
from gemscope.pages.links import NoLinks
from gemscope.pages.render import render
from gemscope.pages.standalone import document


@runtime_checkable
class Score(Protocol):
    """What is read of a score here; the template reads the rest."""

    @property
    def sae(self) -> str: ...
    @property
    def l0(self) -> float: ...
    @property
    def densities(self) -> Histogram: ...


@runtime_checkable
class Front(Protocol):
    """The SAEs that no other beats in L0 and one more figure."""

    @property
    def figure(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def places(self) -> Sequence[int]: ...


def score_document(
    score: Score, rows: Sequence[object], beside: Sequence[object], conditions: str, unlike_conditions: str
) -> str:
    """One score; `rows` are its losses, `beside` its figures and those on unlike text. The conditions say what was
    counted.
    """
    told = {"conditions": conditions, "unlike_conditions": unlike_conditions}
    body = render("score.html", links=NoLinks(), score=score, rows=rows, beside=beside, **told)
    return document(body, title=f"Score of {score.sae}")


def comparison_document(
    scores: Sequence[Any],
    names: Sequence[str],
    fronts: Sequence[Front],
    conditions: str,
    replaced: Sequence[tuple[Any, Sequence[object]]] = (),
) -> str:
    """Several scores: a table, and a plot for each front. `names` tell them apart in few words; `replaced` are stacks
    that stand in the model at once, each with its losses.
    """
    plots = [(front, _plot(scores, names, front)) for front in fronts]
    body = render(
        "scores.html",
        links=NoLinks(),
        scores=scores,
        names=names,
        fronts=fronts,
        plots=plots,
        conditions=conditions,
        replaced=replaced,
    )
    return document(body, title=f"{len(scores)} SAEs compared")


def _plot(scores: Sequence[Any], names: Sequence[str], front: Front) -> Markup:
    dots = [
        Dot(score.l0, value, name, str(index + 1), index in front.places)
        for index, (score, name) in enumerate(zip(scores, names, strict=True))
        if (value := getattr(score, front.figure)) is not None
    ]
    return tradeoff(dots, title=f"L0 against {front.name}", across="L0", up=front.name)
