"""One published SAE, and all that the names of its repository and folder say of it. Knows names, not weights."""

from __future__ import annotations

import csv
import difflib
import gzip
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from gemscope.activations.site import Site
from gemscope.errors import InputError

WIDTHS = {
    "4k": 4096,
    "16k": 16384,
    "32k": 32768,
    "65k": 65536,
    "131k": 131072,
    "262k": 262144,
    "524k": 524288,
    "1m": 1048576,
}
"""Width labels of Gemma Scope and how many features they stand for."""

CANONICAL_L0 = 100
"""Of several SAEs that differ in L0 alone, Gemma Scope calls the one closest to this L0 canonical."""

_REPO_1 = re.compile(r"google/gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)")

_REPO_2 = re.compile(r"google/gemma-scope-2-(270m|1b|4b|12b|27b)-(pt|it)")

_PATH_1 = re.compile(r"(?:layer_(\d+)|embedding)/width_(\w+)/average_l0_(\d+)")

_PATH_2 = re.compile(
    r"(resid_post|attn_out|mlp_out|transcoder)(_all)?/layer_(\d+)_width_([0-9]+[km])_l0_(small|medium|big)(_affine)?(?:_seed_(\d+))?"
)

_KINDS_2 = {"resid_post": "res", "attn_out": "att", "mlp_out": "mlp", "transcoder": "transcoder"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One published SAE. `address` loads it."""

    repo: str
    """Repository on the Hub."""
    path: str
    """Folder in the repository."""
    file: str
    """The weights, in that folder: params.npz or params.safetensors."""
    generation: int
    """1 for Gemma Scope (Gemma 2), 2 for Gemma Scope 2 (Gemma 3)."""
    model: str
    """Hugging Face id of the model that it reads."""
    site: Site
    """Where it reads."""
    site_out: Site
    """Where it writes: another place than `site` for transcoders alone."""
    width: int
    """How many features."""
    width_label: str
    """The same as written in addresses: 16k, 1m."""
    l0: int | None
    """Features active per token, as declared; None where only the file itself would tell."""
    l0_label: str | None
    """small, medium or big (Gemma Scope 2)."""
    affine: bool
    """Whether a transcoder has an affine skip connection."""
    seed: int | None
    """Of SAEs trained again from another seed."""
    canonical: bool
    """Whether its L0 is the one closest to 100 of those that differ in L0 alone (Gemma Scope 1)."""
    neuronpedia_id: str | None
    """Such as gemma-2-2b/20-gemmascope-res-16k: feature 5 has its page at neuronpedia.org/{neuronpedia_id}/5."""
    release: str
    """SAELens's name for the collection; canonical SAEs are also in `{release}-canonical`."""
    sae_id: str
    """SAELens's name within the release."""

    @property
    def address(self) -> str:
        """What `load_sae` takes: `REPO/path`."""
        return f"{self.repo}/{self.path}"

    @property
    def layer(self) -> int | None:
        """The block that it reads at, counted from 0; None for the embedding."""
        return self.site.layer

    @property
    def saelens_names(self) -> tuple[str, ...]:
        """Its names in SAELens, as `release sae_id`; the canonical one first."""
        plain = f"{self.release} {self.sae_id}"
        if not self.canonical or self.site != self.site_out:  # SAELens names no canonical transcoders
            return (plain,)
        return (f"{self.release}-canonical {self.sae_id.rsplit('/', 1)[0]}/canonical", plain)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, sites in their text form, address and layer included."""
        plain = asdict(self) | {"site": str(self.site), "site_out": str(self.site_out)}
        return {"address": self.address, **plain, "layer": self.layer}


def width_of(width: int | str) -> int:
    """16384 for "16k", "16384" or 16384. Raises InputError for a width that no published SAE has."""
    number = WIDTHS.get(str(width).lower())
    if number is None and str(width).isdecimal() and int(width) in WIDTHS.values():
        number = int(width)
    if number is None:
        raise InputError(
            f"no published SAE is {width!r} wide: the widths are {', '.join(WIDTHS)} (or the number of features)"
        )
    return number


@cache
def snapshot() -> tuple[Entry, ...]:
    """The bundled list: every Gemma Scope SAE known when this release was made."""
    text = gzip.decompress(files("gemscope").joinpath("data/catalog/gemma_scope.csv.gz").read_bytes()).decode()
    rows = csv.reader(text.splitlines())
    next(rows)
    entries = []
    for repo, path, l0, canonical, on_neuronpedia in rows:
        entry = read_names(repo, path, int(l0) if l0 else None, canonical == "1", on_neuronpedia == "1")
        if entry is not None:
            entries.append(entry)
    return tuple(entries)


def mark_canonical(entries: Iterable[Entry]) -> list[Entry]:
    """The same, with the SAE closest to an L0 of 100 marked in every group that has none marked yet.

    Two pairs are as far from 100 on either side: there the mark of the snapshot, which follows SAELens, decides.
    Embedding SAEs and Gemma Scope 2 have no canonical ones.
    """
    entries = list(entries)
    groups: dict[tuple[str, Site, int], list[Entry]] = {}
    for entry in entries:
        if entry.generation == 1 and entry.layer is not None:
            groups.setdefault((entry.repo, entry.site, entry.width), []).append(entry)
    chosen = set()
    for group in groups.values():
        best = next((e for e in group if e.canonical), None) or min(group, key=_from_canonical)
        chosen.add(best.address)
    return [replace(entry, canonical=True) if entry.address in chosen else entry for entry in entries]


def read_names(
    repo: str, path: str, l0: int | None = None, canonical: bool = False, on_neuronpedia: bool = False
) -> Entry | None:
    """What the names alone say, beside what is given; None where they are not Gemma Scope's."""
    if (match := _REPO_2.fullmatch(repo)) and (parts := _PATH_2.fullmatch(path)):
        size, tuned = match.groups()
        folder, everywhere, layer, label, l0_label, affine, seed = parts.groups()
        kind = _KINDS_2[folder]
        model = f"gemma-3-{size}-{tuned}"
        collection = "transcoders" if kind == "transcoder" else kind
        page = f"{model.removesuffix('-pt')}/{layer}-gemmascope-2-{kind}"
        return _entry(
            repo=repo, path=path, generation=2, model=f"google/{model}", site=_site(int(layer), kind), label=label,
            l0=l0, file="params.safetensors", l0_label=l0_label, affine=affine is not None, seed=seed and int(seed),
            canonical=False,
            neuronpedia_id=f"{page}-{label}" if on_neuronpedia else None,
            release=f"{repo.removeprefix('google/')}-{collection}" + ("-all" if everywhere else ""),
            # SAELens writes the folder for this one collection alone
            sae_id=path if folder == "transcoder" and not everywhere else path.split("/", 1)[1],
        )  # fmt: skip
    if (match := _REPO_1.fullmatch(repo)) and (parts := _PATH_1.fullmatch(path)):
        size, tuned, collection = match.groups()
        layer, label, number = parts.groups()
        if layer is None and collection != "res":
            return None
        model = f"gemma-2-{size}" + ("-it" if tuned == "it" else "")
        kind = {"transcoders": "transcoder"}.get(collection, collection) if layer is not None else "embed"
        suffix = "" if canonical else f"__l0-{number}"
        reads = "transcoder_nogain" if kind == "transcoder" else kind
        return _entry(
            repo=repo, path=path, generation=1, model=f"google/{model}",
            site=_site(None if layer is None else int(layer), reads), label=label, l0=int(number),
            file="params.npz", l0_label=None, affine=False, seed=None, canonical=canonical,
            neuronpedia_id=f"{model}/{layer}-gemmascope-{kind}-{label}{suffix}" if on_neuronpedia else None,
            release=repo.removeprefix("google/"), sae_id=path,
        )  # fmt: skip
    return None


def _entry(*, site: Site, label: str, **rest: Any) -> Entry | None:
    if label not in WIDTHS:
        return None
    site_out = _site(site.layer, "mlp") if site.kind.startswith("transcoder") else site
    return Entry(site=site, site_out=site_out, width=WIDTHS[label], width_label=label, **rest)


_site = lru_cache(maxsize=1024)(Site)


def _from_canonical(entry: Entry) -> tuple[int, int]:
    l0 = entry.l0 or 0
    return abs(l0 - CANONICAL_L0), l0


_WEIGHTS = re.compile(r"(.+)/params\.(?:npz|safetensors)")


def entry_of(repo: str, path: str) -> Entry | None:
    """What a repository and a folder in it say of the SAE there; None where the names are not Gemma Scope's.

    Facts that no name holds (the L0 of Gemma Scope 2, Neuronpedia pages, which is canonical) come from the snapshot.
    """
    known = _by_address().get(f"{repo}/{path}")
    return known if known is not None else read_names(repo, path)


def find(name: str) -> Entry | None:
    """The entry that an address, a SAELens name (`release sae_id`) or a Neuronpedia id stands for, or None."""
    if name in (addresses := _by_address()):
        return addresses[name]
    return _by_other_names().get(" ".join(name.split()))


def parse_files(repo: str, names: Iterable[str]) -> list[Entry]:
    """The SAEs among the files of a repository, with what the snapshot knows of them; the canonical ones marked."""
    entries = []
    for name in names:
        folder = _WEIGHTS.fullmatch(name)
        entry = entry_of(repo, folder[1]) if folder else None
        if entry is not None and entry.file == name.rsplit("/", 1)[1]:
            entries.append(entry)
    return mark_canonical(entries)


@cache
def _by_address() -> dict[str, Entry]:
    return {entry.address: entry for entry in snapshot()}


@cache
def _by_other_names() -> dict[str, Entry]:
    names = {name: entry for entry in snapshot() for name in entry.saelens_names}
    for entry in snapshot():
        if entry.neuronpedia_id:
            names[entry.neuronpedia_id] = entry
            if entry.canonical:  # some canonical SAEs have a second page, with the L0 in its name
                names[f"{entry.neuronpedia_id}__l0-{entry.l0}"] = entry
    return names


_LONGEST = 500
"""Letters of a name that another may be like."""


def nearest(name: str, n: int = 3) -> list[str]:
    """Up to n names that exist and are like `name`, written in the same manner; the likeliest first.

    With everything right but the L0, those are the other L0s of the same SAE, nearest first.
    """
    if len(name) > _LONGEST:  # comparing takes as long as the name is long
        return []
    entries = snapshot()
    if len(release_and_id := name.split()) == 2:
        return _nearest_of(name, [each for entry in entries for each in entry.saelens_names], n, release_and_id[0])
    if name.count("/") == 1:
        ids = [entry.neuronpedia_id for entry in entries if entry.neuronpedia_id]
        return _nearest_of(name, ids, n, name.split("/", maxsplit=1)[0])
    return _nearest_of(name, [entry.address for entry in entries], n, "/".join(name.split("/")[:2]))


_L0 = re.compile(r"(?:average_l0_|__l0-)(\d+)")


def _nearest_of(name: str, names: Sequence[str], n: int, head: str) -> list[str]:
    # Different only in the L0: the L0s that exist, by distance.
    if hit := _L0.search(name):
        stem, l0 = name[: hit.start()], int(hit[1])
        siblings = [
            (abs(int(other[1]) - l0), each) for each in names if each.startswith(stem) and (other := _L0.search(each))
        ]
        canonical = [stem] if stem in names else []  # Neuronpedia writes no L0 for those
        if siblings or canonical:
            return (canonical + [each for _, each in sorted(siblings)])[:n]
    # Otherwise the nearest repository (or release, or model), so that one wrong letter there costs nothing; then in it.
    heads = sorted({each[: len(each) - len(_tail(each))] for each in names})
    near = difflib.get_close_matches(head, [each.rstrip(" /") for each in heads], n=1, cutoff=0.6)
    if not near:
        return []
    within = [each for each in names if each.startswith(near[0]) and each[len(near[0])] in " /"]
    return difflib.get_close_matches(name, within, n=n, cutoff=0.6) or difflib.get_close_matches(
        name, within, n=n, cutoff=0.3
    )


def _tail(name: str) -> str:
    """The part behind the repository, the release, or Neuronpedia's model."""
    if " " in name:
        return name.split(" ", 1)[1]
    return name.split("/", 2)[2] if name.count("/") > 1 else name.split("/", 1)[1]
