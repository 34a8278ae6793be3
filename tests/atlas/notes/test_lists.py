"""A reader's own lists: features in an order, with notes, written by several at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gemscope as gs
from atlases import planted_atlas
from gemscope.atlas.notes.kept import FeatureList, Kept, from_json, read_address
from gemscope.atlas.notes.lists import Lists, data_dir
from gemscope.errors import CorruptFile, FileError, InputError, Mismatch, NotFound


def kept(index: int, **said: str) -> Kept:
    return Kept(model="m", source="1-res", index=index, **said)


@pytest.fixture
def lists(tmp_path: Path) -> Lists:
    return Lists(tmp_path / "lists")


def order(lists: Lists, name: str = "seas") -> list[int]:
    return [one.index for one in lists[name]]


def test_a_feature_is_kept_with_its_label_as_it_stood(lists: Lists, tmp_path: Path) -> None:
    with planted_atlas(tmp_path / "atlas") as atlas:
        made = lists.add("Seas and rivers", atlas[3], note="the second one")
        (one,) = made
        assert (one.model, one.source, one.index) == ("tiny-model", "1-res-tiny", 3)
        assert one.label == atlas[3].label
        assert one.note == "the second one"
        atlas.explain(3, "something else")
    assert lists["seas AND rivers"] == lists["seas-and-rivers"] == made
    assert Lists(lists.folder)["Seas and rivers"].features[0].label == one.label
    assert [path.name for path in lists.folder.iterdir()] == ["seas-and-rivers.json"]


def test_what_is_in_a_list_stays_where_it_is_and_a_second_note_is_added_to_the_first(lists: Lists) -> None:
    lists.add("seas", kept(1, note="one"), kept(2))
    lists.add("seas", kept(1, note="two"), kept(3))
    assert order(lists) == [1, 2, 3]
    assert lists["seas"].features[0].note == "one\ntwo"
    lists.add("seas", kept(1, note="two"))
    assert lists["seas"].features[0].note == "one\ntwo"


def test_features_are_put_before_others_or_behind_all(lists: Lists) -> None:
    lists.add("seas", *map(kept, range(4)))
    lists.move("seas", kept(3).key, before=kept(1).key)
    assert order(lists) == [0, 3, 1, 2]
    lists.move("seas", kept(0).key, before=None)
    assert order(lists) == [3, 1, 2, 0]
    lists.move("seas", kept(1).key, before=kept(1).key)
    assert order(lists) == [3, 1, 2, 0]
    lists.remove("seas", kept(2).key, kept(7).key)
    assert order(lists) == [3, 1, 0]
    with pytest.raises(NotFound, match=r"m@1-res:9 in the list 'seas'"):
        lists.move("seas", kept(9).key, before=None)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(5)), st.integers(0, 4), st.integers(0, 5))
def test_moving_is_taking_out_and_putting_in(first: list[int], moved: int, before: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        lists = Lists(folder)
        lists.add("seas", *map(kept, first))
        target = None if before == 5 else first[before]
        lists.move("seas", kept(moved).key, before=None if target is None else kept(target).key)
        slow = [one for one in first if one != moved]
        if target == moved:
            slow = list(first)
        else:
            slow.insert(len(slow) if target is None else slow.index(target), moved)
        assert order(lists) == slow


def test_a_note_that_somebody_else_has_changed_is_not_written_over(lists: Lists) -> None:
    lists.add("seas", kept(1, note="mine"))
    other = Lists(lists.folder)
    other.annotate("seas", kept(1).key, "theirs", was="mine")
    with pytest.raises(Mismatch, match="'theirs'"):
        lists.annotate("seas", kept(1).key, "mine, longer", was="mine")
    assert lists["seas"].features[0].note == "theirs"
    lists.annotate("seas", kept(1).key, "both")
    lists.annotate("seas", kept(1).key, "both", was="something old")  # as it is already
    assert other["seas"].features[0].note == "both"


_WRITER = """
import sys
from gemscope.atlas.notes.kept import Kept
from gemscope.atlas.notes.lists import Lists

lists, mine = Lists(sys.argv[1]), int(sys.argv[2])
for index in range(mine, mine + 12):
    lists.add("seas", Kept(model="m", source="1-res", index=index))
