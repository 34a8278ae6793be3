"""One text, read through a model and an SAE: which features fire on it, and where. The pass can be ended half-way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemscope.activations.model import LanguageModel
from gemscope.app.worker import Job
from gemscope.atlas.meaning import Meanings
from gemscope.atlas.reader import Atlas
from gemscope.features.activations import FeatureActivations
from gemscope.features.fit import require_fit
from gemscope.features.sae import SAE
from gemscope.reports import look as looking
from gemscope.reports.look import Look
from gemscope.text.chat import OneText


@dataclass(frozen=True)
class Strong:
    """A feature on a text: its strongest token there, and its activation on every token."""

    feature: int
    position: int
    values: list[float]

    @property
    def value(self) -> float:
        """Its activation on the strongest token."""
        return self.values[self.position]


@dataclass(frozen=True)
class Reading:
    """The T tokens of a text, which of them count, and the features that fire on them."""

    tokens: list[str]
    counted: list[bool]
    found: FeatureActivations

    def of(self, feature: int, *, every_token: bool = True) -> list[float]:
        """[T] one feature's activations; 0 on tokens that do not count unless `every_token`."""
        values: list[float] = self.found.of(feature)[0].tolist()
        return [value if every_token or here else 0.0 for value, here in zip(values, self.counted, strict=True)]

    def at(self, position: int) -> list[tuple[int, float]]:
        """The features on one token, strongest first."""
        features, values = self.found.row(position)
        return list(zip(features.tolist(), values.tolist(), strict=True))

    def cells(self, *, every_token: bool = False) -> Iterator[tuple[int, int, float]]:
        """(feature, position, activation) of whatever is active, token by token."""
        found = self.found
        for position, feature, value in zip(
            found.tokens.tolist(), found.features.tolist(), found.values.tolist(), strict=True
        ):
            if every_token or self.counted[position]:
                yield feature, position, value

    def strongest(
        self,
        limit: int,
        *,
        every_token: bool = False,
        among: Sequence[int] = (),
        without: np.ndarray[Any, np.dtype[np.bool_]] | None = None,
    ) -> list[Strong]:
        """The `limit` features with the strongest activation on any token (or any `among` these), strongest first.

        `without` [d_sae] is True for features that are left out.
        """
        found = self.found
        tokens, features, values = found.tokens.numpy(), found.features.long().numpy(), found.values.numpy()
        kept = np.array(self.counted, bool) | every_token
        if among:
            kept &= np.isin(np.arange(len(kept)), among)
        chosen = kept[tokens]
        if without is not None:
            chosen &= ~without[features]
        cells = np.flatnonzero(chosen)
        cells = cells[np.argsort(-values[cells], kind="stable")]
        _, firsts = np.unique(features[cells], return_index=True)
        best = cells[np.sort(firsts)[:limit]]
        return [
            Strong(feature, position, self.of(feature, every_token=every_token))
            for feature, position in zip(features[best].tolist(), tokens[best].tolist(), strict=True)
        ]

    def foremost(self, limit: int, known_of: Meanings) -> list[Strong]:
        """The `limit` features that say most about the text, as `Look.foremost` has them."""
        best = known_of.foremost(self.found, limit=limit)
        return [Strong(one.feature, one.position, self.of(one.feature, every_token=False)) for one in best]

    @property
    def firing(self) -> int:
        """How many features fire on counted tokens."""
        return self.found.firing


def read(
    job: Job[Any], model: LanguageModel, sae: SAE, text: OneText, *, features: Sequence[int] | None = None
) -> Reading:
    """A text and the features that fire on it, or those of them that are named.

    Raises what `model.capture` and `sae.encode` raise, and what `job.check` does.
    """
    site = require_fit(model, sae)
    job.check()
    with model.watched(job.check):
        acts = model.capture(text, [site])[site]
    job.check()
    found = sae.encode(acts, features=features).to("cpu")
    return Reading(model.texts(acts.tokens.ids[0].tolist()), acts.counted[0].tolist(), found)


def look(job: Job[Any], model: LanguageModel, sae: SAE, text: OneText, *, k: int, atlas: Atlas) -> Look:
    """`gs.look`, which ends when nobody waits for it any more."""
    job.check()
    with model.watched(job.check):
        return looking.look(model, sae, text, k=k, atlas=atlas)
