"""Opening an atlas: what is damaged is named, what is older is brought up to date, what is foreign is not run."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from atlases import change_json, change_sql, content, powerless
from gemscope.atlas.dashboard import Explanation
from gemscope.atlas.files import manifest as manifests
from gemscope.atlas.files import opening, schema
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.errors import AccessError, CorruptFile, NotFound


def test_where_there_is_no_atlas_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(NotFound, match="no atlas in"):
            Atlas(place)
        with pytest.raises(NotFound):
            verify(place)


@pytest.mark.parametrize("size", [0, 50, 100, 5000, 16384, 40_000, -1])
def test_a_truncated_file_is_named(copy: Path, size: int) -> None:
    path = copy / "atlas.sqlite"
    os.truncate(path, path.stat().st_size - 1 if size < 0 else size)
    with pytest.raises(CorruptFile, match=r"atlas\.sqlite") as caught:
        Atlas(copy)
    assert "\n" not in str(caught.value)
    assert len(verify(copy)) == 1


def _foreign(folder: Path) -> None:
    (folder / "atlas.sqlite").unlink()
    change_sql(folder, "CREATE TABLE feature (id)")


DAMAGES = {
    "foreign sqlite": (_foreign, "another program's SQLite file"),
    "not sqlite": (lambda at: (at / "atlas.sqlite").write_bytes(b"PK" * 5000), "not an SQLite file"),
    "no sqlite": (lambda at: (at / "atlas.sqlite").unlink(), "atlas.sqlite is missing"),
    "newer sqlite": (lambda at: change_sql(at, "PRAGMA user_version = 99"), "format 99, this version reads up to 4"),
    "no table": (lambda at: change_sql(at, "DROP TABLE feature"), "has no table 'feature'"),
    "fewer features": (
        lambda at: change_sql(at, "DELETE FROM feature WHERE id = 4"),
        "39 features, its manifest says 40",
    ),
    "no corpus": (lambda at: (at / "corpus.npy").unlink(), "corpus.npy is missing"),
    "short corpus": (lambda at: os.truncate(at / "corpus.npy", 4000), "corpus.npy is of 4,000 bytes"),
    "other corpus": (lambda at: np.save(at / "corpus.npy", np.zeros((48, 63), np.uint16)), r"rows \[48, 63\]"),
    "fewer rows": (lambda at: np.save(at / "corpus.npy", np.zeros((47, 64), np.uint16)), "its manifest says"),
    "float corpus": (lambda at: np.save(at / "corpus.npy", np.zeros((48, 64))), "its numbers are <f8"),
    "object corpus": (lambda at: np.save(at / "corpus.npy", np.array([[{}]])), "not an atlas's corpus"),
    "no header": (lambda at: (at / "corpus.npy").write_bytes(b"x" * 9000), "its header is missing"),
    "newer manifest": (lambda at: change_json(at, format=5), "format 5, this version reads up to 4: update"),
    "unnumbered manifest": (lambda at: change_json(at, format="1"), 'field "format" is "1", expected a whole number'),
    "more in manifest": (lambda at: change_json(at, colour="red"), 'field "colour" is not known'),
    "less in manifest": (lambda at: (at / "manifest.json").write_text('{"format": 1}'), 'field "model" is missing'),
    "a list": (lambda at: (at / "manifest.json").write_text("[]"), "it is an empty list, expected an object"),
    "no json": (lambda at: (at / "manifest.json").write_text("{"), "is not JSON: it ends in the middle"),
    "no text": (lambda at: (at / "manifest.json").write_bytes(b"\xff"), "is not JSON"),
    "odd type": (lambda at: change_json(at, d_sae="40"), 'field "d_sae" is "40", expected a whole number from 1'),
    "below zero": (lambda at: change_json(at, before=-1), "expected a whole number from 0"),
    "no length": (lambda at: change_json(at, length=0), "is 0, expected a whole number from 1"),
    "other width": (lambda at: change_json(at, d_sae=41), "40 features, its manifest says 41"),
    "nested json": (lambda at: (at / "manifest.json").write_text("[" * 200_000), "expected an object"),
    "count in words": (
        lambda at: change_sql(at, "UPDATE feature SET count = 'many' WHERE id = 7"),
        "row 7 of table feature holds what cannot stand there",
    ),
    "endless maximum": (
        lambda at: change_sql(at, "UPDATE feature SET max = 9e999 WHERE id = 7"),
        "row 7 of table feature holds what cannot stand there",
    ),
    "label of bytes": (
        lambda at: change_sql(at, "UPDATE feature SET label = x'ff00' WHERE id = 7"),
        "row 7 of table feature holds what cannot stand there",
    ),
    "explanation of bytes": (
        lambda at: change_sql(at, "UPDATE explanation SET text = x'ff00'"),
        "of table explanation holds what cannot stand there",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(copy: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(copy)
    with pytest.raises(CorruptFile, match=message) as caught:
        Atlas(copy)
    assert "\n" not in str(caught.value)
    assert verify(copy) == [str(caught.value)]
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize("name", ["manifest.json", "corpus.npy", "atlas.sqlite"])
def test_a_file_that_cannot_be_read_is_named_in_one_line(copy: Path, name: str) -> None:
    (copy / name).unlink()
    (copy / name).mkdir()
    with pytest.raises(AccessError, match=f"{name} cannot be read: (Is a directory|it is a folder)"):
        Atlas(copy)


def test_a_damaged_table_is_found_on_opening(copy: Path) -> None:
    path = copy / "atlas.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db:
        root = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'feature'").fetchone()[0]
        size = db.execute("PRAGMA page_size").fetchone()[0]
    whole = bytearray(path.read_bytes())
    start = (root - 1) * size
    whole[start + 3 : start + 11] = b"\xff" * 8
    path.write_bytes(whole)
    with pytest.raises(CorruptFile, match=r"atlas\.sqlite") as caught:
        Atlas(copy)
    assert "\n" not in str(caught.value)


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this version knew one more format."""
    step = (
        "CREATE TABLE star (feature INTEGER PRIMARY KEY)",
        "INSERT INTO star SELECT id FROM feature WHERE count > 900",
    )
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, step))
    for module in (opening, manifests):
        monkeypatch.setattr(module, "FORMAT", len(schema.STEPS))


