"""Sets of two or three features to begin steering with: a reader's own short lists, and features that show at once what
an atlas holds, each with the one that is nearest to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from gemscope.app.requests import Steering
from gemscope.app.shelf import Source
from gemscope.atlas.notes.kept import FeatureList
from gemscope.edits import defaults

MOST = 3
"""Features of a set."""


@dataclass(frozen=True)
class Preset:
    """Some features under a name, and the address of the steer view with them."""

    name: str
    features: tuple[int, ...]
    url: str


def presets(source: Source, asked: Steering, lists: Iterable[FeatureList]) -> list[Preset]:
    """With what else is asked for. All features of a set together are as strong as a single one would be. Raises
    CorruptFile.
    """
    return [Preset(name, features, _at(source, asked, features)) for name, features in _sets(source, lists)]


def _sets(source: Source, lists: Iterable[FeatureList]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for one in lists:
        own = tuple(kept.index for kept in one if (kept.model, kept.source) == source.address)
        if 1 < len(own) <= MOST and max(own) < len(source.atlas):
            yield one.name, own
    for feature in source.striking:
        dashboard = source[feature]
        beside = next((one.feature for one in dashboard.neighbours if one.label), None)
        if dashboard.label and beside is not None:
            yield dashboard.label, (feature, beside)


def _at(source: Source, asked: Steering, features: tuple[int, ...]) -> str:
    share = f"{defaults.STRENGTH.value / len(features):.2g}{defaults.STRENGTH.unit}"
    chosen = replace(asked, features=features, strengths=(share,) * len(features), factors=(), run=False, add="")
    return source.links.steer(**chosen.query())
