"""A few features that show at once what an atlas holds, chosen by a rule that a page can state."""

from __future__ import annotations

import numpy as np

from gemscope.atlas.files.database import Database
from gemscope.atlas.glance import glimpses
from gemscope.atlas.labels.explanations import Explanations
from gemscope.atlas.lists import Lists
from gemscope.atlas.text import Text

RIGHT = 0.95
"""Least score of a label, where there are labels as good."""
DENSEST, FIRINGS = 0.01, 32
"""Share of tokens on which a feature may fire, and on how many it has to."""
KINDS = 3
"""Different words that its strongest examples are to be on: one meaning, and not one word."""
_LOOKED_AT = 200
_STEM = 3
"""Letters by which words are told apart: `increase` and `increasing` are one."""


def striking(many: int, *, lists: Lists, explanations: Explanations, text: Text, database: Database) -> list[int]:
    """Features: those first whose label is in somebody's words and right on text held out, then those with a rule as
    good, then all others; in each the most telling at their strongest, r · ln(1 / density). No two fire on one word.

    What of this cannot be had is done without: there are `many` wherever so many features live. Raises CorruptFile.
    """
    figures, right = lists.figures, explanations.right()
    living = np.flatnonzero(figures.counts)
    densities = figures.densities[living]
    fitting = (densities <= DENSEST) & (figures.counts[living] >= FIRINGS)
    worded = np.isin(living, list(explanations.worded(RIGHT)))
    class_ = np.where(fitting, np.where(worded, 0, np.where(right[living] >= RIGHT, 1, 2)), 3)
    telling = right[living] * -np.log(densities)
    best = living[np.lexsort((living, -telling, class_))][:_LOOKED_AT].tolist()
    words = _words(best, text, database)
    chosen, seen = list[int](), set[str]()
    for least, alike in ((KINDS, False), (1, False), (0, True)):
        for feature in best:
            found = words.get(feature, set())
            if feature not in chosen and len(found) >= least and (alike or not found & seen):
                chosen.append(feature)
                seen |= found
            if len(chosen) == many:
                return chosen
    return chosen


def _words(features: list[int], text: Text, database: Database) -> dict[int, set[str]]:
    """Of each feature the beginnings of the words on which its strongest examples fire."""
    seen, alone = glimpses(features, database), text.vocabulary.alone
    stems = {}
    for feature, one in seen.items():
        if len(one.positions):
            text.require(int(one.positions.max()))
        tokens = map(alone, text.corpus.at(one.positions).tolist())
        stems[feature] = {token.strip().casefold()[:_STEM] for token in tokens} - {""}
    return stems
