"""Labels put to the test on rows that gave no examples, beside other features' labels."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import gemscope as gs
from atlases import planted_atlas
from gemscope.atlas.dashboard import Explanation
from gemscope.atlas.labels.rules import explain
from gemscope.atlas.labels.scoring import RESERVED, _value, score_labels, standings
from gemscope.atlas.labels.trial import COUNTS, Trial
from gemscope.atlas.verify import verify
from gemscope.errors import InputError
from gemscope.features.intervals import balanced_accuracy
from gemscope.features.rules import Rule, Vocabulary
from planted_rules import LENGTH, PLANTED, WORDS, planted_rules_atlas


@pytest.fixture
def atlas(tmp_path: Path) -> gs.Atlas:
    return planted_rules_atlas(tmp_path / "atlas")


def test_a_planted_rule_is_recovered_and_is_right_where_nobody_looked(atlas: gs.Atlas) -> None:
    explain(atlas)
    accuracies, controls = [], []
    for feature in range(len(PLANTED)):
        said = atlas[feature].explanations[0]
        assert said.score is not None
        assert said.control is not None
        assert said.score > 0.95
        trial = said.trials[0]
        assert trial.text == ""
        accuracy = trial.accuracy("firing")
        assert accuracy is not None
        accuracies.append(accuracy.value)
        controls += [trial.control("firing") or 0.0, trial.control("strong") or 0.0]
        assert accuracy.low <= accuracy.value <= accuracy.high
        assert trial.recall("firing") == trial.recall() == trial.precision == 1
    assert min(accuracies) > 0.95
    assert np.median(controls) == pytest.approx(0.5, abs=0.08)
    assert verify(atlas.folder) == []


def test_counts_are_those_of_a_slow_look_at_each_window(atlas: gs.Atlas) -> None:
    rule = Rule.parse('"river" or "sea"')
    atlas.explain_all({0: Explanation(id=0, text="water", method="somebody", rule=str(rule))})
    score_labels(atlas)
    trial = atlas[0].explanations[0].trials[0]
    holds = rule.matches(atlas.pool.ids, Vocabulary(WORDS))
    values = np.zeros(atlas.pool.ids.shape)
    places, coded = atlas.pool.firings(0)
    values.reshape(-1)[places] = coded
    # Codes are eighths of a power of two: eight below the largest is its half.
    largest = _code(atlas.entry(0).max)
    counts = dict.fromkeys(("strong", "strong_hits", "firing", "firing_hits", "silent", "silent_hits"), 0)
    for row in range(len(atlas.pool)):
        for start in range(0, LENGTH, 32):
            some = slice(start, start + 32)
            if not atlas.pool.counted[row, some].any():
                continue
            inside, says = values[row, some], holds[row, some].any()
            fires, strong = inside.any(), (inside >= largest - 8).any()
            counts["strong"] += strong
            counts["strong_hits"] += strong and says
            counts["firing"] += fires
            counts["firing_hits"] += fires and says
            counts["silent"] += not fires
            counts["silent_hits"] += not fires and says
    assert {name: getattr(trial, name) for name in counts} == counts
    assert trial.named == int((holds & atlas.pool.counted).sum())
    assert trial.firing_named == int((holds & (values > 0)).sum())
    assert trial.firing_tokens == int((values > 0).sum())
    strong = trial.strong_hits / trial.strong
    expected = (strong + 1 - trial.silent_hits / trial.silent) / 2
    assert atlas[0].explanations[0].score == pytest.approx(expected)


def _code(value: float) -> int:
    """⌊8 · log2⌋ with straight lines between powers of two, as float32 has them in its bits."""
    mantissa, exponent = math.frexp(value)
    return (exponent + 126) * 8 + int((mantissa * 2 - 1) * 8)


def test_a_window_that_repeats_an_examples_text_is_no_test(atlas: gs.Atlas, tmp_path: Path) -> None:
    """The copy's first example is the text of a row that is held out."""
    atlas.explain_all({0: Explanation(id=0, text="water", method="somebody", rule='"river"')})
    score_labels(atlas)
    before = atlas[0].explanations[0].trials[0]
    with planted_rules_atlas(tmp_path / "again", repeats=True) as again:
        again.explain_all({0: Explanation(id=0, text="water", method="somebody", rule='"river"')})
        score_labels(again)
        after = again[0].explanations[0].trials[0]
        assert np.array_equal(again.pool.ids, atlas.pool.ids)
    assert after.firing == before.firing - 1


