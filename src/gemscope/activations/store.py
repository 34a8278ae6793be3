"""Harvested activations on disk: one folder a site of safetensors shards, and a manifest written last.

    STORE/manifest.json            what they are, and of which model, corpus and version; a checksum for each shard
    STORE/15.res/00000.safetensors values [n, D] (float16, bfloat16 or float32), token, document, offset [n]

Shards are memory-mapped, so a store may be larger than memory. Sites are cut into shards at the same batches. While a
store is being made, STORE.partial/unfinished.json says which shards are whole, so that a killed harvest goes on there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gemscope.activations.capture import Activations, counted_at_all
from gemscope.activations.site import Site
from gemscope.errors import AccessError, CorruptFile, InputError, Mismatch, NotFinite, NotFound, StorageFull
from gemscope.progress import Progress, silent
from gemscope.shapes import Bool, Float, Int

FORMAT = 2
_READ = (1, 2)
"""Formats read here. 1 knew float16 alone, and neither checksums nor what was left out."""
_SHARD = 1 << 28
"""Bytes that are gathered, over all sites, before a shard of each is written: what a harvest takes of memory."""
_BESIDE = 12
"""Bytes of a row beside its values: token, document and offset."""

DTYPES: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
"""The number formats that values are kept in."""


@dataclass(frozen=True)
class Shard:
    """One file of a site."""

    rows: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store holds and where it comes from."""

    format: int
    model: str
    revision: str | None
    dtype: str
    """Number format that the model computed in."""
    sites: Mapping[str, int]
    """Rows (counted tokens) by site."""
    read: int
    """Tokens read, counted or not; padding is not among them."""
    length: int
    """Tokens per row of text."""
    corpus: str
    corpus_digest: str
    versions: Mapping[str, str]
    stored: str = "float16"
    """Number format of the values."""
    together: bool = False
    """Whether only tokens that count at all sites are there, so that row i of each is the same token."""
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By site, how many places of the text are not among the rows, by reason: padding, first (of a row of text),
    special, sink, elsewhere (a sink at another of the sites that were harvested together)."""
    shards: Mapping[str, Sequence[Shard]] = field(default_factory=dict)
    """By site, its files in their order."""

    @classmethod
    def read_from(cls, path: Path) -> Manifest:
        """Raises CorruptFile."""
        try:
            facts = json.loads(path.read_text())
            if facts["format"] not in _READ:
                known = " and ".join(map(str, _READ))
                raise CorruptFile(f"{path} is of format {facts['format']}, this version reads {known}: harvest again")
            facts["shards"] = {site: _shards(found) for site, found in facts.get("shards", {}).items()}
            return cls(**facts)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptFile(f"{path} is not a harvest's manifest: {error}; harvest again") from error


class Rows:
    """The activations of one site as N rows of D numbers, in the order of the text, read from disk as needed."""

    def __init__(self, shards: Sequence[Mapping[str, Tensor]]) -> None:
        self._shards = shards
        self._starts = torch.tensor([0, *[len(shard["values"]) for shard in shards]]).cumsum(0)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def d(self) -> int:
        """Numbers per row."""
        return int(self._shards[0]["values"].shape[-1])

    def __getitem__(self, index: Int[Tensor, "n"] | slice) -> Float[Tensor, "n D"]:
        """Rows by index, in that order, in float32."""
        return self._gather("values", index).float()

    def tokens(self, index: Int[Tensor, "n"] | slice) -> Int[Tensor, "n"]:
        """Token ids of rows."""
        return self._gather("token", index)

    def documents(self, index: Int[Tensor, "n"] | slice) -> Int[Tensor, "n"]:
        """Which document of the corpus each row comes from."""
        return self._gather("document", index)

    def offsets(self, index: Int[Tensor, "n"] | slice) -> Int[Tensor, "n"]:
        """Which token of its document each row is."""
        return self._gather("offset", index)

    def _gather(self, name: str, index: Tensor | slice) -> Tensor:
        if isinstance(index, slice):
            start, stop, stride = index.indices(len(self))
            index = torch.arange(start, max(start, stop), stride)
        first = self._shards[0][name]
        out = torch.empty(len(index), *first.shape[1:], dtype=first.dtype)
        if not len(index):
            return out
        # In the order of the file: a disk likes that, and each shard's rows are a piece of it.
        ordered, places = index.sort()
        if ordered[0] < 0 or ordered[-1] >= len(self):
            raise IndexError(f"rows {int(ordered[0])} to {int(ordered[-1])} of {len(self)}")
        bounds = torch.searchsorted(ordered, self._starts).tolist()
        for shard, (begin, end) in enumerate(pairwise(bounds)):
            if begin < end:
                out[places[begin:end]] = self._shards[shard][name][ordered[begin:end] - self._starts[shard]]
        return out


class Store:
    """Harvested activations, by site."""

    def __init__(self, folder: str | Path, *, skip_corrupt: bool = False) -> None:
        """Opens a store. Raises NotFound where there is none or an unfinished one, CorruptFile for a damaged one.

        `skip_corrupt` checks the checksum of each shard of a site when the site is opened, and leaves damaged ones out
        with a warning (in a store whose sites were harvested together, at all sites).
        """
        self.folder = Path(folder)
        self._skip = skip_corrupt
        path = self.folder / "manifest.json"
        if not path.exists():
            raise NotFound(f"no harvest in {folder}: it has no manifest.json (an interrupted harvest leaves none)")
        self.manifest = Manifest.read_from(path)

    @property
    def sites(self) -> list[Site]:
        """What was harvested."""
        return [Site.parse(site) for site in self.manifest.sites]

    def __getitem__(self, site: Site | str) -> Rows:
        """The rows of a site. Raises NotFound, and CorruptFile, which names the shard that is damaged."""
        name = str(Site.parse(site))
        if name not in self.manifest.sites:
            raise NotFound(f"no {name} in {self.folder}: it holds {', '.join(self.manifest.sites)}")
        paths = self._paths(name)
        if self._skip:
            damaged = self._damaged(name)
            paths = {number: path for number, path in paths.items() if number not in damaged}
            if not paths:
                raise CorruptFile(f"no shard of {name} in {self.folder} is whole: harvest again")
        rows = Rows([self._opened(name, number) for number in paths])
        count = self.manifest.sites[name]
        if not self._skip and len(rows) != count:
            raise CorruptFile(
                f"{self.folder / name} holds {len(rows)} rows, its manifest says {count}: harvest again, or open it "
                f"with skip_corrupt=True"
            )
        return rows

    def verify(self, progress: Progress = silent) -> None:
        """Reads every shard and compares its checksum. Raises CorruptFile, which names those that are damaged.

        A store of format 1 has no checksums: its shards are only opened.
        """
        paths = [(site, number, path) for site in self.manifest.sites for number, path in self._paths(site).items()]
        found = []
        with progress(f"verify {self.folder}", len(paths), "shards") as advance:
            for site, number, path in paths:
                if not self._whole(site, number):
                    found.append(path)
                advance(1)
        if found:
            named = ", ".join(str(path.relative_to(self.folder)) for path in found[:5])
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise CorruptFile(
                f"{len(found)} of {len(paths)} shards in {self.folder} are damaged: {named}{more}; harvest again, or "
                f"open it with skip_corrupt=True"
            )
        for site in self.manifest.sites:
            self[site]  # as many rows as there should be

    def _paths(self, site: str) -> dict[int, Path]:
        listed = self.manifest.shards.get(site)
        folder = self.folder / site
        if listed is None:
            return dict(enumerate(sorted(folder.glob("*.safetensors"))))
        return {number: folder / _name(number) for number in range(len(listed))}

    def _damaged(self, site: str) -> set[int]:
        """Numbers of the shards to leave out. Where rows of several sites are the same tokens they must stay so."""
        sites = list(self.manifest.sites) if self.manifest.together else [site]
        damaged = set()
        for one in sites:
            for number, path in self._paths(one).items():
                if not self._whole(one, number):
                    warnings.warn(f"{path} is damaged: its rows are left out", stacklevel=3)
                    damaged.add(number)
        return damaged

    def _whole(self, site: str, number: int) -> bool:
        try:
            self._opened(site, number)
        except CorruptFile:
            return False
        listed = self.manifest.shards.get(site)
        return listed is None or _sha256(self._paths(site)[number]) == listed[number].sha256

    def _opened(self, site: str, number: int) -> dict[str, Tensor]:
        path = self._paths(site)[number]
        try:
            with safe_open(path, framework="pt") as file:
                shard = {name: file.get_tensor(name) for name in ("values", "token", "document", "offset")}
        except (SafetensorError, OSError) as error:
            reason = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
            raise CorruptFile(
                f"{path} is damaged: {reason}; harvest again, or open the store with skip_corrupt=True"
            ) from error
        listed = self.manifest.shards.get(site)
        lengths = {len(tensor) for tensor in shard.values()}
        if shard["values"].ndim != 2 or len(lengths) != 1 or (listed and lengths != {listed[number].rows}):
            raise CorruptFile(f"{path} is damaged: it holds {sorted(lengths)} rows; harvest again")
        return shard

    def __repr__(self) -> str:
        held = ", ".join(f"{site}: {count:,} rows" for site, count in self.manifest.sites.items())
        return f"Store({self.folder}, {self.manifest.model}, {held})"


class Writer:
    """Writes a store beside its place and moves it there when it is whole. Use as a context manager."""

    def __init__(
        self,
        folder: str | Path,
        identity: Mapping[str, Any] | None = None,
        *,
        stored: str = "float16",
        together: bool = False,
    ) -> None:
        """`identity` is what the store is made of and how: what an earlier attempt with the same has written is gone
        on from (None: nothing is). `together` keeps only tokens that count at all sites. Raises InputError.
        """
        self._to = Path(folder)
        if self._to.exists():
            raise InputError(f"{folder} exists: a harvest is never written over; name another folder or remove it")
        if stored not in DTYPES:
            raise InputError(f"activations cannot be stored as {stored!r}: choose from {', '.join(DTYPES)}")
        self.stored, self.together = stored, together
        self.batches = 0
        """Batches that were added, in earlier attempts too."""
        self.read = 0
        """Their tokens, counted or not, without padding."""
        # As JSON gives it back, so that it can be compared.
        self._identity = None if identity is None else json.loads(json.dumps(identity))
        self._aside = self._to.with_name(self._to.name + ".partial")
        self._state = self._aside / "unfinished.json"
        self._pending: dict[str, list[dict[str, Tensor]]] = {}
        self._dropped: dict[str, dict[str, int]] = {}
        self._shards: dict[str, list[Shard]] = {}
        self._lock = -1

    def __enter__(self) -> Writer:
        """Raises Mismatch where an unfinished harvest with another identity is in the way, AccessError where another
        process is at it, CorruptFile.
        """
        with self._room():
            self._aside.mkdir(parents=True, exist_ok=True)
        self._lock = _held(self._aside)
        try:
            if self._identity is not None and self._state.exists():
                self._restore()
            self._tidy()
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            if self._state.exists() and self._shards:
                self._tidy()
            else:
                shutil.rmtree(self._aside, ignore_errors=True)
        finally:
            self._let_go()

    def add(self, *found: Activations) -> None:
        """The counted rows of one batch at all sites. Raises NotFinite, StorageFull."""
        common = counted_at_all(found) if self.together else None
        for acts in found:
            counted = acts.counted.cpu()
            kept = counted if common is None else common
            self._pending.setdefault(str(acts.site), []).append(self._piece(acts, kept))
            dropped = {**acts.dropped, "elsewhere": int((counted & ~kept).sum())}
            before = self._dropped.get(str(acts.site), {})
            self._dropped[str(acts.site)] = {reason: before.get(reason, 0) + n for reason, n in dropped.items()}
        self.batches += 1
        self.read += int(found[0].tokens.real.sum())
        held = [piece["values"] for pieces in self._pending.values() for piece in pieces]
        # A rule that looks back no further than the last cut, so that whoever goes on from there cuts alike.
        if sum(values.nbytes + _BESIDE * len(values) for values in held) >= _SHARD:
            self._cut()

    def _piece(self, acts: Activations, kept: Bool[Tensor, "B T"]) -> dict[str, Tensor]:
        tokens = acts.tokens
        nowhere = torch.full_like(tokens.ids, -1)
        return {
            "values": values_of(acts, kept, self.stored),
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
                path = self._aside / site / _name(len(written))
                path.parent.mkdir(exist_ok=True)
                save_file(shard, path)
                _sync(path)
                written.append(Shard(len(shard["values"]), _sha256(path)))
            if self._identity is not None:
                self._save(shards)
        self._shards = shards

    def _save(self, shards: Mapping[str, Sequence[Shard]]) -> None:
        state = {
            "identity": self._identity,
            "batches": self.batches,
            "read": self.read,
            "dropped": self._dropped,
            "shards": {site: [asdict(shard) for shard in written] for site, written in shards.items()},
        }
        aside = self._state.with_suffix(".new")
        aside.write_text(json.dumps(state))
        _sync(aside)
        os.replace(aside, self._state)

    def _restore(self) -> None:
        try:
            state = json.loads(self._state.read_text())
            identity, self.batches, self.read = state["identity"], int(state["batches"]), int(state["read"])
            self._dropped = state["dropped"]
            self._shards = {site: list(_shards(found)) for site, found in state["shards"].items()}
            wanted = self._identity or {}
            named = [name for name in {**wanted, **identity} if identity.get(name) != wanted.get(name)]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptFile(f"{self._state} is damaged ({error}): remove {self._aside} to begin anew") from error
        if named:
            raise Mismatch(
                f"{self._aside} is a harvest that was begun with another {', '.join(named)}: start it again with the "
                f"same, name another folder, or remove it"
            )
        for path in self._listed():
            if not path.is_file():
                raise CorruptFile(f"{path} of an unfinished harvest is gone: remove {self._aside} to begin anew")

    def _listed(self) -> set[Path]:
        return {
            self._aside / site / _name(number) for site, shards in self._shards.items() for number in range(len(shards))
        }

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

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Says in one line that the disk is full, where that is why writing failed."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
                raise StorageFull(
                    f"no room left for the harvest in {self._to}: {self.read:,} tokens were read, {self._kept()}"
                ) from error
            raise

    def _kept(self) -> str:
        try:
            batches = json.loads(self._state.read_text())["batches"] if self._identity is not None else 0
        except (OSError, ValueError, KeyError):
            batches = 0
        if not batches:
            return "none are kept"
        return f"{batches} of {self.batches} batches are kept in {self._aside}; make room and start it again"

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
            together=self.together,
            dropped=dict(sorted(self._dropped.items())),
            shards={site: tuple(shards) for site, shards in sorted(self._shards.items())},
        )
        with self._room():
            path = self._aside / "manifest.json"
            path.write_text(json.dumps(asdict(manifest), indent=1) + "\n")
            _sync(path)
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

    def _let_go(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def values_of(acts: Activations, kept: Bool[Tensor, "B T"], stored: str) -> Float[Tensor, "N D"]:
    """The rows kept, in the number format that they are stored in. Raises NotFinite where it cannot hold them."""
    rows = acts.values[kept.to(acts.values.device)]
    values: Tensor = rows.to("cpu", DTYPES[stored])
    # An infinite norm passes for an attention sink, so what the tokens alone count is looked at too.
    if not (values.isfinite().all() and acts.values[acts.tokens.counted.to(acts.values.device)].isfinite().all()):
        largest = rows.abs().max().item() if len(rows) else math.inf
        raise NotFinite(
            f"activations at {acts.site} are NaN, infinite or beyond {stored} (largest {largest:.3g}): "
            f"check the model's dtype"
        )
    return values


def bytes_per_row(width: int, stored: str) -> int:
    """What a row takes on disk. Raises InputError for a number format that is none of DTYPES."""
    if stored not in DTYPES:
        raise InputError(f"activations cannot be stored as {stored!r}: choose from {', '.join(DTYPES)}")
    return width * DTYPES[stored].itemsize + _BESIDE


def _name(number: int) -> str:
    return f"{number:05d}.safetensors"


def _shards(found: Any) -> tuple[Shard, ...]:
    """Out of JSON, which may be anything. Raises TypeError, KeyError, ValueError."""
    return tuple(Shard(int(shard["rows"]), str(shard["sha256"])) for shard in found)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _held(folder: Path) -> int:
    """A lock on a folder, which the system lets go of when this process ends, however it does. Raises AccessError
    where another has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return -1
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):  # else: some file systems know no locks
            os.close(lock)
            raise AccessError(f"{folder} is being written by another process: wait for it, or end it") from error
    return lock