def test_an_older_atlas_is_brought_up_to_date_once(copy: Path, newer: None) -> None:
    with Atlas(copy) as atlas:
        assert atlas.manifest.format == len(schema.STEPS)
        with atlas._database.reading() as db:
            stars = db.execute("SELECT count(*) FROM star").fetchone()[0]
        assert stars == sum(page.count > 900 for page in atlas) > 0
    assert json.loads((copy / "manifest.json").read_text())["format"] == len(schema.STEPS)
    before = content(copy)
    Atlas(copy).close()
    assert content(copy) == before


def test_what_a_rule_s_score_was_in_format_2_is_its_confidence_since(copy: Path) -> None:
    with Atlas(copy) as atlas:
        atlas.explain_all({3: Explanation(id=0, text="“of”", method="rule", rule='"of"', confidence=0.75)})
        atlas.explain_all({4: Explanation(id=0, text="of", method="somebody", score=0.5)})
        atlas.explain_all({5: Explanation(id=0, text="words", method="somebody")})
        atlas.explain_all({5: Explanation(id=0, text="“of”", method="rule", rule='"of"', confidence=0.72)})
        labels = atlas.labels(range(len(atlas)))
        assert labels[5] == "words"
    with contextlib.closing(sqlite3.connect(copy / "atlas.sqlite", isolation_level=None)) as db:
        db.execute("UPDATE explanation SET score = confidence WHERE method = 'rule'")
        db.execute("UPDATE feature SET label = '“of”' WHERE id = 5")  # as the order was
        for column in ("control", "confidence"):
            db.execute(f"ALTER TABLE explanation DROP COLUMN {column}")
        for table in ("held_row", "held", "trial", "written", "token_written", "plane"):
            db.execute(f"DROP TABLE {table}")
        db.execute("PRAGMA user_version = 2")
    change_json(copy, format=2, options={"top": 20})
    with Atlas(copy) as atlas:
        rule, other = atlas[3].explanations[0], atlas[4].explanations[0]
        assert (rule.score, rule.confidence) == (None, 0.75)
        assert (other.score, other.confidence) == (0.5, None)
        assert atlas.labels(range(len(atlas))) == labels
        assert atlas.manifest.format == 4
        assert atlas.manifest.options == {"top": 20, "pool": 0}
        assert len(atlas.pool) == 0
    assert verify(copy) == []


def test_an_upgrade_that_fails_changes_nothing(copy: Path, newer: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS[:-1], (*schema.STEPS[-1], "INSERT INTO nowhere VALUES (1)")))
    before = json.loads((copy / "manifest.json").read_text())
    with pytest.raises(CorruptFile, match="nowhere"):
        Atlas(copy)
    assert json.loads((copy / "manifest.json").read_text()) == before
    with contextlib.closing(sqlite3.connect(copy / "atlas.sqlite")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(schema.STEPS) - 1,)
        assert db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'star'").fetchone() == (0,)


def test_an_older_atlas_that_cannot_be_written_says_so(reachable: Path, newer: None) -> None:
    with powerless(reachable):
        with pytest.raises(AccessError, match=r"is of format 4, this version reads 5.*copy the atlas elsewhere"):
            Atlas(reachable)


TRAPS = {
    "a trigger": "CREATE TRIGGER odd AFTER INSERT ON explanation BEGIN DELETE FROM explanation; END",
    "a view": "ALTER TABLE token RENAME TO was; CREATE VIEW token AS SELECT * FROM was",
    "an endless view": (
        "DROP TABLE document; CREATE VIEW document AS WITH RECURSIVE c(start, source) AS "
        "(SELECT 0, 0 UNION ALL SELECT start + 1, 0 FROM c) SELECT * FROM c"
    ),
    "a column that computes itself": "ALTER TABLE feature ADD COLUMN odd AS (hex(zeroblob(500000000)))",
    "an index that computes": "CREATE INDEX odd ON explanation (hex(zeroblob(500)))",
    "another table": "CREATE TABLE odd (x)",
}


@pytest.mark.parametrize("trap", TRAPS)
def test_nothing_that_somebody_put_into_an_atlas_is_run(copy: Path, trap: str) -> None:
    with contextlib.closing(sqlite3.connect(copy / "atlas.sqlite")) as db:
        db.executescript(TRAPS[trap])
    for use in (Atlas, lambda at: verify(at) and Atlas(at)):
        with pytest.raises(CorruptFile, match=r"atlas.sqlite has a (trigger|view|table|index) '.*' that no atlas has"):
            use(copy)


def test_a_trap_that_is_laid_while_an_atlas_is_open_does_not_run_when_a_label_is_written(copy: Path) -> None:
    with Atlas(copy) as atlas:
        atlas.explain(0, "x")
        with contextlib.closing(sqlite3.connect(copy / "atlas.sqlite")) as db:
            db.executescript(TRAPS["a trigger"])
        with pytest.raises(CorruptFile, match="has a trigger 'odd'"):
            atlas.explain(0, "y")
        with contextlib.closing(sqlite3.connect(copy / "atlas.sqlite")) as db:
            assert ("x",) in db.execute("SELECT text FROM explanation").fetchall()
