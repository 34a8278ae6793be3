"""One feature out of an atlas: as the page that people read, or as the numbers that it was made of."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import Any

from gemscope.atlas.dashboard import Dashboard, Interval, Logit, Neighbour, Partner, Writes
from gemscope.atlas.entry import Entry, Floats, Ints, Written
from gemscope.atlas.examples import examples_of
from gemscope.atlas.files.database import Database
from gemscope.atlas.files.page import Page, entry_of, unpack_page
from gemscope.atlas.files.schema import looked_up
from gemscope.atlas.files.written import written_of
from gemscope.atlas.labels.explanations import explanations_of
from gemscope.atlas.text import Text
from gemscope.errors import CorruptFile
from gemscope.features.histogram import Histogram
from gemscope.pages.labels import meaning

_FEATURE = """SELECT count, max, mean, encoder_cosine, decoder_norm, label, page.packed, words, written.packed
              FROM feature JOIN page USING (id) LEFT JOIN written USING (id) WHERE id = ?"""


class Features:
    """Read one at a time; the index is known to be one of theirs."""

    def __init__(self, text: Text, database: Database) -> None:
        self._text, self._database = text, database

    def dashboard(self, index: int, *, ranges: bool = True) -> Dashboard:
        """What a page shows, with the examples of its ranges or without. Raises CorruptFile."""
        manifest = self._text.manifest
        with self._database.reading() as db:
            (count, top, mean, cosine, norm, label), page, written = self._page(db, index)
            said = [] if label is None else explanations_of(db, index)
            neighbours, partners = page.neighbours.tolist(), page.partners.tolist()
            known_of = self._in_passing(db, {*neighbours, *partners})
        step, logit_low, logit_step = page.scales
        examples, left_out = examples_of(page, self._text, ranges=ranges)
        return Dashboard(
            model=manifest.model_id,
            source=manifest.source_id,
            index=index,
            count=count,
            tokens=manifest.tokens,
            max=top,
            mean=mean,
            encoder_cosine=cosine,
            decoder_norm=norm,
            histogram=_histogram(0.0, step, page.histogram),
            intervals=_intervals(page, count),
            examples=examples,
            left_out=left_out,
            promoted=self._logits(page.promoted, page.promoted_values),
            suppressed=self._logits(page.suppressed, page.suppressed_values),
            writes=None if written is None else self._writes(written),
            logit_histogram=_histogram(logit_low, logit_step, page.logit_histogram),
            neighbours=[
                Neighbour(one, cosine, *known_of.get(one, ()))
                for one, cosine in zip(neighbours, page.cosines.tolist(), strict=True)
            ],
            coactive=[
                Partner(one, jaccard, share, *known_of.get(one, ()))
                for one, jaccard, share in zip(partners, page.jaccards.tolist(), page.shares.tolist(), strict=True)
            ],
            explanations=said,
        )

    def entry(self, index: int) -> Entry:
        """What a Writer was given. Raises CorruptFile."""
        with self._database.reading() as db:
            (count, top, mean, cosine, norm, _), page, written = self._page(db, index)
        with self._database.undamaged(f"feature {index}"):
            return entry_of(
                page,
                self._text.manifest.length,
                index=index,
                count=count,
                max=top,
                mean=mean,
                encoder_cosine=cosine,
                decoder_norm=norm,
                written=written,
            )

    def _page(self, db: sqlite3.Connection, index: int) -> tuple[tuple[Any, ...], Page, Written | None]:
        """Figures and label; all else; what it writes by the effect of its site."""
        row = db.execute(_FEATURE, (index,)).fetchone()
        if row is None:
            raise CorruptFile(f"{self._database.path} has no page for feature {index}: copy it again, or describe anew")
        with self._database.undamaged(f"feature {index}"):
            *figures, packed, words, record = row
            return tuple(figures), unpack_page(packed), None if record is None else written_of(words, record)

    def _in_passing(
        self, db: sqlite3.Connection, features: Collection[int]
    ) -> dict[int, tuple[str | None, str | None]]:
        """Meaning and strongest token of features that another's page names."""
        alone = self._text.vocabulary.alone
        found = looked_up(db, "label, words, token", features, "feature LEFT JOIN written USING (id)")
        return {
            one: (meaning(label, words), None if token is None else alone(token)) for one, label, words, token in found
        }

    def _writes(self, one: Written) -> Writes:
        return Writes(
            promoted=self._logits(one.promoted, one.promoted_values),
            suppressed=self._logits(one.suppressed, one.suppressed_values),
            spread=one.spread,
            agreement=one.agreement,
            this=one.this,
            words=one.words or None,
        )

    def _logits(self, ids: Ints, values: Floats) -> list[Logit]:
        alone = self._text.vocabulary.alone
        return [Logit(id_, alone(id_), value) for id_, value in zip(ids.tolist(), values.tolist(), strict=True)]


def _histogram(low: float, step: float, counts: Ints) -> Histogram | None:
    return Histogram(low, step, counts.tolist()) if len(counts) else None


def _intervals(page: Page, count: int) -> list[Interval]:
    edges = page.edges.tolist()
    return [
        Interval(low, high, inside, inside / count if count else 0.0)
        for low, high, inside in zip(edges[:-1], edges[1:], page.interval_counts.tolist(), strict=True)
    ]
