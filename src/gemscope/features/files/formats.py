"""Every format that is read: a new one is a file beside this one, and a line here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from gemscope.checked import shown
from gemscope.errors import FileError
from gemscope.features.files import (
    circuit_tracer,
    dictionary_learning,
    e2e,
    gemma_scope_1,
    gemma_scope_2,
    hook_z,
    linear_pickles,
    llama_scope,
    llamascopium,
    openai,
    qwen_scope,
    saelens,
    sparsify,
)
from gemscope.features.files.closed import CLOSED
from gemscope.features.files.format import Format, Found
from gemscope.features.files.pickled import PICKLES

FORMATS: tuple[Format, ...] = (
    saelens.FORMAT,
    gemma_scope_1.FORMAT,
    gemma_scope_2.FORMAT,
    sparsify.FORMAT,
    dictionary_learning.FORMAT,
    circuit_tracer.FORMAT,
    llama_scope.FORMAT,
    llamascopium.FORMAT,
    linear_pickles.GOODFIRE,
    linear_pickles.DEEPSEEK_R1,
    qwen_scope.FORMAT,
    openai.FORMAT,
    hook_z.FORMAT,
    e2e.FORMAT,
    *CLOSED,
)

WEIGHTS = frozenset({".safetensors", ".npz", *PICKLES})
"""Suffixes of files that may hold weights."""


def recognised(found: Found) -> Format:
    """The one format whose weights are called so; of several such, and for a name that none has, the one whose
    contents they are. Raises FileError where none says so, or two do.
    """
    named = [one for one in FORMATS if re.fullmatch(one.weights, found.file.name)]
    claiming = named if len(named) == 1 else [one for one in named or FORMATS if one.is_its(found)]
    if len(claiming) == 1:
        return claiming[0]
    if claiming:
        names = " or ".join(one.name for one in claiming)
        raise FileError(f"{found.source} may be of {names}, and nothing in it tells which: not read")
    held = ", ".join(shown(name, 60) for name in sorted(found.stored)[:12]) or "nothing"
    raise FileError(f"{found.source} is of no format that is read here (docs/formats.md names them): it holds {held}")


def weights_among(names: Iterable[str], beside: str | None = None) -> list[str]:
    """Which of a folder's files hold the weights of an SAE; with `beside`, in a format where that file lies by them."""
    names = list(names)
    formats = [one for one in FORMATS if beside is None or beside in one.beside]
    found = {name for one in formats for name in one.among(names)}
    if found and not any(one.among(found) for one in formats if not one.is_closed):
        return [min(found, key=natural)]  # any tells why not
    return sorted(found, key=natural)


def is_fixed(name: str) -> bool:
    """Whether a format's weights are called so and never otherwise, so that a folder has one such file."""
    return any(re.escape(name) == one.weights or name in one.beside.values() for one in FORMATS)


def is_beside(name: str) -> bool:
    """Whether a file of that name lies by the weights of some format."""
    return any(name in one.beside for one in FORMATS)


def expected() -> str:
    """What is looked for in a folder, in words."""
    return f"{', '.join(one.called for one in FORMATS if one.called)} (docs/formats.md)"


def natural(name: str) -> list[tuple[int, int | str]]:
    """A key to sort by: 2 before 10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name)]


def is_weights(name: str) -> bool:
    """Whether a file's name is one of weights, by its suffix."""
    return PurePosixPath(name).suffix in WEIGHTS
