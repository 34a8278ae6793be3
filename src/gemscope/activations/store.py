"""Harvested activations on disk: one folder a site of safetensors shards, and a manifest written last.

    STORE/manifest.json            what they are, and of which model, corpus and version
    STORE/15.res/00000.safetensors values [n, D] (float16), token, document, offset [n]

Shards are memory-mapped, so a store may be larger than memory.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gemscope.activations.capture import Activations
from gemscope.activations.site import Site
from gemscope.errors import CorruptFile, InputError, NotFinite, NotFound, StorageFull
from gemscope.shapes import Float, Int

FORMAT = 1
_SHARD = 1 << 18


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
    """Tokens read, counted or not."""
    length: int
    """Tokens per row of text."""
    corpus: str
    corpus_digest: str
    versions: Mapping[str, str]


class Rows:
    """The activations of one site as N rows of D numbers, in the order of the text, read from disk as needed."""

    def __init__(self, folder: Path, count: int) -> None:
        self._shards = [_opened(path) for path in sorted(folder.glob("*.safetensors"))]
        self._starts = torch.tensor([0, *[len(shard["values"]) for shard in self._shards]]).cumsum(0)
        if self._starts[-1] != count:
            raise CorruptFile(f"{folder} holds {self._starts[-1]} rows, its manifest says {count}: harvest again")

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
        owner = torch.bucketize(index, self._starts, right=True) - 1
        first = self._shards[0][name]
        out = torch.empty(len(index), *first.shape[1:], dtype=first.dtype)
        for shard in torch.unique(owner).tolist():
            here = owner == shard
            out[here] = self._shards[shard][name][index[here] - self._starts[shard]]
        return out


class Store:
    """Harvested activations, by site."""

    def __init__(self, folder: str | Path) -> None:
        """Opens a store. Raises NotFound where there is none or an unfinished one, CorruptFile for a damaged one."""
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        if not path.exists():
            raise NotFound(f"no harvest in {folder}: it has no manifest.json (an interrupted harvest leaves none)")
        try:
            facts = json.loads(path.read_text())
            number = facts["format"]
            if number != FORMAT:
                raise CorruptFile(f"{path} is of format {number}, this version reads {FORMAT}: harvest again")
            self.manifest = Manifest(**facts)
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptFile(f"{path} is not a harvest's manifest: {error}; harvest again") from error

    @property
    def sites(self) -> list[Site]:
        """What was harvested."""
        return [Site.parse(site) for site in self.manifest.sites]

    def __getitem__(self, site: Site | str) -> Rows:
        site = Site.parse(site)
        if str(site) not in self.manifest.sites:
            raise NotFound(f"no {site} in {self.folder}: it holds {', '.join(self.manifest.sites)}")
        return Rows(self.folder / str(site), self.manifest.sites[str(site)])

    def __repr__(self) -> str:
        held = ", ".join(f"{site}: {count:,} rows" for site, count in self.manifest.sites.items())
        return f"Store({self.folder}, {self.manifest.model}, {held})"


class Writer:
    """Writes a store beside its place and moves it there when it is whole. Use as a context manager."""

    def __init__(self, folder: str | Path) -> None:
        self._to = Path(folder)
        if self._to.exists():
            raise InputError(f"{folder} exists: a harvest is never written over; name another folder or remove it")
        self._aside = self._to.with_name(self._to.name + ".partial")
        self._pending: dict[Site, list[dict[str, Tensor]]] = {}
        self._counts: dict[Site, int] = {}
        self._written: dict[Site, int] = {}

    def __enter__(self) -> Writer:
        shutil.rmtree(self._aside, ignore_errors=True)
        self._aside.mkdir(parents=True)
        return self

    def __exit__(self, *raised: object) -> None:
        shutil.rmtree(self._aside, ignore_errors=True)

    def add(self, acts: Activations) -> None:
        """The counted rows of one batch. Raises NotFinite, StorageFull."""
        rows, tokens, counted = acts.rows, acts.tokens, acts.counted.cpu()
        values = rows.to("cpu", torch.float16)
        # An infinite norm passes for an attention sink, so what the tokens alone count is looked at too.
        if not (values.isfinite().all() and acts.values[tokens.counted.to(acts.values.device)].isfinite().all()):
            largest = rows.abs().max().item() if len(rows) else math.inf
            raise NotFinite(
                f"activations at {acts.site} are NaN, infinite or beyond float16 (largest {largest:.3g}): "
                f"check the model's dtype"
            )
        nowhere = torch.full_like(tokens.ids, -1)
        piece = {
            "values": values,
            "token": tokens.ids[counted].int(),
            "document": (nowhere if tokens.document is None else tokens.document)[counted].int(),
            "offset": (nowhere if tokens.offset is None else tokens.offset)[counted].int(),
        }
        pending = self._pending.setdefault(acts.site, [])
        pending.append(piece)
        self._counts[acts.site] = self._counts.get(acts.site, 0) + len(values)
        if sum(len(one["values"]) for one in pending) >= _SHARD:
            self._flush(acts.site)

    def _flush(self, site: Site) -> None:
        pending = self._pending.pop(site, [])
        if not pending:
            return
        number = self._written.get(site, 0)
        self._written[site] = number + 1
        folder = self._aside / str(site)
        folder.mkdir(exist_ok=True)
        shard = {name: torch.cat([piece[name] for piece in pending]) for name in pending[0]}
        with self._room():
            save_file(shard, folder / f"{number:05d}.safetensors")

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Says in one line that the disk is full, where that is why writing failed."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
                rows = sum(self._counts.values())
                raise StorageFull(
                    f"no room left for the harvest in {self._to}: {rows:,} rows were read; none are kept"
                ) from error
            raise

    def finish(self, manifest: Manifest) -> Store:
        """Writes the manifest and moves the folder to its place."""
        for site in list(self._pending):
            self._flush(site)
        if not any(self._counts.values()):
            raise InputError("the corpus gave no token that counts: nothing was harvested")
        with self._room():
            (self._aside / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1) + "\n")
        os.replace(self._aside, self._to)
        return Store(self._to)

    @property
    def counts(self) -> Mapping[str, int]:
        """Rows so far, by site."""
        return {str(site): count for site, count in sorted(self._counts.items())}


def _opened(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in ("values", "token", "document", "offset")}
    except (SafetensorError, OSError) as error:
        raise CorruptFile(f"{path} is damaged: {error}") from error
