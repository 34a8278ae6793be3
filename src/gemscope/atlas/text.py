"""The text that an atlas was made of: rows of ids, what their tokens read, and the documents that they are of."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from gemscope.atlas.entry import Ints
from gemscope.atlas.files import held_out
from gemscope.atlas.files.corpus import Corpus
from gemscope.atlas.files.database import Database
from gemscope.atlas.files.manifest import CROWDED, Manifest
from gemscope.atlas.files.vocabulary import Vocabulary, shared
from gemscope.errors import CorruptFile, NotFound
from gemscope.features.keys import REACH, text_keys
from gemscope.features.pool import Pool
from gemscope.text.printable import readable

LEAD = 3
"""Tokens in front of another that may hold the beginning of its character, which has four bytes at most."""


class Text:
    """Read piece by piece, but for the vocabulary and where documents start."""

    def __init__(self, manifest: Manifest, corpus: Corpus, database: Database) -> None:
        self.manifest, self.corpus = manifest, corpus
        self._database = database

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What its tokens read."""
        with self._database.reading() as db, self._database.undamaged("vocabulary"):
            # All at once: a statement left in its middle by an error keeps writers out until that is forgotten.
            return shared(db.execute("SELECT first, packed FROM token ORDER BY first").fetchall())

    def alone(self, token: int) -> str:
        """A token by itself. The vocabulary is read when the first is asked for: an atlas opens where it is damaged."""
        return self.vocabulary.alone(token)

    @cached_property
    def starts(self) -> Ints:
        """[documents] flat positions of their first tokens."""
        with self._database.reading() as db:
            return np.array([start for (start,) in db.execute("SELECT start FROM document ORDER BY start")], np.int64)

    def row(self, position: int) -> list[int]:
        """Ids of the whole row of the corpus around a flat position; -1 where there is no token. Raises NotFound."""
        if not 0 <= position < len(self.corpus):
            raise NotFound(f"no position {position}: the corpus has positions 0 to {len(self.corpus) - 1}")
        start = position - position % self.manifest.length
        ids: list[int] = self.corpus.between(start, start + self.manifest.length).tolist()
        return ids

    def ids(self, positions: Ints) -> Ints:
        """Ids at flat positions of the corpus, of any shape; -1 where there is no token. Raises NotFound."""
        if positions.size and not 0 <= positions.min() <= positions.max() < len(self.corpus):
            raise NotFound(
                f"no position {positions.min()} or {positions.max()}: "
                f"the corpus has positions 0 to {len(self.corpus) - 1}"
            )
        return self.corpus.at(positions)

    def keys(self, positions: Ints) -> Ints:
        """[n] What texts that end at flat positions are told apart by. Raises NotFound."""
        back = np.arange(REACH, -1, -1)
        context = self.ids(np.maximum(0, positions[:, None] - back))
        context[positions[:, None] % self.manifest.length < back] = -1
        found: Ints = text_keys(context)[:, -1]
        return found

    def document(self, index: int) -> tuple[str, str]:
        """Source and licence of a document. Raises NotFound."""
        if not 0 <= index < len(self.starts):
            raise NotFound(f"no document {index}: the corpus has {len(self.starts)}, counted from 0")
        return self.sources[index]

    @cached_property
    def sources(self) -> list[tuple[str, str]]:
        """Source and licence of each document."""
        return [(source, license_) for _, source, license_ in self.documents()]

    def documents(self) -> Iterator[tuple[int, str, str]]:
        """Every document: flat position of its first token, source, licence."""
        with self._database.reading() as db:
            sources = {id_: (name, license_) for id_, name, license_ in db.execute("SELECT * FROM source")}
            rows = db.execute("SELECT start, source FROM document ORDER BY start").fetchall()
        return ((start, *sources[source]) for start, source in rows)

    @cached_property
    def pool(self) -> Pool:
        """The rows that are held out. Raises CorruptFile."""
        length = self.manifest.length
        with self._database.reading() as db, self._database.undamaged("held_row"):
            positions, counted = held_out.rows(db, length)
            if len(positions) and (int(positions.max()) + length > len(self.corpus) or (positions % length).any()):
                raise CorruptFile("rows are held out that the corpus does not have")

        def firings(feature: int) -> tuple[Ints, Ints]:
            with self._database.reading() as db, self._database.undamaged(f"held, feature {feature}"):
                return held_out.firings(db, feature, counted)

        return Pool(self.corpus.at(positions[:, None] + np.arange(length)), counted, positions, firings)

    def require(self, position: int) -> None:
        """Raises CorruptFile for a position that tables or manifest name and the corpus does not have."""
        if position >= len(self.corpus):
            raise CorruptFile(f"{self._database.path} points beyond the corpus: copy the atlas again, or describe anew")

    def decoded(self, first: int, count: int) -> list[str]:
        """The text of a window in which characters are spread over tokens, the first perhaps begun in front of it."""
        lead = min(LEAD, first % self.manifest.length)
        ids = self.corpus.between(first - lead, first + count).tolist()
        return self.vocabulary.text(ids)[lead:]

    @cached_property
    def crowding(self) -> str:
        """Which places top more than a handful of features, in words; nothing where none does."""
        found = self.manifest.crowded
        if not found:
            return ""
        worst = found[0].position
        self.require(worst)
        lead = min(8, worst % self.manifest.length)
        *before, here = self.decoded(worst - lead, lead + 1)
        text = readable(f"{''.join(before)}[[{here}]]")
        many = f"{len(found)} places are" if len(found) > 1 else "1 place is"
        return (
            f"{many} the strongest of more than {CROWDED} features each, {found[0].features:,} at most ({text}): "
            "maxima of those features are the maxima of an outlier"
        )
