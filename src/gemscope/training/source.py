"""Where a run's rows come from: batches as a function of (seed, step), whatever they are read from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import reduce
from itertools import islice
from operator import or_
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.activations.store import DTYPES, Store
from gemscope.activations.writer import values_of
from gemscope.errors import InputError, NotFinite
from gemscope.progress import Progress, silent
from gemscope.shapes import Float
from gemscope.text.corpus import Corpus
from gemscope.text.rows import Passed
from gemscope.text.tokens import Tokens
from gemscope.training.group import ALONE, Group
from gemscope.training.mixing import Mixed
from gemscope.training.shuffle import Shuffle


@runtime_checkable
class Source(Protocol):
    """Pairs (x, y): what an SAE reads, and what it shall make of it. y is x itself but for transcoders."""

    @property
    def reads(self) -> tuple[Site, ...]:
        """Sites whose activations lie side by side in x."""
        ...

    @property
    def writes(self) -> tuple[Site, ...]:
        """The same of y."""
        ...

    @property
    def widths(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Numbers per token of each of them."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """What makes it this source: a run goes on only with the same."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """Model, corpus and how it was read: for the SAE's own description. `passed` among them says, by reason, how
        many rows of the corpus had no text.
        """
        ...

    def batches(self, batch: int, seed: int) -> Batches: ...


@runtime_checkable
class Batches(Protocol):
    """A source cut into batches, in the order that a seed gives."""

    def __getitem__(self, step: int) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B O"]]:
        """The pairs of one step, on the processor, in the format that they are stored in. Raises NotFinite."""
        ...

    def sample(self, count: int) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N O"]]:
        """Up to `count` pairs to measure means and scales by; the run reads them like all others."""
        ...


class StoreSource:
    """Rows of a harvest: of one site; of two, for a transcoder (`writes`); of several together, for a crosscoder."""

    def __init__(
        self, store: Store, reads: Site | str | Sequence[Site | str], writes: Site | str | None = None
    ) -> None:
        """Raises NotFound for a site that was not harvested, InputError for several with `writes`, or for sites of
        which different tokens were kept.
        """
        self.store = store
        self.reads, self.writes = _sites(reads, writes)
        self._rows = store.together((*self.reads, *self.writes))

    @property
    def widths(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Numbers per token of each site."""
        reads, writes = (tuple(self._rows[site].d for site in sites) for sites in (self.reads, self.writes))
        return reads, writes

    def __len__(self) -> int:
        return len(self._rows[self.reads[0]])

    @property
    def identity(self) -> dict[str, Any]:
        """Sites, model, corpus and number of rows."""
        manifest = self.store.manifest
        return {
            "reads": [str(site) for site in self.reads],
            "writes": [str(site) for site in self.writes],
            "model": manifest.model,
            "corpus_digest": manifest.corpus_digest,
            "rows": len(self),
        }

    @property
    def facts(self) -> dict[str, Any]:
        """Of the harvest's manifest."""
        manifest = self.store.manifest
        return {
            "model": manifest.model,
            "revision": manifest.revision,
            "corpus": manifest.corpus,
            "corpus_digest": manifest.corpus_digest,
            "context_size": manifest.length,
            "rows_harvested": len(self),
            **_without_text(manifest.passed),
        }

    def batches(self, batch: int, seed: int) -> _StoreBatches:
        """A permutation of all rows for each epoch."""
        return _StoreBatches(self, batch, seed)

    def rows(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Pairs by index, as they are stored. Raises NotFinite."""
        found = {site: rows.stored(index) for site, rows in self._rows.items()}
        for site, values in found.items():
            if not values.sum(dtype=torch.float32).isfinite() and not values.isfinite().all():
                raise NotFinite(
                    f"NaN or Inf among the rows of {site} in {self.store.folder}: harvest it again (store.verify() "
                    "says whether the files were damaged)"
                )
        x = _beside([found[site] for site in self.reads])
        return x, (x if self.writes == self.reads else _beside([found[site] for site in self.writes]))


class _StoreBatches:
    def __init__(self, source: StoreSource, batch: int, seed: int) -> None:
        self._source, self._seed = source, seed
        self._shuffle = Shuffle(len(source), batch, seed)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return self._source.rows(self._shuffle[step])

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self._seed)
        return self._source.rows(torch.randperm(len(self._source), generator=generator)[:count])


class StreamSource:
    """Rows that a model computes while they are trained on: nothing is stored. Sites as of a `StoreSource`.

    They are mixed in a buffer (`Mixed`), which takes buffer · width · 2 bytes of memory (as float16). A run that was
    cut off goes on exactly, by computing again, without training, all that it had read: about as long as the model took
    for it. A store is better wherever it fits, or where rows are read more than once.
    """

    def __init__(
        self,
        model: LanguageModel,
        corpus: Corpus,
        reads: Site | str | Sequence[Site | str],
        writes: Site | str | None = None,
        *,
        buffer: int = 1 << 19,
        length: int = 256,
        rows: int = 32,
        dtype: str = "float16",
        progress: Progress = silent,
    ) -> None:
        """`buffer` counts tokens; the model reads `rows` rows of `length` tokens at a time. Raises SiteNotFound,
        InputError.
        """
        if dtype not in DTYPES:
            raise InputError(f"activations cannot be held as {dtype!r}: choose from {', '.join(DTYPES)}")
        self.model, self.corpus, self.buffer, self.progress = model, corpus, buffer, progress
        self._readings: list[Passed] = []
        self._group = ALONE
        self.length, self.dtype, self._pass = length, dtype, rows
        self.reads, self.writes = _sites(reads, writes)
        self._all = tuple(dict.fromkeys((*self.reads, *self.writes)))
        self._widths = {site: model.width(site) for site in self._all}

    @property
    def widths(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Numbers per token of each site."""
        reads, writes = (tuple(self._widths[site] for site in sites) for sites in (self.reads, self.writes))
        return reads, writes

    @property
    def identity(self) -> dict[str, Any]:
        """Sites, model, corpus, and how it is read."""
        return {
            "reads": [str(site) for site in self.reads],
            "writes": [str(site) for site in self.writes],
            "model": self.model.name,
            "revision": self.model.revision,
            "model_dtype": str(self.model.dtype),
            "corpus_digest": self.corpus.digest,
            "stream": {"buffer": self.buffer, "length": self.length, "rows": self._pass, "dtype": self.dtype},
        }

    @property
    def facts(self) -> dict[str, Any]:
        """Of the model and the corpus."""
        return {
            "model": self.model.name,
            "revision": self.model.revision,
            "corpus": self.corpus.name,
            "corpus_digest": self.corpus.digest,
            "context_size": self.length,
            "mixing_buffer": self.buffer,
            **_without_text(self.passed),
        }

    @property
    def passed(self) -> Passed:
        """Rows of the corpus without a text, by reason: of what was read of it so far, each counted once."""
        return reduce(or_, self._readings, Counter())  # each reading is the beginning of the longest

    def among(self, group: Group) -> StreamSource:
        """The same stream for a rank of a group, which computes every N-th pass of the model and is given the others'
        rows.
        """
        shared = copy(self)
        shared._group = group.apart()
        return shared

    def batches(self, batch: int, seed: int) -> _StreamBatches:
        """Random rows of the buffer, as many new ones in their place. Raises InputError for a batch above `buffer`."""
        return _StreamBatches(self, batch, seed)

    def read(self) -> Iterator[Tensor]:
        """The corpus once: counted rows [n, all sites side by side] of one pass of the model after another. Raises
        NotFinite, and AccessError where a rank is gone.
        """
        group = self._group
        self._readings.append(Counter())
        passes = self.model.rows(self.corpus.documents(self._readings[-1]), length=self.length, batch=self._pass)
        none = torch.empty(0, sum(self._widths.values()), dtype=DTYPES[self.dtype])
        while several := list(islice(passes, group.size)):
            mine = self._computed(several[group.rank]) if group.rank < len(several) else none
            yield from group.gather(mine)[: len(several)]

    def _computed(self, tokens: Tokens) -> Tensor:
        found = self.model.capture(tokens, self._all)
        return _beside(values_of([found[site] for site in self._all], self.dtype))

    def pairs(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of `read` as (x, y)."""
        parts = torch.split(rows, [self._widths[site] for site in self._all], dim=-1)
        found = dict(zip(self._all, parts, strict=True))
        x = _beside([found[site] for site in self.reads])
        return x, (x if self.writes == self.reads else _beside([found[site] for site in self.writes]))


class _StreamBatches:
    def __init__(self, source: StreamSource, batch: int, seed: int) -> None:
        self._source = source
        self._mixed = Mixed(source.read, buffer=source.buffer, batch=batch, seed=seed)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return self._source.pairs(self._mixed[step])

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        sites = ", ".join(map(str, self._source.reads))
        with self._source.progress(f"fill the buffer with {sites}", self._source.buffer, "rows") as advance:
            rows = self._mixed.sample(count, advance)
        return self._source.pairs(rows)


def _without_text(passed: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """What there is to say of rows that were passed over: nothing where none was."""
    return {"passed": dict(sorted(passed.items()))} if passed else {}


def _sites(
    reads: Site | str | Sequence[Site | str], writes: Site | str | None
) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    """What is read and what is written: the same, but for transcoders."""
    read = tuple(map(Site.parse, [reads] if isinstance(reads, str | Site) else reads))
    if writes is not None and len(read) != 1:
        raise InputError(f"{len(read)} sites read and {writes} written: a transcoder reads one")
    return read, read if writes is None else (Site.parse(writes),)


def _beside(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
