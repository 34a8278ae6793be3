"""Several SAEs by one pattern, such as `google/gemma-scope-2b-pt-res/layer_20/width_16k/*`, or below one folder. Knows
names alone.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from fnmatch import translate
from pathlib import Path

from gemscope.checked import existing
from gemscope.errors import SAENotFound
from gemscope.features.entry import Entry
from gemscope.features.files.formats import natural, weights_among
from gemscope.features.published import nearest, snapshot

_DEEP = 6
_MANY = 1000


def is_pattern(address: str) -> bool:
    """Whether an address stands for several: it holds *, ? or [, and is not itself the name of something here."""
    return glob.has_magic(address) and existing(address) is None


def matching(pattern: str) -> list[str]:
    """The addresses that a pattern stands for: SAEs in folders here, else those of the bundled catalogue.

    `*` and `?` stand for letters within one name between slashes, as in a shell. In the catalogue addresses, SAELens's
    names and Neuronpedia's ids are looked through. Numbers in names order as numbers. Raises SAENotFound for none.
    """
    parts = [re.compile(translate(part)) for part in pattern.split("/")]
    here = [path for path in glob.glob(os.path.expanduser(pattern)) if _holds_sae(Path(path))]
    found = here or [entry.address for entry in snapshot() if _named(entry, parts)]
    if not found:
        near = nearest(pattern.replace("*", ""))
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise SAENotFound(f"no SAE matches {pattern!r}, neither here nor in the bundled catalogue{hint}")
    return sorted(found, key=natural)


def below(folder: Path, many: int = _MANY) -> list[str]:
    """SAEs in the folders below one, by their paths from it, about so `many`. Neither links nor folders deep down are
    followed.
    """
    found: list[str] = []
    for place, inside, names in os.walk(folder):
        path = Path(place).relative_to(folder)
        if len(path.parts) == _DEEP or len(found) >= many:
            inside.clear()
        weights = weights_among(names) if len(found) < many else []
        found += [str(path)] if len(weights) == 1 and path.parts else [str(path / name) for name in weights]
        inside.sort(key=natural)
    return found


def among(paths: Iterable[str]) -> list[tuple[str, str]]:
    """SAEs among the files of a repository: the folder of each ("" is the repository's own), and its weights there."""
    inside: dict[str, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        inside.setdefault(folder, []).append(name)
    return [(folder, name) for folder in sorted(inside, key=natural) for name in weights_among(inside[folder])]


def some_of(names: list[str], most: int = 5) -> str:
    """The first few of many names, and how many more there are."""
    rest = f"{len(names) - most:,}{'+' if len(names) >= _MANY else ''} more"
    return ", ".join(names[:most] + ([rest] if len(names) > most else []))


def _holds_sae(path: Path) -> bool:
    """Whether it is an SAE: a folder with the weights of one, or a file of some."""
    if path.is_dir():
        return len(weights_among(os.listdir(path))) == 1
    return bool(weights_among([path.name])) or path.suffix == ".npz"


def _named(entry: Entry, parts: list[re.Pattern[str]]) -> bool:
    names = (entry.address, *entry.saelens_names, entry.neuronpedia_id or "")
    return any(_matches(name.split("/"), parts) for name in names)


def _matches(name: list[str], parts: list[re.Pattern[str]]) -> bool:
    return len(name) == len(parts) and all(want.fullmatch(part) for part, want in zip(name, parts, strict=True))