def test_another_features_label_is_chance_and_words_without_a_rule_stay_unscored(atlas: gs.Atlas) -> None:
    atlas.explain_all(
        {feature: Explanation(id=0, text="borrowed", method="m", rule=PLANTED[feature - 1]) for feature in range(4)}
    )
    atlas.explain(1, "words alone", method="n")
    told = score_labels(atlas)
    assert (told.labels, told.unscored) == (4, 1)
    for feature in range(4):
        borrowed = next(one for one in atlas[feature].explanations if one.method == "m")
        assert borrowed.score is not None
        assert abs(borrowed.score - 0.5) < 0.2
    alone = next(one for one in atlas[1].explanations if one.method == "n")
    assert (alone.score, alone.control, alone.trials) == (None, None, ())
    assert atlas.labels([1]) == {1: "words alone"}  # rather than a rule that is known to be no better than chance


def test_the_best_label_shows_once_they_are_scored(atlas: gs.Atlas) -> None:
    atlas.explain_all({0: Explanation(id=0, text="right", method="a", rule=PLANTED[0])})
    atlas.explain_all({0: Explanation(id=0, text="wrong", method="b", rule='"cold"')})
    assert atlas.labels([0]) == {0: "wrong"}
    score_labels(atlas)
    assert atlas.labels([0]) == {0: "right"}
    assert verify(atlas.folder) == []


def test_a_second_text_gives_figures_of_its_own_and_no_score(atlas: gs.Atlas) -> None:
    explain(atlas)
    score = atlas[0].explanations[0].score
    other = replace(atlas.pool, counted=atlas.pool.counted & (np.arange(LENGTH) >= 32))
    told = score_labels(atlas, on=other, text="another book")
    said = atlas[0].explanations[0]
    assert said.score == score
    assert [trial.text for trial in said.trials] == ["", "another book"]
    assert said.trials[1].silent < said.trials[0].silent
    assert "another book" in str(told)
    with pytest.raises(InputError, match="need its name"):
        score_labels(atlas, on=other)
    score_labels(atlas, on=other, text="another book")
    assert len(atlas[0].explanations[0].trials) == 2


def test_what_was_tried_goes_with_what_was_said(atlas: gs.Atlas) -> None:
    explain(atlas)
    said = atlas[0].explanations[0]
    atlas.forget(0, said.id)
    assert verify(atlas.folder) == []
    with atlas._database.reading() as db:
        assert db.execute("SELECT count(*) FROM trial WHERE explanation = ?", (said.id,)).fetchone() == (0,)


def test_an_atlas_that_holds_nothing_out_says_so(tmp_path: Path) -> None:
    with planted_atlas(tmp_path / "old") as old:
        with pytest.raises(InputError, match=r"holds no rows out .*describe it anew"):
            score_labels(old)


def test_it_says_what_it_counted(atlas: gs.Atlas) -> None:
    explain(atlas)
    told = score_labels(atlas)
    strong = next(one for one in told.standings if one.on == "strong")
    assert told.nameless == len(atlas) - len(atlas.explanations()) == 2
    counted = {one.labels: (one.features, one.good) for one in told.standings if one.on == "firing"}
    assert counted["with a label"] == (4, 1.0)
    assert counted["every feature"] == (5, pytest.approx(0.8))  # one without a label, as chance, and one that is silent
    scores = [atlas[feature].explanations[0].score for feature in range(len(PLANTED))]
    assert strong.features >= len(PLANTED)
    assert strong.median <= max(score for score in scores if score is not None)
    assert "shuffled 0." in str(told)
    assert "on text held out: " in str(atlas[0].explanations[0].trials[0])
    found = atlas[0].to_dict()["explanations"][0]
    assert found["trials"][0]["strong"]["balanced_accuracy"] == found["score"]


