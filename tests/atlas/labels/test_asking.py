"""Asking what features stand for: what comes of each answer, that nothing is asked twice, and that a run which is
killed anywhere goes on to the same labels.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import gemscope as gs
from answering import Question, Said, Server, answering, completion, good, nobody, plain
from atlases import planted_atlas, powerless, settled
from gemscope.atlas.files.manifest import read_manifest
from gemscope.atlas.labels import asking, endpoint
from gemscope.atlas.labels.answers import object_in
from gemscope.atlas.labels.asking import Answered, estimate, explain_with, question
from gemscope.atlas.labels.here import Here
from gemscope.atlas.labels.journal import journal_of, path_of, read_journal
from gemscope.atlas.labels.questions import GIVE_UP, Failure, Reply
from gemscope.atlas.labels.rules import LEAST, SURE
from gemscope.atlas.labels.wanting import wanting
from gemscope.atlas.verify import verify
from gemscope.cli.main import main
from gemscope.errors import AccessError, CorruptFile, InputError, Mismatch, NotFound, StorageFull
from gemscope.testing import tiny_model
from planted_rules import planted_rules_atlas

KEY = "sk-nobody-may-see-this"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_BACKOFF", 0.001)
    monkeypatch.setattr(asking, "BATCH", 8)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "atlas"
    planted_atlas(folder, labelled=0).close()
    return folder


@pytest.fixture
def atlas(made: Path, tmp_path: Path) -> gs.Atlas:
    shutil.copytree(made, tmp_path / "atlas")
    return gs.Atlas(tmp_path / "atlas")


def feature_of(asked: Question) -> int:
    found = re.findall(r"^feature (\d+) ·", asked.text, re.MULTILINE)
    assert len(found) == 1
    return int(found[0])


def script(asked: Question) -> Said:
    """Of features by number: rubbish for some, an honest "unclear" for some, a rule that is none for some."""
    feature = feature_of(asked)
    match feature % 10:
        case 3:
            return completion("I would say that it is about rivers.")
        case 4:
            return good("unclear")
        case 5:
            return good(f"words of {feature}", '"of" after')
    return good(f"words of {feature}", f'"w{feature}"')


def explained(server: Server, atlas: gs.Atlas, **options: object) -> Answered:
    chosen = options.pop("features", None)
    return explain_with(atlas, gs.Endpoint(server.url, "m"), chosen, **options)  # type: ignore[arg-type]


def said(atlas: gs.Atlas) -> dict[int, tuple[str, str, str, str, float | None]]:
    return {feature: (one.method, one.model, one.text, one.rule, one.score) for feature, one in atlas.explanations()}


def test_answers_become_labels_and_nothing_else_does(atlas: gs.Atlas) -> None:
    wanted = wanting(atlas)
    with answering(script) as server:
        told = explained(server, atlas)
    assert said(atlas) == {
        one: ("asked", "m", f"words of {one}", "", None)  # what the rules name stands nowhere in the examples
        for one in wanted
        if one % 10 not in (3, 4)
    }
    assert all(one.made and not one.author for _, one in atlas.explanations())
    failed, unclear, dropped = ([one for one in wanted if one % 10 == rest] for rest in (3, 4, 5))
    assert (told.features, told.words, told.unclear, told.dropped, told.before) == (
        len(wanted), len(wanted) - len(failed) - len(unclear), len(unclear), len(dropped), 0,
    )  # fmt: skip
    assert told.rules == told.words - told.dropped
    assert told.failed == dict.fromkeys(
        sorted(failed, key=wanted.index), "no JSON with words in it: I would say that it is about rivers."
    )
    assert told.tokens == (100 * len(wanted), 10 * len(wanted))
    assert f"  {failed[0]}: no JSON with words in it" in str(told)
    assert Counter(map(feature_of, server.asked)) == Counter(wanted)
    assert [one for one, _ in atlas.explanations()] == [one for one in wanted if one in said(atlas)]
    assert verify(atlas.folder) == []


def test_a_rule_stands_by_the_words_as_far_as_it_goes_on_the_examples_and_is_scored_elsewhere(tmp_path: Path) -> None:
    answers = {0: ("rivers", '"river"'), 1: ("seas", '"cold"'), 2: ("counting", '"12"'), 3: ("cold", '"cold"')}
    with (
        planted_rules_atlas(tmp_path / "planted") as atlas,
        answering(lambda one: good(*answers[feature_of(one)])) as it,
    ):
        explained(it, atlas, features=list(answers))
        rivers, seas, counting, cold = (atlas[feature].explanations[0] for feature in answers)
    assert (rivers.text, rivers.score, counting.score) == ("rivers", 1, 1)
    assert rivers.confidence is not None
    assert rivers.confidence > SURE
    assert (seas.text, seas.rule, seas.score) == ("seas", "", None)  # it fires on something else
    assert cold.text == "cold (in part)"  # it fires on words ending in -ing as well
    assert cold.confidence is not None
    assert LEAST < cold.confidence < SURE
    assert cold.score is not None
    assert cold.control is not None


def test_where_nothing_can_be_written_nobody_is_asked(atlas: gs.Atlas) -> None:
    with answering(script) as server, powerless(atlas.folder):
        with pytest.raises(AccessError, match=r"nothing can be written in .*copy the atlas elsewhere"):
            explained(server, atlas)
        assert not server.asked


def test_each_question_is_the_features_own_sheet(atlas: gs.Atlas) -> None:
    with answering(script) as server:
        explained(server, atlas, features=[3, 1, 3, 6])  # 6 fires nowhere
    assert {one.text for one in server.asked} == {question(atlas[one]) for one in (3, 1)}


def test_what_people_say_stays_and_stays_on_top(atlas: gs.Atlas) -> None:
    first, second, *_ = wanting(atlas)
    atlas.explain(first, "as I say")
    with answering(script) as server:
        explained(server, atlas, features=[first, second])
    assert atlas[first].label == "as I say"
    assert [one.method for one in atlas[first].explanations] == ["user", "asked"]
    assert first not in wanting(atlas)
    assert second not in wanting(atlas)


def test_nothing_that_was_answered_is_asked_again(atlas: gs.Atlas) -> None:
    wanted = wanting(atlas)
    with answering(script) as server:
        first = explained(server, atlas, limit=10)
        assert first.features == 10
        second = explained(server, atlas)
        assert (second.features, second.before) == (len(wanted) - 10, 0)
        third = explained(server, atlas, features=wanted)
        assert (third.features, third.before) == (len(wanted), len(wanted))
        assert third.failed  # they stay in what was asked
        assert "asked again" in str(third)
        assert Counter(map(feature_of, server.asked)) == Counter(wanted)
        before = said(atlas)
        again = explained(server, atlas, again=True)
        assert list(again.failed) == [one for one in wanted if one % 10 == 3]
        assert len(server.asked) == len(wanted) + len(again.failed)
        assert said(atlas) == before
        # Of another model everything is asked.
        explain_with(atlas, gs.Endpoint(server.url, "another"), wanted[:3])
        assert len(server.asked) == len(wanted) + len(again.failed) + 3


def test_a_failure_that_is_asked_again_may_become_a_label(atlas: gs.Atlas) -> None:
    answers = iter([completion("rubbish"), good("of")])
    with answering(lambda asked: next(answers)) as server:
        assert explained(server, atlas, features=[1]).failed
        assert explained(server, atlas, features=[1]).failed
        assert len(server.asked) == 1
        assert not explained(server, atlas, features=[1], again=True).failed
    assert atlas[1].label == "of"


def test_a_label_that_somebody_took_away_does_not_come_back(atlas: gs.Atlas) -> None:
    with answering(script) as server:
        explained(server, atlas, features=[1, 2])
        (mine,) = atlas[1].explanations
        atlas.forget(1, mine.id)
        explained(server, atlas)
    assert atlas[1].label is None


def test_who_reaches_nobody_gives_up_and_goes_on_later(atlas: gs.Atlas) -> None:
    with pytest.raises(
        AccessError, match=r"8 questions in a row reached nobody \(nobody listens at .*goes on from there"
    ):
        explain_with(atlas, gs.Endpoint(nobody(), "m"))
    assert atlas.explanations() == []
    with answering(script) as server:
        told = explained(server, atlas)
        assert told.features == len(server.asked) == len(wanting_of_none(atlas))


def wanting_of_none(atlas: gs.Atlas) -> list[int]:
    return [page.index for page in atlas if not page.dead]


def test_those_that_reach_nobody_among_others_are_failures(atlas: gs.Atlas) -> None:
    wanted = wanting(atlas)
    unheard = wanted[::3]
    assert len(unheard) > GIVE_UP
    with answering(lambda asked: Said(b"", 500) if feature_of(asked) in unheard else good("of")) as server:
        told = explain_with(atlas, gs.Endpoint(server.url, "m", at_once=1))
    assert told.failed == dict.fromkeys(unheard, "status 500, after 8 tries")
    lines = path_of(atlas.folder).read_text().splitlines()
    assert len(lines) == len(set(lines))  # none is written down twice


def test_a_server_that_refuses_ends_it_and_nothing_is_lost(atlas: gs.Atlas) -> None:
    with answering(lambda asked: plain({}, 401) if len(server.asked) > 20 else script(asked)) as server:
        with pytest.raises(AccessError, match="status 401"):
            explained(server, atlas)
        kept = read_journal(atlas.folder, atlas.manifest).of("m")
        assert len(kept) >= 16
    with answering(script) as later:
        explained(later, atlas)
    assert not set(map(feature_of, later.asked)) & set(kept)
    assert len(later.asked) + len(kept) == len(wanting_of_none(atlas))


def test_a_run_that_is_given_up_for_another_leaves_its_labels(atlas: gs.Atlas) -> None:
    with answering(
        lambda asked: plain({}, 401) if len(server.asked) > 3 else good(f"of {feature_of(asked)}")
    ) as server:
        with pytest.raises(AccessError):
            explain_with(atlas, gs.Endpoint(server.url, "m", at_once=1), limit=7)
        assert atlas.explanations() == []  # they come some at a time
    with answering(lambda asked: good("else")) as server:
        explained(server, atlas, features=[wanting(atlas)[5]])
    assert len(said(atlas)) == 4


def test_nobody_is_asked_of_a_dry_run(atlas: gs.Atlas, capsys: pytest.CaptureFixture[str]) -> None:
    by = gs.Endpoint(nobody(), "m", rate=30)
    wanted = wanting(atlas)
    told = estimate(atlas, by, price=(1.0, 2.0))
    letters = sum(len(question(atlas[one])) for one in wanted)
    assert (told.features, told.letters, told.before) == (len(wanted), letters, 0)
    assert told.tokens == (letters // 4, 40 * len(wanted))
    assert told.cost == pytest.approx((letters // 4 + 2 * 40 * len(wanted)) / 1e6)
    assert told.minutes == len(wanted) / 30
    assert told.example == question(atlas[wanted[0]])
    assert question(atlas[wanted[0]]) in str(told)
    assert not path_of(atlas.folder).exists()
    with answering(script) as server:
        explained(server, atlas, limit=5)
    assert estimate(atlas, by, wanted).before == 5
    again = estimate(atlas, by, wanted, again=True)
    assert again.before == 5 - sum(one % 10 == 3 for one in wanted[:5])


# --- what a model writes around it ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"text": "of", "rule": "\\"of\\""}',
        '```json\n{"text": "of",\n "rule": "\\"of\\""}\n```',
        'Sure! Here it is: {"text": "of", "rule": "\\"of\\""} I hope {this} helps.',
        '<think>maybe {"text": "in"}</think>{"text": "of", "rule": "\\"of\\""}',
        '[{"text": "of", "rule": "\\"of\\""}]',
        '{"answer": {"text": "of", "rule": "\\"of\\""}}',
        '{"text": "of", "rule": "\\"of\\""}\n{"text": "of", "rule": "\\"of\\""}',
    ],
)  # fmt: skip
def test_an_answer_is_found_in_what_is_around_it(text: str) -> None:
    assert object_in(text) == {"text": "of", "rule": '"of"'}


def test_braces_in_words_are_no_object() -> None:
    assert object_in('{"text": "a { or } in \\"code\\"", "rule": ""}')["text"] == 'a { or } in "code"'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON with words"),
        ('{"text": "of"', "no JSON with words"),
        ('{"rule": "of"}', "no JSON with words"),
        ('{"text": ""of""}', "no JSON with words"),
        ('{"text": "of"} or {"text": "in"}', "2 answers in place of one"),
        ("{" * 100_000, "no JSON with words"),
        ('{"' * 100_000, "no JSON with words"),
    ],
)
def test_what_is_no_answer_has_a_reason(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        object_in(text)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"text": 7}', "the words are 7, expected text"),
        ('{"text": " "}', "there are no words"),
        (json.dumps({"text": "w" * 200}), "200 characters of words, expected at most 160"),
        ('{"text": "a\\u202eb"}', "the words cannot be printed"),
        ('{"text": "\\ud800"}', "no JSON with words"),
    ],
)
def test_words_that_are_no_label_are_a_failure(atlas: gs.Atlas, content: str, reason: str) -> None:
    with answering(lambda asked: completion(content)) as server:
        assert explained(server, atlas, features=[1]).failed[1].startswith(reason)
    assert atlas.explanations() == []


def test_the_key_is_in_no_file_and_no_line(
    atlas: gs.Atlas, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def echo(asked: Question) -> Said:
        kinds = [good(f"echo {KEY}"), completion(KEY), Said(KEY.encode()), plain({"error": {"message": KEY}})]
        return kinds[feature_of(asked) % 4]

    with answering(echo) as server:
        assert main(["explain", str(atlas.folder), "--endpoint", server.url, "--model", "m"]) == 0
        assert {one.headers["Authorization"] for one in server.asked} == {f"Bearer {KEY}"}
    with answering(lambda asked: plain({"error": KEY}, 401)) as server:
        assert main(["explain", str(atlas.folder), "--endpoint", server.url, "--model", "n"]) == 1
    out = capfd.readouterr()
    assert KEY not in out.out + out.err
    atlas.close()
    for path in atlas.folder.parent.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


# --- a model in this process ----------------------------------------------------------------------------------------


def test_a_model_in_this_process_is_asked_as_a_server_is(atlas: gs.Atlas) -> None:
    model = tiny_model("llama")
    with pytest.raises(InputError, match="no chat template"):
        explain_with(atlas, model, [1])
    model.tokenizer.chat_template = "{% for turn in messages %}{{ turn['content'][-60:] }}{% endfor %}"
    told = explain_with(atlas, Here(model, most=4), [1, 2])
    assert told.model == model.name
    assert set(told.failed) == {1, 2}  # it has learnt nothing
    assert atlas.explanations() == []
    with pytest.raises(AccessError, match=r"reached nobody .*400 new ones do not fit"):  # its context is small
        explain_with(atlas, model)


def test_what_a_model_in_this_process_writes_to_its_end_is_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    model.tokenizer.chat_template = "{% for turn in messages %}{{ turn['content'] }}{% endfor %}"
    asked = model.tokens([{"role": "user", "content": "what?"}], reply=True)
    ids = [int(step.ids[0]) for step in model.stream(asked, max_new_tokens=9)]
    assert Here(model, most=9)._answer("what?") == Failure(
        "an answer that was cut after 9 tokens", said=model.tokenizer.decode(ids, skip_special_tokens=True)
    )
    monkeypatch.setitem(model.__dict__, "ends", frozenset([ids[0]]))
    text = model.tokenizer.decode(ids[:1], skip_special_tokens=True)
    assert Here(model, most=9)._answer("what?") == Reply(text, (asked.ids.numel(), 1))


# --- the journal ----------------------------------------------------------------------------------------------------


def test_a_line_that_was_cut_off_never_was(atlas: gs.Atlas) -> None:
    with answering(script) as server:
        explained(server, atlas, features=[1, 2])
        path = path_of(atlas.folder)
        lines = path.read_bytes().splitlines(keepends=True)
        asked = [number for number, line in enumerate(lines) if b'"asked"' in line]
        path.write_bytes(b"".join(lines[: asked[-1]]) + lines[asked[-1]][:20])
        lost = json.loads(lines[asked[-1]])["asked"]["feature"]
        explained(server, atlas, features=[1, 2])
    assert Counter(map(feature_of, server.asked)) == {1: 1, 2: 1} | {lost: 2}
    assert len(atlas.explanations()) == 2
    read_journal(atlas.folder, atlas.manifest)


def test_a_journal_that_is_damaged_or_of_another_atlas_is_refused(atlas: gs.Atlas, tmp_path: Path) -> None:
    with answering(script) as server:
        explained(server, atlas, features=[0])
        path = path_of(atlas.folder)
        sound = path.read_bytes()
        assert read_journal(atlas.folder, atlas.manifest).of("m").keys() == {0}
        path.write_bytes(sound.replace(b'"feature": 0', b'"feature": "x"'))
        with pytest.raises(CorruptFile, match=r"atlas.asked.jsonl:3: .*feature"):
            explained(server, atlas, features=[0])
        path.write_bytes(sound.replace(b"11111", b"22222"))
        with pytest.raises(Mismatch, match="is of another atlas than lies there now: move it away"):
            explained(server, atlas, features=[0])


def test_a_line_that_finds_no_room_leaves_the_journal_whole(atlas: gs.Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(script) as server:
        explained(server, atlas, features=[1])
        sound, sync = path_of(atlas.folder).read_bytes(), os.fsync

        def full(file: int) -> None:
            if os.fstat(file).st_size > len(sound):
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(file)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(
                StorageFull, match=r"no room left .*asked.jsonl, what was answered is kept: free some room"
            ):
                explained(server, atlas, features=[2])
        assert path_of(atlas.folder).read_bytes() == sound
        explained(server, atlas, features=[1, 2])
    assert {feature for feature, _ in atlas.explanations()} == {1, 2}


def test_two_do_not_ask_at_once(atlas: gs.Atlas) -> None:
    with journal_of(atlas.folder, atlas.manifest), pytest.raises(AccessError, match="written by another process"):
        explain_with(atlas, gs.Endpoint(nobody(), "m"))


def test_whoever_was_killed_between_atlas_and_journal_does_not_say_it_twice(
    atlas: gs.Atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(journal: object, features: int) -> None:
        raise Killed

    with answering(lambda asked: good(f"of {feature_of(asked)}")) as server:
        with monkeypatch.context() as patched:
            patched.setattr("gemscope.atlas.labels.journal.Journal.wrote", killed)
            with pytest.raises(Killed):
                explained(server, atlas, limit=8)
        assert len(atlas.explanations()) == 8
        explained(server, atlas, limit=8)
        assert len(atlas.explanations()) == len(server.asked) == 8


def test_a_feature_that_is_none_is_refused_before_anybody_is_asked(atlas: gs.Atlas) -> None:
    with pytest.raises(NotFound, match="no feature 99"):
        explain_with(atlas, gs.Endpoint(nobody(), "m"), [99])
    with pytest.raises(InputError, match="limit=-1"):
        explain_with(atlas, gs.Endpoint(nobody(), "m"), limit=-1)
    assert read_journal(atlas.folder, atlas.manifest).plan is None


# --- the shell ------------------------------------------------------------------------------------------------------


def test_the_shell_asks(atlas: gs.Atlas, capsys: pytest.CaptureFixture[str]) -> None:
    atlas.close()
    command = ["explain", str(atlas.folder)]
    with answering(script) as server:
        there = ["--endpoint", server.url, "--model", "m"]
        assert main([*command, *there, "--dry-run", "--price", "1", "2", "--rate", "60", "--limit", "2"]) == 0
        assert "2 features to be asked of m\nabout " in capsys.readouterr().out
        assert not server.asked
        assert main([*command, "1", "2", *there, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["features"], told["words"], told["failed"]) == (2, 2, {})
        assert main([*command, "3", *there]) == 0
        out = capsys.readouterr().out
        assert "1 features asked of m: 0 have words" in out
        assert "  gemscope serve" in out
    for wrong in (
        ["--dry-run"],
        ["--model", "m"],
        ["--endpoint", "http://localhost/v1"],
        ["--model-here", "x", "--model", "m"],
    ):
        assert main([*command, *wrong]) == 1
        assert "--endpoint URL" in capsys.readouterr().err


# --- killed at any moment -------------------------------------------------------------------------------------------

AT_ONCE, MOMENTS = 3, 20
CHILD = """
import sys
from gemscope.atlas.files.manifest import read_manifest
from gemscope.atlas.labels import asking, endpoint
from gemscope.atlas.verify import verify
from gemscope.cli.main import main
asking.BATCH, endpoint._BACKOFF = 8, 0.001
sys.exit(main(["explain", sys.argv[1], "--endpoint", sys.argv[2], "--model", "m", "--at-once", sys.argv[3]]))
"""


def run(folder: Path, url: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CHILD, str(folder), url, str(AT_ONCE)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)


class Whole:
    """What a run leaves that nobody disturbs."""

    def __init__(self, made: Path, folder: Path) -> None:
        shutil.copytree(made, folder)
        with answering(script) as server:
            assert run(folder, server.url).wait() == 0
        self.left = settled(folder)
        self.asked = Counter(map(feature_of, server.asked))
        assert set(self.asked.values()) == {1}


@pytest.fixture(scope="module")
def whole(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(made, tmp_path_factory.mktemp("whole") / "atlas")


def gone_on(server: Server, folder: Path, whole: Whole, ends: int) -> int:
    """Once more, undisturbed: as if it had never been. How many questions were sent twice."""
    kept, before = set(read_journal(folder, read_manifest(folder)).of("m")), len(server.asked)
    assert run(folder, server.url).wait() == 0
    assert not kept & set(map(feature_of, server.asked[before:]))
    asked = Counter(map(feature_of, server.asked))
    assert asked.keys() == whole.asked.keys()
    twice = sum(asked.values()) - len(asked)
    assert twice <= AT_ONCE * ends  # those that were under way when it was killed
    assert settled(folder) == whole.left
    return twice


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_killed_it_goes_on_to_the_same_bytes(made: Path, whole: Whole, tmp_path: Path, by: signal.Signals) -> None:
    folder = tmp_path / "killed"
    shutil.copytree(made, folder)
    stops = [13, 20, None]  # questions that come after so many wait for ever, or none does

    def until(asked: Question) -> Said:
        return script(asked) if stops[0] is None or len(server.asked) <= stops[0] else Said(hangs=True)

    with answering(until) as server:
        while stops[0] is not None:
            child = run(folder, server.url)
            while len(server.asked) < stops[0] + AT_ONCE and child.poll() is None:
                time.sleep(0.001)
            child.send_signal(by)
            assert child.wait() in (-by, 128 + by)
            stops.pop(0)
        gone_on(server, folder, whole, 2)


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    made: Path, whole: Whole, tmp_path: Path, by: signal.Signals
) -> None:
    dice = random.Random(f"{by}")
    killed = twice = runs = 0
    while killed < MOMENTS:
        folder, ends, code, runs = tmp_path / f"killed-{runs}", 0, 1, runs + 1
        shutil.copytree(made, folder)
        with answering(script) as server:
            while code and ends < 4:
                child, before = run(folder, server.url), len(server.asked)
                while dice.random() < 0.99 and len(server.asked) == before and child.poll() is None:
                    time.sleep(0.005)  # most of the time it has not begun to ask
                time.sleep(dice.random() * 0.1)
                child.send_signal(by)
                code = child.wait()
                assert code in (0, -by, 128 + by)
                ends += bool(code)
            killed += ends
            twice += gone_on(server, folder, whole, ends)
    sys.stdout.write(
        f"{by.name}: killed {killed} times in {runs} runs; sent twice: {twice} that were under way, none that was kept\n"
    )
