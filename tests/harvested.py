"""A small harvest and what tests of stores ask of one."""

from __future__ import annotations

import json
from pathlib import Path

from gemscope.activations.capture import Activations
from gemscope.activations.model import LanguageModel
from gemscope.text.corpus import Corpus

SITES = ("2.res", "0.mlp", "1.att")
TEXTS = [
    f"the {word} and the {word} sang in {word * 3}, thinking of rivers and hours" for word in ("one", "two", "sun")
]
TEXTS += ["An other document, rather short.", "the end and the ending " * 9]


def captured(model: LanguageModel, corpus: Corpus, site: str) -> list[Activations]:
    """Each packed row by itself."""
    return [model.capture(rows, [site])[site] for rows in model.rows(corpus, length=24, batch=2)]


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in tree(folder)}


def as_format_1(folder: Path) -> None:
    """The manifest as an earlier version wrote it."""
    facts = json.loads((folder / "manifest.json").read_text())
    for later in ("stored", "dropped", "shards"):
        del facts[later]
    (folder / "manifest.json").write_text(json.dumps(facts | {"format": 1}))
