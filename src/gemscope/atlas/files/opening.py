"""What is looked at when an atlas is opened, whatever its size in far less than a second; an older one is brought up to
date.
"""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

from gemscope.atlas.files import hits, schema, written
from gemscope.atlas.files.database import Database, writable
from gemscope.atlas.files.manifest import FORMAT, Manifest, write_manifest
from gemscope.atlas.labels.trial import COUNTS
from gemscope.checked import size_of
from gemscope.errors import AccessError, CorruptFile, NotFound

_CHECKED = (
    *("feature", "explanation", "token", "token_feature", "document", "source", "relabelled"),
    *("held_row", "trial", "written", "token_written", "plane"),
)
"""Looked through on opening: all but the pages, which make up nearly all of a large file."""
_NUMBER = f"(typeof({{0}}) = 'real' AND abs({{0}}) < {schema.MOST})"
_SENSIBLE = {
    "feature": f"""id >= 0 AND typeof(count) = 'integer' AND count BETWEEN 0 AND 1 << 53
                  AND {_NUMBER.format("max")} AND {_NUMBER.format("mean")}
                  AND (token IS NULL OR typeof(token) = 'integer')
                  AND (encoder_cosine IS NULL OR {_NUMBER.format("encoder_cosine")})
                  AND (decoder_norm IS NULL OR {_NUMBER.format("decoder_norm")})
                  AND typeof(label) IN ('text', 'null')""",
    "explanation": f"""typeof(feature) = 'integer' AND feature BETWEEN 0 AND (SELECT max(id) FROM feature)
                      AND typeof(text) = 'text' AND typeof(method) = 'text' AND typeof(author) = 'text'
                      AND typeof(rule) = 'text' AND typeof(model) = 'text' AND typeof(made) = 'text'
                      AND (score IS NULL OR {_NUMBER.format("score")})
                      AND (control IS NULL OR {_NUMBER.format("control")})
                      AND (confidence IS NULL OR {_NUMBER.format("confidence")})""",
    "token": "typeof(packed) = 'blob'",
    "token_feature": f"""typeof(features) = 'integer' AND typeof(packed) = 'blob'
                        AND length(packed) IN ({", ".join(f"features * {size}" for size in hits.SIZES)})""",
    "document": "start >= 0 AND source IN (SELECT id FROM source)",
    "source": "typeof(name) = 'text' AND typeof(license) = 'text'",
    "relabelled": "typeof(times) = 'integer'",
    "held_row": "position >= 0 AND typeof(counted) = 'blob'",
    "plane": "id = 0 AND typeof(packed) = 'blob'",
    "written": "id >= 0 AND typeof(packed) = 'blob' AND typeof(words) IN ('text', 'null')",
    "token_written": f"""typeof(features) = 'integer' AND typeof(packed) = 'blob'
                        AND length(packed) IN ({", ".join(f"features * {size}" for size in written.SIZES)})""",
    "trial": " AND ".join(
        ("typeof(text) = 'text'", *(f"typeof({name}) = 'integer' AND {name} BETWEEN 0 AND 1 << 53" for name in COUNTS))
    ),
}
"""What SQLite does not see to: a column takes values of any kind."""
_KEYS = {"trial": "explanation"}
"""What tells a table's rows apart, where SQLite does not number them."""
_ALONE = ("relabelled",)
"""Tables of one row."""


def opened(folder: Path, manifest: Manifest) -> tuple[Database, Manifest]:
    """The tables of an atlas, and its manifest as it is now. Raises CorruptFile, AccessError."""
    path = folder / schema.NAME
    _require_whole(path)
    database = Database(path)
    try:
        with database.reading() as db:
            old = schema.version(db)
        if not schema.as_it_is(min(old, manifest.format)):
            manifest = upgraded(folder, manifest, database)
        with database.reading() as db:
            if problem := _first_problem(db):
                raise CorruptFile(f"{path} is damaged: {problem}; copy it again, or describe anew")
            rows, last = db.execute("SELECT count(*), max(id) FROM feature").fetchone()
        if rows != manifest.d_sae or (rows and last != rows - 1):
            raise CorruptFile(f"{path} holds {rows} features, its manifest says {manifest.d_sae}: copy it again")
    except BaseException:
        database.close()
        raise
    return database, manifest


def upgraded(folder: Path, manifest: Manifest, database: Database) -> Manifest:
    """Brings an atlas to the newest format. Raises AccessError where nothing can be written."""
    with database.reading() as db:
        old = schema.version(db)
    if not writable(folder):
        raise AccessError(
            f"{folder} is of format {old}, this version reads {FORMAT}, and nothing can be written there to "
            f"bring it up to date: copy the atlas elsewhere"
        )
    with database.changing() as db:
        schema.upgrade(db)
    database.let_go()
    # What says how it was made, but not how much it held out, held out nothing.
    missing = {"pool": 0} if old < 3 else {}
    options = {**missing, **manifest.options} if "top" in manifest.options else manifest.options
    manifest = replace(manifest, format=FORMAT, options=options)
    write_manifest(manifest, folder)
    return manifest


def _first_problem(db: sqlite3.Connection) -> str | None:
    """What SQLite finds wrong with the tables that are looked through on opening."""
    for table in _CHECKED:
        found = str(db.execute(f"PRAGMA quick_check({table})").fetchone()[0])
        if found != "ok":
            return found.splitlines()[-1]
    for table, sensible in _SENSIBLE.items():
        if row := db.execute(
            f"SELECT {_KEYS.get(table, 'rowid')} FROM {table} WHERE NOT ifnull({sensible}, 0) LIMIT 1"
        ).fetchone():
            return f"row {row[0]} of table {table} holds what cannot stand there"
    for table in _ALONE:
        if (rows := db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]) != 1:
            return f"table {table} has {rows} rows, expected one"
    return None


def _require_whole(path: Path) -> None:
    """Nothing but its header is read. Raises CorruptFile."""
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
    if int.from_bytes(header[68:72]) != schema.APPLICATION:
        raise CorruptFile(f"{path} is another program's SQLite file: it is no atlas's")
    number, size = int.from_bytes(header[60:64]), int.from_bytes(header[16:18])
    if not 1 <= number <= FORMAT:
        raise CorruptFile(f"{path} is of format {number}, this version reads up to {FORMAT}: update gemscope")
    expected = int.from_bytes(header[28:32]) * (size if size != 1 else 65536)
    if actual < expected:
        raise CorruptFile(f"{path} is truncated: {actual:,} bytes of {expected:,}; copy it again")
