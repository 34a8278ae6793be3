"""Rules learnt from a feature's own examples: a greedy cover of where it fires, at the price of where else they hold.

A rule is worth J = recall − match rate: the weighted share of the examples' firing tokens that it names, less the share
of random windows of the corpus in which it holds anywhere. Clauses are added while J rises by more than they cost. A
rule's confidence is J with each example left out in turn: what names its tokens has to be known from others. All of it
is deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemscope.features.rules import BACK, Ids, Part, Rule, Vocabulary
from gemscope.text.lexicon import classes

WINDOW = 32
"""Tokens of a background window: as many as a word of the machine has bits."""
MAIN = 0.1
"""What a clause must add to J, in parts of the first one's, to be said in the label."""
TERMS = 8
"""Clauses of a rule, at most."""
LEAST = 2
"""Examples that have to share what a clause says."""
SINGLES, PAIRS = 120, 400
"""Candidates that are looked at closely: those with the most weight."""
AGAIN, ANEW = 0.008, 0.02
"""What a clause costs: one more of a kind that the rule has, one of a new kind."""
EXACT, BEHIND = 0.003, 0.01
"""What a clause costs beside that where it is less like what a person would say: a token exactly as it stands; for each
token that it goes back without a word on those between."""

_KINDS = ("word", "token", "class")
_SPAN = 1 << 24
"""More than there are words, tokens or classes."""

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True)
class Evidence:
    """Where one feature fires, in some windows."""

    ids: Ids
    """[n, T] Token ids; -1 before and behind a text."""
    weights: Floats
    """[n, T] What naming each token is worth; 0 where the feature is silent."""


@dataclass(frozen=True)
class Learnt:
    """A rule, and how far it goes on what it was learnt from."""

    rule: Rule
    recall: float
    """Of each example's firing tokens by what other examples alone would have taught."""
    match_rate: float
    main: Rule
    """Its clauses that add most: what a label says."""

    @property
    def confidence(self) -> float:
        """J, each example left out in turn."""
        return self.recall - self.match_rate


