"""Scopes as tests make them: a tiny model's, of eight sites, in a second or two."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from gemscope.activations.model import LanguageModel
from gemscope.scope.making import make_scope
from gemscope.scope.recipe import ScopeRecipe
from gemscope.scope.table import ScopeTable
from gemscope.testing import tiny_model
from gemscope.text.corpus import Corpus

TEXTS = [f"the {n} and the {n + 1} sang, thinking of rivers and hours " * (1 + n % 5) for n in range(40)]
ROOM: dict[str, Any] = {"disk": "1GB", "memory": "8GB"}

SETTINGS = """
[train]
rows = 384
batch = 64
checkpoint_every = 3
log_every = 3

[text]
length = 32
batch = 8
held_out = 0.2

[score]
tokens = 200
loss_tokens = 60
"""
EIGHT = (
    """
[[saes]]
sites = ["*.res", "*.mlp"]
widths = [48, 64]
l0s = [4, 8]

[[saes]]
sites = ["[01].transcoder"]
widths = [48, 64]
l0s = [4, 8]
train = { skip = true }
"""
    + SETTINGS
)
"""Eight sites of three layers, two widths, two L0s."""
TWO = (
    """
[[saes]]
sites = ["1.res", "1.transcoder"]
widths = [48]
l0s = [4]
"""
    + SETTINGS
)


def recipe(text: str) -> ScopeRecipe:
    return ScopeRecipe.of(text)


@cache
def model() -> LanguageModel:
    return tiny_model("llama")


def corpus() -> Corpus:
    return Corpus.of(TEXTS)


def made(to: Path, text: str = TWO, **options: Any) -> ScopeTable:
    return make_scope(model(), corpus(), recipe(text), to=to, **(ROOM | options))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
