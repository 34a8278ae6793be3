"""The rows of an atlas that are held out, in its tables: which those are, and where each feature fires on them."""

from __future__ import annotations

import sqlite3
from typing import Any

import numpy as np

from gemscope.atlas.entry import Ints
from gemscope.atlas.files.packing import pack, unpack
from gemscope.errors import CorruptFile
from gemscope.features.pool import Pool

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def write(pool: Pool, features: int, db: sqlite3.Connection) -> None:
    """The same pool gives the same records."""
    for position, counted in zip(pool.positions.tolist(), pool.counted, strict=True):
        db.execute("INSERT INTO held_row VALUES (?, ?)", (position, np.packbits(counted).tobytes()))
    for feature in range(features if len(pool) else 0):
        places, coded = pool.firings(feature)
        if len(places):
            record = pack((np.diff(places, prepend=0), coded - coded.min(), coded.min()[None]))
            db.execute("INSERT INTO held VALUES (?, ?)", (feature, record))


def rows(db: sqlite3.Connection, length: int) -> tuple[Ints, Mask]:
    """Positions [R] of the rows, and which of their tokens count: bool [R, length]. Raises CorruptFile."""
    found = db.execute("SELECT position, counted FROM held_row ORDER BY position").fetchall()
    bits = [counted for _, counted in found]
    if any(len(one) != -(-length // 8) for one in bits):
        raise CorruptFile("the rows that are held out are damaged: they are of another length")
    packed = np.frombuffer(b"".join(bits), np.uint8).reshape(len(found), -(-length // 8))
    counted = np.unpackbits(packed, axis=1, count=length).astype(np.bool_)
    return np.array([position for position, _ in found], np.int64), counted


def firings(db: sqlite3.Connection, feature: int, counted: Mask) -> tuple[Ints, Ints]:
    """Where a feature fires on the rows, and how strongly, as `Pool.firings` gives it. Raises CorruptFile."""
    found = db.execute("SELECT packed FROM held WHERE id = ?", (feature,)).fetchone()
    if found is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    gaps, above, low = unpack(found[0], 3)
    places = gaps.astype(np.int64).cumsum()
    if (
        len(gaps) != len(above)
        or len(low) != 1
        or not len(gaps)
        or (gaps[1:] <= 0).any()
        or not 0 <= int(places[0]) <= int(places[-1]) < counted.size
        or not counted.reshape(-1)[places].all()
        or int(low[0]) <= 0
    ):
        raise CorruptFile("where it fires on the rows held out is damaged")
    return places, above.astype(np.int64) + int(low[0])
