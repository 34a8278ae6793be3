"""Reads an atlas, and writes its labels. Safe from many threads at once, and beside other processes."""

from __future__ import annotations

import operator
import sqlite3
import threading
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, SupportsIndex

import numpy as np

from gemscope.atlas.dashboard import (
    Dashboard,
    Example,
    Explanation,
    Interval,
    Logit,
    Neighbour,
    Partner,
    Summary,
)
from gemscope.atlas.entry import Entry, Floats, Ints
from gemscope.atlas.files import corpus, hits, schema
from gemscope.atlas.files.manifest import CROWDED, FORMAT, read_manifest, write_manifest
from gemscope.atlas.files.page import Page, entry_of, unpack_page
from gemscope.atlas.files.vocabulary import Vocabulary, known
from gemscope.errors import AccessError, CorruptFile, InputError, NotFound
from gemscope.features.histogram import Histogram
from gemscope.text.corpus import passed_over
from gemscope.text.printable import readable

Mask = np.ndarray[Any, np.dtype[np.bool_]]
_Range = tuple[float | None, float | None]

_WORDS = 32
"""Words of a search that are looked for."""
_LEAD = 3
"""Tokens in front of another that may hold the beginning of its character, which has four bytes at most."""
_BINDABLE = 500
"""Values in one SQL statement."""
_FEATURE = """SELECT count, max, mean, encoder_cosine, decoder_norm, label, packed FROM feature JOIN page USING (id)
              WHERE id = ?"""

_EXPLANATIONS = "SELECT id, text, method, author, score FROM explanation WHERE feature = ? ORDER BY id DESC"


@dataclass(frozen=True)
class TokenHit:
    """A feature that fires on a token."""

    summary: Summary
    strength: float
    """The strongest of its examples on the token, as a share of the feature's maximum."""
    examples: int
    """How many of its examples peak there."""


@dataclass(frozen=True)
class _Figures:
    """What can be listed, filtered and ordered by, [d_sae] each. Fixed once an atlas is written, so it is kept."""

    counts: Ints
    maxima: Floats
    means: Floats
    tokens: Ints
    """-1 where a feature has no example."""


@dataclass(frozen=True)
class _Labelled:
    """Which features have labels, as of some number of changes to them."""

    changes: int
    mask: Mask
    order: Ints
    """Labelled features, by label."""


