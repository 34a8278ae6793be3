"""Where features lie on the map of an atlas: one packed record, or none."""

from __future__ import annotations

import sqlite3
from typing import Any

import numpy as np

from gemscope.atlas.files.packing import pack, unpack
from gemscope.errors import CorruptFile

Places = np.ndarray[Any, np.dtype[np.uint16]]


def write(places: Places, db: sqlite3.Connection) -> None:
    """[F, 2], in the place of what was there."""
    db.execute("INSERT OR REPLACE INTO plane VALUES (0, ?)", (pack((places[:, 0], places[:, 1])),))


def read(db: sqlite3.Connection, d_sae: int) -> Places | None:
    """[F, 2]; None where there is no map. Raises CorruptFile."""
    row = db.execute("SELECT packed FROM plane WHERE id = 0").fetchone()
    if row is None:
        return None
    x, y = unpack(row[0], 2)
    if len(x) != d_sae or len(y) != d_sae:
        raise CorruptFile(f"the map has {len(x)} and {len(y)} places for {d_sae} features")
    for one in (x, y):
        if one.dtype.kind not in "iu" or (len(one) and not 0 <= int(one.min()) <= int(one.max()) < 1 << 16):
            raise CorruptFile("the map has places that lie outside it")
    found = np.stack([x, y], 1).astype(np.uint16)
    found.flags.writeable = False
    return found
