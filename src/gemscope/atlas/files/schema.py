"""The SQL side of an atlas: its tables, the steps from one format to the next, and what is looked at on opening.

feature        figures of every feature, one row each; the label is the newest explanation's text
page           what else a feature's page shows, packed (packing.py)
explanation    what features stand for; this and the labels change once an atlas is written, and nothing else
label_text     full text search over explanations
relabelled     how often labels changed: readers keep what they gathered from them until it does
token          the vocabulary, packed, a thousand ids a row (vocabulary.py)
token_feature  by token, the features whose examples peak on it, packed (hits.py)
document       where each begins in the corpus
source         where documents come from, and under which licence
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from gemscope.atlas.files import hits
from gemscope.atlas.files.manifest import FORMAT
from gemscope.checked import size_of
from gemscope.disk import is_full
from gemscope.errors import AccessError, CorruptFile, NotFound, StorageFull

NAME = "atlas.sqlite"
APPLICATION = 0x47534154
"""`GSAT`: what tells our files from other programs' SQLite files."""
PAGE = 16384
"""Bytes. Records of one or two thousand fill pages of this size to the brim, and one is still a single read."""
_MAPPED = 1 << 30
"""Bytes of a file that connections read without copying, all of them the same memory."""
WAIT = 30.0
"""Seconds to wait for another process that writes."""

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

STEPS: tuple[tuple[str, ...], ...] = (_FORMAT_1,)
"""Step i leads from format i to i + 1; an empty file is of format 0."""
CHECKED = ("feature", "explanation", "token", "token_feature", "document", "source", "relabelled")
"""Looked through on opening: all but the pages, which make up nearly all of a large file."""


MOST = 1e300
"""Numbers are smaller: what is computed of them is finite too."""
_NUMBER = f"(typeof({{0}}) = 'real' AND abs({{0}}) < {MOST})"
_SENSIBLE = {
    "feature": f"""id >= 0 AND typeof(count) = 'integer' AND count BETWEEN 0 AND 1 << 53
                  AND {_NUMBER.format("max")} AND {_NUMBER.format("mean")}
                  AND (token IS NULL OR typeof(token) = 'integer')
                  AND (encoder_cosine IS NULL OR {_NUMBER.format("encoder_cosine")})
                  AND (decoder_norm IS NULL OR {_NUMBER.format("decoder_norm")})
                  AND typeof(label) IN ('text', 'null')""",
    "explanation": f"""typeof(feature) = 'integer' AND feature BETWEEN 0 AND (SELECT max(id) FROM feature)
                      AND typeof(text) = 'text' AND typeof(method) = 'text' AND typeof(author) = 'text'
                      AND (score IS NULL OR {_NUMBER.format("score")})""",
    "token": "typeof(packed) = 'blob'",
    "token_feature": f"""typeof(features) = 'integer' AND typeof(packed) = 'blob'
                        AND length(packed) IN ({", ".join(f"features * {size}" for size in hits.SIZES)})""",
    "document": "start >= 0 AND source IN (SELECT id FROM source)",
    "source": "typeof(name) = 'text' AND typeof(license) = 'text'",
    "relabelled": "typeof(times) = 'integer'",
}
"""What SQLite does not see to: a column takes values of any kind."""
_ALONE = ("relabelled",)
"""Tables of one row."""


def upgrade(db: sqlite3.Connection) -> None:
    """Brings a file to the newest format, all steps or none."""
    db.execute("BEGIN IMMEDIATE")  # before asking which format it is: another process may be at it
    for number in range(version(db), len(STEPS)):
        for statement in STEPS[number]:
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {len(STEPS)}")
    db.execute("COMMIT")


def relabel(db: sqlite3.Connection, features: Iterable[int]) -> None:
    """Gives features the label that follows from their explanations."""
    db.executemany(
        """UPDATE feature SET label = (SELECT text FROM explanation WHERE feature = feature.id ORDER BY id DESC LIMIT 1)
           WHERE id = ?""",
        ((feature,) for feature in features),
    )