class Learner:
    """What all features of an atlas share: the vocabulary in numbers, and random windows of the corpus."""

    def __init__(self, vocabulary: Vocabulary, background: Ids) -> None:
        """`background` [n, 32]: rows of token ids, -1 where a text has ended."""
        self.vocabulary, self._background = vocabulary, background
        names = list(classes())
        member = np.stack([vocabulary.mask("class", name) for name in names], 1)
        self._class_starts = np.concatenate(([0], np.cumsum(member.sum(1))))
        self._classes = np.nonzero(member)[1]
        self._words, words = _numbered(vocabulary.words)
        self._texts, texts = _numbered(vocabulary.texts)
        self._by_number: tuple[Sequence[str], ...] = (words, texts, names)
        codes, positions = self._coded(background)
        order = np.argsort(codes, kind="stable")
        self._codes, starts = np.unique(codes[order], return_index=True)
        self._starts = np.append(starts, len(codes))
        self._positions = positions[order]
        self._windows = len(background)

    def learn(self, evidence: Evidence) -> Learnt | None:
        """The best rule for what fires so; None where no clause is worth its price."""
        at = np.flatnonzero(evidence.weights.ravel() > 0)
        if not len(at):
            return None
        width = evidence.ids.shape[1]
        weights = evidence.weights.ravel()[at]
        weights = weights / weights.sum()
        codes, positions = self._coded(evidence.ids)
        place = np.full(evidence.ids.size, -1)
        place[at] = np.arange(len(at))
        kept = place[positions] >= 0
        candidates = self._candidates(codes[kept], place[positions[kept]], at // width, weights)
        return self._chosen(candidates, weights) if candidates.parts else None

    def worth(self, rule: Rule, evidence: Evidence) -> float:
        """J of a rule that was not learnt here: −1 to 1; its match rate less than 0 for what fires nowhere."""
        named = rule.matches(evidence.ids, self.vocabulary)
        rate = rule.matches(self._background, self.vocabulary).any(1).mean()
        return float(evidence.weights[named].sum() / max(evidence.weights.sum(), 1e-9) - rate)

    # --- tokens as numbers ------------------------------------------------------------------------------------------

    def _coded(self, ids: Ids) -> tuple[Ids, Ids]:
        """(code, position) of everything that can be said of every token of rows, in their order within each kind."""
        n, width = ids.shape
        flat = np.arange(n * width).reshape(n, width)
        codes, positions = [], []
        for back in range(BACK + 1):
            before = ids[:, : width - back]
            here = flat[:, back:][(before >= 0) & (ids[:, back:] >= 0)]
            tokens = before[(before >= 0) & (ids[:, back:] >= 0)]
            words = self._words[tokens]
            codes.append(_code(back, 0, words))
            positions.append(here)
            if back == 0:
                codes.append(_code(back, 1, self._texts[tokens]))
                positions.append(here)
            if back < BACK:
                counts = self._class_starts[tokens + 1] - self._class_starts[tokens]
                first = np.repeat(self._class_starts[tokens], counts)
                within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
                codes.append(_code(back, 2, self._classes[first + within]))
                positions.append(np.repeat(here, counts))
        return np.concatenate(codes), np.concatenate(positions)

    def _part(self, code: int) -> Part:
        back, rest = divmod(code, 3 * _SPAN)
        kind, number = divmod(rest, _SPAN)
        return Part(back, _KINDS[kind], self._by_number[kind][number])  # type: ignore[arg-type]

    def _bits(self, codes: Ids) -> Ids:
        """[n, windows] Where each holds in the background: a bit for each token."""
        out = np.zeros((len(codes), self._windows), np.uint32)
        found = np.searchsorted(self._codes, codes)
        for row, (index, code) in enumerate(zip(found.tolist(), codes.tolist(), strict=True)):
            if index < len(self._codes) and self._codes[index] == code:
                at = self._positions[self._starts[index] : self._starts[index + 1]]
                np.bitwise_or.at(out[row], at // WINDOW, np.uint32(1) << (at % WINDOW).astype(np.uint32))
        return out

    # --- candidates -------------------------------------------------------------------------------------------------

    def _candidates(self, codes: Ids, at: Ids, examples: Ids, weights: Floats) -> Candidates:
        """Single parts and pairs of them that two examples share at least, those of most weight."""
        number = len(weights)
        singles, inverse = np.unique(codes, return_inverse=True)
        cover = np.zeros((len(singles), number), np.bool_)
        cover[inverse, at] = True
        support = _support(cover, examples)
        kept = support >= LEAST
        singles, cover, support = singles[kept], cover[kept], support[kept]
        weight = cover @ weights
        first = np.lexsort((singles, -weight))[:SINGLES]
        singles, cover, weight, support = singles[first], cover[first], weight[first], support[first]
        back, kind = singles // (3 * _SPAN), singles // _SPAN % 3
        a, b = np.triu_indices(len(singles), 1)
        a, b = np.where(back[a] <= back[b], a, b), np.where(back[a] <= back[b], b, a)
        # Two things of one token are worth saying where both are classes; else one of them says the other.
        useful = (back[a] == 0) & ((back[b] > 0) | ((kind[a] == 2) & (kind[b] == 2)))
        a, b = a[useful], b[useful]
        bits = self._bits(singles)
        rate = (bits != 0).mean(1)
        # A pair covers at most what each of its parts does: worth looking at only where a part alone holds too often.
        promising = np.minimum(weight[a], weight[b]) > ANEW
        a, b = a[promising], b[promising]
        shared = np.empty(len(a))
        for start in range(0, len(a), 4096):
            one = slice(start, start + 4096)
            shared[one] = (cover[a[one]] & cover[b[one]]) @ weights
        gain = shared - np.minimum(rate[a], rate[b])
        best = np.lexsort((b, a, -gain))[:PAIRS]
        best = best[shared[best] > ANEW]
        a, b = a[best], b[best]
        both = cover[a] & cover[b]
        shared_by = _support(both, examples)
        kept = shared_by >= LEAST
        a, b, both = a[kept], b[kept], both[kept]
        parts: list[tuple[int, ...]] = [(int(code),) for code in singles]
        parts += [(int(one), int(other)) for one, other in zip(singles[a], singles[b], strict=True)]
        holds = np.concatenate((bits, bits[a] & bits[b])) != 0
        return Candidates(parts, np.concatenate((cover, both)), holds, np.concatenate((support, shared_by[kept])))

    def _chosen(self, candidates: Candidates, weights: Floats) -> Learnt | None:
        covered, held = np.zeros(len(weights), np.bool_), np.zeros(self._windows, np.bool_)
        odd = np.array([_oddness(parts) for parts in candidates.parts])
        prices = ANEW + odd
        kinds, chosen, gains = candidates.kinds, [], []
        for _ in range(TERMS):
            gain = (candidates.cover[:, ~covered] @ weights[~covered]) - candidates.holds[:, ~held].sum(
                1
            ) / self._windows
            best = int(np.argmax(gain - prices))
            if gain[best] <= prices[best]:
                break
            chosen.append(best)
            gains.append(float(gain[best]))
            covered |= candidates.cover[best]
            held |= candidates.holds[best]
            alike = kinds == kinds[best]
            prices[alike] = AGAIN + odd[alike]
        if not chosen:
            return None
        clauses = tuple(tuple(self._part(code) for code in candidates.parts[one]) for one in chosen)
        main = tuple(clause for clause, gain in zip(clauses, gains, strict=True) if gain >= MAIN * gains[0])
        known = [one for one in chosen if candidates.support[one] > LEAST]
        again = candidates.cover[known].any(0)
        return Learnt(Rule(clauses), float(weights[again].sum()), float(held.mean()), Rule(main))


@dataclass(frozen=True)
class Candidates:
    """Clauses that may come into a rule."""

    parts: list[tuple[int, ...]]
    cover: np.ndarray[Any, np.dtype[np.bool_]]
    """[n, firing tokens]"""
    holds: np.ndarray[Any, np.dtype[np.bool_]]
    """[n, windows]"""
    support: Ids
    """[n] Examples with a token that each covers."""

    @property
    def kinds(self) -> Ids:
        """[n] Equal for clauses that differ in what the token itself is: more of these are a list."""
        shapes: dict[tuple[int, ...], int] = {}
        out = []
        for parts in self.parts:
            shape = tuple(code if code >= 3 * _SPAN else -1 - code // _SPAN for code in parts)
            out.append(shapes.setdefault(shape, len(shapes)))
        return np.array(out, np.int64)


def _numbered(texts: Sequence[str]) -> tuple[Ids, list[str]]:
    """Each text's number, equal for equal ones, and the texts by number."""
    distinct: dict[str, int] = {}
    return np.array([distinct.setdefault(text, len(distinct)) for text in texts]), list(distinct)


def _oddness(parts: tuple[int, ...]) -> float:
    """What a clause costs for how it is put."""
    backs = {code // (3 * _SPAN) for code in parts}
    exact = sum(code // _SPAN % 3 == 1 for code in parts)
    return EXACT * exact + BEHIND * len(set(range(max(backs) + 1)) - backs)


def _code(back: int, kind: int, numbers: Ids) -> Ids:
    return (back * 3 + kind) * _SPAN + np.asarray(numbers, np.int64)


def _support(cover: Any, examples: Ids) -> Ids:
    """[n] How many examples have a token that rows cover; a lone example speaks for as many as have to."""
    starts = np.flatnonzero(np.diff(examples, prepend=-1))
    found: Ids = np.add.reduceat(cover, starts, axis=1).astype(bool).sum(1)
    return found if len(starts) > 1 else found * LEAST
