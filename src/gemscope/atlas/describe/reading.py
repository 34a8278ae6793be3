"""Text on its way into an atlas: batches of whole rows, with the features that each SAE finds on the tokens that count.
A live model gives them, or a harvest; whoever takes them cannot tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemscope.activations.ahead import ahead, enough
from gemscope.activations.capture import Activations
from gemscope.activations.fetch import together
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.activations.store import Store
from gemscope.errors import InputError
from gemscope.features.activations import FeatureActivations
from gemscope.features.fit import require_fit, sites_of
from gemscope.features.sae import SAE
from gemscope.text.sources import Document
from gemscope.text.tokens import Tokens

Array = np.ndarray[Any, np.dtype[Any]]

_GAP = 8
"""More tokens than this missing from a harvested document, and the gap is shown no longer."""


@dataclass(frozen=True)
class Found:
    """What one SAE finds in a batch."""

    tokens: Array
    """int64 [n]: the counted tokens, as flat indices into the batch."""
    features: FeatureActivations
    """Of those n tokens."""
    masked: Mapping[str, int]
    """Tokens that do not count, by reason."""
    norms: Array | None
    """float32 [n]: how long the activations are where the SAE writes; None where they are not at hand."""


@dataclass(frozen=True)
class Batch:
    """Whole rows of text."""

    ids: Array
    """int64 [R, T]; -1 where there is no token, or none that is known."""
    starts: Sequence[tuple[int, str, str]]
    """Documents that begin here: flat index of the first token, source, licence."""
    read: int
    """Tokens, padding apart."""
    found: Sequence[Found]
    """By SAE."""


def live(
    model: LanguageModel,
    saes: Sequence[SAE],
    documents: Iterable[Document],
    *,
    length: int,
    batch: int,
    tokens: int | None = None,
) -> Iterator[Batch]:
    """Text through a model, once for all SAEs, until so many `tokens` have come (None: all)."""
    recorded = _Recorded(documents)
    for sae in saes:
        require_fit(model, sae)
    sites = [sites_of(sae) for sae in saes]
    wanted = dict.fromkeys(site for both in sites for site in both)
    packed = enough(model.rows(recorded, length=length, batch=batch), tokens)
    items = ((rows, recorded.starting(rows)) for rows in packed)

    def found(item: tuple[Tokens, object]) -> list[Found]:
        return _found(model.capture(item[0], wanted), saes, sites)

    for (rows, starts), here in ahead(items, found, model.device):
        ids = rows.ids.masked_fill(~rows.real, -1).numpy()
        yield Batch(ids, starts, int(rows.real.sum()), here)


def _found(
    captured: Mapping[Site, Activations], saes: Sequence[SAE], sites: Sequence[tuple[Site, Site]]
) -> list[Found]:
    read = [captured[reads] for reads, _ in sites]
    features = [sae.encode(acts.rows) for sae, acts in zip(saes, read, strict=True)]
    norms = [_norms(captured[writes].values[acts.kept]) for acts, (_, writes) in zip(read, sites, strict=True)]
    return [
        Found(
            acts.kept.flatten().nonzero().flatten().numpy(),
            one,
            {reason: number for reason, number in acts.dropped.items() if reason != "padding"},
            lengths,
        )
        for acts, (one, lengths) in zip(read, _fetched(features, norms), strict=True)
    ]


def _norms(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows.float(), dim=-1)
    return lengths


def _fetched(
    features: Sequence[FeatureActivations], norms: Sequence[Tensor | None]
) -> Iterator[tuple[FeatureActivations, Array | None]]:
    """What was found, in the processor's memory, in one copy."""
    none = torch.zeros(0)
    parts = [
        part
        for one, lengths in zip(features, norms, strict=True)
        for part in (one.offsets, one.features, one.values, none if lengths is None else lengths)
    ]
    here = iter(together(parts))
    for one, lengths in zip(features, norms, strict=True):
        found = replace(one, offsets=next(here), features=next(here), values=next(here), scale=None)
        fetched = next(here)
        yield found, None if lengths is None else fetched.numpy()