"""


def test_two_processes_and_two_threads_that_write_one_list_lose_nothing(lists: Lists) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _WRITER, str(lists.folder)]
    others = [subprocess.Popen([*command, str(start)], env=environment) for start in (0, 100)]
    wrong: list[BaseException] = []

    def write(start: int) -> None:
        try:
            mine = Lists(lists.folder)
            for index in range(start, start + 12):
                mine.add("seas", kept(index))
                mine.annotate("seas", kept(index).key, f"of {start}")
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=(start,)) for start in (200, 300)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(120)
    assert [one.wait(120) for one in others] == [0, 0]
    assert not wrong
    assert sorted(order(lists)) == [start + index for start in (0, 100, 200, 300) for index in range(12)]
    for start in (0, 100, 200, 300):  # each one's own in its order
        mine = [index for index in order(lists) if start <= index < start + 100]
        assert mine == sorted(mine)
    assert {one.note for one in lists["seas"]} == {"", "of 200", "of 300"}
    assert [path.name for path in lists.folder.iterdir()] == ["seas.json"]


def test_names_that_make_the_same_file_name_are_two_lists(lists: Lists) -> None:
    names = ["a b", "a.b", "A-B!", "海", "川", "keep", "../../etc", "con/nul"]
    made = [lists.new(name) for name in names]
    assert len({one.id for one in made}) == len(names)
    assert [lists[one.id].name for one in made] == names
    assert all(path.parent == lists.folder for path in lists.folder.iterdir())
    assert "keep" not in {one.id for one in made}
    with pytest.raises(InputError, match="there is a list"):
        lists.new(" A B ")


def test_a_list_is_renamed_and_taken_away(lists: Lists) -> None:
    lists.add("seas", kept(1))
    lists.new("rivers")
    made = lists.edit("seas", rename="Oceans", about="large")
    assert (made.id, made.name, made.about) == ("seas", "Oceans", "large")
    assert lists["oceans"].features == made.features
    with pytest.raises(InputError, match="there is a list 'Rivers'"):
        lists.edit("oceans", rename="Rivers")
    lists.delete("oceans")
    assert "oceans" not in lists
    assert [one.name for one in lists] == ["rivers"]
    for asked in (lambda: lists.delete("seas"), lambda: lists["seas"], lambda: lists.remove("seas", kept(1).key)):
        with pytest.raises(NotFound, match="no list 'seas'"):
            asked()


def test_what_is_no_list_is_told_and_passed_over(lists: Lists) -> None:
    lists.add("seas", kept(1))
    before = (lists.folder / "seas.json").read_bytes()
    (lists.folder / "broken.json").write_text('{"name": "x", "features": [')
    assert [one.name for one in lists] == ["seas"]
    assert len(lists.problems) == 1
    assert "broken.json is not JSON" in lists.problems[0]
    with pytest.raises(CorruptFile, match=r"broken\.json"):
        lists["broken"]
    with pytest.raises(CorruptFile, match=r"broken\.json"):
        lists.add("broken", kept(2))  # nothing is written over
    (lists.folder / "seas.json").write_text('{"name": "seas", "features": [{"modelId": "m"}]}')
    with pytest.raises(CorruptFile, match="layer"):
        lists.add("seas", kept(2))
    (lists.folder / "seas.json").write_bytes(before)
    assert order(lists) == [1]


def test_what_no_list_may_be_is_refused_and_nothing_is_written(lists: Lists) -> None:
    lists.add("seas", kept(1))
    before = (lists.folder / "seas.json").read_bytes()
    for asked in (
        lambda: lists.add("  ", kept(2)),
        lambda: lists.add("seas", kept(-1)),
        lambda: lists.add("seas", kept(2, note="x" * 10_001)),
        lambda: lists.add("seas", kept(2, note="\ud800")),
        lambda: lists.edit("seas", rename=""),
    ):
        with pytest.raises(InputError) as raised:
            asked()
        assert "\n" not in str(raised.value)
    assert (lists.folder / "seas.json").read_bytes() == before


def test_the_lists_that_a_feature_is_in_are_those_of_now(lists: Lists) -> None:
    assert lists.having("m", "1-res", 1) == []
    lists.add("seas", kept(1, note="deep"), kept(2))
    Lists(lists.folder).add("a first one", kept(1))
    assert [(one.name, entry.note) for one, entry in lists.having("m", "1-res", 1)] == [
        ("a first one", ""),
        ("seas", "deep"),
    ]
    Lists(lists.folder).remove("seas", kept(1).key)
    assert [one.name for one, _ in lists.having("m", "1-res", 1)] == ["a first one"]


def test_where_lists_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMSCOPE_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "shared"))
    assert data_dir() == tmp_path / "shared" / "gemscope"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data_dir() == tmp_path / "home" / ".local" / "share" / "gemscope"
    monkeypatch.setenv("GEMSCOPE_DATA", str(tmp_path / "own"))
    assert gs.Lists().folder == tmp_path / "own" / "lists"
    gs.Lists().add("seas", kept(1))
    assert (tmp_path / "own" / "lists" / "seas.json").is_file()


def test_without_a_home_there_are_no_lists_and_writing_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GEMSCOPE_DATA", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert list(gs.Lists()) == []
    with pytest.raises(FileError, match="set GEMSCOPE_DATA"):
        gs.Lists().add("seas", kept(1))


# --- as JSON ----------------------------------------------------------------------------------------------------------


def test_a_list_has_the_shape_that_neuronpedia_takes() -> None:
    """`/api/list/new-with-features`: name, description, features of modelId, layer, index, description."""
    made = FeatureList(
        name="Seas", about="and rivers", features=(kept(12, note="deep", label="seas", added="2026-11-28"),)
    )
    said = json.loads(made.to_json())
    assert said["name"] == "Seas"
    assert said["description"] == "and rivers"
    assert {name: said["features"][0][name] for name in ("modelId", "layer", "index", "description")} == {
        "modelId": "m", "layer": "1-res", "index": 12, "description": "deep",
    }  # fmt: skip
    assert from_json(made.to_json()) == made


def test_neuronpedias_own_lists_are_read() -> None:
    theirs = {
        "id": "clxyz", "name": "Twitter", "description": None, "defaultTestText": None,
        "features": [
            {"modelId": "gpt2-small", "layer": "0-res-jb", "index": "10", "description": None},
            {"modelId": "gpt2-small", "layer": "1-att-kk", "index": 20, "description": "second"},
            {"modelId": "gpt2-small", "layer": "0-res-jb", "index": "10"},
        ],
    }  # fmt: skip
    found = from_json(json.dumps(theirs))
    assert (found.name, found.about, found.id) == ("Twitter", "", "")
    assert [one.address for one in found] == ["gpt2-small@0-res-jb:10", "gpt2-small@1-att-kk:20"]
    assert found.features[1].note == "second"
    quick = from_json(json.dumps(theirs["features"]), name="quick")  # what a quick list's address carries
    assert (quick.name, quick.features) == ("quick", found.features)


@pytest.mark.parametrize(
    "data",
    [
        "[]", "5", "null", "{}", "not json", '{"name": ""}', '{"name": "x", "features": {}}', '{"name": "x", "format": 2}',
        '{"name": "x", "features": [{"modelId": "m", "layer": "l", "index": -1}]}',
        '{"name": "x", "features": [{"modelId": "m", "layer": "l", "index": "ten"}]}',
        '{"name": "x", "features": [{"modelId": "", "layer": "l", "index": 1}]}',
        '{"name": "x", "features": [{"modelId": "m", "layer": "l", "index": NaN}]}',
        '{"name": 5}', '{"name": "\\ud800"}', "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_list_is_one_line(data: str) -> None:
    with pytest.raises(CorruptFile) as raised:
        from_json(data)
    assert "\n" not in str(raised.value)


def test_what_comes_from_elsewhere_goes_behind_ones_own(lists: Lists) -> None:
    lists.add("seas", kept(2, note="mine"), kept(1))
    made = lists.put(FeatureList(name="Seas", about="theirs", features=(kept(3), kept(2, note="theirs"))))
    assert order(lists) == [2, 1, 3]
    assert made.features[0].note == "mine\ntheirs"
    assert made.about == "theirs"
    assert lists.put(FeatureList(name="Another", features=(kept(3),))).id == "another"


def test_addresses_are_read_as_they_are_written() -> None:
    assert read_address(kept(12).address) == kept(12).key
    for text in ("", "m@s", "m:s@1", "m@s:x", "m@s:-1", "m@s:1:2", "a b@s:1"):
        with pytest.raises(InputError, match="MODEL@SOURCE:INDEX"):
            read_address(text)


def test_a_list_prints_as_a_table() -> None:
    from gemscope.pages.plain import plain

    made = FeatureList(name="Seas", features=(kept(12, note="deep\nones", label="seas \x1b[31m"),))
    text = plain(made, width=160)
    assert "Seas · 1 feature" in text
    assert "m@1-res:12" in text
    assert "\x1b[31m" not in text
