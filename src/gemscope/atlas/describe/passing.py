"""The pass over text itself: from wherever the last snapshot was to the end, saving now and then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import islice, pairwise
from typing import Any

import numpy as np

from gemscope.activations import memory
from gemscope.activations.harvest import expected_tokens
from gemscope.activations.model import LanguageModel
from gemscope.activations.store import Store
from gemscope.atlas.describe.gather import DescribeConfig, Described, Statistics, under
from gemscope.atlas.describe.reading import Batch, live, stored
from gemscope.atlas.describe.unfinished import Unfinished
from gemscope.atlas.files.manifest import Part
from gemscope.checked import Count
from gemscope.errors import CorruptFile, InputError
from gemscope.features.keys import text_keys
from gemscope.features.sae import SAE
from gemscope.progress import Advance, Progress, silent
from gemscope.text.corpus import Corpus
from gemscope.text.rows import Passed

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class _Counts:
    """How much of one part was read, as one SAE counts it."""

    rows: Count = 0
    documents: Count = 0
    counted: Count = 0
    masked: dict[str, Count] = field(default_factory=dict)
    passed: dict[str, Count] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Progress:
    """How far a pass was."""

    read: Count
    """Tokens, padding apart."""
    rows: Count
    part: Count
    """Source that is being read."""
    done: Count
    """Its batches that were."""
    finished: bool
    counts: Sequence[Sequence[_Counts]]
    """By source and SAE."""


class Pass:
    """The reading itself: from wherever the last snapshot was to the end."""

    def __init__(
        self,
        model: LanguageModel,
        saes: Sequence[SAE],
        sources: Sequence[Corpus | Store],
        unfinished: Unfinished,
        config: DescribeConfig,
    ) -> None:
        self.model, self.saes, self.sources, self.config = model, saes, sources, config
        self.unfinished = unfinished
        self.statistics = [Statistics(sae.d_sae, config) for sae in saes]
        self.counts: Sequence[Sequence[_Counts]] = [[_Counts() for _ in saes] for _ in sources]
        self.read = self.rows = self.part = self.done = 0
        self.finished = False
        if saved := unfinished.resume(_Progress):
            try:
                self._restore(*saved)
            except CorruptFile as error:
                raise unfinished.damaged(error) from error

    def run(self, tokens: int | None, progress: Progress) -> None:
        """Reads to the end, saving now and then."""
        if self.finished:
            return
        config = self.config
        batch = config.batch if tokens is None else max(1, min(config.batch, tokens // config.length))
        # Reading all of the text beforehand is for who watches a bar.
        total = tokens or (None if progress is silent else _length(self.model, self.sources))
        room = memory.fewer("describe", batch, self.model.device)
        with room, progress("describe", total, "tokens") as advance:
            advance(self.read)
            while self.part < len(self.sources) and not (tokens is not None and self.read >= tokens):
                self._read(self.sources[self.part], batch, tokens, advance)
                self.part, self.done = self.part + 1, 0
        self.finished = True
        if not any(statistics.tally.tokens for statistics in self.statistics):
            raise InputError("the text gave no token that counts: nothing to describe")
        self._save()

    def _read(self, source: Corpus | Store, batch: int, tokens: int | None, advance: Advance) -> None:
        config = self.config
        passed: Passed = Counter()
        batches = (
            live(
                self.model,
                self.saes,
                source.documents(passed),
                length=config.length,
                batch=batch,
                skip=self.done,
                tokens=None if tokens is None else tokens - self.read,
            )
            if isinstance(source, Corpus)
            else stored(
                self.saes, source, length=config.length, batch=batch, bos=self.model.bos is not None, skip=self.done
            )
        )
        for rows in islice(batches, self.done, None):
            self._add(rows)
            advance(rows.read)
            if tokens is not None and self.read >= tokens:
                break
            if self.unfinished.due:
                self._save()
        # Whoever goes on from a snapshot reads the text from its beginning, and counts again.
        for counts in self.counts[self.part]:
            counts.passed = dict(passed)

    def _add(self, batch: Batch) -> None:
        first = self.rows * self.config.length
        self.unfinished.append(batch.ids, [(first + flat, *facts) for flat, *facts in batch.starts])
        keys = text_keys(batch.ids)
        for statistics, counts, found in zip(self.statistics, self.counts[self.part], batch.found, strict=True):
            statistics.add(batch, found, keys, first)
            counts.rows += len(batch.ids)
            counts.documents += len(batch.starts)
            counts.counted += len(found.tokens)
            for reason, number in found.masked.items():
                counts.masked[reason] = counts.masked.get(reason, 0) + number
        self.rows += len(batch.ids)
        self.read += batch.read
        self.done += 1

    def _save(self) -> None:
        progress = _Progress(**{one.name: getattr(self, one.name) for one in fields(_Progress)})
        state = {
            f"{index}.{name}": value
            for index, statistics in enumerate(self.statistics)
            for name, value in statistics.state().items()
        }
        self.unfinished.save(asdict(progress), state)

    def _restore(self, saved: _Progress, state: dict[str, Array]) -> None:
        """Raises CorruptFile for what no pass with these arguments has saved."""
        length = self.config.length
        if not (
            [len(part) for part in saved.counts] == [len(self.saes)] * len(self.sources)
            and all(sum(part[index].rows for part in saved.counts) == saved.rows for index in range(len(self.saes)))
            and saved.part <= len(self.sources)
            and self.unfinished.rows.stat().st_size == 4 * length * saved.rows
        ):
            raise CorruptFile("it does not say how far it was")
        starts = [start for start, *_ in self.unfinished.starts()]
        if len(starts) != sum(part[0].documents for part in saved.counts) or not all(
            before < start for before, start in pairwise((-1, *starts, saved.rows * length))
        ):
            raise CorruptFile("its documents do not begin where its text is")
        for one in fields(_Progress):
            setattr(self, one.name, getattr(saved, one.name))
        for index, statistics in enumerate(self.statistics):
            statistics.restore(under(str(index), state), saved.rows * length)

    def described(self, index: int) -> Described:
        """What the pass gave for one SAE."""
        parts = [
            Part(name=name, digest=digest, dtype=self._dtype(source), **asdict(counts[index]))
            for source, (name, digest), counts in zip(self.sources, map(named, self.sources), self.counts, strict=True)
            if counts[index].rows
        ]
        bos = self.model.bos is not None
        length = self.config.length
        return Described(
            self.statistics[index], parts, lambda: self.unfinished.blocks(length), self.unfinished.starts, bos
        )

    def _dtype(self, source: Corpus | Store) -> str:
        """The number format that the activations come from."""
        return source.manifest.dtype if isinstance(source, Store) else str(self.model.dtype).removeprefix("torch.")


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
