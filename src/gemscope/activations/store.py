"""Harvested activations on disk: one folder a site of safetensors shards, and a manifest written last.

    STORE/manifest.json                what they are, and of which model, corpus and version; a checksum for each shard
    STORE/15.res/00003-01.safetensors  values [n, D] (float16, bfloat16 or float32), token, document, offset [n]

Shards are memory-mapped, so a store may be larger than memory. They are named by the piece of the text that they are
of, and their number in it; all sites are cut into shards at the same batches. While a store is being made,
STORE.partial holds a note of each piece that is done (see `work.py`), so that any number of workers may make it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from gemscope.activations.site import Site, require_names
from gemscope.checked import Count, Numbered, Positive, read_json, read_tensors
from gemscope.errors import AccessError, CorruptFile, InputError, NotFound
from gemscope.progress import Progress, silent
from gemscope.shapes import Float, Int

FORMAT = 4
_REMEDY = "harvest again"
_READ = (1, 2, 3, 4)
"""Formats read here. Up to 3 shards were named by their number alone; up to 2 sinks were told at each site by itself,
so that its rows need not be the tokens of another's; 1 knew float16 alone, and neither checksums nor what was left out.
"""

DTYPES: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
"""The number formats that values are kept in."""


@dataclass(frozen=True)
class Shard:
    """One file of a site."""

    rows: Count
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    name: Annotated[str, Meta(pattern="^([0-9]{5,}-[0-9]{2,})?$")] = ""
    """Of its file, without the suffix: the piece of the text, and which of its shards. In older stores their number."""

    @property
    def piece(self) -> int | None:
        """Which piece of the text it is of."""
        return int(self.name.partition("-")[0]) if self.name else None


Counts = Mapping[str, Count]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store holds and where it comes from."""

    format: Positive
    model: str
    revision: str | None
    dtype: str
    """Number format that the model computed in."""
    sites: Counts
    """Rows (counted tokens) by site."""
    read: Count
    """Tokens read, counted or not; padding is not among them."""
    length: Positive
    """Tokens per row of text."""
    corpus: str
    corpus_digest: str
    versions: Mapping[str, str]
    stored: str = "float16"
    """Number format of the values."""
    passed: Counts = field(default_factory=dict)
    """Rows of the corpus that had no text, by reason (`text.rows.PASSED`)."""
    dropped: Mapping[str, Counts] = field(default_factory=dict)
    """By site, how many places of the text are not among the rows, by reason: padding, first (of a row of text),
    special, sink."""
    shards: Mapping[str, Sequence[Shard]] = field(default_factory=dict)
    """By site, its files in their order."""

    @classmethod
    def read_from(cls, path: Path) -> Manifest:
        """Raises NotFound, AccessError, CorruptFile."""
        number = read_json(path, Numbered, remedy=_REMEDY).format
        if number not in _READ:
            known = " and ".join(map(str, _READ))
            raise CorruptFile(f"{path} is of format {number}, this version reads {known}: harvest again")
        return read_json(path, cls, closed=number == FORMAT, remedy=_REMEDY)  # older ones say more

    def __post_init__(self) -> None:
        """Raises ValueError for what is no site's name."""
        require_names(*self.sites, *self.dropped, *self.shards)


