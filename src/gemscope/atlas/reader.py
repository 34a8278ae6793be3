"""Reads an atlas, and writes its labels. Safe from many threads at once, and beside other processes.

Each part of it is a file: `feature.py`, `lists.py`, `tokens.py`, `text.py`, `labels/`, on what `files/` has opened.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date
from functools import cached_property
from html import escape
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import SupportsIndex, Unpack

import numpy as np

from gemscope.activations.site import described
from gemscope.atlas.dashboard import Dashboard, Explanation, Glance, Summary
from gemscope.atlas.entry import Entry, Floats, Ints
from gemscope.atlas.feature import Features
from gemscope.atlas.files import corpus, plane
from gemscope.atlas.files.database import Database, writable
from gemscope.atlas.files.manifest import FORMAT, Mapped, read_manifest, write_manifest
from gemscope.atlas.files.opening import opened, upgraded
from gemscope.atlas.files.outputs import Outputs
from gemscope.atlas.files.schema import looked_up, words_of
from gemscope.atlas.glance import glances
from gemscope.atlas.labels import search
from gemscope.atlas.labels.explanations import Explanations, Standing
from gemscope.atlas.labels.trial import GOOD, Trial
from gemscope.atlas.lists import Filter, Lists
from gemscope.atlas.output import OutputScore
from gemscope.atlas.relatives import Relatives
from gemscope.atlas.striking import striking
from gemscope.atlas.text import Text
from gemscope.atlas.tokens import ByToken, Promoter, TokenHit
from gemscope.errors import AccessError, FileError, InputError, NotFound
from gemscope.features.pool import Pool
from gemscope.features.relatives import Kin
from gemscope.pages.labels import meaning
from gemscope.text.rows import passed_over


class Atlas:
    """A folder of feature pages: `atlas[17]` is a Dashboard. Use as a context manager, or `close` it."""

    def __init__(self, folder: str | Path) -> None:
        """Opens an atlas; one of an older format is brought up to date first.

        Raises NotFound where there is none, CorruptFile for a damaged, foreign or newer one, AccessError for one that
        cannot be reached, or is of an older format where nothing can be written.
        """
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        rows = corpus.Corpus(self.folder / corpus.NAME, manifest.rows, manifest.length)
        self._database, self.manifest = opened(self.folder, manifest)
        self._places: list[plane.Places | None] = []
        self._text = Text(self.manifest, rows, self._database)
        self._features = Features(self._text, self._database)
        self._relatives = Relatives(self.folder, self.manifest)
        self._outputs = Outputs(self.folder, lambda: self.manifest, self._text.alone)
        self._explanations = Explanations(self._database, len(self))
        self._lists = Lists(self._text, self._database, self._explanations)
        self._by_token = ByToken(self._text, self._database, self._lists)

    @property
    def database(self) -> Database:
        """Its tables."""
        return self._database

    def close(self) -> None:
        """Lets go of all files. What other threads are reading at the moment, they still get."""
        self._database.close()

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
        return self.dashboard(index)

    def dashboard(self, index: SupportsIndex, *, ranges: bool = True) -> Dashboard:
        """All about one feature; without the examples drawn from `ranges` of activations it is read in less time.
        Raises NotFound, CorruptFile.
        """
        feature = self._index(index)
        related, life = self._relatives.of(feature)
        page, output = self._features.dashboard(feature, ranges=ranges), self._outputs.of(feature)
        return replace(page, related=related, life=life, output=output)

    @property
    def relatives(self) -> Kin | None:
        """Of its features, those among the features of SAEs at other sites; None where nobody has looked for any
        (`gs.relatives`). Raises CorruptFile, and Mismatch where they are another SAE's.
        """
        return self._relatives.kin

    def entry(self, index: SupportsIndex) -> Entry:
        """One feature as numbers: what `Writer.add` was given, except that values beside the peaks have 11 bits.

        Given to another Writer, it is kept unchanged. Raises NotFound, CorruptFile.
        """
        return self._features.entry(self._index(index))

    def _index(self, feature: SupportsIndex) -> int:
        index = operator.index(feature)
        if not 0 <= index < len(self):
            raise NotFound(f"no feature {index}: this SAE has features 0 to {len(self) - 1}")
        return index

    # --- lists of features ------------------------------------------------------------------------------------------

    def summaries(
        self,
        *,
        order: str = "index",
        descending: bool = False,
        offset: int = 0,
        limit: int = 100,
        **wanted: Unpack[Filter],
    ) -> list[Summary]:
        """Features as lines of a list, by `index`, `density`, `max`, `mean` or `label`; those alone that are `wanted`:
        `dead`, `labelled`, `min_density`, `max_density`, `min_max`, `max_max`, `text`.

        Equals come by index; by label, those without one come last.
        `text` keeps those with an explanation that has its words. Bounds are inclusive. Raises InputError.
        """
        offset, limit = _span(offset, limit)
        mask, ranked = self._lists.wanted(**wanted), self._lists.ranked(order, descending)
        if mask is not None:
            ranked = ranked[mask[ranked]]
        return self._lists.of(ranked[offset : offset + limit].tolist())

    def summaries_of(self, features: Iterable[SupportsIndex]) -> list[Summary]:
        """These features as lines of a list, in their order. Raises NotFound."""
        return self._lists.of([self._index(one) for one in features])

    def glances(self, features: Iterable[int]) -> dict[int, Glance]:
        """Of each of these features its strongest example in a few words, and how its activations are spread; of all in
        a fraction of the time that their pages take. Raises CorruptFile.
        """
        return glances({one for one in map(int, features) if 0 <= one < len(self)}, self._text, self._database)

    def striking(self, many: int = 5) -> list[Summary]:
        """A few features to begin with, the same while labels are: rare ones with good labels in somebody's words that
        fire on several different words, no two on the same, and promote words of what they read
        (`atlas/striking.py`). Raises CorruptFile.
        """
        return self._lists.of(
            striking(many, lists=self._lists, explanations=self._explanations, text=self._text, database=self._database)
        )

    def count(self, **wanted: Unpack[Filter]) -> int:
        """How many features `summaries` would list in all."""
        mask = self._lists.wanted(**wanted)
        return len(self) if mask is None else int(mask.sum())

    def listed(self, features: Sequence[int]) -> list[Summary]:
        """These features as lines of a list, in their order. Raises NotFound."""
        return self._lists.of([self._index(one) for one in features])

    @property
    def places(self) -> plane.Places | None:
        """[d_sae, 2] where features lie on the map: x to the right, y upwards, from 0 to 65535. None without a map."""
        if not self._places:
            with self._database.reading() as db, self._database.undamaged("map"):
                self._places.append(plane.read(db, len(self)))
        return self._places[0]

    def scatter(self) -> tuple[Ints, Floats, Floats]:
        """Ids, densities and maxima [n] of the features that fire somewhere."""
        figures = self._lists.figures
        living = np.flatnonzero(figures.counts)
        return living, figures.densities[living], figures.maxima[living]

    def search(self, text: str, *, limit: int = 50, offset: int = 0) -> list[Summary]:
        """Features by what their explanations say (BM25), best first; the last word may be the beginning of one.

        Any text will do: what is no word in it is passed over.
        """
        offset, limit = _span(offset, limit)
        return self._lists.of(search.best(text, limit and offset + limit, self._database)[offset:])

    def tokens_like(self, text: str, limit: int = 20, *, promoted: bool = False) -> list[tuple[int, str, int]]:
        """Tokens of the vocabulary that read so: id, text and number of features with examples on it, or of those that
        promote it.

        First those that are the text but for case and blanks around, then those that begin so; in each those with the
        most features first.
        """
        _, limit = _span(0, limit)
        return self._by_token.like(text, limit, promoted=promoted)

    def by_token(self, token_id: int, *, limit: int = 50) -> list[TokenHit]:
        """Features with examples that peak on a token: most examples first, then the strongest."""
        _, limit = _span(0, limit)
        return self._by_token.hits(token_id, limit)

    def promoting(self, token: int | str, *, limit: int = 50) -> list[Promoter]:
        """Features that have a token among those which they promote most, by the measured effect of the site: those
        first among whose effects it stands out most. Those are left out of which the halves of the text say other
        things.

        `token` is an id, or a text: then all tokens that read so but for case and blanks around count, each feature
        once, by the one that stands out most. None are found in an atlas without an effect (`manifest.no_effect` says
        why).
        """
        _, limit = _span(0, limit)
        if not isinstance(token, str):
            return self._by_token.promoters(operator.index(token), limit)
        alike = [*chain(*self._text.vocabulary.like(token)[:2])]
        every = [one for id_ in alike for one in self._by_token.promoters(id_, limit)]
        best = sorted(every, key=lambda one: (-one.stands_out, one.summary.feature))
        found = dict[int, Promoter]()
        for one in best:
            found.setdefault(one.summary.feature, one)
        return list(found.values())[:limit]

    def strongest_on(self, features: Iterable[int]) -> dict[int, str]:
        """The token on which the strongest example of each of these features fires, of those that have one."""
        wanted, alone = set(map(int, features)), self._text.vocabulary.alone
        with self._database.reading() as db:
            rows = looked_up(db, "token", wanted)
        return {one: alone(token) for one, token in rows if token is not None}

    # --- labels -----------------------------------------------------------------------------------------------------

    def labels(self, features: Iterable[int]) -> dict[int, str]:
        """The best explanation of each of these features that has one."""
        return self._explanations.labels(features)

    def meanings(self, features: Iterable[int]) -> dict[int, str]:
        """What these features stand for and promote, of those of which anything is known."""
        wanted = set(map(int, features))
        with self._database.reading() as db:
            labels = {one: label for one, label in looked_up(db, "label", wanted) if label is not None}
            words = words_of(db, wanted)
        found = {one: meaning(labels.get(one), words.get(one)) for one in wanted}
        return {one: text for one, text in found.items() if text is not None}

    def right(self) -> Floats:
        """[d_sae] How far each feature's label is right: its score where there is one, ½ without a label."""
        return self._explanations.right()

    @property
    def standing(self) -> Standing:
        """Of how many features there is a label, a label with a score, and one with a score above .8."""
        return self._explanations.standing

    def explain(self, feature: int, text: str, *, method: str = "user", author: str = "") -> Explanation:
        """Says what a feature stands for. A person's word (method `user`) is its label from now on; a method's where
        nothing is said that has a higher score.

        Raises NotFound, InputError for what is not text, AccessError where nothing can be written, StorageFull.
        """
        said = Explanation(id=0, text=text, method=method, author=author, made=date.today().isoformat())
        return self._explanations.add([(self._index(feature), said)])[0]

    def explain_all(self, said: Mapping[int, Explanation], *, replacing: str = "", among: Iterable[int] = ()) -> None:
        """Says what many features stand for, all or nothing; `replacing` takes away what that method said of them
        before, and of those `among`.

        Raises NotFound, InputError for what is not text, AccessError where nothing can be written, StorageFull.
        """
        named = [(self._index(feature), one) for feature, one in said.items()]
        self._explanations.add(named, replacing=replacing, among=map(self._index, among))

    def tried(self, trials: Mapping[int, Trial], features: Iterable[int]) -> None:
        """What came of running explanations on text, by their `id`; on the rows held out it is their score from now on.

        Raises AccessError where nothing can be written, StorageFull.
        """
        self._explanations.tried(trials, map(self._index, features))

    def forget(self, feature: int, explanation_id: int) -> None:
        """Takes an explanation away. Raises NotFound, AccessError where nothing can be written."""
        self._explanations.forget(self._index(feature), explanation_id)

    def explanations(self) -> list[tuple[int, Explanation]]:
        """All that is said of features, and of which; oldest first."""
        return self._explanations.all()

    # --- text -------------------------------------------------------------------------------------------------------

    def text(self, ids: Iterable[int]) -> list[str]:
        """Per token the text that it completes: "" for one that ends within a character."""
        return self._text.vocabulary.text(map(int, ids))

    def token(self, id_: int) -> str:
        """A token by itself; bytes that are no text are written `\\xe2`."""
        return self._text.vocabulary.alone(id_)

    def row(self, position: int) -> list[int]:
        """Ids of the whole row of the corpus around a flat position; -1 where there is no token. Raises NotFound."""
        return self._text.row(position)

    def ids(self, positions: Ints) -> Ints:
        """Ids at flat positions of the corpus, of any shape; -1 where there is no token. Raises NotFound."""
        return self._text.ids(positions)

    def keys(self, positions: Ints) -> Ints:
        """[n] What texts that end at flat positions are told apart by (`features/keys.py`). Raises NotFound."""
        return self._text.keys(positions)

    def document(self, index: int) -> tuple[str, str]:
        """Source and licence of a document. Raises NotFound."""
        return self._text.document(index)

    def documents(self) -> Iterator[tuple[int, str, str]]:
        """Every document: flat position of its first token, source, licence."""
        return self._text.documents()

    def tokens(self) -> Mapping[int, bytes]:
        """The vocabulary: UTF-8 bytes by id, which need not be text by themselves."""
        return MappingProxyType(self._text.vocabulary.tokens)

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids of special tokens."""
        return self._text.vocabulary.special

    @property
    def crowding(self) -> str:
        """Which places top more than a handful of features, in words; nothing where none does."""
        return self._text.crowding

    @cached_property
    def pool(self) -> Pool:
        """The rows that never give an example, with all that fires on them: what labels are scored on.

        Without rows in an atlas that was imported, or made by a version that held none out. Raises CorruptFile.
        """
        return self._text.pool

    # --- what is found out later ------------------------------------------------------------------------------------

    def measured(self, *, median_norm: float) -> None:
        """Keeps the manifest's `median_norm`, for an atlas that was made without it: on disk where it can be written,
        else while it is open.
        """
        self.manifest = replace(self.manifest, median_norm=median_norm)
        if writable(self.folder):
            with suppress(FileError):
                write_manifest(self.manifest, self.folder)

    def keep_outputs(self, scores: Iterable[OutputScore]) -> None:
        """Keeps output scores of features (`gs.add_output_scores` measures them), each in place of what was known of
        its feature before. Raises NotFound, AccessError where nothing can be written, StorageFull.
        """
        found = list(scores)
        for one in found:
            self._index(one.feature)
        if not writable(self.folder):
            raise AccessError(f"nothing can be written in {self.folder}: copy the atlas elsewhere to keep scores there")
        self._outputs.keep(found)

    def outputs(self, features: Iterable[int] | None = None) -> dict[int, OutputScore]:
        """The output scores of these features, or of all, as far as they are known. Raises CorruptFile."""
        found = {one: self._outputs.of(one) for one in (self._outputs.features if features is None else features)}
        return {one: score for one, score in found.items() if score is not None}

    def put_places(self, places: plane.Places, said: Mapped) -> None:
        """Keeps a map, and what is said of it. Raises InputError, AccessError where nothing can be written."""
        if places.shape != (len(self), 2):
            raise InputError(f"places of shape {places.shape} given: expected [{len(self)}, 2]")
        if not writable(self.folder):
            raise AccessError(f"nothing can be written in {self.folder}: copy the atlas elsewhere to give it a map")
        if self.manifest.format < FORMAT:
            self.manifest = upgraded(self.folder, self.manifest, self._database)
        with self._database.changing() as db:
            db.execute("BEGIN IMMEDIATE")
            plane.write(places, db)
            db.execute("COMMIT")
        self.manifest = replace(self.manifest, map=said, no_map=None)
        write_manifest(self.manifest, self.folder)
        self._places = []

    # --- how it shows itself ----------------------------------------------------------------------------------------

    def _lines(self) -> list[str]:
        manifest = self.manifest
        living = int((self._lists.figures.counts > 0).sum())
        parts = ", ".join(part.name for part in manifest.parts) or "no text"
        at = described(manifest.site, manifest.site_out)
        labelled, scored, good = self.standing
        share = f" ({good / scored:.0%} of the {scored:,} scored ones above {GOOD})" if scored else ""
        passed = passed_over(sum((Counter(part.passed) for part in manifest.parts), Counter()))
        return [
            f"{manifest.model} at {at}, read through {manifest.sae}",
            f"{len(self):,} features: {living:,} living, {len(self) - living:,} dead; {labelled:,} with a label{share}",
            f"{manifest.tokens:,} counted tokens of {manifest.documents:,} documents ({parts})",
            *self._effect_lines(),
            *([passed] if passed else []),
            *([self.crowding] if self.crowding else []),
        ]

    def _effect_lines(self) -> list[str]:
        of = self.manifest.effect
        if of is None:
            return []
        said = f"measured over {of.tokens:,} tokens of {of.corpus}; its halves agree to {of.agreement:.3f}"
        return [f"effect on the logits {said}"]

    def __repr__(self) -> str:
        return f"Atlas({self.folder}, {self.manifest.model}, {self.manifest.sae}, {len(self):,} features)"

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        title, *rest = map(escape, self._lines())
        return f"<div><p><b>{title}</b></p>{''.join(f'<p>{line}</p>' for line in rest)}</div>"


def _span(offset: int, limit: int) -> tuple[int, int]:
    if offset < 0 or limit < 0:
        raise InputError(f"offset={offset}, limit={limit}: neither can be below 0")
    return offset, limit
