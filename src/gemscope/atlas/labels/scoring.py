"""Labels put to the test: their rules are run on text that no example came from, each beside another feature's rule."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np

from gemscope.atlas.dashboard import Explanation
from gemscope.atlas.entry import Ints
from gemscope.atlas.labels.trial import GOOD, WORDS, On, Trial
from gemscope.atlas.reader import Atlas
from gemscope.errors import InputError
from gemscope.features.keys import scrambled, text_keys
from gemscope.features.pool import Pool, codes
from gemscope.features.rule_learning import WINDOW
from gemscope.features.rules import Mask, Rule, Vocabulary
from gemscope.progress import Progress, silent
from gemscope.text.pieces import spelt

RESERVES = {"sure": "", "strong": " (when strong)", "partly": " (in part)"}
"""What a label says of itself, at its end, by how far it goes."""
RESERVED = tuple(filter(None, RESERVES.values()))
_HALF = 8
"""Codes of activations between a number and its half."""


@dataclass(frozen=True)
class Standing:
    """How the labels of one kind stand, on windows of one kind."""

    labels: str
    """Which: `every feature`'s best (none counts as chance), features' `with a label`, those `without reserve` alone,
    those `by` a method.
    """
    on: On
    features: int
    """With enough such windows to tell."""
    median: float
    good: float
    """Share above .8."""
    control: float
    """Median of the shuffled control."""

    def __str__(self) -> str:
        return (
            f"  {self.labels}, {WORDS[self.on]}: median {self.median:.2f}, above {GOOD} for {self.good:.0%} of "
            f"{self.features:,} features; shuffled {self.control:.2f}"
        )


@dataclass(frozen=True)
class Scored:
    """What came of it."""

    text: str
    """Which; "" for the rows that the atlas holds out."""
    rows: int
    tokens: int
    """Counted ones."""
    labels: int
    """Explanations with a rule, which were run."""
    nameless: int
    """Features that nothing is said of."""
    unscored: int
    """Explanations without a rule: they stay unscored."""
    standings: tuple[Standing, ...]

    def __str__(self) -> str:
        where = f"{self.text}: {self.rows:,} rows" if self.text else f"{self.rows:,} rows held out"
        lines = [
            f"{self.labels:,} labels with a rule, run on {where} ({self.tokens:,} counted tokens; balanced accuracy on "
            f"windows of {WINDOW} tokens); {self.unscored:,} without one stay unscored; {self.nameless:,} features "
            "without a label count as chance"
        ]
        return "\n".join([*lines, *map(str, self.standings)])


def score_labels(
    atlas: Atlas,
    features: Iterable[int] | None = None,
    *,
    on: Pool | None = None,
    text: str = "",
    progress: Progress = silent,
) -> Scored:
    """Runs the rules of all explanations of features (None: all) on the rows that the atlas holds out, or `on` those of
    another text, called `text`; keeps the counts, and on the atlas's own rows the score.

    Windows that repeat the text of one of the feature's own examples are passed over. The control of each is the rule
    of another feature, always the same one while the atlas has the same rules. A few milliseconds a label.

    Raises InputError where no rows are held out, AccessError where nothing can be written, StorageFull.
    """
    pool = atlas.pool if on is None else on
    if not len(pool):
        raise InputError(f"{atlas.folder} holds no rows out to score labels on: describe it anew, or give another text")
    if (on is None) != (not text):
        raise InputError("rows of another text need its name, and the atlas's own have none")
    chosen = set(range(len(atlas)) if features is None else features)
    every = [(feature, one, _rule(one)) for feature, one in atlas.explanations()]
    rules = {feature: rule for feature, _, rule in every if rule is not None}
    named = {feature for feature, *_ in every}
    ground, trials, best = Ground(atlas, pool), dict[int, Trial](), dict[int, tuple[Explanation | None, Trial]]()
    trying = [(feature, one, rule) for feature, one, rule in every if rule is not None and feature in chosen]
    nameless = sorted(chosen - named)
    with progress("score labels", len(trying) + len(nameless), "labels") as advance:
        for feature, one, rule in trying:
            trial = trials[one.id] = ground.trial(feature, rule, _other(rules, feature), text)
            if feature not in best or _value(trial) >= _value(best[feature][1]):
                best[feature] = one, trial
            advance(1)
        for feature in nameless:
            best[feature] = None, ground.trial(feature, None, _other(rules, feature), text)
            advance(1)
    atlas.tried(trials, {feature for feature, *_ in trying})
    return Scored(
        text=text,
        rows=len(pool),
        tokens=int(pool.counted.sum()),
        labels=len(trials),
        nameless=len(nameless),
        unscored=sum(rule is None and feature in chosen for feature, _, rule in every),
        standings=tuple(standings(best.values())),
    )


def vocabulary_of(atlas: Atlas) -> Vocabulary:
    """The atlas's tokens as rules speak of them; special ones read as nothing."""
    tokens, special = atlas.tokens(), atlas.special
    texts = [""] * (max(tokens, default=-1) + 1)
    for id_, text in tokens.items():
        texts[id_] = "" if id_ in special else spelt(text)
    return Vocabulary(texts)


