"""Rules hold where a slow and literal reading says they hold, are read as they are written, and are found where planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemscope.errors import InputError
from gemscope.features.rule_learning import Evidence, Learner
from gemscope.features.rules import Part, Rule, Vocabulary
from gemscope.text.lexicon import classes, folded

TEXTS = [" the", " The", "the", " of", " 12", "7", " walking", " walked", "ing", "\n", " ", '"', " \\", " Mr", ".", ""]
VOCABULARY = Vocabulary(TEXTS)
NAMES = ("number", "capitalised", "article", "ending-ing", "line-break", "word")
PARTS = st.one_of(
    st.tuples(st.just("word"), st.sampled_from(TEXTS).map(folded)),
    st.tuples(st.just("token"), st.sampled_from(TEXTS)),
    st.tuples(st.just("class"), st.sampled_from(NAMES)),
)
RULES = st.lists(
    st.lists(st.tuples(st.integers(0, 2), PARTS), min_size=1, max_size=3, unique=True), min_size=1, max_size=4
)
"""Clauses of parts, each as (back, (kind, value))."""


def made(clauses: list[list[tuple[int, tuple[str, str]]]]) -> Rule:
    return Rule(tuple(tuple(Part(back, *one) for back, one in sorted(parts)) for parts in clauses))  # type: ignore[arg-type]


def literally(rule: Rule, row: list[int]) -> list[bool]:
    """A token at a time, by what the texts say."""

    def is_so(part: Part, place: int) -> bool:
        if place - part.back < 0 or row[place - part.back] < 0:
            return False
        text = TEXTS[row[place - part.back]]
        if part.kind == "class":
            return classes()[part.value].test(text)
        return (folded(text) if part.kind == "word" else text) == part.value

    return [
        row[place] >= 0 and any(all(is_so(part, place) for part in clause) for clause in rule.clauses)
        for place in range(len(row))
    ]


@given(RULES, st.lists(st.lists(st.integers(-1, len(TEXTS) - 1), min_size=6, max_size=6), min_size=1, max_size=4))
@settings(deadline=None)
def test_a_rule_holds_where_a_literal_reading_says(clauses: Any, rows: list[list[int]]) -> None:
    rule = made(clauses)
    assert rule.matches(np.array(rows), VOCABULARY).tolist() == [literally(rule, row) for row in rows]


@given(RULES)
@settings(deadline=None)
def test_a_rule_that_was_written_is_read_again(clauses: Any) -> None:
    rule = made(clauses)
    again = Rule.parse(str(rule))
    assert str(again) == str(rule)
    assert set(map(frozenset, again.clauses)) == set(map(frozenset, rule.clauses))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"of" after <number>', "“of” after a number"),
        ('"of" or "in" or <ending-tion>', "“of”, “in” or words ending in -tion"),
        ('any after "the" after <be>', "any token after “the” after a form of to be"),
        (
            '<capitalised> and <ending-ing> or "a" after "b"',
            "a capitalised word and words ending in -ing; “a” after “b”",
        ),
        ('=" The"', "“·The” exactly"),
        ('"THE "', "“the”"),
        ('"safe" or <word> after "safe" or "un" or any after "un"', "“safe” or “un”, and what follows"),
        ('"\\\\xe2\\\\x94" or "x"', "the first 2 bytes of “─” or “x”"),
        ('"x" after ="\\\\x82"', "“x” after bytes within a character (82)"),
        ('"safe" or <word> after "sound"', "“safe”; a word after “sound”"),
    ],
)
def test_a_rule_is_said_as_a_person_would(text: str, words: str) -> None:
    assert Rule.parse(text).words() == words


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", 'expected "a word"'),
        ("of", 'expected "a word"'),
        ('"of', 'expected "a word"'),
        ('"of" "in"', "expected “or”, “and”, “after” or the end"),
        ("any", "holds everywhere"),
        ("any after any", "holds everywhere"),
        ("<nonsense>", "no class <nonsense>"),
        ('"\\x"', "as JSON writes it"),
        (" or ".join(['"a"'] * 17), "17 clauses"),
        ('"a" after "b" after "c" after "d"', "the end"),
        ("\x00\x1b<", 'expected "a word"'),
    ],
)
def test_what_is_no_rule_is_one_line(text: str, told: str) -> None:
    with pytest.raises(InputError) as found:
        Rule.parse(text)
    assert told in str(found.value)
    assert "\n" not in str(found.value)


# --- learnt ---------------------------------------------------------------------------------------------------------


def planted(rule: Rule, *, noise: float = 0.0, seed: int = 0) -> tuple[Learner, Evidence, np.ndarray, np.ndarray]:
    """Random text, and a feature that fires where a rule holds, and elsewhere at random."""
    chance = np.random.default_rng(seed)
    texts = [f" {'bcdfgh'[i % 6]}{'aeiou'[i % 5]}{'klmnp'[i % 7 % 5]}{i:o}x" for i in range(600)] + TEXTS[:15] * 2
    vocabulary = Vocabulary(texts)
    rows = chance.integers(0, len(texts), (2000, 32))
    frequent = chance.integers(600, len(texts), rows.shape)  # so that pairs of them stand beside each other too
    rows = np.where(chance.random(rows.shape) < 0.1, frequent, rows)
    holds = rule.matches(rows, vocabulary)
    fires = holds | (chance.random(rows.shape) < noise)
    there = np.flatnonzero(fires[:1000].any(1))[:24]
    weights = fires[there] / max(1, fires[there].sum())
    return Learner(vocabulary, rows[1000:1500]), Evidence(rows[there], weights), rows[1500:], holds[1500:]


@pytest.mark.parametrize(
    "text",
    ['"of"', "<number>", '"of" or <ending-ing>', '"the" after <number>', 'any after "of"', '"the" after "of" or ". "'],
)
def test_a_planted_rule_is_found_again(text: str) -> None:
    rule = Rule.parse(text)
    learner, evidence, rows, fires = planted(rule, noise=0.002)
    found = learner.learn(evidence)
    assert found is not None
    says = found.rule.matches(rows, learner.vocabulary)
    assert (says[fires].mean() + (~says)[~fires].mean()) / 2 > 0.95
    assert found.confidence == pytest.approx(found.recall - found.match_rate)
    assert found == learner.learn(evidence)


def test_recall_and_match_rate_are_what_they_say() -> None:
    learner, evidence, background, _ = planted(Rule.parse('"of" or <number>'), noise=0.01)
    learner = Learner(learner.vocabulary, background)
    found = learner.learn(evidence)
    assert found is not None
    # Slowly: a token counts where a clause names it that two other examples would have taught.
    recalled = 0.0
    for example, column in zip(*np.nonzero(evidence.weights), strict=True):
        for clause in found.rule.clauses:
            says = Rule((clause,)).matches(evidence.ids, learner.vocabulary) & (evidence.weights > 0)
            if says[example, column] and says.any(1).sum() - says[example].any() >= 2:
                recalled += evidence.weights[example, column]
                break
    assert found.recall == pytest.approx(recalled / evidence.weights.sum())
    assert found.recall < 1
    assert found.match_rate == pytest.approx(found.rule.matches(background, learner.vocabulary).any(1).mean())


def test_what_fires_at_random_teaches_nothing_that_goes_far() -> None:
    learner, evidence, *_ = planted(Rule.parse('"nowhere"'), noise=0.03)
    found = learner.learn(evidence)
    assert found is None or found.confidence < 0.3


def test_nothing_that_fires_teaches_nothing() -> None:
    learner, evidence, *_ = planted(Rule.parse('"of"'))
    assert learner.learn(Evidence(evidence.ids, np.zeros(evidence.ids.shape))) is None
