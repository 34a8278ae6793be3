"""Writes a store (see `store.py`): the shards of a piece of the text at a time, the manifest last (see `work.py`)."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gemscope.activations.bucket import LAST
from gemscope.activations.capture import Activations
from gemscope.activations.fetch import together
from gemscope.activations.place import Place, place_of
from gemscope.activations.site import require_names
from gemscope.activations.store import (
    DTYPES,
    Counts,
    Manifest,
    Shard,
    Store,
    shard_name,
)
from gemscope.activations.work import PIECES, Work
from gemscope.disk import digest_of, synced
from gemscope.errors import CorruptFile, InputError, NotFinite
from gemscope.shapes import Float

_SHARD = 1 << 28
"""Bytes that are gathered, over all sites, before a shard of each is written: what a harvest takes of memory."""
_BESIDE = 12
"""Bytes of a row beside its values: token, document and offset."""
_OWN = r"manifest\.json|[^/]+/\d+-\d+\.safetensors"
"""What an unfinished harvest is made of, beside notes of its pieces and what is on its way."""


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """What is known of a piece that is done."""

    dropped: Mapping[str, Counts]
    passed: Counts
    shards: Mapping[str, Sequence[Shard]]

    def __post_init__(self) -> None:
        """Raises ValueError for what is no site's name."""
        require_names(*self.dropped, *self.shards)


class Writer:
    """Writes a store beside its place, a piece of the text at a time, and moves it there when all are done. Use as a
    context manager. Any number may write the same store at once: each piece comes out the same whoever writes it.
    """

    def __init__(
        self,
        folder: str | Path | Place,
        identity: Mapping[str, Any] | None = None,
        *,
        stored: str = "float16",
    ) -> None:
        """`identity` is what the store is made of and how. Raises InputError."""
        self._to = place_of(folder)
        if stored not in DTYPES:
            raise InputError(f"activations cannot be stored as {stored!r}: choose from {', '.join(DTYPES)}")
        self.stored = stored
        self.work = Work(self._to, identity or {}, what="harvest", own=_OWN, folder=self._to.unfinished)

    def __enter__(self) -> Writer:
        """Raises InputError where the store is there, or something that is no harvest is in the way; Mismatch where
        pieces of another one are; CorruptFile.
        """
        if self._to.is_whole:
            raise InputError(f"{self._to} exists: a harvest is never written over; name another folder or remove it")
        self.work.begin()
        return self

    def __exit__(self, *raised: object) -> None:
        self.work.end()

    @contextmanager
    def piece(self, number: int = 0, *, first: int = 0, passed: Mapping[str, int] | None = None) -> Iterator[Shards]:
        """Where the batches of a piece go, whose documents are counted on from `first`. When the block ends it is done;
        when anything is raised, nothing of it stays.
        """
        # One that had nothing to go on from may have taken the folder away.
        making = self.work.folder.making(f"{number:05d}", anew=not self._to.is_whole)
        with ExitStack() as held:
            with self.work.room():
                folder = held.enter_context(making)
            shards = Shards(self.work, folder, number, first, self.stored)
            yield shards
            shards.cut()
            facts = _Piece(dropped=shards.dropped, passed=dict(passed or {}), shards=shards.written)
            if not self.work.has(number):
                with self.work.room():
                    for site, written in shards.written.items():
                        for name in (shard_name(shard.name) for shard in written):
                            self.work.folder.take(folder / site / name, f"{site}/{name}")
                self.work.put(number, read=shards.read, facts=asdict(facts))

    def finish(self, manifest: Manifest, pieces: int) -> Store:
        """Puts the pieces together, so many of them: writes the manifest and moves the folder to its place. What the
        pieces know it fills in: number format, rows, what was read and dropped, shards.

        Raises Awaited, Mismatch, CorruptFile, InputError.
        """
        self.work.number = pieces
        self.work.require_all()
        whole = self._whole(manifest)
        with self.work.room():
            for last in (False, False, False, True):
                try:
                    self._tidy(whole)  # before the last word: a bucket is whole with it
                    text = json.dumps(asdict(whole), indent=1) + "\n"
                    self.work.folder.put_once(LAST, partial(_write, text=text))
                    self.work.folder.become(self._to)
                    break
                except FileNotFoundError:  # another does the same at this moment, and tidies what this one has begun
                    if last or self._to.has(LAST):
                        raise
            # Only now: until here a harvest that is killed would go on from it.
            self._to.discard(PIECES)
        return Store(self._to)

    def _whole(self, manifest: Manifest) -> Manifest:
        read = 0
        passed: Counter[str] = Counter()
        dropped: dict[str, Counter[str]] = {}
        shards: dict[str, list[Shard]] = {site: [] for site in manifest.sites}
        there = {*self.work.folder.names()}
        for number, (tokens, facts, _) in enumerate(self.work.all(_Piece)):
            read += tokens
            passed.update(facts.passed)
            for site, counts in facts.dropped.items():
                dropped.setdefault(site, Counter()).update(counts)
            for site, written in facts.shards.items():
                shards.setdefault(site, []).extend(written)
                for name in (f"{site}/{shard_name(shard.name)}" for shard in written):
                    if name not in there:
                        raise CorruptFile(
                            f"{self.work.folder}/{name} of an unfinished harvest is gone: {self.work.again(number)}"
                        )
        rows = {site: sum(shard.rows for shard in written) for site, written in sorted(shards.items())}
        if not any(rows.values()):
            self.work.discard()  # there is nothing to go on from
            raise InputError("the corpus gave no token that counts: nothing was harvested")
        return replace(
            manifest,
            sites=rows,
            read=read,
            passed=dict(passed),
            stored=self.stored,
            dropped={site: dict(counts) for site, counts in sorted(dropped.items())},
            shards={site: tuple(written) for site, written in sorted(shards.items())},
        )

    def _tidy(self, manifest: Manifest) -> None:
        """Takes away what is not of the store, apart from the notes of its pieces and what others here are still at:
        they are told that they were late, and take it away.
        """
        shards = (f"{site}/{shard_name(one.name)}" for site, written in manifest.shards.items() for one in written)
        self.work.folder.tidy({*shards, LAST, *self.work.folder.names(PIECES)})


