"""The published SAEs that SAELens's registry names beside Gemma Scope's: the bundled list of them."""

from __future__ import annotations

import csv
import gzip
from functools import cache
from importlib.resources import files

from gemscope.activations.site import Site
from gemscope.features.entry import Entry

COLUMNS = (
    "release", "layout", "model", "repo", "path", "sae_id", "site", "site_out", "width", "l0", "neuronpedia", "factor",
    "closed",
)  # fmt: skip
"""Of the list, which tools/registry_snapshot.py makes."""


@cache
def registry() -> tuple[Entry, ...]:
    """All of them, in the order of the list."""
    text = gzip.decompress(files("gemscope").joinpath("data/catalog/registry.csv.gz").read_bytes()).decode()
    return tuple(_entry(row) for row in csv.DictReader(text.splitlines()))


def label_of(width: int) -> str:
    """16k for 16,384, as Gemma Scope and Neuronpedia write widths."""
    if width < 1_000:
        return str(width)
    return f"{width // 1_000}k" if width < 1_000_000 else f"{width // 1_000_000}m"


_site = cache(Site.parse)
_INSTEAD = {"circuit_tracer_clt": "; load_clt('{repo}') opens them all"}
"""What opens it, of a layout that is no SAE's."""


def _entry(row: dict[str, str]) -> Entry:
    width = int(row["width"]) if row["width"] else None
    return Entry(
        repo=row["repo"],
        path=row["path"],
        file=None,
        layout=row["layout"],
        generation=None,
        model=row["model"],
        site=_site(row["site"]) if row["site"] else None,
        site_out=_site(row["site_out"]) if row["site_out"] else None,
        width=width,
        width_label=None if width is None else label_of(width),
        l0=round(float(row["l0"])) if row["l0"] else None,
        neuronpedia_id=row["neuronpedia"] or None,
        release=row["release"],
        sae_id=row["sae_id"],
        factor=float(row["factor"]) if row["factor"] else None,
        closed=(row["closed"] + _INSTEAD.get(row["layout"], "").format(**row)) or None,
    )