class Atlas:
    """A folder of feature pages: `atlas[17]` is a Dashboard. Use as a context manager, or `close` it."""

    def __init__(self, folder: str | Path) -> None:
        """Opens an atlas; one of an older format is brought up to date first.

        Raises NotFound where there is none, CorruptFile for a damaged, foreign or newer one, AccessError for one that
        cannot be reached, or is of an older format where nothing can be written.
        """
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._path = self.folder / schema.NAME
        self._idle: deque[sqlite3.Connection] = deque()
        self._writing = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._closed = False
        self._labels_known: _Labelled | None = None
        self._corpus = corpus.Corpus(self.folder / corpus.NAME, self.manifest.rows, self.manifest.length)
        schema.check(self._path)
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        with self._reading() as db:
            old = schema.version(db)
        if old < FORMAT or self.manifest.format < FORMAT:
            self._upgrade(old)
        with self._reading() as db:
            if problem := schema.first_problem(db):
                raise CorruptFile(f"{self._path} is damaged: {problem}; copy it again, or describe anew")
            rows, last = db.execute("SELECT count(*), max(id) FROM feature").fetchone()
        if rows != len(self) or (rows and last != rows - 1):
            raise CorruptFile(f"{self._path} holds {rows} features, its manifest says {len(self)}: copy it again")

    def _upgrade(self, old: int) -> None:
        if not schema.writable(self.folder):
            raise AccessError(
                f"{self.folder} is of format {old}, this version reads {FORMAT}, and nothing can be written there to "
                f"bring it up to date: copy the atlas elsewhere"
            )
        with self._changing() as db:
            schema.upgrade(db)
        self._idle.clear()
        self.manifest = replace(self.manifest, format=FORMAT)
        write_manifest(self.manifest, self.folder)

    # --- connections ------------------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection of one's own: as many are kept open as were ever needed at once."""
        if self._closed:
            raise InputError(f"{self.folder} was closed: open it again")
        with schema.explained(self._path):
            try:
                db = self._idle.pop()
            except IndexError:
                db = schema.connect(self._path)
            try:
                yield db
            finally:
                self._idle.append(db)
                if self._closed:
                    self._drain()

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """The one connection that writes, for one thread at a time. What is not committed is undone."""
        with self._writing, schema.explained(self._path):
            if self._closed:
                raise InputError(f"{self.folder} was closed: open it again")
            if self._writer is None:
                self._writer = schema.connect(self._path, write=True)
            try:
                yield self._writer
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    def close(self) -> None:
        """Lets go of all files. What other threads are reading at the moment, they still get."""
        self._closed = True
        self._drain()
        with self._writing:
            if self._writer is None and schema.logged(self._path) and schema.writable(self.folder):
                with suppress(sqlite3.Error, CorruptFile):
                    self._writer = schema.connect(self._path, write=True)
                    schema.version(self._writer)
            if self._writer is not None:
                self._writer.close()  # closed last of all, it clears away the log that labels are written through
                self._writer = None

    def _drain(self) -> None:
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    def __enter__(self) -> Atlas:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # --- one feature ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Features of the SAE, dead ones included."""
        return self.manifest.d_sae

    def __iter__(self) -> Iterator[Dashboard]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: SupportsIndex) -> Dashboard:
        """All about one feature. Raises NotFound, CorruptFile."""
        number = self._index(index)
        with self._reading() as db:
            (count, top, mean, cosine, norm, label), page = self._page(db, number)
            said = [] if label is None else db.execute(_EXPLANATIONS, (number,)).fetchall()
            neighbours, partners = page.neighbours.tolist(), page.partners.tolist()
            known_of = self._in_passing(db, {*neighbours, *partners})
        step, logit_low, logit_step = page.scales
        return Dashboard(
            model=self.manifest.model_id,
            source=self.manifest.source_id,
            index=number,
            count=count,
            tokens=self.manifest.tokens,
            max=top,
            mean=mean,
            encoder_cosine=cosine,
            decoder_norm=norm,
            histogram=_histogram(0.0, step, page.histogram),
            intervals=_intervals(page, count),
            examples=self._examples(page),
            promoted=self._logits(page.promoted, page.promoted_values),
            suppressed=self._logits(page.suppressed, page.suppressed_values),
            logit_histogram=_histogram(logit_low, logit_step, page.logit_histogram),
            neighbours=[
                Neighbour(one, cosine, *known_of.get(one, ()))
                for one, cosine in zip(neighbours, page.cosines.tolist(), strict=True)
            ],
            coactive=[
                Partner(one, jaccard, share, *known_of.get(one, ()))
                for one, jaccard, share in zip(partners, page.jaccards.tolist(), page.shares.tolist(), strict=True)
            ],
            explanations=[
                Explanation(id=id_, text=text, method=method, author=author, score=score)
                for id_, text, method, author, score in said
            ],
        )

    def entry(self, index: SupportsIndex) -> Entry:
        """One feature as numbers: what `Writer.add` was given, except that values beside the peaks have 11 bits.

        Given to another Writer, it is kept unchanged. Raises NotFound, CorruptFile.
        """
        number = self._index(index)
        with self._reading() as db:
            (count, top, mean, cosine, norm, _), page = self._page(db, number)
        with self._undamaged(f"feature {number}"):
            return entry_of(
                page,
                self.manifest.length,
                index=number,
                count=count,
                max=top,
                mean=mean,
                encoder_cosine=cosine,
                decoder_norm=norm,
            )

    def _page(self, db: sqlite3.Connection, index: int) -> tuple[tuple[Any, ...], Page]:
        """Figures and label; all else."""
        row = db.execute(_FEATURE, (index,)).fetchone()
        if row is None:
            raise CorruptFile(f"{self._path} has no page for feature {index}: copy it again, or describe anew")
        with self._undamaged(f"feature {index}"):
            return row[:-1], unpack_page(row[-1])

    @contextmanager
    def _undamaged(self, what: str) -> Iterator[None]:
        try:
            yield
        except CorruptFile as error:
            raise CorruptFile(f"{self._path}, {what}: {error}; copy it again, or describe anew") from error

    def _index(self, feature: SupportsIndex) -> int:
        index = operator.index(feature)
        if not 0 <= index < len(self):
            raise NotFound(f"no feature {index}: this SAE has features 0 to {len(self) - 1}")
        return index

    def _in_passing(
        self, db: sqlite3.Connection, features: Collection[int]
    ) -> dict[int, tuple[str | None, str | None]]:
        """Label and strongest token of features that another's page names."""
        alone, found = self._vocabulary.alone, _looked_up(db, "label, token", features)
        return {one: (label, None if token is None else alone(token)) for one, label, token in found}

    def _logits(self, ids: Ints, values: Floats) -> list[Logit]:
        alone = self._vocabulary.alone
        return [Logit(id_, alone(id_), value) for id_, value in zip(ids.tolist(), values.tolist(), strict=True)]

    def _examples(self, page: Page) -> list[Example]:
        if not len(page.positions):
            return []
        positions = page.positions.astype(np.int64)
        before, after = (min(span, self.manifest.length) for span in (self.manifest.before, self.manifest.after))
        ids, starts, stops = self._windows(positions, before, after)
        vocabulary = self._vocabulary
        safe = known(ids, vocabulary.size)
        whole = np.logical_not(vocabulary.broken[safe].any(1))  # a character begun in front of the window ends in it
        ids, safe = ids[:, _LEAD:], safe[:, _LEAD:]
        documents, offsets = self._places(positions)
        column = page.offsets + np.repeat(before - starts, page.sizes)
        shown = (column >= 0) & (column < np.repeat(stops - starts, page.sizes))
        sizes = np.bincount(np.repeat(np.arange(len(positions)), page.sizes)[shown], minlength=len(positions))
        cells = zip(column[shown].tolist(), page.values[shown].tolist(), strict=True)
        strongest = set(positions[page.intervals < 0].tolist())
        examples = []
        for position, row, tokens, start, stop, plain, size, peak, interval, document, offset in zip(
            positions.tolist(),
            ids.tolist(),
            vocabulary.plain(safe),
            starts.tolist(),
            stops.tolist(),
            whole.tolist(),
            sizes.tolist(),
            page.peaks.tolist(),
            page.intervals.tolist(),
            documents,
            offsets,
            strict=True,
        ):
            own = before - start
            values = [0.0] * (stop - start)
            for place, value in islice(cells, size):
                values[place] = value
            values[own] = peak
            if interval >= 0 and position in strongest:  # shown already; merging wants it where it was drawn
                continue
            example = object.__new__(Example)  # as its own constructor does, in a quarter of the time
            example.__dict__.update(
                document=document,
                position=offset,
                peak=own,
                ids=row[start:stop],
                tokens=tokens[start:stop] if plain else self._decoded(position - own, stop - start),
                values=values,
                interval=None if interval < 0 else interval,
            )
            examples.append(example)
        return examples

    def _windows(self, positions: Ints, before: int, after: int) -> tuple[Ints, Ints, Ints]:
        """Ids [n, _LEAD + before + 1 + after] around positions; where beyond the lead [n] the texts start and stop."""
        length = self.manifest.length
        if int(positions.max()) >= len(self._corpus):
            raise CorruptFile(f"{self._path} points beyond the corpus: copy the atlas again, or describe anew")
        column = positions % length
        places = positions[:, None] + np.arange(-before - _LEAD, after + 1)
        ids = self._corpus.at(np.clip(places, 0, len(self._corpus) - 1))
        starts = np.maximum(before - column, 0)
        stops = before + np.minimum(length - column, after + 1)
        if (gaps := ids[:, _LEAD:] < 0).any():  # padding, which ends the text as the end of a row does
            reach = np.arange(before + after + 1)
            starts = np.maximum(starts, np.where(gaps & (reach < before), reach + 1, 0).max(1))
            stops = np.minimum(stops, np.where(gaps & (reach > before), reach, before + after + 1).min(1))
        return ids, starts, stops

    def _decoded(self, first: int, count: int) -> list[str]:
        """The text of a window in which characters are spread over tokens, the first perhaps begun in front of it."""
        lead = min(_LEAD, first % self.manifest.length)
        ids = self._corpus.between(first - lead, first + count).tolist()
        return self._vocabulary.text(ids)[lead:]

    def _places(self, positions: Ints) -> tuple[list[int], list[int]]:
        """Documents and positions in them; -1 where not known."""
        starts = self._starts
        document = np.searchsorted(starts, positions, "right") - 1
        begun = starts[np.maximum(document, 0)] if len(starts) else positions
        offset = positions - begun
        if self.manifest.bos:  # one at the head of every row since then is no document's
            length = self.manifest.length
            offset = offset - (positions // length - begun // length)
        return document.tolist(), np.where(document < 0, -1, offset).tolist()

    @cached_property
    def crowding(self) -> str:
        """Which places top more than a handful of features, in words; nothing where none does."""
        found = self.manifest.crowded
        if not found:
            return ""
        worst = found[0].position
        if worst >= len(self._corpus):
            raise CorruptFile(f"{self._path} points beyond the corpus: copy the atlas again, or describe anew")
        lead = min(8, worst % self.manifest.length)
        *before, here = self._decoded(worst - lead, lead + 1)
        text = readable(f"{''.join(before)}[[{here}]]")
        many = f"{len(found)} places are" if len(found) > 1 else "1 place is"
        return (
            f"{many} the strongest of more than {CROWDED} features each, {found[0].features:,} at most ({text}): "
            "maxima of those features are the maxima of an outlier"
        )

    # --- lists of features ------------------------------------------------------------------------------------------

    def summaries(
        self,
        *,
        order: str = "index",
        descending: bool = False,
        dead: bool | None = None,
        labelled: bool | None = None,
        min_density: float | None = None,
        max_density: float | None = None,
        min_max: float | None = None,
        max_max: float | None = None,
        text: str = "",
        offset: int = 0,
        limit: int = 100,
    ) -> list[Summary]:
        """Features as lines of a list, by `index`, `density`, `max`, `mean` or `label`.

        Equals come by index; by label, those without one come last.
        `text` keeps those with an explanation that has its words. Bounds are inclusive. Raises InputError.
        """
        offset, limit = _span(offset, limit)
        mask = self._mask(
            dead=dead,
            labelled=labelled,
            densities=(min_density, max_density),
            maxima=(min_max, max_max),
            text=text,
        )
        ranked = self._ranked(order, descending)
        if mask is not None:
            ranked = ranked[mask[ranked]]
        return self._summaries(ranked[offset : offset + limit].tolist())

    def count(
        self,
        *,
        dead: bool | None = None,
        labelled: bool | None = None,
        min_density: float | None = None,
        max_density: float | None = None,
        min_max: float | None = None,
        max_max: float | None = None,
        text: str = "",
    ) -> int:
        """How many features `summaries` would list in all."""
        mask = self._mask(
            dead=dead,
            labelled=labelled,
            densities=(min_density, max_density),
            maxima=(min_max, max_max),
            text=text,
        )
        return len(self) if mask is None else int(mask.sum())

    def _mask(
        self, *, dead: bool | None, labelled: bool | None, densities: _Range, maxima: _Range, text: str
    ) -> Mask | None:
        """[d_sae] which features are wanted; None for all."""
        figures, parts = self._figures, list[Mask]()
        if dead is not None:
            parts.append((figures.counts == 0) == dead)
        for values, (least, most) in ((self._densities, densities), (figures.maxima, maxima)):
            if least is not None:
                parts.append(values >= least)
            if most is not None:
                parts.append(values <= most)
        if labelled is not None:
            parts.append(self._labelled.mask == labelled)
        if text.strip():
            parts.append(self._with_words(text))
        return np.logical_and.reduce(parts) if parts else None

    def _ranked(self, order: str, descending: bool) -> Ints:
        """[d_sae] features in an order."""
        if order == "label":
            found = self._labelled
            return np.concatenate((found.order[::-1] if descending else found.order, np.flatnonzero(~found.mask)))
        if order not in self._orders:
            raise InputError(f"order={order!r}: expected one of {', '.join((*self._orders, 'label'))}")
        return self._orders[order][descending]

    @cached_property
    def _orders(self) -> Mapping[str, tuple[Ints, Ints]]:
        """Up and down."""
        figures = self._figures
        by = {"density": figures.counts, "max": figures.maxima, "mean": figures.means}
        up = np.arange(len(self))
        return {"index": (up, up[::-1])} | {
            name: (np.argsort(values, kind="stable"), np.argsort(-values, kind="stable")) for name, values in by.items()
        }

    @cached_property
    def _figures(self) -> _Figures:
        with self._reading() as db:
            rows = db.execute("SELECT count, max, mean, coalesce(token, -1) FROM feature ORDER BY id").fetchall()
        counts, maxima, means, tokens = zip(*rows, strict=True) if rows else ((), (), (), ())
        return _Figures(
            np.array(counts, np.int64),
            np.array(maxima, np.float64),
            np.array(means, np.float64),
            np.array(tokens, np.int64),
        )

    @cached_property
    def _densities(self) -> Floats:
        return self._figures.counts / max(1, self.manifest.tokens)

    def _summaries(self, features: Sequence[int]) -> list[Summary]:
        figures, labels = self._figures, self.labels(features)
        densities, alone = self._densities, self._vocabulary.alone
        wanted = np.array(features, np.int64)
        columns = (figures.counts, densities, figures.maxima, figures.means, figures.tokens)
        return [
            Summary(index, count, density, top, mean, labels.get(index), None if token < 0 else alone(token))
            for index, count, density, top, mean, token in zip(
                features, *(column[wanted].tolist() for column in columns), strict=True
            )
        ]

    def scatter(self) -> tuple[Ints, Floats, Floats]:
        """Ids, densities and maxima [n] of the features that fire somewhere."""
        living = np.flatnonzero(self._figures.counts)
        return living, self._densities[living], self._figures.maxima[living]

    # --- search -----------------------------------------------------------------------------------------------------

    def search(self, text: str, *, limit: int = 50, offset: int = 0) -> list[Summary]:
        """Features by what their explanations say (BM25), best first; the last word may be the beginning of one.

        Any text will do: what is no word in it is passed over.
        """
        offset, limit = _span(offset, limit)
        query = _query(text)
        if not query or not limit:
            return []
        found: dict[int, None] = {}  # features in order: one with several explanations comes once
        with self._reading() as db:
            ranked = db.execute("SELECT rowid FROM label_text WHERE label_text MATCH ? ORDER BY rank", (query,))
            for (id_,) in ranked:
                said = db.execute("SELECT feature FROM explanation WHERE id = ?", (id_,)).fetchone()
                if said is None:
                    raise CorruptFile(f"{self._path} is damaged: its search finds explanation {id_}, which is gone")
                found.setdefault(said[0])
                if len(found) >= offset + limit:
                    break
            ranked.close()
        return self._summaries(list(found)[offset:])

    def _with_words(self, text: str) -> Mask:
        mask = np.zeros(len(self), np.bool_)
        if query := _query(text):
            with self._reading() as db:
                rows = db.execute(
                    "SELECT feature FROM label_text JOIN explanation ON id = label_text.rowid WHERE label_text MATCH ?",
                    (query,),
                ).fetchall()
            mask[[feature for (feature,) in rows]] = True
        return mask

    def tokens_like(self, text: str, limit: int = 20) -> list[tuple[int, str, int]]:
        """Tokens of the vocabulary that read so: id, text and number of features.

        First the very text, then the same but for case and blanks around, then those that begin so; among equals those
        with the most features.
        """
        _, limit = _span(0, limit)
        found: list[tuple[int, str, int]] = []
        for ids in self._vocabulary.like(text):
            counted = [(id_, self._vocabulary.alone(id_), self._features_by_token.get(id_, 0)) for id_ in ids]
            found += sorted(counted, key=lambda one: (-one[2], len(one[1]), one[0]))
        return found[:limit]

    @cached_property
    def _features_by_token(self) -> dict[int, int]:
        with self._reading() as db:
            return dict(db.execute("SELECT token, features FROM token_feature"))

    def by_token(self, token_id: int, *, limit: int = 50) -> list[TokenHit]:
        """Features with examples that peak on a token: most examples first, then the strongest."""
        _, limit = _span(0, limit)
        with self._reading() as db:
            row = db.execute(
                "SELECT packed, features FROM token_feature WHERE token = ?", (max(-1, min(int(token_id), 1 << 62)),)
            ).fetchone()
        if row is None:
            return []
        with self._undamaged(f"token {token_id}"):
            packed, features = row
            found = hits.unpack(packed, features, len(self))[:limit]
        summaries = self._summaries(found["feature"].tolist())
        return [
            TokenHit(summary, strength, examples)
            for summary, strength, examples in zip(
                summaries, found["strength"].tolist(), found["examples"].tolist(), strict=True
            )
        ]

    # --- labels -----------------------------------------------------------------------------------------------------

    def labels(self, features: Iterable[int]) -> dict[int, str]:
        """The newest explanation of each of these features that has one."""
        wanted = set(map(int, features))
        with self._reading() as db:
            return {one: label for one, label in _looked_up(db, "label", wanted) if label is not None}

    def strongest_on(self, features: Iterable[int]) -> dict[int, str]:
        """The token on which the strongest example of each of these features fires, of those that have one."""
        wanted = set(map(int, features))
        with self._reading() as db:
            rows = _looked_up(db, "token", wanted)
        return {one: self._vocabulary.alone(token) for one, token in rows if token is not None}

    def explain(self, feature: int, text: str, *, method: str = "user", author: str = "") -> Explanation:
        """Says what a feature stands for; this is its label from now on.

        Raises NotFound, InputError for what is not text, AccessError where nothing can be written, StorageFull.
        """
        feature = self._index(feature)
        for one in (text, method, author):
            if any("\ud800" <= letter <= "\udfff" for letter in one):
                raise InputError("half a surrogate pair is not text: decode it properly first")
        if not text.strip():
            raise InputError(f"an empty explanation of feature {feature}: say what it stands for, or forget one")
        with self._labelling(feature) as db:
            id_ = db.execute(
                "INSERT INTO explanation (feature, text, method, author) VALUES (?, ?, ?, ?) RETURNING id",
                (feature, text, method, author),
            ).fetchone()[0]
            db.execute("INSERT INTO label_text (rowid, text) VALUES (?, ?)", (id_, text))
        return Explanation(id=id_, text=text, method=method, author=author)

    def forget(self, feature: int, explanation_id: int) -> None:
        """Takes an explanation away. Raises NotFound, AccessError where nothing can be written."""
        feature = self._index(feature)
        if not 0 < explanation_id < 1 << 63:
            raise NotFound(f"no explanation {explanation_id} of feature {feature}")
        with self._labelling(feature) as db:
            found = db.execute(
                "DELETE FROM explanation WHERE id = ? AND feature = ? RETURNING id, text", (explanation_id, feature)
            ).fetchone()
            if found is None:
                raise NotFound(f"no explanation {explanation_id} of feature {feature}")
            # The words are taken from it that it had: the index does not hold the text itself.
            db.execute("INSERT INTO label_text (label_text, rowid, text) VALUES ('delete', ?, ?)", found)

    def explanations(self) -> list[tuple[int, Explanation]]:
        """All that is said of features, and of which; oldest first."""
        with self._reading() as db:
            rows = db.execute("SELECT feature, id, text, method, author, score FROM explanation ORDER BY id").fetchall()
        return [
            (feature, Explanation(id=id_, text=text, method=method, author=author, score=score))
            for feature, id_, text, method, author, score in rows
        ]

    @contextmanager
    def _labelling(self, feature: int) -> Iterator[sqlite3.Connection]:
        if not schema.writable(self.folder):
            raise AccessError(
                f"nothing can be written in {self.folder}: copy the atlas elsewhere to label its features"
            )
        with self._changing() as db:
            # From the first label on, readers go on while somebody writes. Asking again costs nothing.
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("BEGIN IMMEDIATE")
            schema.require_ours(db, self._path)  # it may have become another since it was opened
            yield db
            schema.relabel(db, [feature])
            db.execute("UPDATE relabelled SET times = times + 1")
            db.execute("COMMIT")

    @property
    def _labelled(self) -> _Labelled:
        """As of now: gathered anew when any process has changed a label."""
        earlier = self._labels_known
        with self._reading() as db:
            changes = db.execute("SELECT times FROM relabelled").fetchone()[0]
            if earlier is not None and earlier.changes == changes:
                return earlier
            labels = dict(db.execute("SELECT id, label FROM feature WHERE label IS NOT NULL"))
        mask = np.zeros(len(self), np.bool_)
        mask[list(labels)] = True
        order = sorted(labels, key=lambda feature: (labels[feature].casefold(), feature))
        self._labels_known = _Labelled(changes, mask, np.array(order, np.int64))
        return self._labels_known

    # --- text -------------------------------------------------------------------------------------------------------

    def text(self, ids: Iterable[int]) -> list[str]:
        """Per token the text that it completes: "" for one that ends within a character."""
        return self._vocabulary.text(map(int, ids))

    def row(self, position: int) -> list[int]:
        """Ids of the whole row of the corpus around a flat position; -1 where there is no token. Raises NotFound."""
        if not 0 <= position < len(self._corpus):
            raise NotFound(f"no position {position}: the corpus has positions 0 to {len(self._corpus) - 1}")
        start = position - position % self.manifest.length
        ids: list[int] = self._corpus.between(start, start + self.manifest.length).tolist()
        return ids

    def document(self, index: int) -> tuple[str, str]:
        """Source and licence of a document. Raises NotFound."""
        if not 0 <= index < len(self._starts):
            raise NotFound(f"no document {index}: the corpus has {len(self._starts)}, counted from 0")
        with self._reading() as db:
            found = db.execute(
                "SELECT name, license FROM document JOIN source ON source.id = source WHERE start = ?",
                (int(self._starts[index]),),
            ).fetchone()
        return str(found[0]), str(found[1])

    def ids(self, positions: Ints) -> Ints:
        """Ids at flat positions of the corpus, of any shape; -1 where there is no token. Raises NotFound."""
        if positions.size and not 0 <= positions.min() <= positions.max() < len(self._corpus):
            raise NotFound(
                f"no position {positions.min()} or {positions.max()}: "
                f"the corpus has positions 0 to {len(self._corpus) - 1}"
            )
        return self._corpus.at(positions)

    def documents(self) -> Iterator[tuple[int, str, str]]:
        """Every document: flat position of its first token, source, licence."""
        with self._reading() as db:
            sources = {id_: (name, license_) for id_, name, license_ in db.execute("SELECT * FROM source")}
            rows = db.execute("SELECT start, source FROM document ORDER BY start").fetchall()
        return ((start, *sources[source]) for start, source in rows)

    def tokens(self) -> Mapping[int, bytes]:
        """The vocabulary: UTF-8 bytes by id, which need not be text by themselves."""
        return MappingProxyType(self._vocabulary.tokens)

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids of special tokens."""
        return self._vocabulary.special

    @cached_property
    def _starts(self) -> Ints:
        with self._reading() as db:
            return np.array([start for (start,) in db.execute("SELECT start FROM document ORDER BY start")], np.int64)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        with self._reading() as db, self._undamaged("vocabulary"):
            # All at once: a statement left in its middle by an error keeps writers out until that is forgotten.
            return Vocabulary(db.execute("SELECT first, packed FROM token ORDER BY first").fetchall())

    # --- how it shows itself ----------------------------------------------------------------------------------------

    def _lines(self) -> list[str]:
        manifest = self.manifest
        living = int((self._figures.counts > 0).sum())
        parts = ", ".join(part.name for part in manifest.parts) or "no text"
        at = manifest.site if manifest.site == manifest.site_out else f"{manifest.site} → {manifest.site_out}"
        passed = passed_over(sum((Counter(part.passed) for part in manifest.parts), Counter()))
        return [
            f"{manifest.model} at {at}, read through {manifest.sae}",
            f"{len(self):,} features: {living:,} living, {len(self) - living:,} dead; "
            f"{int(self._labelled.mask.sum()):,} with a label",
            f"{manifest.tokens:,} counted tokens of {manifest.documents:,} documents ({parts})",
            *([passed] if passed else []),
            *([self.crowding] if self.crowding else []),
        ]

    def __repr__(self) -> str:
        return f"Atlas({self.folder}, {self.manifest.model}, {self.manifest.sae}, {len(self):,} features)"

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        title, *rest = map(escape, self._lines())
        return f"<div><p><b>{title}</b></p>{''.join(f'<p>{line}</p>' for line in rest)}</div>"


def _looked_up(db: sqlite3.Connection, columns: str, features: Collection[int]) -> list[tuple[Any, ...]]:
    """Rows of these features: their index, then the columns."""
    wanted, rows = list(features), list[tuple[Any, ...]]()
    for start in range(0, len(wanted), _BINDABLE):
        some = wanted[start : start + _BINDABLE]
        marks = ",".join("?" * len(some))
        rows += db.execute(f"SELECT id, {columns} FROM feature WHERE id IN ({marks})", some).fetchall()
    return rows


def _histogram(low: float, step: float, counts: Ints) -> Histogram | None:
    return Histogram(low, step, counts.tolist()) if len(counts) else None


def _intervals(page: Page, count: int) -> list[Interval]:
    edges = page.edges.tolist()
    return [
        Interval(low, high, inside, inside / count if count else 0.0)
        for low, high, inside in zip(edges[:-1], edges[1:], page.interval_counts.tolist(), strict=True)
    ]


def _query(text: str) -> str:
    """Words as FTS5 takes them, each quoted so that none is an operator; the last may be the beginning of one."""
    # A NUL would end the query early, half a surrogate pair cannot be sent.
    words = text.replace("\0", " ").encode(errors="replace").decode().split()[:_WORDS]
    words = [word for word in words if any(map(str.isalnum, word))]
    quoted = ['"' + word.replace('"', '""') + '"' for word in words]
    return " ".join(quoted) + "*" if quoted else ""


def _span(offset: int, limit: int) -> tuple[int, int]:
    if offset < 0 or limit < 0:
        raise InputError(f"offset={offset}, limit={limit}: neither can be below 0")
    return offset, limit
