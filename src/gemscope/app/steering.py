"""What a reader asks to steer with, as edits of the library's, and the texts that come of it, as they come."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gemscope.activations.editing import Edit
from gemscope.activations.model import LanguageModel
from gemscope.app.requests import Row, SteerFeature, Steering
from gemscope.app.requests import Steer as Asked
from gemscope.app.worker import Job
from gemscope.atlas.reader import Atlas
from gemscope.edits import controls
from gemscope.edits.steer import Project, Steer
from gemscope.edits.units import Units
from gemscope.edits.ways import WAYS, edit, require_added
from gemscope.features.sae import SAE
from gemscope.reports.steer import Frame, Steered
from gemscope.reports.steer import stream as writing
from gemscope.text.chat import turn_of


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


def edits_of(asked: Steering, sae: SAE, units: Units) -> list[Edit]:
    """One for each feature. Raises InputError for a feature that is not there, or that never fired and has no unit."""
    return [_edit(asked, sae, units, row) for row in asked.rows]


def _edit(asked: Steering, sae: SAE, units: Units, row: Row) -> Edit:
    feature, strength, factor = row
    by = units.of(strength, feature) if WAYS[asked.how].takes == "a strength" else factor
    at: Any = asked.at
    return edit(asked.how, sae, feature, by, at=at)


def variants(asked: Steering, sae: SAE, units: Units) -> Iterator[Variant]:
    """The edits asked for, and those of the controls. Raises what `edits_of` raises."""
    yield Variant("steered", None, edits_of(asked, sae, units))
    if asked.random:
        other = _others(asked, sae, units)
        said = ", ".join(f"{theirs} for {ours}" for ours, theirs in other.items())
        rows = [(other[feature], strength, factor) for feature, strength, factor in asked.rows]
        yield Variant("random", f"other features: {said}", [_edit(asked, sae, units, row) for row in rows])
    if asked.noise:
        yield Variant("noise", "random directions of the same length", _noise(asked, sae, units))


def _others(asked: Steering, sae: SAE, units: Units) -> dict[int, int]:
    """A feature in the place of each, no two the same where there are enough."""
    other: dict[int, int] = {}
    for feature in asked.features:
        for seed in range(asked.seed, asked.seed + 4 * len(asked.features)):
            found = controls.random_feature(sae, feature, units, seed)
            if found not in (*other.values(), *asked.features):
                break
        other[feature] = found
    return other


def _noise(asked: Steering, sae: SAE, units: Units) -> list[Edit]:
    """Added, whatever is done with the feature: a random direction has no activation to set. Raises InputError."""
    require_added(asked.how)
    site, at = sae.site_out or sae.site, asked.at
    assert site is not None
    return [
        Steer.along(
            site,
            controls.noise(sae, feature, asked.seed + place),
            units.of(strength, feature),
            name=f"noise as long as feature {feature}'s direction",
            at=at,
        )
        for place, (feature, strength, _) in enumerate(asked.rows)
    ]


def stream(
    job: Job[Any], model: LanguageModel, sae: SAE, units: Units, asked: Steering, *, atlas: Atlas
) -> tuple[Run, ...]:
    """All variants, one after another, features named by the atlas; the job tells a `Partial` with each token.

    Raises what `edits_of` and `gs.steer` raise, and what `job.check` does.
    """
    return tuple(_run(job, model, asked, one, atlas) for one in list(variants(asked, sae, units)))


def _run(job: Job[Any], model: LanguageModel, asked: Steering, one: Variant, atlas: Atlas) -> Run:
    news = writing(
        model,
        turn_of(asked.prompt) if asked.chat else asked.prompt,
        one.edits,
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
