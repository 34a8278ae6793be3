"""A few features that show at once what an atlas holds, chosen by a rule that a page can state."""

from __future__ import annotations

import re

import numpy as np

from gemscope.atlas.files.database import Database
from gemscope.atlas.files.schema import words_of
from gemscope.atlas.glance import glimpses
from gemscope.atlas.labels.explanations import Explanations
from gemscope.atlas.lists import Lists
from gemscope.atlas.text import Text

RIGHT = 0.95
"""Least score of a label, where there are labels as good."""
NEARLY = 0.9
"""And of one that is of the subject which its feature writes."""
DENSEST, FIRINGS = 0.01, 32
"""Share of tokens on which a feature may fire, and on how many it has to."""
KINDS = 3
"""Different words that its strongest examples are to be on: one meaning, and not one word."""
SUBJECT = 2
"""Words among those which it promotes that are to be of the words it fires on, or of its label: it reads and writes one
subject.
"""
_LOOKED_AT = 200
_STEM, _ROOT = 3, 4
"""Letters by which words are told apart (`increase` and `increasing` are one), and by which they are of one subject."""
_WORD = re.compile(r"[^\W\d_]+")
_QUOTED = re.compile(r"`[^`]*`|“[^”]*”")
_RESERVE = re.compile(r" \((?:when strong|in part)\)$")


def striking(many: int, *, lists: Lists, explanations: Explanations, text: Text, database: Database) -> list[int]:
    """Features: those first that read and write one subject (`SUBJECT`) and have a label in somebody's words that is
    nearly right on text held out, of these the ones whose label makes no reserve and does more than quote; then those
    whose label in words is right, then those with a rule as good, then all others; in each the most telling at their
    strongest, r · ln(1 / density). No two fire on one word.

    What of this cannot be had is done without: there are `many` wherever so many features live. Raises CorruptFile.
    """
    figures, right = lists.figures, explanations.right()
    living = np.flatnonzero(figures.counts)
    densities = figures.densities[living]
    fitting = (densities <= DENSEST) & (figures.counts[living] >= FIRINGS)
    telling = right[living] * -np.log(densities)
    worded = np.isin(living, explanations.worded(RIGHT))
    class_ = np.where(fitting, np.where(worded, 0, np.where(right[living] >= RIGHT, 1, 2)), 3)
    with database.reading() as db:
        promoted = words_of(db, explanations.worded(NEARLY))
    able = np.flatnonzero(fitting & np.isin(living, [*promoted]))
    able = able[np.lexsort((living[able], -telling[able]))][:_LOOKED_AT]
    words = _words(living[able].tolist(), text, database)
    labels = explanations.labels(promoted)
    for place, feature in zip(able.tolist(), living[able].tolist(), strict=True):
        if _one_subject(promoted[feature], labels[feature], words.get(feature, set())):
            class_[place] = -3 + _reserves(labels[feature])
    best: list[int] = living[np.lexsort((living, -telling, class_))][:_LOOKED_AT].tolist()
    words = _words(best, text, database)
    chosen, seen = list[int](), set[str]()
    for least, alike in ((KINDS, False), (1, False), (0, True)):
        for feature in best:
            found = {word[:_STEM] for word in words.get(feature, set())}
            if feature not in chosen and len(found) >= least and (alike or not found & seen):
                chosen.append(feature)
                seen |= found
            if len(chosen) == many:
                return chosen
    return chosen


def _words(features: list[int], text: Text, database: Database) -> dict[int, set[str]]:
    """Of each feature the tokens on which its strongest examples fire, but for case and blanks."""
    seen, alone = glimpses(features, database), text.vocabulary.alone
    words = {}
    for feature, one in seen.items():
        if len(one.positions):
            text.require(int(one.positions.max()))
        tokens = map(alone, text.corpus.at(one.positions).tolist())
        words[feature] = {token.strip().casefold() for token in tokens} - {""}
    return words


def _words_of(text: str) -> set[str]:
    return {word.casefold() for word in _WORD.findall(text)}


def _one_subject(promoted: str, label: str, read: set[str]) -> bool:
    """Whether a feature promotes words of its label, or of those that it fires on."""
    roots = {word[:_ROOT] for word in _words_of(label) | read if len(word) >= _ROOT}
    return sum(word[:_ROOT] in roots for word in _words_of(promoted)) >= SUBJECT


def _reserves(label: str) -> int:
    """0 for a label in words without reserve, 1 for one that makes some, 2 for one that does no more than quote."""
    text = _RESERVE.sub("", label)
    return 2 if not _words_of(_QUOTED.sub("", text)) else int(text != label)
