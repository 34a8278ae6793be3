"""Damage to SQLite files."""

from __future__ import annotations

import math
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from gemscope.errors import CorruptFile

_ODD: list[Any] = [
    None,
    0,
    -1,
    1,
    2**31,
    2**62,
    -(2**62),
    5.5,
    1e300,
    -1e300,
    math.inf,
    "",
    "x",
    "\x1b[31m\n" * 40,
    b"",
    b"\x00" * 40,
    b"\xff" * 9,
]


def sqlite(path: Path, chance: Random, others: list[Path]) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    try:
        for _ in range(chance.choice((1, 1, 1, 3))):
            try:
                chance.choice(_SQL)(db, chance)
            except (sqlite3.Error, OverflowError, CorruptFile):  # of what one before it has done
                continue
    finally:
        db.close()


def _tables(db: sqlite3.Connection) -> list[str]:
    rows = db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'").fetchall()
    return [name for (name,) in rows]


def _own(db: sqlite3.Connection) -> list[str]:
    return [name for name in _tables(db) if not name.startswith("label_text")]


def _columns(db: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in db.execute(f"PRAGMA table_info({table})")]


def _cell(db: sqlite3.Connection, chance: Random) -> tuple[str, str, int]:
    table = chance.choice(_own(db))
    column = chance.choice(_columns(db, table))
    rows = [row for (row,) in db.execute(f"SELECT rowid FROM {table} LIMIT 60")]
    return table, column, chance.choice(rows or [0])


def _sql_value(db: sqlite3.Connection, chance: Random) -> None:
    table, column, row = _cell(db, chance)
    db.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (chance.choice(_ODD), row))


def _sql_every_value(db: sqlite3.Connection, chance: Random) -> None:
    table, column, _ = _cell(db, chance)
    db.execute(f"UPDATE OR IGNORE {table} SET {column} = ?", (chance.choice(_ODD),))


def _sql_blob(db: sqlite3.Connection, chance: Random) -> None:
    table = chance.choice(("page", "token", "token_feature"))
    row, blob = chance.choice(db.execute(f"SELECT rowid, packed FROM {table} LIMIT 60").fetchall())
    body = bytearray(blob)
    for _ in range(chance.choice((1, 3))):
        body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
    if chance.random() < 0.5 and table != "token_feature":  # its checksum made right
        body[:4] = zlib.crc32(bytes(body[4:])).to_bytes(4, "little")
    db.execute(f"UPDATE {table} SET packed = ? WHERE rowid = ?", (bytes(body), row))


def _sql_arrays(db: sqlite3.Connection, chance: Random) -> None:
    """A record that is whole by itself and says what cannot be."""
    import numpy as np

    from gemscope.atlas.files import packing

    table, count = chance.choice((("page", 20), ("page", 20), ("token", 4)))
    row, blob = chance.choice(db.execute(f"SELECT rowid, packed FROM {table} LIMIT 60").fetchall())
    arrays = packing.unpack(blob, count)
    for _ in range(chance.choice((1, 1, 2))):
        number = chance.randrange(count)
        one = arrays[number].copy()
        what = chance.choice(("value", "value", "longer", "shorter", "floats", "empty", "many"))
        if what == "value" and len(one):
            one = one.astype(np.int64 if one.dtype.kind in "iu" else np.float64)
            one[chance.randrange(len(one))] = chance.choice((-1, 0, 2**31, 2**62, -(2**62), 10**6, 300_000_000))
        elif what == "longer":
            one = np.concatenate((one, one[:1], one[:1]))
        elif what == "shorter":
            one = one[:-1]
        elif what == "floats":
            one = one.astype(np.float32) + 0.5
        elif what == "empty":
            one = one[:0]
        elif what == "many":
            one = np.resize(one, 50_000) if len(one) else one
        arrays[number] = one
    db.execute(f"UPDATE {table} SET packed = ? WHERE rowid = ?", (packing.pack(arrays), row))


def _sql_bomb(db: sqlite3.Connection, chance: Random) -> None:
    """A few kilobytes that unpack to a lot."""
    table = chance.choice(("page", "token"))
    row = chance.choice(db.execute(f"SELECT rowid FROM {table} LIMIT 60").fetchall())[0]
    deflating = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflating.compress(bytes(64 << 20)) + deflating.flush()
    db.execute(f"UPDATE {table} SET packed = ? WHERE rowid = ?", (zlib.crc32(body).to_bytes(4, "little") + body, row))


