"""Features of many atlases by the words of their explanations. None of them is opened as a whole for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gemscope.atlas.files import schema
from gemscope.atlas.files.database import Database
from gemscope.atlas.files.manifest import read_manifest
from gemscope.atlas.labels.search import Ranked, count_with, ranked
from gemscope.atlas.reader import Atlas
from gemscope.errors import FileError, NotFound
from gemscope.pages.labels import meaning


@dataclass(frozen=True)
class Hit:
    """A feature with such an explanation."""

    place: int
    """Of its atlas among those that were looked through."""
    feature: int
    label: str | None
    promotes: str | None
    score: float | None
    """How far the label is right, where that was measured."""
    count: int
    """Tokens that it fired on."""
    max: float

    @property
    def meaning(self) -> str | None:
        """What it stands for and promotes."""
        return meaning(self.label, self.promotes)


@dataclass(frozen=True)
class Found:
    """What a search over many atlases found."""

    counts: tuple[int, ...]
    """Features with such an explanation, by atlas."""
    hits: tuple[Hit, ...]
    """The best of all: those first whose label says so (BM25 within their atlas), then those with better labels."""
    amiss: tuple[int, ...]
    """Places of atlases that could not be read."""

    @property
    def total(self) -> int:
        """Features in all."""
        return sum(self.counts)


def across(atlases: Sequence[Atlas | Path], text: str, *, limit: int = 50, offset: int = 0) -> Found:
    """Looks through atlases, or folders of such, one after another; the last word may be the beginning of one. What
    cannot be read is passed over, and said.
    """
    counts, amiss = [0] * len(atlases), list[int]()
    best: list[tuple[int, Ranked]] = []
    for place, one in enumerate(atlases):
        try:
            with _tables(one) as database:
                counts[place] = count_with(text, database)
                if counts[place]:
                    best += [(place, each) for each in ranked(text, offset + limit, database)]
        except (FileError, NotFound):
            amiss.append(place)
    best.sort(key=lambda each: (not each[1].is_label, round(each[1].rank, 2)))
    wanted = best[offset : offset + limit]
    by_atlas: dict[int, list[int]] = {}
    for place, each in wanted:
        by_atlas.setdefault(place, []).append(each.feature)
    lines: dict[tuple[int, int], Hit] = {}
    for place, features in by_atlas.items():
        with _tables(atlases[place]) as database:
            lines |= {(place, one.feature): one for one in _hits(place, features, database)}
    hits = [lines[place, each.feature] for place, each in wanted if (place, each.feature) in lines]
    return Found(tuple(counts), tuple(hits), tuple(amiss))


def _hits(place: int, features: list[int], database: Database) -> Iterator[Hit]:
    with database.reading() as db:
        words, scores = schema.words_of(db, features), schema.scores_of(db, features)
        rows = schema.looked_up(db, "label, count, max", features)
    for feature, label, count, top in rows:
        yield Hit(place, feature, label, words.get(feature), scores.get(feature), count, top)


@contextmanager
def _tables(atlas: Atlas | Path) -> Iterator[Database]:
    """Of an open atlas its own; else a connection for a moment. One of a format that is brought up to date when it is
    opened is opened. Raises FileError.
    """
    if isinstance(atlas, Atlas):
        yield atlas.database
    elif not schema.as_it_is(read_manifest(atlas).format):
        with Atlas(atlas) as opened:
            yield opened.database
    else:
        database = Database(atlas / schema.NAME)
        try:
            yield database
        finally:
            database.let_go()
