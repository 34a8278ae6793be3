"""The tables of an atlas, and the steps from one format to the next.

feature        figures of every feature, one row each; the label is the newest explanation's text
page           what else a feature's page shows, packed (packing.py)
explanation    what features stand for; this and the labels change once an atlas is written, and nothing else
label_text     full text search over explanations
relabelled     how often labels changed: readers keep what they gathered from them until it does
token          the vocabulary, packed, a thousand ids a row (vocabulary.py)
token_feature  by token, the features whose examples peak on it, packed (hits.py)
document       where each begins in the corpus
source         where documents come from, and under which licence
held_row       rows of the corpus that never give examples, and which of their tokens count (held_out.py)
held           by feature, where it fires on those rows, packed
trial          what running explanations' rules on text came to, in counts (labels/trial.py)
written        by feature, what it promotes by the measured effect of its site, and that in a few words (written.py);
               empty where no effect was measured
plane          where features lie on the map, packed: one row (plane.py), or none
token_written  by token, the features that promote it so, packed (written.py)
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from gemscope.errors import CorruptFile

NAME = "atlas.sqlite"
APPLICATION = 0x47534154
"""`GSAT`: what tells our files from other programs' SQLite files."""
PAGE = 16384
"""Bytes. Records of one or two thousand fill pages of this size to the brim, and one is still a single read."""
_BINDABLE = 500
"""Values in one SQL statement."""
_FORMAT_1 = (
    """CREATE TABLE feature (id INTEGER PRIMARY KEY, count INTEGER NOT NULL, max REAL NOT NULL, mean REAL NOT NULL,
       encoder_cosine REAL, decoder_norm REAL, token INTEGER, label TEXT)""",
    "CREATE TABLE page (id INTEGER PRIMARY KEY, packed BLOB NOT NULL)",
    """CREATE TABLE explanation (id INTEGER PRIMARY KEY AUTOINCREMENT, feature INTEGER NOT NULL, text TEXT NOT NULL,
       method TEXT NOT NULL, author TEXT NOT NULL, score REAL)""",
    "CREATE INDEX explanation_feature ON explanation (feature)",
    """CREATE VIRTUAL TABLE label_text
       USING fts5 (text, content='explanation', content_rowid='id', tokenize='unicode61 remove_diacritics 2')""",
    "CREATE TABLE relabelled (times INTEGER NOT NULL)",
    "INSERT INTO relabelled VALUES (0)",
    "CREATE TABLE token (first INTEGER PRIMARY KEY, packed BLOB NOT NULL)",
    "CREATE TABLE token_feature (token INTEGER PRIMARY KEY, features INTEGER NOT NULL, packed BLOB NOT NULL)",
    "CREATE TABLE document (start INTEGER PRIMARY KEY, source INTEGER NOT NULL)",
    "CREATE TABLE source (id INTEGER PRIMARY KEY, name TEXT NOT NULL, license TEXT NOT NULL)",
)

_FORMAT_2 = (
    "ALTER TABLE explanation ADD COLUMN rule TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE explanation ADD COLUMN model TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE explanation ADD COLUMN made TEXT NOT NULL DEFAULT ''",
)

_FORMAT_3 = (
    "ALTER TABLE explanation ADD COLUMN control REAL",
    "ALTER TABLE explanation ADD COLUMN confidence REAL",
    "UPDATE explanation SET confidence = score, score = NULL WHERE method = 'rule'",
    "CREATE TABLE held_row (position INTEGER PRIMARY KEY, counted BLOB NOT NULL)",
    "CREATE TABLE held (id INTEGER PRIMARY KEY, packed BLOB NOT NULL)",
    """CREATE TABLE trial (explanation INTEGER NOT NULL, text TEXT NOT NULL, strong INTEGER NOT NULL,
       strong_hits INTEGER NOT NULL, strong_control INTEGER NOT NULL, firing INTEGER NOT NULL,
       firing_hits INTEGER NOT NULL, firing_control INTEGER NOT NULL, silent INTEGER NOT NULL,
       silent_hits INTEGER NOT NULL, silent_control INTEGER NOT NULL, strong_tokens INTEGER NOT NULL,
       strong_named INTEGER NOT NULL, strong_borrowed INTEGER NOT NULL, firing_tokens INTEGER NOT NULL,
       firing_named INTEGER NOT NULL, firing_borrowed INTEGER NOT NULL, named INTEGER NOT NULL,
       borrowed INTEGER NOT NULL, PRIMARY KEY (explanation, text)) WITHOUT ROWID""",
)

_FORMAT_4 = (
    "CREATE TABLE written (id INTEGER PRIMARY KEY, words TEXT, packed BLOB NOT NULL)",
    "CREATE TABLE plane (id INTEGER PRIMARY KEY, packed BLOB NOT NULL)",
    "CREATE TABLE token_written (token INTEGER PRIMARY KEY, features INTEGER NOT NULL, packed BLOB NOT NULL)",
)

STEPS: tuple[tuple[str, ...], ...] = (_FORMAT_1, _FORMAT_2, _FORMAT_3, _FORMAT_4)
"""Step i leads from format i to i + 1; an empty file is of format 0."""
LATEST = len(STEPS)
_TABLE = "CREATE TABLE "
MOST = 1e300
"""Numbers are smaller: what is computed of them is finite too."""


