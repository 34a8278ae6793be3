"""An atlas as files to be carried elsewhere: which of a folder's are its own, and a copy of what others write in."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from gemscope.atlas.files import corpus, manifest, schema
from gemscope.atlas.files.database import Database
from gemscope.disk import room

NEEDED = (manifest.NAME, schema.NAME, corpus.NAME)
"""What every atlas has."""
SUMS = "sums.safetensors"
"""What merging it with another needs and no page shows."""
EFFECT = "effect.safetensors"
"""The effect of its site, as `Effect.load` reads it."""
RELATIVES = "relatives.safetensors"
"""The relatives of its features at other sites, as `Kin.load` reads them."""
OUTPUTS = "outputs.safetensors"
"""The output scores of its features, as far as anybody has measured them."""


def own(names: Iterable[str]) -> list[str]:
    """Those of a folder's files that are an atlas's: the needed ones first."""
    there = set(names)
    return [name for name in (*NEEDED, SUMS, EFFECT, RELATIVES, OUTPUTS) if name in there]


def is_written(tables: Path) -> bool:
    """Whether somebody is writing in the SQLite file of an atlas, so that not all of it is in the file yet."""
    return tables.with_name(f"{tables.name}-wal").exists()


def copy_tables(tables: Path, to: Path) -> None:
    """Writes that file as it is at one moment, whatever others are at. Raises CorruptFile, AccessError, StorageFull."""
    with (
        closing(Database(tables)) as database,
        database.reading() as source,
        room(to),
        closing(sqlite3.connect(to, isolation_level=None)) as target,
    ):
        source.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")
