"""Writes a store (see `store.py`): shards as rows come, the manifest last; what a kill leaves is gone on from."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gemscope.activations.capture import Activations
from gemscope.activations.fetch import together
from gemscope.activations.store import (
    DTYPES,
    Counts,
    Manifest,
    Shard,
    Store,
    digest_of,
    require_names,
    shard_name,
)
from gemscope.activations.suited import other_format
from gemscope.checked import Count, as_read, read_json
from gemscope.disk import claimed, room, synced
from gemscope.errors import AccessError, CorruptFile, InputError, Mismatch, NotFinite, NotFound
from gemscope.shapes import Float

_SHARD = 1 << 28
"""Bytes that are gathered, over all sites, before a shard of each is written: what a harvest takes of memory."""
_BESIDE = 12
"""Bytes of a row beside its values: token, document and offset."""
_OWN = re.compile(r"(unfinished\.(json|new)|manifest\.json|[^/]+/(\d+\.safetensors|\.tmp\w*))")
"""What an unfinished harvest is made of; the last is what safetensors leaves when it is killed."""


@dataclass(frozen=True, kw_only=True)
class _Unfinished:
    """What is known of a harvest on its way."""

    identity: dict[str, Any]
    batches: Count
    read: Count
    dropped: Mapping[str, Counts]
    shards: Mapping[str, Sequence[Shard]]

    def __post_init__(self) -> None:
        """Raises ValueError for what is no site's name."""
        require_names(*self.dropped, *self.shards)


