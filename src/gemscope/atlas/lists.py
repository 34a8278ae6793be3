"""Features as lines of a list: in any order, and those alone that are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict, Unpack

import numpy as np

from gemscope.atlas.dashboard import Summary
from gemscope.atlas.entry import Floats, Ints
from gemscope.atlas.files.database import Database
from gemscope.atlas.files.schema import words_of
from gemscope.atlas.labels.explanations import Explanations, Mask
from gemscope.atlas.labels.search import features_with
from gemscope.atlas.text import Text
from gemscope.errors import InputError


class Filter(TypedDict, total=False):
    """Which features are wanted: those for which all holds that is given. Bounds are inclusive."""

    dead: bool | None
    labelled: bool | None
    min_density: float | None
    max_density: float | None
    min_max: float | None
    max_max: float | None
    text: str
    """Words that one of its explanations has."""


@dataclass(frozen=True)
class _Figures:
    """What can be listed, filtered and ordered by, [d_sae] each. Fixed once an atlas is written, so it is kept."""

    counts: Ints
    densities: Floats
    maxima: Floats
    means: Floats
    tokens: Ints
    """-1 where a feature has no example."""


class Lists:
    """Over all features of one atlas."""

    def __init__(self, text: Text, database: Database, explanations: Explanations) -> None:
        self._text, self._database, self._explanations = text, database, explanations

    def of(self, features: Sequence[int]) -> list[Summary]:
        """A line for each of these, in their order."""
        figures, labels = self.figures, self._explanations.labels(features)
        with self._database.reading() as db:
            words = words_of(db, features)
        alone = self._text.vocabulary.alone
        wanted = np.array(features, np.int64)
        columns = (figures.counts, figures.densities, figures.maxima, figures.means, figures.tokens)
        return [
            Summary(
                index,
                count,
                density,
                top,
                mean,
                labels.get(index),
                None if token < 0 else alone(token),
                words.get(index),
            )
            for index, count, density, top, mean, token in zip(
                features, *(column[wanted].tolist() for column in columns), strict=True
            )
        ]

    def wanted(self, **wanted: Unpack[Filter]) -> Mask | None:
        """[d_sae] which features are wanted; None for all."""
        figures, parts = self.figures, list[Mask]()
        if (dead := wanted.get("dead")) is not None:
            parts.append((figures.counts == 0) == dead)
        for values, least, most in (
            (figures.densities, wanted.get("min_density"), wanted.get("max_density")),
            (figures.maxima, wanted.get("min_max"), wanted.get("max_max")),
        ):
            if least is not None:
                parts.append(values >= least)
            if most is not None:
                parts.append(values <= most)
        if (labelled := wanted.get("labelled")) is not None:
            parts.append(self._explanations.labelled.mask == labelled)
        if (text := wanted.get("text", "")).strip():
            having = np.zeros(len(figures.counts), np.bool_)
            having[features_with(text, self._database)] = True
            parts.append(having)
        return np.logical_and.reduce(parts) if parts else None

    def ranked(self, order: str, descending: bool) -> Ints:
        """[d_sae] features in an order. Raises InputError."""
        if order == "label":
            found = self._explanations.labelled
            return np.concatenate((found.order[::-1] if descending else found.order, np.flatnonzero(~found.mask)))
        if order not in self._orders:
            raise InputError(f"order={order!r}: expected one of {', '.join((*self._orders, 'label'))}")
        return self._orders[order][descending]

    @cached_property
    def _orders(self) -> Mapping[str, tuple[Ints, Ints]]:
        """Up and down."""
        figures = self.figures
        by = {"density": figures.counts, "max": figures.maxima, "mean": figures.means}
        up = np.arange(len(figures.counts))
        return {"index": (up, up[::-1])} | {
            name: (np.argsort(values, kind="stable"), np.argsort(-values, kind="stable")) for name, values in by.items()
        }

    @cached_property
    def figures(self) -> _Figures:
        """Of all features."""
        with self._database.reading() as db:
            rows = db.execute("SELECT count, max, mean, coalesce(token, -1) FROM feature ORDER BY id").fetchall()
        counts, maxima, means, tokens = zip(*rows, strict=True) if rows else ((), (), (), ())
        return _Figures(
            np.array(counts, np.int64),
            np.array(counts, np.int64) / max(1, self._text.manifest.tokens),
            np.array(maxima, np.float64),
            np.array(means, np.float64),
            np.array(tokens, np.int64),
        )