def known(ids: Ints, size: int) -> Ints:
    """Ids that a vocabulary of this size has; -1 for others."""
    return np.where(ids < size, ids, -1)


def _rule(one: Explanation) -> Rule | None:
    try:
        return Rule.parse(one.rule) if one.rule else None
    except InputError:  # of a version with other classes
        return None


def _other(rules: Mapping[int, Rule], feature: int) -> Rule | None:
    """Another feature's rule, drawn by the feature."""
    others = [one for one in rules if one != feature]
    if not others:
        return None
    drawn = int(scrambled(np.array([feature + 1], np.uint64))[0]) % len(others)
    return rules[others[drawn]]


@dataclass(frozen=True)
class Told:
    """What a feature does in rows of text. Windows that repeat the text of one of its examples are left out."""

    inside: Mask
    """[R, T] Tokens of the windows that are left."""
    tokens: dict[str, Mask]
    """[R, T] On which it fires: `strong`, at half its largest activation or more; `firing`, at all."""
    windows: dict[str, Mask]
    """[R, windows] With any of these, and `silent` ones, with none."""


class Ground:
    """Rows on which rules are run, cut into windows."""

    def __init__(self, atlas: Atlas, pool: Pool) -> None:
        self.atlas, self.pool = atlas, pool
        self._vocabulary = vocabulary_of(atlas)
        self._ids = known(pool.ids, len(self._vocabulary))
        self._keys = text_keys(pool.ids)
        self._there = self._windows(pool.counted)
        """Windows with a token that counts."""

    def trial(self, feature: int, rule: Rule | None, other: Rule | None, text: str) -> Trial:
        """One rule of one feature, beside another's."""
        told = self.told(feature)
        mine, theirs = (self._holds(one) & told.inside for one in (rule, other))
        hits, controls = self._windows(mine), self._windows(theirs)
        counted: dict[str, Mask] = {"named": mine, "borrowed": theirs}
        for name, which in told.windows.items():
            counted |= {name: which, f"{name}_hits": which & hits, f"{name}_control": which & controls}
        for name, which in told.tokens.items():
            counted |= {f"{name}_tokens": which, f"{name}_named": which & mine, f"{name}_borrowed": which & theirs}
        return Trial(text=text, **{name: int(np.count_nonzero(which)) for name, which in counted.items()})

    def told(self, feature: int) -> Told:
        """What one feature does there."""
        entry = self.atlas.entry(feature)
        places, coded = self.pool.firings(feature)
        fires, strong = np.zeros(self.pool.counted.size, np.bool_), np.zeros(self.pool.counted.size, np.bool_)
        fires[places] = True
        strong[places] = coded >= int(codes(np.array([entry.max]))[0]) - _HALF
        seen = np.zeros(self.pool.counted.size, np.bool_)
        seen[places] = np.isin(self._keys.reshape(-1)[places], self.atlas.keys(entry.positions.astype(np.int64)))
        tested = self._there & ~self._windows(seen)
        # A row's tokens count where their window does.
        inside = np.repeat(tested, WINDOW, axis=1)[:, : self.pool.ids.shape[1]]
        fires, strong = (one.reshape(self.pool.ids.shape) & inside for one in (fires, strong))
        windows = {"strong": self._windows(strong), "firing": self._windows(fires)}
        windows["silent"] = tested & ~windows["firing"]
        return Told(inside, {"strong": strong, "firing": fires}, windows)

    def _holds(self, rule: Rule | None) -> Mask:
        """[R, T] on which counted tokens."""
        if rule is None:
            return np.zeros(self._ids.shape, np.bool_)
        return rule.matches(self._ids, self._vocabulary) & self.pool.counted

    def _windows(self, tokens: Mask) -> Mask:
        """[R, windows] Those with any of the tokens."""
        rows, length = self.pool.ids.shape
        padded = np.zeros((rows, -(-length // WINDOW) * WINDOW), np.bool_)
        padded[:, :length] = tokens.reshape(rows, length)
        found: Mask = np.logical_or.reduce(padded.reshape(rows, -1, WINDOW), axis=2)
        return found


def _value(trial: Trial) -> float:
    found = trial.accuracy() or trial.accuracy("firing")
    return 0.5 if found is None else found.value


def standings(best: Collection[tuple[Explanation | None, Trial]]) -> Iterator[Standing]:
    """Of each feature's best label: of all, of those that have one, that have one without reserve, and by method."""
    said = [(one, trial) for one, trial in best if one is not None]
    kinds = {"every feature": [trial for _, trial in best]}
    kinds["with a label"] = [trial for _, trial in said]
    kinds["without reserve"] = [trial for one, trial in said if not one.text.endswith(RESERVED)]
    methods = sorted({one.method for one, _ in said})
    for method in methods if len(methods) > 1 else ():
        kinds[f"by {method}"] = [trial for one, trial in said if one.method == method]
    for kind, mine in kinds.items():
        for on in get_args(On):
            found = [(figure.value, trial.control(on) or 0.0) for trial in mine if (figure := trial.accuracy(on))]
            if found:
                values, controls = np.array(found).T
                good = float((values > GOOD).mean())
                yield Standing(kind, on, len(found), float(np.median(values)), good, float(np.median(controls)))
