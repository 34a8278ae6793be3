"""Rules become labels: of features that fire where a rule holds, those that say so; a person's word stays on top."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import gemscope as gs
from atlases import planted_atlas
from gemscope.atlas.entry import Entry
from gemscope.atlas.files.manifest import Manifest, Part
from gemscope.atlas.labels.rules import METHOD, explain
from gemscope.atlas.verify import verify
from gemscope.atlas.writer import Writer
from gemscope.cli.main import main
from gemscope.errors import InputError
from gemscope.features.examples import INTERVALS
from gemscope.features.rules import Rule, Vocabulary

WORDS = [" the", " of", " 12", " walking", " river", ",", " and", " sea", " cold"] + [f" q{n:o}z" for n in range(600)]
PLANTED = ('"river"', '"sea" after "the"', "<number>", '"cold" or <ending-ing>')
LENGTH, ROWS, SPAN = 64, 400, 15


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    chance = np.random.default_rng(3)
    rows = chance.integers(9, len(WORDS), (ROWS, LENGTH))
    often = np.where(chance.random(rows.shape) < 0.06, chance.integers(0, 9, rows.shape), rows)
    often[::3, 20], often[::3, 21] = 0, 7  # the sea
    return often


@pytest.fixture
def atlas(text: np.ndarray, tmp_path: Path) -> gs.Atlas:
    """Each feature fires at 1 to 8 wherever its rule holds; the last at random, and one never."""
    chance, vocabulary = np.random.default_rng(4), Vocabulary(WORDS)
    with Writer(tmp_path / "atlas") as writer:
        writer.add_rows(text)
        writer.add_document(0, "planted", "")
        writer.add_tokens({id_: word.encode() for id_, word in enumerate(WORDS)}, special=[])
        for feature in range(len(PLANTED) + 2):
            holds = chance.random(text.shape) < 0.01
            if feature < len(PLANTED):
                holds = Rule.parse(PLANTED[feature]).matches(text, vocabulary)
            if feature == len(PLANTED) + 1:
                holds[:] = False
            holds[:, :SPAN] = holds[:, -SPAN:] = False
            values = np.where(holds, chance.uniform(1, 8, text.shape), 0).astype(np.float32)
            at = np.flatnonzero(holds.any(1))[:24]
            peaks = values[at].argmax(1)
            order = np.argsort(-values[at, peaks])
            at, peaks = at[order], peaks[order]
            owners, columns = np.nonzero(values[at])
            near = abs(columns - peaks[owners]) <= SPAN
            owners, columns = owners[near], columns[near]
            drawn = np.where(np.arange(len(at)) < 12, -1, (values[at, peaks] / 8 * INTERVALS).astype(int).clip(0, 7))
            writer.add(
                Entry(
                    index=feature, count=int(holds.sum()), max=float(values.max()), mean=1.0,
                    edges=np.arange(INTERVALS + 1, dtype=np.float32), interval_counts=np.bincount(values[holds].astype(int), minlength=INTERVALS),
                    positions=at * LENGTH + peaks, intervals=drawn,
                    owners=owners, columns=columns, values=values[at][owners, columns],
                )
            )  # fmt: skip
        part = Part(name="planted", digest="0" * 64, rows=ROWS, documents=1, counted=ROWS * LENGTH, masked={})
        return writer.finish(
            Manifest(
                model="planted", model_id="planted", source_id="planted", revision=None, sae="planted",
                sae_digest="1" * 64, site="1.res", site_out="1.res", gate="relu", d_sae=len(PLANTED) + 2, parts=(part,),
                length=LENGTH, before=SPAN, after=SPAN, bos=False, logits=None, no_logits=None, coactivation="none",
                options={}, versions={},
            )
        )  # fmt: skip


def test_what_was_planted_is_what_labels_say(atlas: gs.Atlas, text: np.ndarray) -> None:
    told = explain(atlas)
    assert (told.features, told.sure) == (len(PLANTED) + 1, len(PLANTED))
    vocabulary = Vocabulary(WORDS)
    for feature, rule in enumerate(PLANTED):
        said = atlas[feature].explanations[0]
        assert said.method == METHOD
        assert said.made
        assert said.score is not None
        assert 0.5 < said.score <= 1
        there, says = (one.matches(text, vocabulary) for one in (Rule.parse(rule), Rule.parse(said.rule)))
        assert (says[there].mean() + (~says)[~there].mean()) / 2 > 0.95
    assert atlas[0].label == "“river”"
    assert atlas[1].label == "“sea” after “the”"
    assert atlas[len(PLANTED)].label is None or "(in part)" in str(atlas[len(PLANTED)].label)
    assert atlas[len(PLANTED) + 1].label is None
    assert verify(atlas.folder) == []


def test_again_it_says_the_same_and_each_once(atlas: gs.Atlas) -> None:
    explain(atlas)
    first = {feature: (one.text, one.rule, one.score) for feature, one in atlas.explanations()}
    explain(atlas)
    again = atlas.explanations()
    assert {feature: (one.text, one.rule, one.score) for feature, one in again} == first
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
