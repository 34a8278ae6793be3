"""Harvested activations on disk: one folder a site of safetensors shards, and a manifest written last.

    STORE/manifest.json                what they are, and of which model, corpus and version; a checksum for each shard
    STORE/15.res/00003-01.safetensors  values [n, D] (float16, bfloat16 or float32), token, document, offset [n]

Shards are memory-mapped, so a store may be larger than memory; those in a bucket are read in ranges or from copies
(see `ranged.py`). They are named by the piece of the text that they are
of, and their number in it; all sites are cut into shards at the same batches. While a store is being made,
STORE.partial holds a note of each piece that is done (see `work.py`), so that any number of workers may make it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Protocol, TypeVar, runtime_checkable

import torch
from msgspec import Meta
from torch import Tensor

from gemscope.activations.bucket import LAST, Bucket
from gemscope.activations.place import Here, Place, place_of
from gemscope.activations.ranged import Column, Ranged
from gemscope.activations.site import Site, require_names
from gemscope.checked import Count, Numbered, Positive, read_json, read_tensors
from gemscope.errors import AccessError, CorruptFile, InputError, NotFound
from gemscope.progress import Progress, silent
from gemscope.shapes import Float, Int

T = TypeVar("T")
U = TypeVar("U")

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


@runtime_checkable
class Each(Protocol):
    """`map`, as far as it is needed here."""

    def __call__(self, do: Callable[[T], U], of: Iterable[T], /) -> Iterator[U]: ...


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

    def __init__(
        self, shards: Sequence[Mapping[str, Tensor] | Ranged], pieces: Sequence[int | None] = (), *, each: Each = map
    ) -> None:
        """Of shards, each of a piece of the text (None: nobody says which); `each` is how several are asked."""
        self._shards, self._each = shards, each
        self._starts = torch.tensor([0, *map(_length, shards)]).cumsum(0)
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
        parts = [(shard, slice(*part)) for shard, part in enumerate(pairwise(bounds)) if part[0] < part[1]]

        def rows(part: tuple[int, slice]) -> Tensor:
            shard, those = part
            return self._shards[shard][name][ordered[those] - self._starts[shard]]

        for (_, those), found in zip(parts, self._each(rows, parts), strict=True):
            out[places[those]] = found
        return out


def _length(shard: Mapping[str, Tensor] | Ranged) -> int:
    """Rows of a shard. One that lies elsewhere is not opened to find out."""
    return shard.rows if isinstance(shard, Ranged) else len(shard["values"])


class Store:
    """Harvested activations, by site."""

    def __init__(self, folder: str | Path | Place, *, skip_corrupt: bool = False) -> None:
        """Opens a store. Raises NotFound where there is none or an unfinished one, CorruptFile for a damaged one.

        `skip_corrupt` checks the checksum of each shard of a site when the site is opened, and leaves damaged ones out
        with a warning, at all sites, whose rows stay the same tokens.
        """
        self._place = place_of(folder)
        self._skip = skip_corrupt
        if not self._place.has(LAST):
            raise NotFound(f"no harvest in {folder}: it has no manifest.json (an interrupted harvest leaves none)")
        with self._place.reading(LAST) as path:
            self.manifest = Manifest.read_from(path)

    @property
    def folder(self) -> Path | str:
        """Where it lies; in a bucket that is an address."""
        return self._place.path if isinstance(self._place, Here) else str(self._place)

    @property
    def sites(self) -> list[Site]:
        """What was harvested."""
        return [Site.parse(site) for site in self.manifest.sites]

    def __getitem__(self, site: Site | str) -> Rows:
        """The rows of a site. Raises NotFound, and CorruptFile, which names the shard that is damaged."""
        name = str(Site.parse(site))
        if name not in self.manifest.sites:
            raise NotFound(f"no {name} in {self.folder}: it holds {', '.join(self.manifest.sites)}")
        files = self._files(name)
        if self._skip:
            damaged = self._damaged()
            files = {number: file for number, file in files.items() if number not in damaged}
            if not files:
                raise CorruptFile(f"no shard of {name} in {self.folder} is whole: harvest again")
        shards = [self._opened(name, number) for number in files]
        if not shards:
            raise CorruptFile(f"{self.folder} has no shard of {name}: {_REMEDY}")
        first = _form(shards[0])
        for shard in shards[1:]:
            if isinstance(shard, Ranged):  # looked at when it is read
                shard.form = first
            elif _form(shard) != first:
                raise CorruptFile(f"the shards of {name} in {self.folder} are {_UNLIKE}: {_REMEDY}")
        listed = self.manifest.shards.get(name)
        rows = Rows(shards, [listed[number].piece if listed else None for number in files], each=self._place.each)
        count = self.manifest.sites[name]
        if not self._skip and len(rows) != count:
            raise CorruptFile(
                f"{self.folder}/{name} holds {len(rows)} rows, its manifest says {count}: harvest again, or open it "
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
        files = [(site, number, file) for site in self.manifest.sites for number, file in self._files(site).items()]
        found = []
        with progress(f"verify {self.folder}", len(files), "shards") as advance:
            for site, number, file in files:
                if not self._whole(site, number):
                    found.append(file)
                advance(1)
        if found:
            named = ", ".join(found[:5])
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise CorruptFile(
                f"{len(found)} of {len(files)} shards in {self.folder} are damaged: {named}{more}; harvest again, or "
                f"open it with skip_corrupt=True"
            )
        for site in self.manifest.sites:
            self[site]  # as many rows as there should be

    def _files(self, site: str) -> dict[int, str]:
        """Its shards by number."""
        listed = self.manifest.shards.get(site)
        if listed is None:
            names = sorted(name for name in self._place.names(site) if name.endswith(".safetensors"))
            return dict(enumerate(names))
        return {number: f"{site}/{shard_name(shard.name or number)}" for number, shard in enumerate(listed)}

    def _damaged(self) -> set[int]:
        """Numbers of the shards to leave out: those of any site, as rows of all of them are the same tokens."""
        damaged = set()
        for one in self.manifest.sites:
            for number, file in self._files(one).items():
                if not self._whole(one, number):
                    warnings.warn(f"{self.folder}/{file} is damaged: its rows are left out", stacklevel=3)
                    damaged.add(number)
        return damaged

    def _whole(self, site: str, number: int) -> bool:
        file, listed = self._files(site)[number], self.manifest.shards.get(site)
        try:
            _form(self._opened(site, number))
            return listed is None or self._place.digest(file) == listed[number].sha256
        except (CorruptFile, NotFound):
            return False

    def _opened(self, site: str, number: int) -> Mapping[str, Tensor] | Ranged:
        listed = self.manifest.shards.get(site)
        shard = None if listed is None else listed[number]
        path = f"{self.folder}/{self._files(site)[number]}"

        def require(found: Mapping[str, Tensor | Column]) -> None:
            """Raises CorruptFile."""
            _require_rows(found)
            lengths = {len(tensor) for tensor in found.values()}
            if len(lengths) != 1 or (shard and lengths != {shard.rows}):
                raise CorruptFile(f"{path} is damaged: it holds {sorted(lengths)} rows; harvest again")

        def amiss(error: Exception) -> CorruptFile:
            if str(error).startswith(f"{path} is damaged"):
                return CorruptFile(error)
            reason = "it is missing" if isinstance(error, NotFound) else str(error)
            return CorruptFile(f"{path} is damaged: {reason}; harvest again, or open the store with skip_corrupt=True")

        file = self._files(site)[number]
        if isinstance(self._place, Bucket) and shard is not None:
            return Ranged(self._place, file, shard.sha256, shard.rows, require=require, amiss=amiss)
        try:
            opened = read_tensors(self._place.kept(file))[0]
            require(opened)
        except (NotFound, AccessError, CorruptFile) as error:
            raise amiss(error) from error
        return opened

    def __repr__(self) -> str:
        held = ", ".join(f"{site}: {count:,} rows" for site, count in self.manifest.sites.items())
        return f"Store({self.folder}, {self.manifest.model}, {held})"


def is_store(folder: str) -> bool:
    """Whether a whole harvest lies in a folder, or at an address in a bucket. Raises AccessError."""
    with suppress(InputError):  # it is no address at all
        return place_of(folder).has(LAST)
    return False


_BESIDE = ("token", "document", "offset")
_UNLIKE = "unlike each other in width or format"


def _form(shard: Mapping[str, Tensor] | Ranged) -> tuple[int, torch.dtype]:
    """Width and number format of its values."""
    values = shard["values"]
    return values.shape[1], values.dtype


def shard_name(named: str | int) -> str:
    """Of a site's shard, in its folder."""
    return f"{named:05d}.safetensors" if isinstance(named, int) else f"{named}.safetensors"


def _require_rows(shard: Mapping[str, Tensor | Column]) -> None:
    """Raises CorruptFile."""
    for name in ("values", *_BESIDE):
        if name not in shard:
            raise CorruptFile(f"it holds no {name}")
    if shard["values"].ndim != 2 or shard["values"].dtype not in DTYPES.values():
        raise CorruptFile("its values are no rows of activations")
    if any(shard[name].ndim != 1 or shard[name].dtype != torch.int32 for name in _BESIDE):
        raise CorruptFile(f"{', '.join(_BESIDE)} are not one whole number a row")