def _sql_drop(db: sqlite3.Connection, chance: Random) -> None:
    db.execute(f"DROP TABLE {chance.choice(_tables(db))}")


def _sql_empty(db: sqlite3.Connection, chance: Random) -> None:
    db.execute(f"DELETE FROM {chance.choice(_own(db))}")


def _sql_less(db: sqlite3.Connection, chance: Random) -> None:
    table, _, row = _cell(db, chance)
    db.execute(f"DELETE FROM {table} WHERE rowid = ?", (row,))


def _sql_more(db: sqlite3.Connection, chance: Random) -> None:
    table, _, row = _cell(db, chance)
    columns = _columns(db, table)
    values = list(db.execute(f"SELECT * FROM {table} WHERE rowid = ?", (row,)).fetchone() or [0] * len(columns))
    values[0] = chance.choice((10**6, 2**40, -5, 300_000_000))
    db.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(columns))})", values)


def _sql_view(db: sqlite3.Connection, chance: Random) -> None:
    """A view in the place of a table."""
    table = chance.choice(_own(db))
    db.execute("PRAGMA legacy_alter_table = ON")
    db.execute(f"ALTER TABLE {table} RENAME TO was_{table}")
    db.execute(f"CREATE VIEW {table} AS SELECT * FROM was_{table}")


def _sql_endless(db: sqlite3.Connection, chance: Random) -> None:
    """A view that never ends, in the place of a table."""
    table = chance.choice(("feature", "token", "document", "relabelled"))
    columns = _columns(db, table)
    db.execute(f"DROP TABLE {table}")
    some = ", ".join(f"n AS {column}" for column in columns)
    db.execute(
        f"CREATE VIEW {table} AS WITH RECURSIVE c(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c) SELECT {some} FROM c"
    )


def _sql_trigger(db: sqlite3.Connection, chance: Random) -> None:
    table = chance.choice(_own(db))
    when = chance.choice(("AFTER INSERT", "AFTER UPDATE", "BEFORE DELETE"))
    db.execute(
        f"CREATE TRIGGER odd {when} ON {table} BEGIN DELETE FROM feature; UPDATE explanation SET text = 'owned'; END"
    )


def _sql_column(db: sqlite3.Connection, chance: Random) -> None:
    table = chance.choice(_own(db))
    column = chance.choice(_columns(db, table))
    db.execute(
        chance.choice(
            (f"ALTER TABLE {table} RENAME COLUMN {column} TO odd", f"ALTER TABLE {table} ADD COLUMN odd DEFAULT 'x'")
        )
    )


def _sql_generated(db: sqlite3.Connection, chance: Random) -> None:
    table = chance.choice(_own(db))
    db.execute(f"ALTER TABLE {table} ADD COLUMN odd AS (hex(randomblob(200000000))) VIRTUAL")


def _sql_index(db: sqlite3.Connection, chance: Random) -> None:
    table = chance.choice(_own(db))
    db.execute(f"CREATE INDEX odd ON {table} (hex(zeroblob(2000)))")


def _sql_number(db: sqlite3.Connection, chance: Random) -> None:
    db.execute(f"PRAGMA {chance.choice(('user_version', 'application_id'))} = {chance.choice((0, 2, -1, 2**31 - 1))}")


def _sql_schema(db: sqlite3.Connection, chance: Random) -> None:
    """What the file says of itself, written over."""
    db.execute("PRAGMA writable_schema = ON")
    name = chance.choice(_tables(db))
    change = chance.choice(
        (
            "sql = 'CREATE TABLE x'",
            "sql = NULL",
            "rootpage = 1",
            "rootpage = 99999",
            "type = 'view'",
            "name = 'odd'",
            "tbl_name = char(10)",
        )
    )
    db.execute(f"UPDATE sqlite_schema SET {change} WHERE name = ?", (name,))


_SQL: list[Callable[[sqlite3.Connection, Random], None]] = [
    *[_sql_value] * 4, _sql_every_value, *[_sql_blob] * 3, *[_sql_arrays] * 6, _sql_bomb, _sql_drop, _sql_empty, _sql_less, _sql_more,
    _sql_view, _sql_endless, _sql_trigger, _sql_column, _sql_generated, _sql_index, _sql_number, _sql_schema,
]  # fmt: skip