class _Recorded:
    """Documents as they are read, remembered until the rows that begin with them come by."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._documents = documents
        self._waiting: dict[int, tuple[str, str]] = {}

    def __iter__(self) -> Iterator[Document]:
        self._waiting = {}
        for index, document in enumerate(self._documents):
            self._waiting[index] = document.source, document.license
            yield document

    def starting(self, rows: Tokens) -> list[tuple[int, str, str]]:
        if rows.document is None or rows.offset is None:
            return []
        owners = rows.document.flatten()
        at = ((rows.offset.flatten() == 0) & rows.real.flatten()).nonzero().flatten()
        found = [(flat, *self._waiting[owner]) for flat, owner in zip(at.tolist(), owners[at].tolist(), strict=True)]
        latest = int(owners.max())
        self._waiting = {owner: facts for owner, facts in self._waiting.items() if owner > latest}
        return found


def stored(
    saes: Sequence[SAE],
    store: Store,
    within: slice,
    *,
    length: int,
    batch: int,
    bos: bool,
    tokens: int | None = None,
) -> Iterator[Batch]:
    """Some rows of a harvest, laid out in rows of text again: their documents one after another, with a hole where
    tokens were not kept; until so many `tokens` have come (None: all).

    Only counted tokens are in a store, so the others (the first of each row, special ones, sinks) are holes.
    `bos`: rows open with a hole where live ones have a BOS, so that places in documents are counted alike.
    """
    sites = [sites_of(sae) for sae in saes]
    there = [writes for _, writes in sites if str(writes) in store.manifest.sites]
    held = store.together([*(reads for reads, _ in sites), *there])
    rows = held[sites[0][0]]
    lead = int(bos)
    room = length - lead
    if room < 1:
        raise InputError(f"rows of {length} tokens leave no room for text: at least {1 + lead} are needed")
    size = room * batch
    begin, end, _ = within.indices(len(rows))
    block, done = 0, begin
    place, document, offset = -1, -1, 0
    while done < end and (tokens is None or done - begin < tokens):
        index = slice(done, min(end, done + size))
        documents, offsets = (part(index).numpy().astype(np.int64) for part in (rows.documents, rows.offsets))
        new = np.diff(documents, prepend=document) != 0
        # As many holes as tokens are missing within a document, one between two.
        ahead = np.where(new, np.clip(offsets, 0, _GAP), 0)  # of a document, in front of its first token kept
        steps = np.where(new, 2 + ahead, np.clip(np.diff(offsets, prepend=offset), 1, _GAP))
        if done == begin:
            steps[0] -= 1
        places = place + steps.cumsum()
        inside = int(np.searchsorted(places, (block + 1) * size))
        here = _flat(places[:inside] - block * size, room, lead)
        kept = slice(done, done + inside)
        ids = np.full(length * batch, -1, np.int64)
        ids[here] = rows.tokens(kept).numpy()
        # One may begin in the block before, with tokens that were not kept.
        begun = _flat((places - ahead)[:inside][new[:inside]] - block * size, room, lead)
        starts = [(int(at), store.manifest.corpus, "") for at in begun]
        values = {site: one[kept] for site, one in held.items()}
        norms = {site: _norms(values[site]) for site in there}
        features = [sae.encode(values[reads]) for sae, (reads, _) in zip(saes, sites, strict=True)]
        fetched = _fetched(features, [norms.get(writes) for _, writes in sites])
        found = [Found(here, one, {}, lengths) for one, lengths in fetched]
        yield Batch(ids.reshape(batch, length), starts, inside, found)
        done, block = done + inside, block + 1
        if inside:
            place, document, offset = (int(part[inside - 1]) for part in (places, documents, offsets))


def _flat(places: Array, room: int, lead: int) -> Array:
    """Flat indices of places in text whose rows have `room` tokens behind `lead` others."""
    flat: Array = places // room * (room + lead) + lead + places % room
    return flat
