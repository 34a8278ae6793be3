"""Makes an atlas: takes rows, tokens and features one after another, and puts the folder in place when it is whole."""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from gemscope.atlas.dashboard import Explanation
from gemscope.atlas.entry import Entry, Ints
from gemscope.atlas.files import corpus, held_out, hits, plane, schema, vocabulary, written
from gemscope.atlas.files.manifest import Manifest, write_manifest
from gemscope.atlas.files.page import pack_page
from gemscope.atlas.reader import Atlas
from gemscope.checked import EXACT
from gemscope.disk import claimed, room
from gemscope.errors import InputError, Mismatch, NotFinite
from gemscope.features.pool import Pool

_SCRATCH = "scratch.sqlite"


class Writer:
    """Writes an atlas beside its place and moves it there when it is whole. Use as a context manager.

    Whatever goes in goes to the disk at once, but for the vocabulary. The same input gives the same bytes.
    """

    def __init__(self, to: str | Path) -> None:
        self._to = Path(to)
        self._refuse_existing()
        self._tokens: dict[int, bytes] = {}
        self._special: set[int] = set()
        self._sources: dict[tuple[str, str], int] = {}
        self._next = 0
        self._document = -1

    def _refuse_existing(self) -> None:
        if self._to.exists():
            raise InputError(f"{self._to} exists: an atlas is never written over; name another folder or remove it")

    def __enter__(self) -> Writer:
        """Raises AccessError while another process makes the same atlas, StorageFull, FileError."""
        with ExitStack() as held:
            self.place = held.enter_context(claimed(self._to))
            """A folder for what is needed on the way, which goes when the atlas is in its place."""
            self._refuse_existing()  # another process may have just finished it
            self._aside = self.place / self._to.name
            with self._room():
                self._aside.mkdir()
                self._rows = corpus.Rows(self._aside / corpus.NAME)
                held.callback(self._rows.abandon)
                self._db = sqlite3.connect(self.place / _SCRATCH, isolation_level=None)
                held.callback(self._db.close)
                self._prepare()
            self._held = held.pop_all()
        return self

    @contextmanager
    def beside(self, name: str) -> Iterator[Path]:
        """Where to write another file, which goes to its place with the rest. Raises StorageFull."""
        with self._room():
            yield self._aside / name

    def _prepare(self) -> None:
        # Nobody else looks at this file, and what is left of it after a crash is thrown away: no journal, no waiting.
        self._db.execute(f"PRAGMA page_size = {schema.PAGE}")
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(f"PRAGMA application_id = {schema.APPLICATION}")
        schema.upgrade(self._db)
        self._db.execute("CREATE TABLE hit (token INTEGER, feature INTEGER, examples INTEGER, strength REAL)")
        self._db.execute("BEGIN")

    def __exit__(self, *raised: object) -> None:
        self._held.close()

    def add_rows(self, ids: Ints) -> None:
        """Rows [R, length] of token ids, -1 where there is no token. Raises InputError, Mismatch, StorageFull."""
        with self._room():
            self._rows.append(ids)

    def add_document(self, start: int, source: str, license: str) -> None:
        """A document, by the flat position of its first token; in the order of the corpus. Raises InputError."""
        if start <= self._document:
            raise InputError(f"a document at position {start} given after one at {self._document}: they must ascend")
        with self._room():
            key = (_text(source), _text(license))
            if key not in self._sources:
                self._sources[key] = len(self._sources)
                self._db.execute("INSERT INTO source VALUES (?, ?, ?)", (self._sources[key], *key))
            self._db.execute("INSERT INTO document VALUES (?, ?)", (int(start), self._sources[key]))
        self._document = start

    def add_tokens(self, texts: Mapping[int, bytes], special: Collection[int] = ()) -> None:
        """The bytes of every token of the corpus and the logits, UTF-8 when put together. Raises InputError."""
        for id_, token in texts.items():
            if id_ < 0 or not isinstance(token, bytes):
                raise InputError(f"token {id_} is given as {type(token).__name__}: ids from 0 and bytes are expected")
        self._tokens.update((int(id_), token) for id_, token in texts.items())
        self._special.update(map(int, special))

    def add(self, entry: Entry) -> None:
        """A feature; in ascending order, the ones left out are dead. The rows that its examples lie in come first.

        Raises InputError for an entry whose parts do not fit each other, NotFinite.
        """
        if entry.index < self._next:
            raise InputError(f"feature {entry.index} given after {self._next - 1}: they must ascend")
        _check_figures(entry)
        length = self._rows.length or 1
        packed = pack_page(entry, length)
        tokens = self._rows.at(entry.positions.astype(np.int64))
        if (tokens < 0).any():
            wrong = int(entry.positions[tokens < 0][0])
            raise InputError(
                f"feature {entry.index} has an example at position {wrong}, where the {self._rows.count} rows of "
                f"{length} tokens added so far have no token: add the rows first"
            )
        with self._room():
            self._leave_out(entry.index)
            self._insert([entry.index], entry, packed, int(tokens[0]) if len(tokens) else None)
            self._db.executemany("INSERT INTO hit VALUES (?, ?, ?, ?)", _hits(entry, tokens, length))
            if entry.written is not None:
                written.add(self._db, int(entry.index), entry.written)
        self._next = entry.index + 1

    def _leave_out(self, until: int) -> None:
        left_out = range(self._next, until)
        nothing = Entry(index=until, count=0, max=0.0, mean=0.0)
        self._insert(left_out, nothing, pack_page(nothing, 1), None)  # a page does not tell whose it is

    def _insert(self, indices: Iterable[int], entry: Entry, packed: bytes, token: int | None) -> None:
        """The same for every one of these features."""
        figures = (entry.max, entry.mean, entry.encoder_cosine, entry.decoder_norm)
        row = (int(entry.count), *(None if one is None else float(one) for one in figures), token)
        numbers = list(map(int, indices))
        self._db.executemany(
            "INSERT INTO feature VALUES (?, ?, ?, ?, ?, ?, ?, NULL)", ((index, *row) for index in numbers)
        )
        self._db.executemany("INSERT INTO page VALUES (?, ?)", ((index, packed) for index in numbers))

    def add_pool(self, pool: Pool) -> None:
        """The rows that give no examples, and all that fires on them. Raises StorageFull."""
        with self._room():
            held_out.write(pool, self._next, self._db)

    def add_places(self, places: plane.Places) -> None:
        """[F, 2] where features lie on the map. Raises StorageFull."""
        with self._room():
            plane.write(places, self._db)

    def add_explanation(self, feature: int, said: Explanation) -> None:
        """What a feature stands for; its `id` is given here. Raises NotFinite."""
        for name, value in said.figures:
            if value is not None and not abs(value) < schema.MOST:
                raise NotFinite(f"feature {feature} has an explanation with {name}={value}: a number is expected")
        texts = (_text(getattr(said, name)) for name in ("text", "method", "author", "rule", "model", "made"))
        with self._room():
            self._db.execute(
                "INSERT INTO explanation (feature, text, method, author, rule, model, made, score, control, "
                "confidence) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (int(feature), *texts, *(None if value is None else float(value) for _, value in said.figures)),
            )

    def finish(self, manifest: Manifest) -> Atlas:
        """Puts the atlas in its place. Raises Mismatch where the manifest says other than was added, StorageFull."""
        self._check(manifest)
        with self._room():
            self._leave_out(manifest.d_sae)
            for record in vocabulary.packed(self._tokens, self._special):
                self._db.execute("INSERT INTO token VALUES (?, ?)", record)
            self._index_tokens()
            written.index(self._db)
            self._settle()
            self._rows.close()
            write_manifest(manifest, self._aside)
            if self._to.exists():
                raise InputError(f"{self._to} appeared while the atlas was being made: name another folder")
            os.replace(self._aside, self._to)
        return Atlas(self._to)

    def _check(self, manifest: Manifest) -> None:
        if self._next > manifest.d_sae:
            raise Mismatch(f"feature {self._next - 1} was added, but the manifest says d_sae={manifest.d_sae}")
        if self._rows.count != manifest.rows or (self._rows.length or manifest.length) != manifest.length:
            raise Mismatch(
                f"{self._rows.count} rows of {self._rows.length} tokens were added, "
                f"but the manifest says {manifest.rows} of {manifest.length}"
            )
        beyond = self._db.execute(
            "SELECT feature FROM explanation WHERE feature NOT BETWEEN 0 AND ?", (manifest.d_sae - 1,)
        )
        if found := beyond.fetchone():
            raise Mismatch(f"feature {found[0]} was explained, but the manifest says d_sae={manifest.d_sae}")

    def _index_tokens(self) -> None:
        """Token to features, out of the hits in the order that they came in."""
        rows = self._db.execute("SELECT token, feature, examples, strength FROM hit ORDER BY token, feature")
        inserting = self._db.cursor()
        for token, group in groupby(rows, itemgetter(0)):
            _, features, examples, strengths = map(list, zip(*group, strict=True))
            packed = hits.pack(hits.of(features, examples, strengths))
            inserting.execute("INSERT INTO token_feature VALUES (?, ?, ?)", (token, len(features), packed))

    def _settle(self) -> None:
        """Into its final file, laid out by content alone, whatever the order that things came in."""
        self._db.execute("DROP TABLE hit")
        self._db.execute("INSERT INTO label_text (label_text) VALUES ('rebuild')")
        explained = self._db.execute("SELECT DISTINCT feature FROM explanation").fetchall()
        schema.relabel(self._db, (feature for (feature,) in explained))
        self._db.execute("COMMIT")
        path = self._aside / schema.NAME
        self._db.execute("VACUUM INTO ?", (str(path),))
        self._db.close()
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def _room(self) -> AbstractContextManager[None]:
        return room(self._to, self.place, kept="nothing of the atlas is kept: free some room")


