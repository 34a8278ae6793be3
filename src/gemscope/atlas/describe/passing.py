"""The pass over text itself: a piece after another, each gathered and kept by itself; and all of them together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from gemscope.activations import memory
from gemscope.activations.harvest import expected_tokens
from gemscope.activations.model import LanguageModel
from gemscope.activations.store import Store
from gemscope.activations.work import Work, counted
from gemscope.atlas.describe.gather import DescribeConfig, Described, Statistics, under
from gemscope.atlas.describe.reading import Batch, live, stored
from gemscope.atlas.files.manifest import Part
from gemscope.checked import Count
from gemscope.errors import CorruptFile, InputError
from gemscope.features.fit import sites_of
from gemscope.features.keys import text_keys
from gemscope.features.sae import SAE
from gemscope.progress import Advance, Progress, silent
from gemscope.text.corpus import Corpus, Passage
from gemscope.world import World

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class _Section:
    """What is read as one piece."""

    number: int
    """Over all sources."""
    source: int
    text: Passage | slice
    """A passage of a corpus; the rows of a harvest."""


@dataclass
class _Counts:
    """How much was read, as one SAE counts it."""

    rows: Count = 0
    documents: Count = 0
    counted: Count = 0
    masked: dict[str, Count] = field(default_factory=dict)
    passed: dict[str, Count] = field(default_factory=dict)

    def add(self, other: _Counts) -> None:
        for name in ("rows", "documents", "counted"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, theirs in ((self.masked, other.masked), (self.passed, other.passed)):
            for reason, number in theirs.items():
                mine[reason] = mine.get(reason, 0) + number


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """What is known of a piece beside its statistics."""

    source: Count
    counts: Sequence[_Counts]
    """By SAE."""
    starts: Sequence[tuple[Count, str, str]]
    """Its documents: flat position of the first token, source, licence."""


class Pass:
    """The reading itself."""

    def __init__(
        self,
        model: LanguageModel,
        saes: Sequence[SAE],
        sources: Sequence[Corpus | Store],
        work: Work,
        config: DescribeConfig,
    ) -> None:
        self.model, self.saes, self.sources, self.config, self.work = model, saes, sources, config, work

    def run(self, tokens: int | None, piece: int, world: World, progress: Progress) -> None:
        """Reads what this worker does."""
        config, work = self.config, self.work
        batch = config.batch if tokens is None else max(1, min(config.batch, tokens // config.length))
        # Reading all of the text beforehand is for who watches a bar.
        drawn = world.first and progress is not silent
        total = tokens or (_length(self.model, self.sources) if drawn else None)
        room = memory.fewer("describe", batch, self.model.device)
        known = {number: work.read_of(number) for number in work.there()} if drawn else {}
        with room, progress("describe", total, "tokens") as advance:
            advance(sum(known.values()))
            for section, most in work.mine(self._sections(piece), world, tokens=tokens, count=self._counted):
                known[section.number] = self._read(section, batch, most, advance)
                if drawn and world.size > 1:
                    advance(work.news(known))

    def _sections(self, piece: int) -> Iterator[_Section]:
        number = 0
        for index, source in enumerate(self.sources):
            texts: Iterator[Passage] | list[slice]
            texts = source.pieces(piece) if isinstance(source, Corpus) else source[sites_of(self.saes[0])[0]].pieces
            for text in texts:
                yield _Section(number, index, text)
                number += 1

    def _counted(self, section: _Section) -> int:
        if isinstance(section.text, slice):
            return int(section.text.stop - section.text.start)
        return counted(self.model, section.text, length=self.config.length)

    def _batches(self, section: _Section, batch: int, tokens: int | None) -> Iterator[Batch]:
        source, shape = self.sources[section.source], {"length": self.config.length, "batch": batch}
        if isinstance(section.text, Passage):
            return live(self.model, self.saes, section.text.documents, tokens=tokens, **shape)
        assert isinstance(source, Store)
        return stored(self.saes, source, section.text, bos=self.model.bos is not None, tokens=tokens, **shape)

    def _read(self, section: _Section, batch: int, tokens: int | None, advance: Advance) -> int:
        """Gathers a piece by itself, and keeps it; how many tokens it has."""
        statistics = [Statistics(sae.d_sae, self.config) for sae in self.saes]
        passed = dict(section.text.passed) if isinstance(section.text, Passage) else {}
        counts = [_Counts(passed=dict(passed)) for _ in self.saes]
        starts: list[tuple[int, str, str]] = []
        blocks: list[Array] = []
        rows = read = 0
        for found in self._batches(section, batch, tokens):
            first = rows * self.config.length
            keys = text_keys(found.ids)
            starts += [(first + flat, *facts) for flat, *facts in found.starts]
            blocks.append(found.ids.astype(np.int32))
            for gathered, count, one in zip(statistics, counts, found.found, strict=True):
                gathered.add(found, one, keys, first)
                masked = {reason: number for reason, number in one.masked.items() if number}
                count.add(_Counts(len(found.ids), len(found.starts), len(one.tokens), masked))
            rows += len(found.ids)
            read += found.read
            advance(found.read)
        arrays = {"ids": np.concatenate([np.zeros((0, self.config.length), np.int32), *blocks])}
        for index, gathered in enumerate(statistics):
            arrays |= {f"{index}.{name}": value for name, value in gathered.state().items()}
        facts = _Piece(source=section.source, counts=counts, starts=starts)
        self.work.put(section.number, read=read, facts=asdict(facts), arrays=arrays)
        return read

    def together(self) -> Gathered:
        """All pieces, put together in the order of the text. Raises CorruptFile, Mismatch, and InputError where nothing
        counts.
        """
        return Gathered(self)


class Gathered:
    """What all pieces of a pass gave."""

    def __init__(self, passing: Pass) -> None:
        self._pass, self._work = passing, passing.work
        self._length = passing.config.length
        self.statistics = [Statistics(sae.d_sae, passing.config) for sae in passing.saes]
        self.counts = [[_Counts() for _ in passing.saes] for _ in passing.sources]
        self.starts: list[tuple[int, str, str]] = []
        rows = 0
        for number in range(self._work.number):
            piece, arrays = self._work.get(number, _Piece)
            try:
                rows += self._add(piece, arrays, rows)
            except CorruptFile as error:
                raise self._work.damaged(number, error) from error
        if not any(one.tally.tokens for one in self.statistics):
            self._work.discard()  # there is nothing to go on from
            raise InputError("the text gave no token that counts: nothing to describe")

    def _add(self, piece: _Piece, arrays: Mapping[str, Array], before: int) -> int:
        """A piece that has so many rows before it; how many it has itself. Raises CorruptFile for what no pass with
        these arguments has kept.
        """
        ids, config = arrays.get("ids", np.zeros(0)), self._pass.config
        if ids.ndim != 2 or ids.shape[1] != self._length or ids.dtype != np.int32:
            raise CorruptFile("its rows are none of this text")
        rows, saes = len(ids), len(self._pass.saes)
        if not (
            piece.source < len(self.counts)
            and [count.rows for count in piece.counts] == [rows] * saes
            and [count.documents for count in piece.counts] == [len(piece.starts)] * saes
        ):
            raise CorruptFile("it does not say how much it has")
        flat = [start for start, *_ in piece.starts]
        if not all(one < other for one, other in pairwise((-1, *flat, rows * self._length))):
            raise CorruptFile("its documents do not begin where its text is")
        shift = before * self._length
        for index, (whole, sae) in enumerate(zip(self.statistics, self._pass.saes, strict=True)):
            mine = Statistics(sae.d_sae, config)
            mine.restore(under(str(index), arrays), rows * self._length)
            whole.merge(mine, shift)
        for count, theirs in zip(self.counts[piece.source], piece.counts, strict=True):
            count.add(theirs)
        self.starts += [(shift + start, source, license_) for start, source, license_ in piece.starts]
        return rows

    def blocks(self) -> Iterator[Array]:
        """All rows, some at a time."""
        for number in range(self._work.number):
            yield self._work.get(number, _Piece)[1]["ids"]

    def described(self, index: int) -> Described:
        """What the pass gave for one SAE."""
        parts = [
            Part(name=name, digest=digest, dtype=self._dtype(source), **asdict(counts[index]))
            for source, (name, digest), counts in zip(
                self._pass.sources, map(named, self._pass.sources), self.counts, strict=True
            )
            if counts[index].rows
        ]
        bos = self._pass.model.bos is not None
        return Described(self.statistics[index], parts, self.blocks, lambda: iter(self.starts), bos)

    def _dtype(self, source: Corpus | Store) -> str:
        """The number format that the activations come from."""
        return (
            source.manifest.dtype if isinstance(source, Store) else str(self._pass.model.dtype).removeprefix("torch.")
        )


def _length(model: LanguageModel, sources: Sequence[Corpus | Store]) -> int | None:
    """About how many tokens there are to read; None where finding out means downloading it all."""
    total = 0
    for source in sources:
        found = max(source.manifest.sites.values()) if isinstance(source, Store) else expected_tokens(model, source)
        if found is None:
            return None
        total += found
    return total


def named(source: Corpus | Store) -> tuple[str, str]:
    if isinstance(source, Corpus):
        return source.name, source.digest
    return f"harvest of {source.manifest.corpus}", source.manifest.corpus_digest
