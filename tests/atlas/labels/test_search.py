"""Features found by the words of their labels, whatever is typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlases import PLAN
from gemscope.atlas.dashboard import Explanation
from gemscope.atlas.reader import Atlas


def test_labels_are_found_by_their_words(planted: Atlas) -> None:
    assert planted.search("words like", limit=1000) == planted.search("LIKE, words!", limit=1000)
    assert {one.feature for one in planted.search("words like", limit=100)} == {
        feature for feature in range(40) if PLAN.label(feature) and feature
    }
    assert [one.feature for one in planted.search("scri")] == [0]
    assert planted.search("cript") == []  # not the beginning of a word
    assert planted.search("words", offset=3, limit=4) == planted.search("words", limit=7)[3:]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        '"',
        "'",
        '"""',
        "a AND",
        "NOT",
        "NEAR(a b)",
        "text:x",
        "(",
        "*",
        "^zz",
        "-",
        "a\0b",
        "\ud800",
        "{}+,",
        "%",
    ],
)
def test_any_text_can_be_searched_for(planted: Atlas, text: str) -> None:
    assert planted.search(text) == []
    assert planted.summaries(text=text) in ([], planted.summaries())


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.text(st.characters(codec=None), max_size=60))
def test_no_search_fails_whatever_is_typed(planted: Atlas, text: str) -> None:
    assert len(planted.search(text)) <= 50
    assert len(planted.tokens_like(text)) <= 20


def test_a_search_of_very_many_words_is_answered(planted: Atlas) -> None:
    assert planted.search("word " * 100_000) == []


def test_a_feature_with_several_fitting_explanations_is_found_once(copy: Path) -> None:
    with Atlas(copy) as atlas:
        for _ in range(3):
            atlas.explain(5, "zebra zebra")
        atlas.explain(5, "something else")
        atlas.explain(8, "a zebra among horses")
        found = atlas.search("zebra")
        assert [one.feature for one in found] == [8, 5]  # that whose label says so first
        assert found[1].label == "something else"


def test_features_whose_label_says_so_come_before_those_of_which_something_else_does(copy: Path) -> None:
    with Atlas(copy) as atlas:
        atlas.explain_all({2: Explanation(id=0, text="zebra", method="somebody", score=0.2)})
        atlas.explain_all({2: Explanation(id=0, text="an animal", method="somebody", score=0.9)})
        atlas.explain_all({7: Explanation(id=0, text="horses, donkeys and one zebra of many", method="somebody")})
        assert [(one.feature, one.label) for one in atlas.search("zebra")] == [
            (7, "horses, donkeys and one zebra of many"),
            (2, "an animal"),
        ]
        assert [one.feature for one in atlas.search("zebra", limit=1)] == [7]
