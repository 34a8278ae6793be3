"""Labels that an atlas gives itself: for each feature the rule that its own examples teach, with how far it goes.

No model is asked. A rule's confidence (`features/rule_learning.py`) comes from the examples that it was learnt from;
how it does on text that it has not seen, the rows held out say (`scoring.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property

import numpy as np

from gemscope.atlas.dashboard import Explanation
from gemscope.atlas.entry import Entry, Ints
from gemscope.atlas.labels.scoring import RESERVED, RESERVES, Scored, known, score_labels, vocabulary_of
from gemscope.atlas.reader import Atlas
from gemscope.errors import InputError
from gemscope.features.rule_learning import WINDOW, Evidence, Learner, Learnt
from gemscope.features.rules import Rule
from gemscope.progress import Progress, silent

METHOD = "rule"
SURE = 0.6
"""Confidence from which a rule is said without reserve."""
STRONG = 0.7
"""Confidence from which a rule that was learnt from strong firings alone is said of those."""
LEAST = 0.15
"""Confidence below which nothing is said."""
BACKGROUND = 3000
"""Windows of the corpus that say how often a rule holds where nobody asked."""
_AT_ONCE = 512
"""Features whose labels are written together."""


@dataclass(frozen=True)
class Explained:
    """What came of it."""

    features: int
    """That were looked at: the living ones."""
    sure: int
    strong: int
    """With a rule for their strong firings alone."""
    partly: int
    """With one that names a part of them."""
    silent: int
    """With none that goes far enough."""
    scored: Scored | None = None
    """How these features' labels do on the rows that the atlas holds out; None where it holds out none."""

    def __str__(self) -> str:
        told = (
            f"{self.features:,} features: {self.sure:,} have a rule, {self.strong:,} one for where they fire strongly, "
            f"{self.partly:,} one for a part of that, {self.silent:,} none"
        )
        return told if self.scored is None else f"{told}\n{self.scored}"


def explain(atlas: Atlas, features: Iterable[int] | None = None, *, progress: Progress = silent) -> Explained:
    """Labels features (None: all) with the rule that each one's examples teach, in words and as a rule that can be run.

    An earlier rule of a feature goes; what people and other methods said stays, and a person's word stays its label.
    Each carries its confidence on the examples themselves and, where the atlas holds rows out, its score on those,
    beside a shuffled control. About ten milliseconds each, the same on each run.

    Raises AccessError where nothing can be written, InputError for an atlas without text, StorageFull.
    """
    learner, rows = _learner(atlas), _Rows(atlas)
    chosen = list(range(len(atlas)) if features is None else features)
    today, told = date.today().isoformat(), {"sure": 0, "strong": 0, "partly": 0, "silent": 0}
    with progress("explain", len(chosen), "features") as advance:
        for start in range(0, len(chosen), _AT_ONCE):
            said: dict[int, Explanation] = {}
            for feature in chosen[start : start + _AT_ONCE]:
                entry = atlas.entry(feature)
                advance(1)
                if not len(entry.positions):
                    continue
                how, learnt = _learnt(learner, rows, entry)
                told[how] += 1
                if learnt is not None:
                    words = learnt.main.words() + RESERVES[how]
                    said[feature] = Explanation(
                        id=0,
                        text=words,
                        method=METHOD,
                        confidence=round(learnt.confidence, 3),
                        rule=str(learnt.rule),
                        made=today,
                    )
            atlas.explain_all(said, replacing=METHOD, among=chosen[start : start + _AT_ONCE])
    scored = score_labels(atlas, chosen, progress=progress) if len(atlas.pool) else None
    return Explained(sum(told.values()), **told, scored=scored)