class Shards:
    """The shards of one piece, as batches come."""

    def __init__(self, work: Work, folder: Path, number: int, first: int, stored: str) -> None:
        self._work, self._folder, self._number, self._first, self._stored = work, folder, number, first, stored
        self.read = 0
        """Tokens, counted or not, without padding."""
        self.dropped: dict[str, dict[str, int]] = {}
        self.written: dict[str, list[Shard]] = {}
        self._pending: dict[str, list[dict[str, Tensor]]] = {}

    def add(self, *found: Activations) -> None:
        """The counted rows of one batch at all sites. Raises NotFinite, StorageFull."""
        for acts, values in zip(found, values_of(found, self._stored), strict=True):
            self._pending.setdefault(str(acts.site), []).append(self._rows(acts, values))
            before = self.dropped.get(str(acts.site), {})
            self.dropped[str(acts.site)] = {reason: before.get(reason, 0) + n for reason, n in acts.dropped.items()}
        self.read += int(found[0].tokens.real.sum())
        held = [rows["values"] for pending in self._pending.values() for rows in pending]
        # A rule that looks back no further than the last cut: whoever writes this piece cuts alike.
        if sum(values.nbytes + _BESIDE * len(values) for values in held) >= _SHARD:
            self.cut()

    def _rows(self, acts: Activations, values: Float[Tensor, "N D"]) -> dict[str, Tensor]:
        tokens, kept = acts.tokens, acts.kept
        nowhere = torch.full_like(tokens.ids, -1)
        document = nowhere if tokens.document is None else tokens.document + self._first
        return {
            "values": values,
            "token": tokens.ids[kept].int(),
            "document": document[kept].int(),
            "offset": (nowhere if tokens.offset is None else tokens.offset)[kept].int(),
        }

    def cut(self) -> None:
        """A shard of each site of what has come since the last."""
        with self._work.room():
            for site in sorted(self._pending):
                pending = self._pending.pop(site)
                shard = {name: torch.cat([rows[name] for rows in pending]) for name in pending[0]}
                written = self.written.setdefault(site, [])
                if not len(shard["values"]):
                    continue
                name = f"{self._number:05d}-{len(written):02d}"
                path = self._folder / site / shard_name(name)
                path.parent.mkdir(exist_ok=True)
                save_file(shard, path)
                synced(path)
                written.append(Shard(len(shard["values"]), digest_of(path), name))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def values_of(found: Sequence[Activations], stored: str) -> list[Float[Tensor, "N D"]]:
    """The counted rows at each site, in the number format that they are stored in. Raises NotFinite where it cannot
    hold them.
    """
    rows = [acts.rows.to(DTYPES[stored]) for acts in found]
    # An infinite norm passes for an attention sink, so what the tokens alone count is looked at too.
    sinks = [acts.values[acts.tokens.counted & ~acts.kept].isfinite().all() for acts in found]
    fine = [one.isfinite().all() & sink for one, sink in zip(rows, sinks, strict=True)]
    whole = together([*rows, *fine])
    for acts, amiss in zip(found, whole[len(found) :], strict=True):
        if not amiss:
            largest = acts.rows.abs().max().item() if acts.kept.any() else math.inf
            raise NotFinite(
                f"activations at {acts.site} are NaN, infinite or beyond {stored} (largest {largest:.3g}): "
                f"check the model's dtype"
            )
    return whole[: len(found)]


def bytes_per_row(width: int, stored: str) -> int:
    """What a row takes on disk. Raises InputError for a number format that is none of DTYPES."""
    if stored not in DTYPES:
        raise InputError(f"activations cannot be stored as {stored!r}: choose from {', '.join(DTYPES)}")
    return width * DTYPES[stored].itemsize + _BESIDE
