"""What the names of Gemma Scope's repositories and folders say of the SAEs there, and the bundled list of them."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from gemscope.activations.site import Site
from gemscope.features.entry import Entry

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


@cache
def gemma_scope() -> tuple[Entry, ...]:
    """The bundled list of those known when this release was made."""
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
    groups: dict[tuple[str, Site | None, int | None], list[Entry]] = {}
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
            repo=repo, path=path, layout="gemma_scope_2", generation=2, model=f"google/{model}",
            site=_site(int(layer), kind), label=label,
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
            repo=repo, path=path, layout="gemma_scope_1", generation=1, model=f"google/{model}",
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
