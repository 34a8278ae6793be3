"""Writing an atlas: whole or not at all, the same bytes for the same content, nothing in it that cannot be."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlases import PLAN, content, manifest_of, planted_atlas
from gemscope.atlas.dashboard import Explanation
from gemscope.atlas.entry import Entry
from gemscope.atlas.files import corpus
from gemscope.atlas.reader import Atlas
from gemscope.atlas.writer import Writer
from gemscope.errors import InputError, Mismatch, NotFinite, StorageFull


def test_the_same_atlas_is_the_same_bytes_however_its_parts_came_in(tmp_path: Path) -> None:
    planted_atlas(tmp_path / "one").close()
    ids, tokens = PLAN.corpus(), PLAN.tokens()
    with Writer(tmp_path / "two") as writer:
        writer.add_tokens(dict(list(tokens.items())[60:]))
        for row in ids:
            writer.add_rows(row[None].astype(np.int32))
        entries = list(PLAN.entries())
        for feature in range(PLAN.features):
            if text := PLAN.label(feature):
                writer.add_explanation(feature, Explanation(id=0, text=text, method="planted"))
        for entry in entries[:9]:
            writer.add(entry)
        for start in PLAN.starts():
            writer.add_document(*start)
        for entry in entries[9:]:
            writer.add(entry)
        writer.add_tokens(dict(reversed(list(tokens.items())[:60])), special={0})
        writer.finish(PLAN.manifest()).close()
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_an_atlas_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def stopped() -> None:
        with Writer(tmp_path / "deep" / "atlas") as writer:
            writer.add_rows(PLAN.corpus())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "deep" / ".atlas.gemscope" / "atlas").mkdir(parents=True)  # as a killed process leaves it
    planted_atlas(tmp_path / "deep" / "atlas").close()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["atlas"]


def test_an_atlas_is_never_written_over(planted: Atlas, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an atlas is never written over"):
        Writer(planted.folder)
    with Writer(tmp_path / "a") as writer:
        (tmp_path / "a").mkdir()
        with pytest.raises(InputError, match="appeared"):
            writer.finish(manifest_of(1, 0, 4))
    assert list((tmp_path / "a").iterdir()) == []


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much() -> None:
        with Writer(tmp_path / "a") as writer:
            writer._db.execute("PRAGMA max_page_count = 25")
            writer.add_rows(PLAN.corpus())
            writer.add_tokens({id_: os.urandom(500) for id_ in range(5000)})
            writer.finish(PLAN.manifest())

    with pytest.raises(StorageFull, match=r"no room left on the disk for .*/a, nothing of the atlas is kept"):
        too_much()
    assert list(tmp_path.iterdir()) == []

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(corpus.Rows, "append", full)
    with (
        pytest.raises(StorageFull, match=r"no room left .* nothing of the atlas is kept"),
        Writer(tmp_path / "a") as writer,
    ):
        writer.add_rows(PLAN.corpus())
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(corpus, "Rows", full)
    with pytest.raises(StorageFull, match=r"no room left .* nothing of the atlas is kept"), Writer(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


ONE = Entry(
    index=0,
    count=2,
    max=2.0,
    mean=1.5,
    edges=np.array([0.0, 1.0, 4.0], np.float32),
    interval_counts=np.array([1, 1]),
    positions=np.array([1, 6]),
    intervals=np.array([-1, 0]),
    owners=np.array([0, 0, 1]),
    columns=np.array([1, 3, 2]),
    values=np.array([2.0, 1.0, 1.0], np.float32),
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": np.array([1, 10])}, "at position 10, where the 2 rows of 4 tokens added so far have no token"),
        ({"positions": np.array([1, 7])}, "without one at its own column"),
        ({"columns": np.array([1, 4, 2])}, "lie outside 0 to 3"),
        ({"columns": np.array([3, 1, 2])}, "do not ascend"),
        ({"owners": np.array([0, 0, 2])}, "no example owns"),
        ({"owners": np.array([0, 0])}, "2 owners and 3 columns"),
        ({"owners": np.zeros(0, int), "columns": np.zeros(0, int), "values": np.zeros(0)}, "without activations"),
        ({"intervals": np.array([-1, 2])}, "an interval that it does not have"),
        ({"intervals": np.array([-1])}, "2 positions and 1 intervals"),
        ({"edges": np.array([0.0, 1.0], np.float32)}, "one edge more than counts"),
        ({"promoted": np.array([1])}, "1 promoted and 0 promoted_values"),
        ({"count": -1}, "count=-1"),
        ({"count": 2**62}, "count=4611686018427387904: from 0 to 9,007,199,254,740,992 are kept"),
        ({"histogram": np.array([3])}, "its histogram counts 3 firings, its row says 2"),
        ({"interval_counts": np.array([2, 2])}, "its intervals hold 4 firings, its row says 2"),
        ({"max": 1.0}, "an example of 2 is stronger than its maximum, 1"),
    ],
)
def test_an_entry_that_does_not_fit_together_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    with Writer(tmp_path / "a") as writer:
        writer.add_rows(np.arange(8).reshape(2, 4))
        with pytest.raises(InputError, match=message):
            writer.add(replace(ONE, **change))
        writer.add(ONE)  # what was refused left nothing
        with pytest.raises(InputError, match="feature 0 given after 0: they must ascend"):
            writer.add(ONE)


@pytest.mark.parametrize("name", ["positions", "intervals", "columns", "promoted", "neighbours", "histogram"])
def test_what_a_page_could_not_be_read_back_with_is_not_written(name: str, tmp_path: Path) -> None:
    entry = replace(ONE)
    object.__setattr__(entry, name, getattr(entry, name).astype(np.float32))  # past the checks of types in tests
    with Writer(tmp_path / "a") as writer:
        writer.add_rows(np.arange(8).reshape(2, 4))
        with pytest.raises(InputError, match=f"type float32 as its {name}: whole numbers are expected"):
            writer.add(entry)


@pytest.mark.parametrize(
    "change",
    [
        {"max": float("nan")},
        {"mean": float("inf")},
        {"values": np.array([2.0, np.nan, 1.0], np.float32)},
        {"values": np.array([np.inf, 1.0, 1.0], np.float32)},
        {"values": np.array([2.0, np.inf, 1.0], np.float32)},
        {"values": np.array([2.0, np.finfo(np.float32).max, 1.0], np.float32)},
        {"promoted": np.array([1]), "promoted_values": np.array([np.inf], np.float32)},
        {"edges": np.array([0.0, 1.0, np.inf], np.float32)},
    ],
)
def test_what_is_no_number_is_refused(change: dict, tmp_path: Path) -> None:
    with Writer(tmp_path / "a") as writer:
        writer.add_rows(np.arange(8).reshape(2, 4))
        with pytest.raises(NotFinite):
            writer.add(replace(ONE, **change))


def test_rows_documents_and_tokens_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with Writer(tmp_path / "a") as writer:
        for wrong in (
            np.zeros(3, int),
            np.zeros((1, 0), int),
            np.array([[-2, 0]]),
            np.array([[2**31, 0]]),
        ):
            with pytest.raises(InputError):
                writer.add_rows(wrong)
        writer.add_rows(np.zeros((0, 9), int))
        writer.add_rows(np.zeros((2, 4), int))
        with pytest.raises(Mismatch, match="rows of 5 tokens given after rows of 4"):
            writer.add_rows(np.zeros((1, 5), int))
        writer.add_document(3, "a", "b")
        with pytest.raises(InputError, match="they must ascend"):
            writer.add_document(3, "a", "b")
        with pytest.raises(InputError, match="half a surrogate"):
            writer.add_document(4, "\ud800", "b")
        with pytest.raises(InputError, match="ids from 0 and bytes"):
            writer.add_tokens({-1: b"text"})
        writer.add_explanation(1, Explanation(id=0, text="x", method="y"))
        for made, message in (
            (manifest_of(2, 3, 4), "2 rows of 4 tokens were added"),
            (manifest_of(2, 2, 5), "2 rows of 4 tokens were added"),
            (manifest_of(1, 2, 4), "feature 1 was explained"),
        ):
            with pytest.raises(Mismatch, match=message):
                writer.finish(made)
        writer.add(Entry(index=5, count=0, max=0.0, mean=0.0))
        with pytest.raises(Mismatch, match="feature 5 was added, but the manifest says d_sae=5"):
            writer.finish(manifest_of(5, 2, 4))


@pytest.mark.slow
def test_a_small_atlas_takes_few_bytes_a_feature(tmp_path: Path) -> None:
    features = 2000
    planted_atlas(
        tmp_path / "a", features=features, rows=1000, length=256, before=40, after=23, top=20, each=3,
        vocabulary=2100, near=7, relatives=10, labelled=0,
    ).close()  # fmt: skip
    with Atlas(tmp_path / "a") as atlas:
        examples = [len(page.examples) for page in atlas if not page.dead]
        cells = [sum(value > 0 for value in one.values) for page in atlas for one in page.examples]
    assert np.mean(examples) > 24
    assert np.mean(cells) > 6
    assert (tmp_path / "a" / "atlas.sqlite").stat().st_size / features < 1300
