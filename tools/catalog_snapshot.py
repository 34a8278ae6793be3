"""Makes the bundled catalogue, src/gemscope/data/catalog/gemma_scope.csv.gz.

    python tools/catalog_snapshot.py table.csv.gz    # from a table of everything published, one SAE a row
    python tools/catalog_snapshot.py --hub           # refresh: what the Hub lists today

A table has at least the columns repo_id, path, average_l0, is_canonical, neuronpedia_id. Only what names do not say is
kept: the L0, which SAE of a group is canonical, and which have pages on Neuronpedia.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from gemscope.features.catalog import catalog, order
from gemscope.features.entry import Entry
from gemscope.features.gemma_scope_names import mark_canonical, read_names

TARGET = Path(__file__).parent.parent / "src/gemscope/data/catalog/gemma_scope.csv.gz"


def from_table(table: Path) -> list[Entry]:
    """One entry a file; rows that are second names of the same file (`canonical`) only add their mark."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    ids: dict[tuple[str, str], str] = {}
    marked = set()
    with gzip.open(table, "rt", newline="") as lines:
        for row in csv.DictReader(lines):
            key = (row["repo_id"], row["path"])
            rows.setdefault(key, row)
            if row["is_canonical"] == "1":
                marked.add(key)
            if row["neuronpedia_id"]:
                ids[key] = row["neuronpedia_id"]
    entries = []
    for (repo, path), row in rows.items():
        # Transcoders have no canonical names, yet one a layer is listed, and its page bears an id without an L0.
        canonical = (repo, path) in marked or repo.endswith("-transcoders")
        entry = read_names(repo, path, int(row["average_l0"]), canonical, (repo, path) in ids)
        if entry is None:
            sys.exit(f"not a name of Gemma Scope's: {repo}/{path}")
        if entry.neuronpedia_id != ids.get((repo, path)):
            # Better no link than one to another SAE's page.
            print(f"left out: {entry.address} is given as {ids[repo, path]}, should be {entry.neuronpedia_id}")
            entry = read_names(repo, path, int(row["average_l0"]), canonical, False)
            assert entry is not None
        entries.append(entry)
    return mark_canonical(entries)


def from_hub() -> list[Entry]:
    """What the Hub lists today, in the repositories that the snapshot knows; raises where it cannot be reached."""
    return [entry for entry in catalog(online=True) if entry.generation is not None]


def write(entries: Iterable[Entry], target: Path) -> None:
    """Sorted, and without a time stamp: the same entries give the same bytes."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["repo", "path", "l0", "canonical", "neuronpedia"])
    for entry in sorted(entries, key=order):
        rows.writerow([entry.repo, entry.path, entry.l0, int(entry.canonical), int(entry.neuronpedia_id is not None)])
    aside = target.with_suffix(".new")
    aside.write_bytes(gzip.compress(text.getvalue().encode(), 9, mtime=0))
    os.replace(aside, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("table", nargs="?", type=Path, help="a gzipped csv")
    source.add_argument("--hub", action="store_true", help="ask the Hub")
    parser.add_argument("-o", type=Path, default=TARGET, help="what to write")
    given = parser.parse_args()
    entries = from_hub() if given.hub else from_table(given.table)
    write(entries, given.o)
    print(f"{len(entries)} SAEs in {given.o.stat().st_size:,} bytes: {given.o}")


if __name__ == "__main__":
    main()
