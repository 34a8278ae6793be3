"""Looking an atlas through: every damage is found."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from atlases import FIRST_WORD, change_sql, content, planted_atlas
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.errors import CorruptFile


def test_a_sound_atlas_has_no_problems(planted: Atlas) -> None:
    before = content(planted.folder)
    assert verify(planted.folder) == []
    assert content(planted.folder) == before


def _flip(folder: Path, table: str, key: str, number: int) -> None:
    with contextlib.closing(sqlite3.connect(folder / "atlas.sqlite")) as db, db:
        blob = bytearray(db.execute(f"SELECT packed FROM {table} WHERE {key} = ?", (number,)).fetchone()[0])
        blob[len(blob) // 2] ^= 16
        db.execute(f"UPDATE {table} SET packed = ? WHERE {key} = ?", (bytes(blob), number))


PROBLEMS = {
    "a flipped byte": (lambda at: _flip(at, "page", "id", 3), "feature 3: a packed record is damaged"),
    "a count": (
        lambda at: change_sql(at, "UPDATE feature SET count = count + 1 WHERE id = 5"),
        "feature 5: its histogram",
    ),
    "a missing page": (lambda at: change_sql(at, "DELETE FROM page WHERE id = 8"), "the first missing is 8"),
    "a maximum": (lambda at: change_sql(at, "UPDATE feature SET max = 0.5 WHERE id = 2"), "feature 2: an example of"),
    "a token": (
        lambda at: change_sql(at, "UPDATE feature SET token = 1 WHERE id = 4"),
        "feature 4: its strongest example",
    ),
    "hits": (lambda at: _flip(at, "token_feature", "token", FIRST_WORD + 1), f"token {FIRST_WORD + 1}: "),
    "no hits": (
        lambda at: change_sql(at, "DELETE FROM token_feature WHERE token = 20"),
        "token 20: it lists no features",
    ),
    "vocabulary": (lambda at: _flip(at, "token", "first", 0), "the vocabulary: a packed record is damaged"),
    "a label": (
        lambda at: change_sql(at, "UPDATE feature SET label = 'x' WHERE id = 1"),
        "feature 1: its label is 'x'",
    ),
    "unindexed": (
        lambda at: change_sql(
            at, "UPDATE explanation SET text = 'y' WHERE feature = 3", "UPDATE feature SET label = 'y' WHERE id = 3"
        ),
        "full text index",
    ),
    "documents": (lambda at: change_sql(at, "DELETE FROM document WHERE start > 2000"), "table document has"),
    "a late document": (lambda at: change_sql(at, "INSERT INTO document VALUES (999999, 0)"), "beyond the corpus"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_verify_finds(copy: Path, name: str) -> None:
    damage, message = PROBLEMS[name]
    damage(copy)
    assert any(message in problem for problem in verify(copy)), verify(copy)


def test_verify_finds_a_flipped_byte_anywhere_in_the_pages_of_the_file(copy: Path) -> None:
    path = copy / "atlas.sqlite"
    whole = path.read_bytes()
    with contextlib.closing(sqlite3.connect(path)) as db:
        blob = db.execute("SELECT packed FROM page WHERE id = 10").fetchone()[0]
    at = whole.index(blob[:40])
    for offset in (0, 30, len(blob) // 2, len(blob) - 1):
        path.write_bytes(whole[: at + offset] + bytes([whole[at + offset] ^ 1]) + whole[at + offset + 1 :])
        with Atlas(copy) as atlas:  # opening does not read the pages
            with pytest.raises(CorruptFile, match=r"feature 10: a packed record is damaged.*copy it again"):
                atlas[10]
        assert any("feature 10" in problem for problem in verify(copy))


def test_verify_stops_counting_somewhere(tmp_path: Path) -> None:
    planted_atlas(tmp_path / "a", features=300).close()
    change_sql(tmp_path / "a", "UPDATE feature SET count = 1")
    assert len(verify(tmp_path / "a")) == 101


def test_a_text_of_one_long_row_is_looked_through(tmp_path: Path) -> None:
    """Its positions are kept in a byte each, and there is no row so long in a byte."""
    with planted_atlas(tmp_path / "a", length=256, rows=1) as atlas:
        assert verify(atlas.folder) == []