UNMEASURED = 0.7
"""What stands for the score of words that nobody has measured."""
_WORTH = f"coalesce(score, iif(method = 'rule', confidence, NULL), {UNMEASURED})"
BEST_FIRST = f"ORDER BY method = 'user' DESC, round({_WORTH}, 1) DESC, method = 'rule', {_WORTH} DESC, id DESC"
"""Which explanation of a feature shows: a person's before a machine's, then by score, in tenths, for less is chance;
among those somebody's words before a rule's own, then the higher, then the newest. Where there is no score, of a rule
that was learnt the confidence stands in; words count as `UNMEASURED`.
"""


def upgrade(db: sqlite3.Connection) -> None:
    """Brings a file to the newest format, all steps or none."""
    db.execute("BEGIN IMMEDIATE")  # before asking which format it is: another process may be at it
    for number in range(version(db), len(STEPS)):
        for statement in STEPS[number]:
            db.execute(statement)
    relabel(db, [feature for (feature,) in db.execute("SELECT DISTINCT feature FROM explanation")])  # by today's order
    db.execute(f"PRAGMA user_version = {len(STEPS)}")
    db.execute("COMMIT")


def as_it_is(number: int) -> bool:
    """Whether an atlas of a format can be read without being brought up to date: since then there are more tables, and
    nothing else is different.
    """
    return all(statement.startswith(_TABLE) for step in STEPS[number:] for statement in step)


def lend(db: sqlite3.Connection) -> None:
    """Gives a connection to a file of an older format the tables that it lacks, empty, for as long as it is open."""
    db.execute("PRAGMA temp_store = MEMORY")
    for step in STEPS[version(db) :]:
        for statement in step:
            db.execute(statement.replace(_TABLE, "CREATE TEMP TABLE ", 1))


def relabel(db: sqlite3.Connection, features: Iterable[int]) -> None:
    """Gives features the label that follows from their explanations."""
    db.executemany(
        f"""UPDATE feature SET label = (SELECT text FROM explanation WHERE feature = feature.id {BEST_FIRST} LIMIT 1)
            WHERE id = ?""",
        ((feature,) for feature in features),
    )


def looked_up(
    db: sqlite3.Connection, columns: str, features: Collection[int], table: str = "feature"
) -> list[tuple[Any, ...]]:
    """Rows of these features: their index, then the columns."""
    wanted, rows = list(features), list[tuple[Any, ...]]()
    for start in range(0, len(wanted), _BINDABLE):
        some = wanted[start : start + _BINDABLE]
        marks = ",".join("?" * len(some))
        rows += db.execute(f"SELECT id, {columns} FROM {table} WHERE id IN ({marks})", some).fetchall()
    return rows


def words_of(db: sqlite3.Connection, features: Collection[int]) -> dict[int, str]:
    """What these features promote in a few words, of those of which there is anything to say."""
    wanted, found = list(features), dict[int, str]()
    for start in range(0, len(wanted), _BINDABLE):
        some = wanted[start : start + _BINDABLE]
        marks = ",".join("?" * len(some))
        found |= dict(db.execute(f"SELECT id, words FROM written WHERE id IN ({marks}) AND words IS NOT NULL", some))
    return found


def scores_of(db: sqlite3.Connection, features: Collection[int]) -> dict[int, float]:
    """How far the labels of these features are right, of those of which that was measured."""
    wanted, found = list(features), dict[int, float]()
    for start in range(0, len(wanted), _BINDABLE):
        some = wanted[start : start + _BINDABLE]
        marks = ",".join("?" * len(some))
        found |= dict(
            db.execute(
                f"""SELECT feature, max(score) FROM explanation JOIN feature ON feature.id = feature AND text = label
                    WHERE feature IN ({marks}) AND score IS NOT NULL GROUP BY feature""",
                some,
            )
        )
    return found


def version(db: sqlite3.Connection) -> int:
    """The format that a file says it is of."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def require_ours(db: sqlite3.Connection, path: Path) -> None:
    """Nothing that a file brings along is run: no trigger, no view, no column that computes itself, because it must
    consist of what we make and of nothing else. Raises CorruptFile.
    """
    there, made = set(db.execute(_EVERYTHING)), _made(min(version(db), len(STEPS)))
    for odd, fault in (
        (there - made, "has a {} {!r} that no atlas has, and nothing that a file brings along is run: it is refused"),
        (made - there, "has no {} {!r} as every atlas has one: copy it again, or describe anew"),
    ):
        if odd:
            kind, name, *_ = min(odd, key=str)
            raise CorruptFile(f"{path} {fault.format(kind, name)}")


_EVERYTHING = "SELECT type, name, tbl_name, sql FROM sqlite_schema"


@cache
def _made(number: int) -> frozenset[tuple[Any, ...]]:
    """All that a file of a format consists of, as SQLite itself writes it down."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for step in STEPS[: max(0, number)]:
            for statement in step:
                db.execute(statement)
        return frozenset(db.execute(_EVERYTHING))