class Writer:
    """Writes a store beside its place and moves it there when it is whole. Use as a context manager."""

    def __init__(
        self,
        folder: str | Path,
        identity: Mapping[str, Any] | None = None,
        *,
        stored: str = "float16",
    ) -> None:
        """`identity` is what the store is made of and how: what an earlier attempt with the same has written is gone
        on from (None: nothing is). Raises InputError.
        """
        self._to = Path(folder)
        self._refuse_existing()
        if stored not in DTYPES:
            raise InputError(f"activations cannot be stored as {stored!r}: choose from {', '.join(DTYPES)}")
        self.stored = stored
        self.batches = 0
        """Batches that were added, in earlier attempts too."""
        self.read = 0
        """Their tokens, counted or not, without padding."""
        self._identity = None if identity is None else as_read(dict(identity))
        self._aside = self._to.with_name(self._to.name + ".partial")
        self._state = self._aside / "unfinished.json"
        self._pending: dict[str, list[dict[str, Tensor]]] = {}
        self._dropped: dict[str, dict[str, int]] = {}
        self._shards: dict[str, list[Shard]] = {}
        self._held = ExitStack()

    def _refuse_existing(self) -> None:
        if self._to.exists():
            raise InputError(f"{self._to} exists: a harvest is never written over; name another folder or remove it")

    def __enter__(self) -> Writer:
        """Raises Mismatch where an unfinished harvest with another identity is in the way, InputError where something
        else is, AccessError where another process is at it, CorruptFile.
        """
        with ExitStack() as held:
            held.enter_context(claimed(self._aside))
            self._refuse_existing()  # another process may have just finished it
            with self._room():
                self._aside.mkdir(exist_ok=True)
            self._require_own()
            if self._identity is not None and self._state.exists():
                self._restore()
            self._tidy()
            self._held = held.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        with self._held:
            if self._state.exists() and self._shards:
                self._tidy()
            else:
                shutil.rmtree(self._aside, ignore_errors=True)

    def add(self, *found: Activations) -> None:
        """The counted rows of one batch at all sites. Raises NotFinite, StorageFull."""
        for acts, values in zip(found, values_of(found, self.stored), strict=True):
            self._pending.setdefault(str(acts.site), []).append(self._piece(acts, values))
            before = self._dropped.get(str(acts.site), {})
            self._dropped[str(acts.site)] = {reason: before.get(reason, 0) + n for reason, n in acts.dropped.items()}
        self.batches += 1
        self.read += int(found[0].tokens.real.sum())
        held = [piece["values"] for pieces in self._pending.values() for piece in pieces]
        # A rule that looks back no further than the last cut, so that whoever goes on from there cuts alike.
        if sum(values.nbytes + _BESIDE * len(values) for values in held) >= _SHARD:
            self._cut()

    @staticmethod
    def _piece(acts: Activations, values: Float[Tensor, "N D"]) -> dict[str, Tensor]:
        tokens, kept = acts.tokens, acts.kept
        nowhere = torch.full_like(tokens.ids, -1)
        return {
            "values": values,
            "token": tokens.ids[kept].int(),
            "document": (nowhere if tokens.document is None else tokens.document)[kept].int(),
            "offset": (nowhere if tokens.offset is None else tokens.offset)[kept].int(),
        }

    def _cut(self) -> None:
        """A shard of each site, and then word of it: what nobody says is whole is written anew."""
        shards = {site: list(written) for site, written in self._shards.items()}
        with self._room():
            for site in sorted(self._pending):
                pieces = self._pending.pop(site)
                written = shards.setdefault(site, [])
                shard = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
                path = self._aside / site / shard_name(len(written))
                path.parent.mkdir(exist_ok=True)
                save_file(shard, path)
                synced(path)
                written.append(Shard(len(shard["values"]), digest_of(path)))
            # Kept from here on: whoever is told to end while word of them is written must not take them away after it.
            before, self._shards = self._shards, shards
            try:
                if self._identity is not None:
                    self._save(shards)
            except Exception:
                self._shards = before
                raise

    def _save(self, shards: Mapping[str, Sequence[Shard]]) -> None:
        state = {
            "identity": self._identity,
            "batches": self.batches,
            "read": self.read,
            "dropped": self._dropped,
            "shards": {site: [asdict(shard) for shard in written] for site, written in shards.items()},
        }
        aside = self._state.with_suffix(".new")
        aside.write_text(json.dumps(state), encoding="utf-8")
        synced(aside)
        os.replace(aside, self._state)

    def _restore(self) -> None:
        state = read_json(self._state, _Unfinished, remedy=f"remove {self._aside} to begin anew")
        self.batches, self.read = state.batches, state.read
        self._dropped = {site: dict(counts) for site, counts in state.dropped.items()}
        self._shards = {site: list(found) for site, found in state.shards.items()}
        wanted, identity = self._identity or {}, state.identity
        others = [name for name in {**wanted, **identity} if identity.get(name) != wanted.get(name)]
        if others:
            named = [other_format(identity.get(name), wanted.get(name)) if name == "dtype" else name for name in others]
            raise Mismatch(
                f"{self._aside} is a harvest that was begun with another {', '.join(named)}: start it again with the "
                f"same, name another folder, or remove it"
            )
        for path in self._listed():
            if not path.is_file():
                raise CorruptFile(f"{path} of an unfinished harvest is gone: remove {self._aside} to begin anew")

    def _listed(self) -> set[Path]:
        return {
            self._aside / site / shard_name(number)
            for site, shards in self._shards.items()
            for number in range(len(shards))
        }

    def _require_own(self) -> None:
        """Raises InputError where the folder holds what no harvest writes: it may be somebody's work."""
        for path in self._aside.rglob("*"):
            if not path.is_dir() and _OWN.fullmatch(path.relative_to(self._aside).as_posix()) is None:
                raise InputError(f"{path} is of no unfinished harvest: move {self._aside}, or name another folder")

    def _tidy(self) -> None:
        """Takes away what is not known to be whole."""
        kept = self._listed()
        if kept:
            kept.add(self._state)
        for path in sorted(self._aside.rglob("*"), reverse=True):
            if path.is_dir():
                with suppress(OSError):  # shards are in it
                    path.rmdir()
            elif path not in kept:
                path.unlink()

    def _room(self) -> AbstractContextManager[None]:
        return room(self._to, self._aside, kept=self._kept)

    def _kept(self) -> str:
        try:
            batches = read_json(self._state, _Unfinished).batches if self._identity is not None else 0
        except (NotFound, AccessError, CorruptFile):
            batches = 0
        if not batches:
            return f"none of the {self.read:,} tokens read are kept: free some room"
        return (
            f"{self.read:,} tokens were read and {batches} of {self.batches} batches are kept in {self._aside}: free "
            "some room and start it again"
        )

    def finish(self, manifest: Manifest) -> Store:
        """Writes the manifest and moves the folder to its place. What the writer knows itself it fills in: number
        format, what was dropped, shards.
        """
        if not any(self.counts.values()):
            raise InputError("the corpus gave no token that counts: nothing was harvested")
        if self._pending:
            self._cut()
        manifest = replace(
            manifest,
            stored=self.stored,
            dropped=dict(sorted(self._dropped.items())),
            shards={site: tuple(shards) for site, shards in sorted(self._shards.items())},
        )
        with self._room():
            path = self._aside / "manifest.json"
            path.write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
            synced(path)
            os.replace(self._aside, self._to)
        # Only now: until here a harvest that is killed would go on from it.
        (self._to / self._state.name).unlink(missing_ok=True)
        return Store(self._to)

    @property
    def counts(self) -> Mapping[str, int]:
        """Rows so far, by site."""
        counts = {site: sum(shard.rows for shard in shards) for site, shards in self._shards.items()}
        for site, pieces in self._pending.items():
            counts[site] = counts.get(site, 0) + sum(len(piece["values"]) for piece in pieces)
        return dict(sorted(counts.items()))


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