def _check_figures(entry: Entry) -> None:
    for name in ("max", "mean", "encoder_cosine", "decoder_norm", "step", "logit_low", "logit_step"):
        value = getattr(entry, name)
        if value is not None and not abs(value) < schema.MOST:
            raise NotFinite(f"feature {entry.index} has {name}={value}: numbers are expected")
    if not 0 <= entry.count <= EXACT:
        raise InputError(f"feature {entry.index} has count={entry.count}: from 0 to {EXACT:,} are kept")


def _hits(entry: Entry, tokens: Ints, length: int) -> list[tuple[Any, ...]]:
    """Per token on which examples peak: how many do, and the strongest of them relative to the feature's maximum.

    A place that is an example twice, among the strongest and of an interval, counts once.
    """
    if not len(tokens):
        return []
    home = (entry.positions.astype(np.int64) % length)[entry.owners]
    peaks = entry.values[entry.columns == home]
    found: dict[int, tuple[int, float]] = {}
    distinct = dict(zip(entry.positions.tolist(), zip(tokens.tolist(), peaks.tolist(), strict=True), strict=True))
    for token, peak in distinct.values():
        examples, strongest = found.get(token, (0, 0.0))
        found[token] = examples + 1, max(strongest, peak)
    most = entry.max if entry.max > 0 else math.inf
    return [(token, int(entry.index), examples, min(1.0, peak / most)) for token, (examples, peak) in found.items()]


def _text(text: str) -> str:
    """Raises InputError for what is not text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"half a surrogate pair is not text ({error}): decode it properly first") from error
    return text
