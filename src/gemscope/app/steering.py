"""What a reader asks to steer with, as edits of the library's, and the texts that come of it, as they come."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gemscope.activations.editing import Edit
from gemscope.activations.model import LanguageModel
from gemscope.app.requests import Steer as Asked
from gemscope.app.requests import SteerFeature, Steering
from gemscope.app.worker import Job
from gemscope.atlas.reader import Atlas
from gemscope.edits.controls import Act
from gemscope.edits.steer import Project, Steer
from gemscope.edits.units import Units
from gemscope.edits.ways import WAYS
from gemscope.features.sae import SAE
from gemscope.reports.steer import Frame, Steered
from gemscope.reports.steer import stream as writing


@dataclass(frozen=True)
class Partial:
    """The texts so far of one run."""

    run: str
    frame: Frame


@dataclass(frozen=True)
class Run:
    """What came of one set of edits: `steered`, or one of the controls, `random` and `noise`."""

    name: str
    steered: Steered


@dataclass(frozen=True)
class Variant:
    """A set of edits to write with."""

    name: str
    control: str | None
    """What stands in the features' place, in words."""
    edits: list[Edit]


def variants(asked: Steering, sae: SAE, units: Units) -> Iterator[Variant]:
    """The edits asked for, and those of the controls. Raises InputError for a feature that is not there, or that never
    fired and has no unit.
    """
    measured, at = WAYS[asked.how].takes == "a strength", asked.at
    by = {feature: strength if measured else factor for feature, strength, factor in asked.rows}
    act = Act(how=asked.how, sae=sae, units=units, at=at, seed=asked.seed)
    yield Variant("steered", None, act.edits(by))
    for name, control in (("random", asked.random and act.random(list(by))), ("noise", asked.noise and act.noise())):
        if control:
            yield Variant(name, control.name, control.edits(by))


def stream(
    job: Job[Any], model: LanguageModel, sae: SAE, units: Units, asked: Steering, *, atlas: Atlas
) -> tuple[Run, ...]:
    """All variants, one after another, features named by the atlas; the job tells a `Partial` with each token.

    Raises what `variants` and `gs.steer` raise, and what `job.check` does.
    """
    return tuple(_run(job, model, asked, one, atlas) for one in list(variants(asked, sae, units)))


def _run(job: Job[Any], model: LanguageModel, asked: Steering, one: Variant, atlas: Atlas) -> Run:
    alone, steered = asked.texts
    news = writing(
        model,
        steered,
        one.edits,
        default=alone if asked.said else None,
        n=asked.n,
        max_new_tokens=asked.tokens,
        temperature=asked.temperature,
        seed=asked.seed,
        control=one.control,
        atlas=atlas,
        check=job.check,
    )
    return Run(one.name, _heard(news, lambda frame: job.tell(Partial(one.name, frame))))


def _heard(news: Iterator[Frame | Steered], tell: Callable[[Frame], None]) -> Steered:
    """The last of what is written; the rest is told. However it ends, the model is as it was."""
    found: Steered | None = None
    try:
        for one in news:
            if isinstance(one, Steered):
                found = one
            else:
                tell(one)
    finally:
        if isinstance(news, Generator):
            news.close()
    assert found is not None
    return found


# --- as Neuronpedia asks for it ---------------------------------------------------------------------------------------

_TOP = 10
"""Likeliest tokens beside each that was written."""


@dataclass(frozen=True)
class Both:
    """A text continued twice, and at each step of either the likeliest tokens with their log-probabilities."""

    steered: Steered
    steered_top: list[list[tuple[str, float]]]
    default_top: list[list[tuple[str, float]]]


def both(job: Job[Any], model: LanguageModel, asked: Asked, saes: Sequence[SAE]) -> Both:
    """`saes` are those of `asked.features`, in order; the job tells a `Frame` with each token."""
    edits = [_as_asked(asked, one, sae) for one, sae in zip(asked.features, saes, strict=True)]
    news = writing(
        model,
        asked.prompt,
        edits,
        max_new_tokens=asked.tokens,
        temperature=asked.temperature,
        seed=asked.seed,
        check=job.check,
    )
    found = _heard(news, job.tell)
    (pair,) = found.pairs
    with model.watched(job.check):
        default = _likeliest(model, asked.prompt, pair.default.ids)
        with model.edited(*edits):
            steered = _likeliest(model, asked.prompt, pair.steered.ids)
    return Both(found, steered, default)


def _as_asked(asked: Asked, one: SteerFeature, sae: SAE) -> Edit:
    size = one.strength * asked.multiplier
    if asked.method == "ORTHOGONAL_DECOMP":
        return Project(sae, one.index, size)
    return Steer(sae, one.index, size)


def _likeliest(model: LanguageModel, prompt: str, ids: Sequence[int]) -> list[list[tuple[str, float]]]:
    """Before each of the tokens `ids` that follow the prompt, read anew, edits in force included."""
    if not ids:
        return []
    begun = model.tokens(prompt).ids[0].tolist()
    logits = model.logits([*begun, *ids], prompt=len(begun))[0, len(begun) - 1 : -1]
    top = logits.float().log_softmax(-1).topk(min(_TOP, logits.shape[-1]))
    return [
        list(zip(model.strings(row), values, strict=True))
        for row, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
