"""Which features of an atlas want words most: those that a reader meets often and that no sure label names."""

from __future__ import annotations

from gemscope.atlas.labels.rules import METHOD, SURE
from gemscope.atlas.reader import Atlas

DENSE = 0.03
"""Share of all tokens above which a feature says little about any of them."""


def wanting(atlas: Atlas, *, sure: float = SURE) -> list[int]:
    """Living features that have nothing but a rule of less confidence than `sure`, or nothing at all: those that fire
    most often first, for an ordinary prompt has most of them; dense ones, in which there is least to see, last.
    """
    named = {
        feature
        for feature, one in atlas.explanations()
        if one.method != METHOD or (one.confidence is not None and one.confidence >= sure)
    }
    found = atlas.summaries(order="density", descending=True, limit=len(atlas), dead=False)
    return [one.feature for one in sorted(found, key=lambda one: one.density > DENSE) if one.feature not in named]
