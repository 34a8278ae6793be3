"""Text on its way into an atlas: batches of whole rows, with the features that each SAE finds on the tokens that count.
A live model gives them, or a harvest; whoever takes them cannot tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemscope.activations.capture import Activations
from gemscope.activations.model import LanguageModel
from gemscope.activations.store import Store
from gemscope.errors import InputError
from gemscope.features.activations import FeatureActivations
from gemscope.features.fit import require_fit
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
    """By SAE; empty where the batch was passed over."""


def live(
    model: LanguageModel,
    saes: Sequence[SAE],
    documents: Iterable[Document],
    *,
    length: int,
    batch: int,
    skip: int = 0,
) -> Iterator[Batch]:
    """Text through a model, once for all SAEs. The first `skip` batches are not run: they have `found` empty."""
    recorded = _Recorded(documents)
    sites = [require_fit(model, sae) for sae in saes]
    for number, rows in enumerate(model.rows(recorded, length=length, batch=batch)):
        captured = {} if number < skip else model.capture(rows, sites)
        found = [
            _found(captured[site], sae.encode(captured[site].rows))
            for sae, site in zip(saes, sites, strict=True)
            if captured
        ]
        ids = rows.ids.masked_fill(~rows.real, -1).numpy()
        yield Batch(ids, recorded.starting(rows), int(rows.real.sum()), found)


def _found(acts: Activations, features: FeatureActivations) -> Found:
    masked = {reason: number for reason, number in acts.dropped.items() if reason != "padding"}
    return Found(acts.counted.cpu().flatten().nonzero().flatten().numpy(), features.to("cpu"), masked)


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


def stored(saes: Sequence[SAE], store: Store, *, length: int, batch: int, bos: bool, skip: int = 0) -> Iterator[Batch]:
    """A harvest, laid out in rows again: its documents one after another, with a hole where tokens were not kept.

    Only counted tokens are in a store, so the others (the first of each row, special ones, sinks) are holes.
    `bos`: rows open with a hole where live ones have a BOS, so that places in documents are counted alike.
    """
    sites = []
    for sae in saes:
        if sae.site is None:
            raise InputError(f"{sae.info.name} does not say where it reads: set sae.site")
        sites.append(sae.site)
    held = store.together(sites)
    rows = held[sites[0]]
    lead = int(bos)
    room = length - lead
    if room < 1:
        raise InputError(f"rows of {length} tokens leave no room for text: at least {1 + lead} are needed")
    size = room * batch
    block = done = 0
    place, document, offset = -1, -1, 0
    while done < len(rows):
        index = slice(done, min(len(rows), done + size))
        documents, offsets = (part(index).numpy().astype(np.int64) for part in (rows.documents, rows.offsets))
        new = np.diff(documents, prepend=document) != 0
        # As many holes as tokens are missing within a document, one between two.
        ahead = np.where(new, np.clip(offsets, 0, _GAP), 0)  # of a document, in front of its first token kept
        steps = np.where(new, 2 + ahead, np.clip(np.diff(offsets, prepend=offset), 1, _GAP))
        if done == 0:
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
        found = []
        if block >= skip:
            values = {site: one[kept] for site, one in held.items()}
            found = [Found(here, sae.encode(values[site]).to("cpu"), {}) for sae, site in zip(saes, sites, strict=True)]
        yield Batch(ids.reshape(batch, length), starts, inside, found)
        done, block = done + inside, block + 1
        if inside:
            place, document, offset = (int(part[inside - 1]) for part in (places, documents, offsets))


def _flat(places: Array, room: int, lead: int) -> Array:
    """Flat indices of places in text whose rows have `room` tokens behind `lead` others."""
    flat: Array = places // room * (room + lead) + lead + places % room
    return flat