class Weighed:
    """What somebody says of features in words and as rules, as far as each rule goes on the feature's own examples.

    Its J there is its confidence. One below `SURE` makes of the words a label with reserve; one below `LEAST` is no
    rule for these words: it goes, and they stay, unscored.
    """

    def __init__(self, atlas: Atlas) -> None:
        self.atlas = atlas

    @cached_property
    def _means(self) -> tuple[Learner, _Rows]:
        return _learner(self.atlas), _Rows(self.atlas)

    def __call__(self, feature: int, one: Explanation) -> Explanation:
        """Raises InputError for a rule that is none."""
        if not one.rule or self.atlas.manifest.length < WINDOW:
            return one
        learner, rows = self._means
        confidence = learner.worth(Rule.parse(one.rule), rows.evidence(self.atlas.entry(feature)))
        if confidence < LEAST:
            return replace(one, rule="")
        reserved = confidence >= SURE or one.text.endswith(RESERVED)
        text = one.text if reserved else one.text + RESERVES["partly"]
        return replace(one, text=text, confidence=round(confidence, 3))


def _learnt(learner: Learner, rows: _Rows, entry: Entry) -> tuple[str, Learnt | None]:
    whole = learner.learn(rows.evidence(entry))
    if whole is not None and whole.confidence >= SURE:
        return "sure", whole
    strong = learner.learn(rows.evidence(entry, strong=True))
    if strong is not None and strong.confidence >= STRONG:
        return "strong", strong
    if whole is not None and whole.confidence >= LEAST:
        return "partly", whole
    return "silent", None


def _learner(atlas: Atlas) -> Learner:
    """The vocabulary, and windows of the corpus: as many, at places that lie evenly over the rows that are not held
    out.
    """
    length, vocabulary = atlas.manifest.length, vocabulary_of(atlas)
    if not atlas.manifest.rows * (length // WINDOW):
        raise InputError(f"{atlas.folder} has rows of {length} tokens: rules are learnt from {WINDOW}")
    rows = np.setdiff1d(np.arange(atlas.manifest.rows), atlas.pool.positions // length)
    whole = len(rows) * (length // WINDOW)
    every = np.unique(np.linspace(0, whole - 1, min(BACKGROUND, whole)).astype(np.int64))
    row, cell = np.divmod(every, length // WINDOW)
    first = rows[row] * length + cell * WINDOW
    return Learner(vocabulary, known(atlas.ids(first[:, None] + np.arange(WINDOW)), len(vocabulary)))


class _Rows:
    """The windows of features' examples, and what naming each firing token is worth."""

    def __init__(self, atlas: Atlas) -> None:
        self.atlas = atlas
        self.size = max(atlas.tokens(), default=-1) + 1

    def evidence(self, entry: Entry, *, strong: bool = False) -> Evidence:
        """Half of the weight lies on the strongest examples, half evenly on the ranges of activations, within each
        evenly on its firing tokens; `strong`: all of it on firings of at least half the maximum.
        """
        manifest = self.atlas.manifest
        length, before, width = manifest.length, manifest.before, manifest.before + 1 + manifest.after
        positions = entry.positions.astype(np.int64)
        at = positions[:, None] - before + np.arange(width)
        inside = at // length == (positions // length)[:, None]
        ids = np.where(inside, self.atlas.ids(np.where(inside, at, positions[:, None])), -1)
        columns = entry.columns.astype(np.int64) - (positions % length)[entry.owners] + before
        shown = (columns >= 0) & (columns < width)
        if strong:
            shown &= entry.values >= entry.max / 2
        owners, columns = entry.owners[shown], columns[shown]
        weights = np.zeros(ids.shape)
        for share, members in _shares(entry.intervals):
            mine = members[owners]
            weights[owners[mine], columns[mine]] = share / max(1, int(mine.sum()))
        return Evidence(known(ids, self.size), weights)


def _shares(intervals: Ints) -> Iterable[tuple[float, Ints]]:
    """What the strongest examples weigh together, and those of each range."""
    ranges = np.unique(intervals[intervals >= 0])
    yield (0.5 if len(ranges) else 1.0), intervals < 0
    for one in ranges:
        yield 0.5 / len(ranges), intervals == one