class Rows:
    """The activations of one site as N rows of D numbers, in the order of the text, read from disk as needed."""

    def __init__(self, shards: Sequence[Mapping[str, Tensor]], pieces: Sequence[int | None] = ()) -> None:
        """Of shards, each of a piece of the text (None: nobody says which)."""
        self._shards = shards
        self._starts = torch.tensor([0, *[len(shard["values"]) for shard in shards]]).cumsum(0)
        self._pieces = pieces or [None] * len(shards)

    @property
    def pieces(self) -> list[slice]:
        """Which rows are of the same piece of the text, one after another; all of them, where nobody says so."""
        bounds = self._starts.tolist()
        new = [at for at, piece in enumerate(self._pieces) if at == 0 or piece != self._pieces[at - 1]]
        return [slice(bounds[one], bounds[other]) for one, other in pairwise([*new, len(self._shards)])]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def d(self) -> int:
        """Numbers per row."""
        return int(self._shards[0]["values"].shape[-1])

    def __getitem__(self, index: Int[Tensor, "n"] | slice) -> Float[Tensor, "n D"]:
        """Rows by index, in that order, in float32."""
        return self.stored(index).float()

    def stored(self, index: Int[Tensor, "n"] | slice) -> Float[Tensor, "n D"]:
        """The same in the format that they are stored in."""
        return self._gather("values", index)

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
        with a warning, at all sites, whose rows stay the same tokens.
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
            damaged = self._damaged()
            paths = {number: path for number, path in paths.items() if number not in damaged}
            if not paths:
                raise CorruptFile(f"no shard of {name} in {self.folder} is whole: harvest again")
        shards = [self._opened(name, number) for number in paths]
        if len({(shard["values"].shape[1], shard["values"].dtype) for shard in shards}) > 1:
            raise CorruptFile(
                f"the shards of {name} in {self.folder} are unlike each other in width or format: {_REMEDY}"
            )
        if not shards:
            raise CorruptFile(f"{self.folder} has no shard of {name}: {_REMEDY}")
        listed = self.manifest.shards.get(name)
        rows = Rows(shards, [listed[number].piece if listed else None for number in paths])
        count = self.manifest.sites[name]
        if not self._skip and len(rows) != count:
            raise CorruptFile(
                f"{self.folder / name} holds {len(rows)} rows, its manifest says {count}: harvest again, or open it "
                f"with skip_corrupt=True"
            )
        return rows

    def together(self, sites: Sequence[Site]) -> dict[Site, Rows]:
        """The rows of several sites: the n-th of each is the same token. Raises NotFound, CorruptFile, and InputError
        where they are other tokens, as they may be in stores of before format 3.
        """
        found = {site: self[site] for site in dict.fromkeys(sites)}
        first, *others = found
        for other in others:
            here, there = found[first], found[other]
            aligned = len(here) == len(there) and all(
                torch.equal(one(slice(None)), two(slice(None)))
                for one, two in ((here.documents, there.documents), (here.offsets, there.offsets))
            )
            if not aligned:
                raise InputError(
                    f"{first} and {other} of {self.folder} hold different tokens ({len(here):,} and {len(there):,} "
                    f"rows), as stores of format {self.manifest.format} may: harvest again"
                )
        return found

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
        return {number: folder / shard_name(shard.name or number) for number, shard in enumerate(listed)}

    def _damaged(self) -> set[int]:
        """Numbers of the shards to leave out: those of any site, as rows of all of them are the same tokens."""
        damaged = set()
        for one in self.manifest.sites:
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
        return listed is None or digest_of(self._paths(site)[number]) == listed[number].sha256

    def _opened(self, site: str, number: int) -> dict[str, Tensor]:
        path = self._paths(site)[number]
        try:
            shard = read_tensors(path)[0]
            _require_rows(shard)
        except (NotFound, AccessError, CorruptFile) as error:
            reason = "it is missing" if isinstance(error, NotFound) else str(error)
            raise CorruptFile(
                f"{path} is damaged: {reason}; harvest again, or open the store with skip_corrupt=True"
            ) from error
        listed = self.manifest.shards.get(site)
        lengths = {len(tensor) for tensor in shard.values()}
        if len(lengths) != 1 or (listed and lengths != {listed[number].rows}):
            raise CorruptFile(f"{path} is damaged: it holds {sorted(lengths)} rows; harvest again")
        return shard

    def __repr__(self) -> str:
        held = ", ".join(f"{site}: {count:,} rows" for site, count in self.manifest.sites.items())
        return f"Store({self.folder}, {self.manifest.model}, {held})"


_BESIDE = ("token", "document", "offset")


def shard_name(named: str | int) -> str:
    """Of a site's shard, in its folder."""
    return f"{named:05d}.safetensors" if isinstance(named, int) else f"{named}.safetensors"


def _require_rows(shard: Mapping[str, Tensor]) -> None:
    """Raises CorruptFile."""
    for name in ("values", *_BESIDE):
        if name not in shard:
            raise CorruptFile(f"it holds no {name}")
    if shard["values"].ndim != 2 or shard["values"].dtype not in DTYPES.values():
        raise CorruptFile("its values are no rows of activations")
    if any(shard[name].ndim != 1 or shard[name].dtype != torch.int32 for name in _BESIDE):
        raise CorruptFile(f"{', '.join(_BESIDE)} are not one whole number a row")


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
