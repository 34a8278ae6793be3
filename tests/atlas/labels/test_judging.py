"""A reader who knows what the words mean finds the windows where they apply; what it does not answer counts as wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import gemscope as gs
from answering import Question, Said, answering, completion, good
from atlases import planted_atlas, settled
from gemscope.atlas.dashboard import Explanation
from gemscope.atlas.labels import endpoint, judging
from gemscope.atlas.labels.asking import estimate, explain_with
from gemscope.atlas.labels.journal import journal_of
from gemscope.atlas.labels.judging import judge_words
from gemscope.atlas.labels.scoring import Ground
from gemscope.atlas.labels.trial import Trial
from gemscope.cli.main import main
from gemscope.errors import AccessError, InputError
from planted_rules import planted_rules_atlas

SAID = {0: "waters that flow", 1: "the great water", 2: "what is counted"}
TRUTH = {"waters that flow": r" river\b", "the great water": r" the sea\b", "what is counted": r" 12\b"}


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_BACKOFF", 0.001)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "atlas"
    planted_rules_atlas(folder).close()
    return folder


@pytest.fixture
def atlas(made: Path, tmp_path: Path) -> gs.Atlas:
    shutil.copytree(made, tmp_path / "atlas")
    atlas = gs.Atlas(tmp_path / "atlas")
    atlas.explain_all({one: Explanation(id=0, text=text, method="asked", model="m") for one, text in SAID.items()})
    return atlas


def pieces(asked: Question) -> list[str]:
    found = re.findall(r"^\d+\. (.*)$", asked.text, re.MULTILINE)
    assert f"Below are {len(found)} pieces" in asked.text
    return found


def knowing(asked: Question) -> Said:
    (words,) = re.findall(r"fires on: (.*)$", asked.text, re.MULTILINE)
    return completion(f"Well: {json.dumps([int(bool(re.search(TRUTH[words], one))) for one in pieces(asked)])}.")


def judged(
    atlas: gs.Atlas, script: Callable[[Question], Said], **options: object
) -> tuple[judging.Judgement, list[Question]]:
    chosen = options.pop("features", None)
    with answering(script) as server, journal_of(atlas.folder, atlas.manifest) as journal:
        told = judge_words(atlas, gs.Endpoint(server.url, "m"), chosen, journal, **options)  # type: ignore[arg-type]
    return told, server.asked


def trial_of(atlas: gs.Atlas, feature: int) -> Trial:
    (one,) = [one for one in atlas[feature].explanations if one.method == "asked"]
    (trial,) = one.trials
    assert trial.text == "text held out, judged by m"
    return trial


def test_who_knows_what_the_words_mean_is_right_and_about_other_words_it_is_as_chance(atlas: gs.Atlas) -> None:
    told, asked = judged(atlas, knowing)
    assert (told.labels, told.unanswered, told.tokens) == (3, 0, (100 * 6, 10 * 6))
    for feature in SAID:
        trial = trial_of(atlas, feature)
        accuracy, control = trial.accuracy("firing"), trial.control("firing")
        assert accuracy is not None
        assert control is not None
        assert accuracy.value == 1
        assert control == pytest.approx(0.5, abs=0.2)
        said = atlas[feature].explanations[0]
        assert (said.score, said.control) == (1, trial.control())  # they have no rule
        assert 5 <= trial.firing <= 8
        assert trial.silent == trial.silent_hits + trial.silent
    assert len(asked) == len({one.text for one in asked}) == 6
    assert "judged by m" in str(told)


def test_half_of_the_windows_are_silent_and_none_is_marked(atlas: gs.Atlas) -> None:
    _, asked = judged(atlas, knowing)
    for question in asked:
        shown = pieces(question)
        assert len(set(shown)) == len(shown)
        assert len(shown) <= 4 * judging.EACH
        firing = [
            feature
            for feature, pattern in enumerate(TRUTH.values())
            if sum(bool(re.search(pattern, one)) for one in shown) >= len(shown) / 2
        ]
        assert firing
        order = [bool(re.search(list(TRUTH.values())[firing[0]], one)) for one in shown]
        assert order != sorted(order)
        assert order != sorted(order, reverse=True)


def test_windows_are_shuffled_the_same_each_time(atlas: gs.Atlas) -> None:
    for feature in SAID:
        shown, again = (judging._shown(Ground(atlas, atlas.pool), feature) for _ in range(2))
        assert shown.at.tolist() == again.at.tolist() != sorted(shown.at.tolist())


def test_of_a_feature_that_fires_too_seldom_nothing_is_asked(atlas: gs.Atlas) -> None:
    atlas.explain(5, "what never is")
    told, asked = judged(atlas, lambda asked: completion("?"), features=[5])
    assert (told.labels, told.windows, asked) == (0, 0, [])


def test_what_judging_would_take_is_told_before(atlas: gs.Atlas) -> None:
    by = gs.Endpoint("http://localhost:1/v1", "m", rate=60)
    plain, more = (estimate(atlas, by, [3, 4], score=score) for score in (False, True))
    assert (plain.minutes, more.minutes) == (2 / 60, 6 / 60)
    read, written = (b - a for a, b in zip(plain.tokens, more.tokens, strict=True))
    assert read == 2 * 2 * 32 * (32 + 8)
    assert written == 2 * 2 * 32 * 2
    assert "judging included" in str(more)


@pytest.mark.parametrize(
    ("answer", "hits", "alarms"),
    [
        (lambda n: json.dumps([1] * n), 1, 1),
        (lambda n: json.dumps([0] * n), 0, 0),
        (lambda n: json.dumps([1] * (n - 1)), 0, 1),
        (lambda n: json.dumps([1] * n) + json.dumps([0] * n), 0, 1),
        (lambda n: "They all do.", 0, 1),
        (lambda n: "[]", 0, 1),
        (lambda n: json.dumps([2] * n), 0, 1),
    ],
)
def test_what_is_no_answer_counts_as_wrong(
    atlas: gs.Atlas, answer: Callable[[int], str], hits: int, alarms: int
) -> None:
    told, asked = judged(atlas, lambda asked: completion(answer(len(pieces(asked)))))
    for feature in SAID:
        trial = trial_of(atlas, feature)
        assert (trial.firing_hits, trial.silent_hits) == (hits * trial.firing, alarms * trial.silent)
        assert (trial.firing_control, trial.silent_control) == (trial.firing_hits, trial.silent_hits)
    assert told.windows == sum(len(pieces(one)) for one in asked)
    assert told.unanswered == (told.windows if hits != alarms else 0)


def test_nothing_is_asked_twice_and_where_no_answer_came_once_more_if_wanted(atlas: gs.Atlas) -> None:
    assert len(judged(atlas, lambda asked: completion("?") if "great" in asked.text else knowing(asked))[1]) == 6
    before = {feature: trial_of(atlas, feature) for feature in SAID}
    told, asked = judged(atlas, knowing)
    assert not asked
    assert told.unanswered
    assert {feature: trial_of(atlas, feature) for feature in SAID} == before
    told, asked = judged(atlas, knowing, again=True)
    assert {"great" in one.text for one in asked} == {True}
    assert not told.unanswered
    assert trial_of(atlas, 1).firing_hits == trial_of(atlas, 1).firing


def test_a_run_that_ends_early_goes_on(atlas: gs.Atlas) -> None:
    seen: Counter[str] = Counter()

    def refusing(asked: Question) -> Said:
        seen[asked.text] += 1
        return Said(b"", 401) if len(seen) > 3 else knowing(asked)

    with answering(refusing) as server, journal_of(atlas.folder, atlas.manifest) as journal, pytest.raises(AccessError):
        judge_words(atlas, gs.Endpoint(server.url, "m", at_once=1), None, journal)
    assert len(judged(atlas, knowing)[1]) == 3
    assert trial_of(atlas, 2).firing_hits == trial_of(atlas, 2).firing


def test_a_run_that_ends_when_all_is_scored_leaves_what_an_undisturbed_one_does(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(journal: object) -> None:
        raise Killed

    def script(asked: Question) -> Said:
        if "pieces of text" in asked.text:
            return completion(json.dumps([1, 0] * (len(pieces(asked)) // 2)))
        return good("waters that flow", '"river"' if "feature 0 ·" in asked.text else "")

    left = []
    for name in ("whole", "killed"):
        shutil.copytree(made, tmp_path / name)
        with answering(script) as server, gs.Atlas(tmp_path / name) as atlas:
            by = gs.Endpoint(server.url, "m")
            if name == "killed":
                with monkeypatch.context() as patched:
                    patched.setattr("gemscope.atlas.labels.journal.Journal.end", killed)
                    with pytest.raises(Killed):
                        explain_with(atlas, by, score=True)
                asked = len(server.asked)
            told = explain_with(atlas, by, score=True)
            assert told.scored
            assert told.judged is not None
        left.append(settled(tmp_path / name))
    assert len(server.asked) == asked
    assert left[0] == left[1]


def test_rules_are_left_to_be_run(atlas: gs.Atlas) -> None:
    atlas.explain_all({0: Explanation(id=0, text="“river”", method="rule", rule='"river"')})
    _, asked = judged(atlas, knowing, features=[0])
    assert len(asked) == 2
    assert not any("“river”" in one.text for one in asked)


def test_an_atlas_that_holds_nothing_out_cannot_have_words_judged(tmp_path: Path) -> None:
    with planted_atlas(tmp_path / "planted") as atlas:
        with pytest.raises(InputError, match="holds no rows out to judge words on"):
            explain_with(atlas, gs.Endpoint("http://localhost:1/v1", "m"), score=True)


def test_the_shell_asks_scores_and_has_the_words_judged(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made, tmp_path / "atlas")
    truth = {0: ("waters that flow", '"river"'), 1: ("the great water", ""), 2: ("what is counted", '"cold"')}

    def script(asked: Question) -> Said:
        if "pieces of text" in asked.text:
            return knowing(asked)
        (feature,) = re.findall(r"^feature (\d+) ·", asked.text, re.MULTILINE)
        return good(*truth[int(feature)])

    with answering(script) as server:
        command = ["explain", str(tmp_path / "atlas"), "0", "1", "2", "--endpoint", server.url, "--model", "m"]
        assert main([*command, "--score", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["words"] == 3
        assert {one["features"] for one in told["scored"]} == {1}  # that with a rule of its own
        assert told["judged"]["labels"] == 3
        assert main([*command, "--score", "--dry-run"]) == 0
        assert "0 features to be asked of m, 3 were asked before" in capsys.readouterr().out
    with gs.Atlas(tmp_path / "atlas") as atlas:
        by_rule, unruled, wrong = (atlas[feature].explanations[0] for feature in range(3))
        assert by_rule.score == 1
        assert unruled.score == 1
        assert (wrong.score, wrong.rule) == (1, "")  # the rule was none of this feature, though the words are right
        assert {trial.text for trial in by_rule.trials} == {"", "text held out, judged by m"}
        assert {trial.text for trial in wrong.trials} == {"text held out, judged by m"}
