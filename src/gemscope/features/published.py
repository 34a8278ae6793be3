"""Which SAEs are published, and which of them a name means: an address, SAELens's release and id, a Neuronpedia id."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from functools import cache

from gemscope.errors import InputError
from gemscope.features.entry import Entry
from gemscope.features.gemma_scope_names import WIDTHS, gemma_scope, mark_canonical, read_names
from gemscope.features.registry import registry


@cache
def snapshot() -> tuple[Entry, ...]:
    """The bundled list: every SAE known when this release was made, Gemma Scope's and those of SAELens's registry."""
    return (*gemma_scope(), *registry())


@cache
def widths() -> dict[str, int]:
    """The labels of widths that published SAEs have, narrow first; where two have one label, Gemma Scope's."""
    known = {entry.width_label: entry.width for entry in reversed(snapshot())} | WIDTHS
    return dict(sorted(((label, n) for label, n in known.items() if label and n), key=lambda one: one[1]))


def width_of(width: int | str) -> int:
    """16384 for "16k", "16384" or 16384. Raises InputError for a width that no published SAE has."""
    number = widths().get(str(width).lower())
    if number is None and str(width).isdecimal() and int(width) in {entry.width for entry in snapshot()}:
        number = int(width)
    if number is None:
        raise InputError(
            f"no published SAE is {width!r} wide: the widths are {', '.join(widths())} (or the number of features)"
        )
    return number


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
    names = list(names)
    folders = {name[:end] for name in names for end in (*_slashes(name), len(name))}
    entries = [entry for entry in registry() if entry.repo == repo and (entry.path in folders or entry.closed)]
    for name in names:
        folder = _WEIGHTS.fullmatch(name)
        entry = entry_of(repo, folder[1]) if folder else None
        if entry is not None and entry.file == name.rsplit("/", 1)[1]:
            entries.append(entry)
    return mark_canonical(entries)


def _slashes(name: str) -> list[int]:
    return [place for place, letter in enumerate(name) if letter == "/"]


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