def version(db: sqlite3.Connection) -> int:
    """The format that a file says it is of."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def connect(path: Path, *, write: bool = False) -> sqlite3.Connection:
    """A connection that one thread at a time may use. Nothing is created.

    Where nobody can write, SQLite is told so: it would want to make files beside this one. Only what an interrupted
    writer left there is a reason to let it.
    """
    mode = "rw" if write else "ro"
    if not write and not writable(path.parent) and not logged(path):
        mode += "&immutable=1"
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=WAIT,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        db.execute("PRAGMA trusted_schema = OFF")
        for name in _SETTINGS:  # from Python 3.12 on
            if hasattr(db, "setconfig") and hasattr(sqlite3, name):
                db.setconfig(getattr(sqlite3, name), name == _DEFENSIVE)
        require_ours(db, path)
        if not write:
            db.execute(f"PRAGMA mmap_size = {_MAPPED}")
    except BaseException:
        db.close()
        raise
    return db


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


_DEFENSIVE = "SQLITE_DBCONFIG_DEFENSIVE"
_SETTINGS = (_DEFENSIVE, "SQLITE_DBCONFIG_ENABLE_TRIGGER", "SQLITE_DBCONFIG_ENABLE_VIEW")
_EVERYTHING = "SELECT type, name, tbl_name, sql FROM sqlite_schema"


@cache
def _made(number: int) -> frozenset[tuple[Any, ...]]:
    """All that a file of a format consists of, as SQLite itself writes it down."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for step in STEPS[: max(0, number)]:
            for statement in step:
                db.execute(statement)
        return frozenset(db.execute(_EVERYTHING))


def logged(path: Path) -> bool:
    """Whether there is a log of changes beside the file, which belongs to it."""
    return path.with_name(path.name + "-wal").exists()


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder."""
    return os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Says in one line what is wrong with a file, where SQLite finds it damaged, locked, or has no room."""
    try:
        yield
    except sqlite3.Error as error:
        if isinstance(error, sqlite3.ProgrammingError):
            raise  # no fault of the file
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            raise CorruptFile(
                f"{path} is damaged: {error}; `verify` says where, a copy or describing anew helps"
            ) from (error)
        if is_full(error, path.parent):
            raise StorageFull(f"no room left on the disk of {path}: nothing was changed") from error
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise AccessError(f"{path} is being written by another program for over {WAIT:.0f} s: {error}") from error
        if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            raise AccessError(f"{path} cannot be reached or written ({error}): copy the atlas elsewhere") from error
        raise CorruptFile(f"{path} cannot be read: {error}") from error


def first_problem(db: sqlite3.Connection) -> str | None:
    """What SQLite finds wrong with the tables that are looked through on opening."""
    for table in CHECKED:
        found = str(db.execute(f"PRAGMA quick_check({table})").fetchone()[0])
        if found != "ok":
            return found.splitlines()[-1]
    for table, sensible in _SENSIBLE.items():
        if row := db.execute(f"SELECT rowid FROM {table} WHERE NOT ifnull({sensible}, 0) LIMIT 1").fetchone():
            return f"row {row[0]} of table {table} holds what cannot stand there"
    for table in _ALONE:
        if (rows := db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]) != 1:
            return f"table {table} has {rows} rows, expected one"
    return None


def check(path: Path) -> None:
    """A look at a file that takes far less than a second, whatever its size. Raises CorruptFile."""
    try:
        actual = size_of(path)
        with path.open("rb") as file:
            header = file.read(100)
    except NotFound:
        raise CorruptFile(f"{path} is missing: the atlas was not copied whole") from None
    except AccessError:
        raise
    except OSError as error:
        raise AccessError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise CorruptFile(f"{path} is not an SQLite file: it is no atlas's, or damaged")
    if int.from_bytes(header[68:72]) != APPLICATION:
        raise CorruptFile(f"{path} is another program's SQLite file: it is no atlas's")
    number, size = int.from_bytes(header[60:64]), int.from_bytes(header[16:18])
    if not 1 <= number <= FORMAT:
        raise CorruptFile(f"{path} is of format {number}, this version reads up to {FORMAT}: update gemscope")
    expected = int.from_bytes(header[28:32]) * (size if size != 1 else 65536)
    if actual < expected:
        raise CorruptFile(f"{path} is truncated: {actual:,} bytes of {expected:,}; copy it again")