def test_the_interval_of_a_balanced_accuracy_holds_the_truth_as_often_as_it_says() -> None:
    chance = np.random.default_rng(0)
    for p, q, n, m in ((0.9, 0.95, 20, 300), (0.5, 0.5, 10, 100), (0.99, 0.8, 40, 40)):
        inside = 0
        for _ in range(2000):
            found = balanced_accuracy(int(chance.binomial(n, p)), n, int(chance.binomial(m, q)), m)
            assert 0 <= found.low <= found.value <= found.high <= 1
            inside += found.low <= (p + q) / 2 <= found.high
        assert 0.93 <= inside / 2000 <= 0.985


def test_too_few_windows_tell_nothing() -> None:
    counts = {name: 4 for name in Trial.__dataclass_fields__ if name != "text"}
    trial = Trial(**counts)  # type: ignore[arg-type]
    assert trial.accuracy() is None
    assert trial.control() is None
    assert "too seldom" in str(trial)


@pytest.mark.parametrize("format", ["neuronpedia", "anthropic"])
def test_who_said_it_with_which_rule_and_score_goes_out_and_comes_in_again(
    atlas: gs.Atlas, tmp_path: Path, format: str
) -> None:
    explain(atlas)
    atlas.explain_all(
        {0: Explanation(id=0, text="rivers", method="asked", model="some/model", rule='"river"', made="2026-05-31")}
    )
    score_labels(atlas, [0])
    out = gs.export(atlas, tmp_path / "out", format=format)
    with gs.import_atlas(format, out, tmp_path / "back") as back:
        for feature in range(len(PLANTED)):
            mine, theirs = (
                [replace(one, id=0, trials=()) for one in some[feature].explanations] for some in (atlas, back)
            )
            assert [one.method for one in mine].count("rule") == 1
            assert all(one.control is not None and one.score is not None for one in mine)
            assert sorted(theirs, key=str) == sorted(mine, key=str)
            assert back[feature].label == atlas[feature].label


def test_a_feature_stands_by_the_better_of_its_labels_whichever_came_first(atlas: gs.Atlas) -> None:
    for feature, order in ((0, 1), (1, -1)):
        for text, rule in [("right", PLANTED[feature]), ("wrong", '"cold"')][::order]:
            atlas.explain_all({feature: Explanation(id=0, text=text, method=text, rule=rule)})
    told = score_labels(atlas, [0, 1])
    assert told.labels == 4
    found = [one for one in told.standings if one.labels == "with a label"]
    assert found
    assert all((one.features, one.good) == (2, 1.0) for one in found)
    assert not [one for one in told.standings if one.labels == "by wrong"]


def test_of_two_labels_the_better_stands_by_where_it_fires_at_all_where_strong_windows_are_too_few() -> None:
    nothing = dict.fromkeys(COUNTS, 0)

    def tried(**counts: int) -> float:
        return _value(Trial(**{**nothing, "silent": 10, **counts}))

    assert tried(strong=10, strong_hits=9, firing=20, firing_hits=2, silent_hits=3) == pytest.approx((0.9 + 0.7) / 2)
    assert tried(strong=4, strong_hits=4, firing=20, firing_hits=5, silent_hits=1) == pytest.approx((0.25 + 0.9) / 2)
    assert tried(strong=4, firing=4, firing_hits=4) == 0.5  # nothing is known of it: as chance
    # One that is always wrong is no unknown one.
    assert tried(strong=10, firing=10, firing_hits=10, silent_hits=10) == 0.0


def test_labels_stand_by_kind_and_by_method_where_there_are_several() -> None:
    def said(hits: int, method: str = "", text: str = "it") -> tuple[Explanation | None, Trial]:
        counts = dict.fromkeys(COUNTS, 0) | {"strong": 10, "strong_hits": hits, "silent": 10}
        return Explanation(id=0, text=text, method=method) if method else None, Trial(**counts)

    every = [said(10, "a"), said(8, "a", f"it{RESERVED[0]}"), said(2, "b"), said(0)]
    found = {one.labels: (one.features, one.median, one.good) for one in standings(every) if one.on == "strong"}
    assert found == {
        "every feature": (4, pytest.approx(0.75), 0.5),
        "with a label": (3, pytest.approx(0.9), pytest.approx(2 / 3)),
        "without reserve": (2, pytest.approx(0.8), 0.5),
        "by a": (2, pytest.approx(0.95), 1.0),
        "by b": (1, pytest.approx(0.6), 0.0),
    }
    assert not [one for one in standings(every[:2]) if one.labels.startswith("by")]
