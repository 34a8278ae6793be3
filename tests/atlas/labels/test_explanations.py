"""Labels: the newest holds, all openings agree, and none is half written."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from atlases import HOSTILE_LABEL, powerless
from gemscope.atlas.dashboard import Explanation
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.errors import AccessError, CorruptFile, InputError, NotFound, StorageFull


def test_a_persons_newest_explanation_is_the_label_until_it_is_forgotten(copy: Path) -> None:
    with Atlas(copy) as atlas:
        assert atlas[0].label == HOSTILE_LABEL
        first = atlas.explain(0, "sun and moon", author="me")
        second = atlas.explain(0, "only the moon")
        atlas.explain(0, "what a method guesses", method="guess")
        assert [one.text for one in atlas[0].explanations] == [
            "only the moon", "sun and moon", "what a method guesses", HOSTILE_LABEL,
        ]  # fmt: skip
        assert atlas[0].explanations[:2] == [second, first]
        assert atlas.labels([0, 1]) == {0: "only the moon"}
        assert atlas.labels(range(10**4)) == {page.index: page.label for page in atlas if page.label}
        assert [one.feature for one in atlas.search("moon")] == [0]
        atlas.forget(0, second.id)
        assert atlas[0].label == "sun and moon"
        atlas.forget(0, first.id)
        assert atlas[0].label == "what a method guesses"
        assert atlas.search("moon") == []
        third = atlas.explain(0, "sun and moon")
        assert third.id > second.id  # a number once given is not given again
        for feature, wrong in ((0, second.id), (1, third.id), (0, -1), (0, 10**30)):
            with pytest.raises(NotFound, match=f"no explanation {wrong} of feature {feature}"):
                atlas.forget(feature, wrong)
    assert verify(copy) == []


def test_lists_follow_labels_that_another_opening_of_the_atlas_changes(copy: Path) -> None:
    with Atlas(copy) as reader, Atlas(copy) as writer:
        before = reader.count(labelled=True)
        made = writer.explain(1, "aaa")
        assert reader.count(labelled=True) == before + 1
        assert reader.summaries(order="label")[1].label == "aaa"
        assert reader[2].neighbours == writer[2].neighbours
        writer.forget(1, made.id)
        assert reader.count(labelled=True) == before


@pytest.mark.parametrize("text", ["", "  \n", "half \ud800"])
def test_what_is_no_text_is_no_label(copy: Path, text: str) -> None:
    with Atlas(copy) as atlas:
        with pytest.raises(InputError):
            atlas.explain(0, text)
        with pytest.raises(NotFound):
            atlas.explain(40, "fine")


def test_labels_survive_closing_and_leave_no_files_behind(copy: Path) -> None:
    with Atlas(copy) as atlas:
        atlas.explain(7, "kept\0 whole \u202e")
    names = {path.name for path in copy.iterdir()}
    assert names == {"atlas.sqlite", "corpus.npy", "manifest.json"}
    with Atlas(copy) as atlas:
        assert atlas[7].label == "kept\0 whole \u202e"
    assert {path.name for path in copy.iterdir()} == names


@pytest.mark.parametrize("labelled", [False, True])
def test_an_atlas_in_a_folder_that_cannot_be_written_is_read_and_says_why_it_takes_no_labels(
    reachable: Path, labelled: bool
) -> None:
    if labelled:
        with Atlas(reachable) as atlas:
            atlas.explain(1, "before")
    names = sorted(reachable.iterdir())
    with powerless(reachable):
        with Atlas(reachable) as atlas:
            assert atlas[1].label == ("before" if labelled else None)
            assert len(atlas.search("words")) > 5
            with pytest.raises(AccessError, match=r"nothing can be written in .*: copy the atlas elsewhere"):
                atlas.explain(1, "x")
            with pytest.raises(AccessError):
                atlas.forget(0, 1)
        assert verify(reachable) == []
        assert sorted(reachable.iterdir()) == names


def _label(folder: Path, name: str, times: int) -> None:
    with Atlas(folder) as atlas:
        for number in range(times):
            atlas.explain(number, f"{name} {number}")


def test_several_processes_write_labels_and_none_is_lost(copy: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_label, args=(copy, f"writer{index}", 12)) for index in range(3)]
    with Atlas(copy) as atlas:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            assert len(atlas[3].examples) == len(atlas[3].examples)
        for process in processes:
            process.join()
            assert process.exitcode == 0
        for number in range(12):
            said = {one.text for one in atlas[number].explanations}
            assert {f"writer{index} {number}" for index in range(3)} <= said
    assert verify(copy) == []


def test_a_full_disk_while_labelling_leaves_the_labels_as_they_were(copy: Path) -> None:
    with Atlas(copy) as atlas:
        made = atlas.explain(0, "short")
        atlas._database._writers[0].execute("PRAGMA max_page_count = 1")  # SQLite takes the present size instead
        with pytest.raises(StorageFull, match="nothing was changed"):
            atlas.explain(0, "long " * 100_000)
        assert atlas[0].explanations[0] == made
        atlas._database._writers[0].execute("PRAGMA max_page_count = 100000")
        atlas.explain(0, "again")
    assert verify(copy) == []


def test_labels_that_find_no_room_in_a_file_as_long_as_may_be_are_a_full_disk(copy: Path) -> None:
    """SQLite says "disk I/O error" then."""
    resource = pytest.importorskip("resource", reason="this system knows no limit on a file's length")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Atlas(copy) as atlas:
        made = atlas.explain(0, "short")
        resource.setrlimit(resource.RLIMIT_FSIZE, ((copy / "atlas.sqlite").stat().st_size, before[1]))
        try:
            with pytest.raises(StorageFull, match="nothing was changed"):
                atlas.explain(0, "long " * 1_000_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert atlas[0].explanations[0] == made
        atlas.explain(0, "again")
    assert verify(copy) == []


def test_a_label_is_written_while_an_error_of_a_damaged_vocabulary_is_remembered(copy: Path) -> None:
    with sqlite3.connect(copy / "atlas.sqlite") as db:
        db.execute("INSERT INTO token SELECT 1 << 40, packed FROM token LIMIT 1")
        db.execute("INSERT INTO token SELECT 2 << 40, packed FROM token LIMIT 1")
    db.close()
    with Atlas(copy) as atlas:
        with pytest.raises(CorruptFile, match="vocabulary") as remembered:
            atlas.text([0])
        assert atlas.explain(0, "what it stands for").text == "what it stands for"
        assert remembered


def test_scores_less_than_a_tenth_apart_are_not_told_apart_and_then_words_stand_before_a_rule(copy: Path) -> None:
    with Atlas(copy) as atlas:
        for feature, rule, words, shown in (
            (1, 0.74, 0.66, "words"),
            (2, 0.76, 0.66, "rule"),
            (3, 0.74, None, "words"),
        ):
            atlas.explain_all({feature: Explanation(id=0, text="words", method="read", score=words)})
            atlas.explain_all({feature: Explanation(id=0, text="rule", method="rule", score=rule)})
            assert atlas.labels([feature]) == {feature: shown}
        # Of what has no score a learnt rule stands by its confidence; words do not, for theirs is their rule's.
        for feature, confidence, shown in ((4, 0.3, "words"), (5, 0.8, "rule")):
            atlas.explain_all({feature: Explanation(id=0, text="words", method="read", rule='"a"', confidence=0.2)})
            atlas.explain_all({feature: Explanation(id=0, text="rule", method="rule", confidence=confidence)})
            assert atlas.labels([feature]) == {feature: shown}
    assert verify(copy) == []
