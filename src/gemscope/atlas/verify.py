"""Looks through a whole atlas for damage: what opening it leaves out because it would take long."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import zip_longest
from pathlib import Path

import numpy as np

from gemscope.atlas.entry import AGREED
from gemscope.atlas.files import corpus, held_out, hits, plane, schema, written
from gemscope.atlas.files.database import Database
from gemscope.atlas.files.manifest import Manifest, read_manifest
from gemscope.atlas.files.outputs import Outputs
from gemscope.atlas.files.page import Page, contradictions, unpack_page
from gemscope.atlas.files.vocabulary import Vocabulary
from gemscope.atlas.reader import Atlas
from gemscope.atlas.relatives import Relatives
from gemscope.errors import CorruptFile, Mismatch

_MANY = 100
"""Problems after which the rest is not looked for."""


def verify(folder: str | Path) -> list[str]:
    """Problems found, one line each; none when the atlas is sound. Raises NotFound where there is no atlas."""
    try:
        Atlas(folder).close()  # brings an older format up to date, and finds what opening finds
        problems = []
        for problem in _problems(Path(folder)):
            problems.append(problem)
            if len(problems) == _MANY:
                return [*problems, f"and perhaps more: after {_MANY} the rest was not looked at"]
        return problems
    except CorruptFile as error:
        return [str(error)]


def _problems(folder: Path) -> Iterator[str]:
    manifest = read_manifest(folder)
    rows = corpus.Corpus(folder / corpus.NAME, manifest.rows, manifest.length)
    with closing(Database(folder / schema.NAME)) as database, database.reading() as db:
        found = [str(line) for (line,) in db.execute("PRAGMA integrity_check")]
        if found != ["ok"]:
            yield from (f"{schema.NAME}: {line}" for line in found)
            return  # what is read from a damaged file means little
        yield from _relatives(folder, manifest)
        yield from _outputs(folder, manifest)
        yield from _tables(db, manifest)
        yield from _pages(db, manifest, rows)
        yield from _written(db, manifest)
        yield from _plane(db, manifest)
        yield from _labels(db)
        yield from _held_out(db, manifest, rows)


def _relatives(folder: Path, manifest: Manifest) -> Iterator[str]:
    try:
        _ = Relatives(folder, manifest).kin
    except (CorruptFile, Mismatch) as error:
        yield str(error)


def _outputs(folder: Path, manifest: Manifest) -> Iterator[str]:
    try:
        _ = Outputs(folder, lambda: manifest, str).features
    except CorruptFile as error:
        yield str(error)


def _tables(db: sqlite3.Connection, manifest: Manifest) -> Iterator[str]:
    for table in ("feature", "page"):
        held, last = db.execute(f"SELECT count(*), coalesce(max(id), -1) FROM {table}").fetchone()
        if held != manifest.d_sae or last != held - 1:
            missing = db.execute(
                f"""WITH RECURSIVE n(id) AS (SELECT 0 UNION ALL SELECT id + 1 FROM n WHERE id + 1 < ?)
                    SELECT id FROM n WHERE id NOT IN (SELECT id FROM {table}) LIMIT 1""",
                (manifest.d_sae,),
            ).fetchone()
            which = f": the first missing is {missing[0]}" if missing else ""
            yield f"table {table} has {held} rows up to {last}, the manifest says {manifest.d_sae} features{which}"
    documents, last = db.execute("SELECT count(*), coalesce(max(start), -1) FROM document").fetchone()
    if last >= max(1, manifest.rows * manifest.length):
        yield f"a document starts at {last}, beyond the corpus"
    if documents != manifest.documents:
        yield f"table document has {documents} rows, the manifest says {manifest.documents}"


def _pages(db: sqlite3.Connection, manifest: Manifest, rows: corpus.Corpus) -> Iterator[str]:
    """Every page by itself, and that tokens lead to the features whose pages say so."""
    try:
        vocabulary = Vocabulary(db.execute("SELECT first, packed FROM token ORDER BY first"))
    except CorruptFile as error:
        yield f"the vocabulary: {error}"
        return
    by_token: dict[int, list[tuple[int, int]]] = {}
    apart = {position // manifest.length for (position,) in db.execute("SELECT position FROM held_row")}
    for index, count, top, token, packed in db.execute(
        "SELECT id, count, max, token, packed FROM feature JOIN page USING (id) ORDER BY id"
    ):
        try:
            page = unpack_page(packed)
        except CorruptFile as error:
            yield f"feature {index}: {error}"
            continue
        yield from (f"feature {index}: {problem}" for problem in _page(page, count, top, len(rows)))
        if both := apart.intersection((page.positions.astype(np.int64) // manifest.length).tolist()):
            yield f"feature {index}: it has an example from row {min(both)}, which is held out to score labels"
        if not len(page.positions) or int(page.positions.max()) >= len(rows):
            continue
        tokens = rows.at(page.positions.astype(np.int64))
        if token != tokens[0]:
            yield f"feature {index}: its strongest example is on token {tokens[0]}, its row says {token}"
        named = np.concatenate((tokens, page.promoted, page.suppressed)).tolist()
        if unknown := [one for one in named if one not in vocabulary.tokens]:
            yield f"feature {index}: token {unknown[0]} is not in the vocabulary"
        distinct = rows.at(np.unique(page.positions).astype(np.int64))
        for one, examples in zip(*(part.tolist() for part in np.unique(distinct, return_counts=True)), strict=True):
            by_token.setdefault(one, []).append((index, min(examples, hits.MOST)))
    yield from _token_features(db, by_token, manifest.d_sae)


def _page(page: Page, count: int, top: float, corpus_length: int) -> Iterator[str]:
    yield from contradictions(page.histogram, page.interval_counts, page.peaks, count, top)
    if len(page.positions) and int(page.positions.max()) >= corpus_length:
        yield f"an example lies at {int(page.positions.max())}, beyond the corpus of {corpus_length} tokens"


def _token_features(db: sqlite3.Connection, expected: dict[int, list[tuple[int, int]]], size: int) -> Iterator[str]:
    for token, features, packed in db.execute("SELECT token, features, packed FROM token_feature"):
        try:
            found = hits.unpack(packed, features, size)
        except CorruptFile as error:
            yield f"token {token}: {error}"
            continue
        listed = sorted(zip(found["feature"].tolist(), found["examples"].tolist(), strict=True))
        if listed != expected.pop(token, []):
            yield f"token {token}: the features listed for it are not those whose examples peak on it"
    for token in expected:
        yield f"token {token}: it lists no features, though examples peak on it"


def _held_out(db: sqlite3.Connection, manifest: Manifest, rows: corpus.Corpus) -> Iterator[str]:
    """What labels are scored on, and what came of that."""
    try:
        positions, counted = held_out.rows(db, manifest.length)
    except CorruptFile as error:
        yield f"table held_row: {error}"
        return
    if len(positions) and (int(positions.max()) + manifest.length > len(rows) or (positions % manifest.length).any()):
        yield "table held_row names rows that the corpus does not have"
        return
    beyond = db.execute("SELECT id FROM held WHERE id NOT BETWEEN 0 AND ? LIMIT 1", (manifest.d_sae - 1,)).fetchone()
    if beyond:
        yield f"table held has a record of feature {beyond[0]}, of {manifest.d_sae} features"
    for (index,) in db.execute("SELECT id FROM held ORDER BY id").fetchall():
        try:
            held_out.firings(db, index, counted)
        except CorruptFile as error:
            yield f"feature {index}: {error}"
    gone = db.execute("SELECT explanation FROM trial WHERE explanation NOT IN (SELECT id FROM explanation)").fetchone()
    if gone:
        yield f"table trial is of explanation {gone[0]}, which is not there"


def _written(db: sqlite3.Connection, manifest: Manifest) -> Iterator[str]:
    """What features promote by the effect of the site, and that tokens lead to the features whose records say so."""
    try:
        known = Vocabulary(db.execute("SELECT first, packed FROM token ORDER BY first")).tokens
    except CorruptFile:
        return  # which its pages say
    expected: dict[int, list[int]] = {}
    for index, words, packed in db.execute("SELECT id, words, packed FROM written ORDER BY id"):
        if index >= manifest.d_sae:
            yield f"table written is of feature {index}, of {manifest.d_sae}"
        try:
            one = written.written_of(words, packed)
        except CorruptFile as error:
            yield f"feature {index}, what it promotes: {error}"
            continue
        promoted = one.promoted.tolist()
        if unknown := [token for token in (*promoted, *one.suppressed.tolist()) if token not in known]:
            yield f"feature {index}: token {unknown[0]}, which it promotes or suppresses, is not in the vocabulary"
        for token in promoted if one.agreement >= AGREED else ():
            expected.setdefault(token, []).append(index)
    for token, features, packed in db.execute("SELECT token, features, packed FROM token_written"):
        try:
            listed = written.unpack_list(packed, features, manifest.d_sae).tolist()
        except CorruptFile as error:
            yield f"token {token}: {error}"
            continue
        if sorted(listed) != expected.pop(token, []):
            yield f"token {token}: the features listed as promoting it are not those that do"
    for token in expected:
        yield f"token {token}: no features are listed as promoting it, though some do"


def _plane(db: sqlite3.Connection, manifest: Manifest) -> Iterator[str]:
    """Where features lie on the map, and that the manifest knows of it."""
    try:
        found = plane.read(db, manifest.d_sae)
    except CorruptFile as error:
        yield f"table plane: {error}"
        return
    if (found is None) != (manifest.map is None):
        yield f"the manifest says that there is {'a' if manifest.map else 'no'} map, the tables say otherwise"


def _labels(db: sqlite3.Connection) -> Iterator[str]:
    """That labels follow from explanations, and that the search finds the words that explanations have."""
    for feature, label, said in db.execute(
        f"""SELECT feature.id, label, explanation.text FROM feature LEFT JOIN explanation ON explanation.id =
            (SELECT id FROM explanation WHERE explanation.feature = feature.id {schema.BEST_FIRST} LIMIT 1)
            WHERE label IS NOT explanation.text"""
    ):
        yield f"feature {feature}: its label is {label!r}, its best explanation {said!r}"
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        sql = db.execute("SELECT sql FROM sqlite_schema WHERE name = 'label_text'").fetchone()[0]
        fresh.execute(sql)
        fresh.execute("CREATE TABLE explanation (id INTEGER PRIMARY KEY, text TEXT)")
        fresh.executemany("INSERT INTO explanation VALUES (?, ?)", db.execute("SELECT id, text FROM explanation"))
        fresh.execute("INSERT INTO label_text (label_text) VALUES ('rebuild')")
        agree = all(one == other for one, other in zip_longest(_words(db), _words(fresh)))
    if not agree:
        yield "the full text index does not agree with the explanations"


def _words(db: sqlite3.Connection) -> Iterator[tuple[str, int, int]]:
    """Every word of the full text index: where it stands."""
    db.execute("CREATE VIRTUAL TABLE temp.word USING fts5vocab(main, label_text, instance)")
    return db.execute("SELECT term, doc, offset FROM temp.word")
