"""Rules become labels: of features that fire where a rule holds, those that say so; a person's word stays on top."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import gemscope as gs
from atlases import planted_atlas
from gemscope.atlas.labels.rules import METHOD, explain
from gemscope.atlas.verify import verify
from gemscope.cli.main import main
from gemscope.errors import InputError
from gemscope.features.rules import Rule, Vocabulary
from planted_rules import PLANTED, WORDS, planted_rules_atlas, planted_text


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    return planted_text()


@pytest.fixture
def atlas(tmp_path: Path) -> gs.Atlas:
    return planted_rules_atlas(tmp_path / "atlas")


def test_what_was_planted_is_what_labels_say(atlas: gs.Atlas, text: np.ndarray) -> None:
    told = explain(atlas)
    assert (told.features, told.sure) == (len(PLANTED) + 1, len(PLANTED))
    vocabulary = Vocabulary(WORDS)
    for feature, rule in enumerate(PLANTED):
        said = atlas[feature].explanations[0]
        assert said.method == METHOD
        assert said.made
        assert said.confidence is not None
        assert 0.5 < said.confidence <= 1
        there, says = (one.matches(text, vocabulary) for one in (Rule.parse(rule), Rule.parse(said.rule)))
        assert (says[there].mean() + (~says)[~there].mean()) / 2 > 0.95
    assert atlas[0].label == "“river”"
    assert atlas[1].label == "“sea” after “the”"
    assert atlas[len(PLANTED)].label is None or "(in part)" in str(atlas[len(PLANTED)].label)
    assert atlas[len(PLANTED) + 1].label is None
    assert verify(atlas.folder) == []


def test_again_it_says_the_same_and_each_once(atlas: gs.Atlas) -> None:
    explain(atlas)
    first = {
        feature: (one.text, one.rule, one.confidence, one.score, one.trials) for feature, one in atlas.explanations()
    }
    explain(atlas)
    again = atlas.explanations()
    assert {feature: (one.text, one.rule, one.confidence, one.score, one.trials) for feature, one in again} == first
    assert len(again) == len(first)


def test_a_rule_that_no_longer_holds_of_a_feature_goes(atlas: gs.Atlas) -> None:
    explain(atlas)
    before = {feature: one.text for feature, one in atlas.explanations()}
    atlas.explain(len(PLANTED) + 1, "of another day", method=METHOD)
    atlas.explain(len(PLANTED) + 1, "as somebody says", method="another")
    explain(atlas)
    assert {feature: one.text for feature, one in atlas.explanations()} == before | {
        len(PLANTED) + 1: "as somebody says"
    }
    assert verify(atlas.folder) == []


def test_a_persons_word_stays_on_top(atlas: gs.Atlas) -> None:
    mine = atlas.explain(0, "rivers, I think")
    explain(atlas, [0])
    assert atlas[0].label == "rivers, I think"
    assert [one.method for one in atlas[0].explanations] == ["user", METHOD]
    atlas.forget(0, mine.id)
    assert atlas[0].label == "“river”"
    assert [one.feature for one in atlas.search("river")] == [0]


def test_an_explainers_words_stand_below_a_rule_that_is_nearly_always_right_and_above_one_that_is_not(
    atlas: gs.Atlas,
) -> None:
    explain(atlas)
    for feature in range(len(PLANTED)):
        score = atlas[feature].explanations[0].score
        atlas.explain(feature, "as a model says", method="somebody's model")
        assert score is not None
        assert (atlas[feature].label == "as a model says") == (score <= 0.7)


def test_the_shell_says_how_many(atlas: gs.Atlas, capsys: pytest.CaptureFixture[str]) -> None:
    atlas.close()
    assert main(["explain", str(atlas.folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sure"] == len(PLANTED)
    assert main(["explain", str(atlas.folder), "0", "1"]) == 0
    assert "2 features: 2 have a rule" in capsys.readouterr().out
    assert main(["explain", str(atlas.folder), "99"]) == 1
    assert "no feature 99" in capsys.readouterr().err


def test_an_atlas_of_short_rows_is_refused_in_one_line(tmp_path: Path) -> None:
    with planted_atlas(tmp_path / "short", length=31) as short:
        with pytest.raises(InputError, match="rows of 31 tokens"):
            explain(short)
