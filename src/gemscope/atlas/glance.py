"""What a list shows of a feature beside its name: its strongest example, and how its activations are spread."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from gemscope.atlas.dashboard import Glance
from gemscope.atlas.entry import Ints
from gemscope.atlas.examples import windows
from gemscope.atlas.files.database import Database
from gemscope.atlas.files.page import Glimpse, unpack_glimpse
from gemscope.atlas.files.schema import looked_up
from gemscope.atlas.text import Text
from gemscope.features.histogram import Histogram

BEFORE, AFTER = 8, 8
"""Tokens on either side of the one that fires."""


def glances(features: Collection[int], text: Text, database: Database) -> dict[int, Glance]:
    """Of those of these features that have a page; all in one pass over the corpus. Raises CorruptFile."""
    seen = glimpses(features, database)
    firing = {feature: one.positions[0] for feature, one in seen.items() if len(one.positions)}
    shown = dict(zip(firing, _around(np.array([*firing.values()], np.int64), text), strict=True))
    return {
        feature: Glance(
            *shown.get(feature, ([], 0)),
            Histogram(0.0, one.step, one.histogram.tolist()) if len(one.histogram) else None,
        )
        for feature, one in seen.items()
    }


def glimpses(features: Collection[int], database: Database) -> dict[int, Glimpse]:
    """A little of the pages of these features. Raises CorruptFile."""
    found = {}
    with database.reading() as db:
        for feature, packed in looked_up(db, "packed", features, "page"):
            with database.undamaged(f"feature {feature}"):
                found[feature] = unpack_glimpse(packed)
    return found


def _around(positions: Ints, text: Text) -> list[tuple[list[str], int]]:
    """The texts around positions, and the index of each position's own token in its text."""
    if not len(positions):
        return []
    before, after = (min(span, text.manifest.length) for span in (BEFORE, AFTER))
    _, starts, stops = windows(text, positions, before, after)
    return [
        (text.decoded(position - before + start, stop - start), before - start)
        for position, start, stop in zip(positions.tolist(), starts.tolist(), stops.tolist(), strict=True)
    ]
