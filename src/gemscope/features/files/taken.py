"""Tensors as a file names and turns them, made into those that SAE has: each reader gives a table of its names, and
what does not fit the table is told here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from gemscope.checked import shown
from gemscope.errors import CorruptFile

Table = Mapping[str, tuple[str, str]]
"""By our name, the file's and the letters of its axes: {"W_enc": ("encoder.weight", "F D")}."""

AXES: Mapping[str, str] = {
    "W_enc": "D F",
    "b_enc": "F",
    "W_dec": "F O",
    "b_dec": "O",
    "threshold": "F",
    "W_skip": "O D",
}
"""As SAE has them; a name that is not here keeps the file's."""


def taken(
    stored: Mapping[str, Any],
    table: Table,
    *,
    source: str,
    optional: Collection[str] = (),
    ignored: Collection[str] = (),
) -> dict[str, Tensor]:
    """The tensors of a table, turned as ours are. `optional` ones, by our names, may be missing; `ignored` are those of
    the file's names that do not matter.

    Raises CorruptFile for what is missing, unknown, no tensor of floats, or of a shape that does not fit the others.
    """
    wanted = {name: theirs for name, (theirs, _) in table.items()}
    if missing := [theirs for name, theirs in wanted.items() if theirs not in stored and name not in optional]:
        held = ", ".join(shown(name, 60) for name in sorted(stored)) or "nothing"
        raise CorruptFile(f"{source} has no {' and no '.join(missing)}: it holds {held}")
    if unknown := sorted(set(stored) - set(wanted.values()) - set(ignored)):
        names = ", ".join(shown(name, 60) for name in unknown)
        raise CorruptFile(
            f"{source} holds {names}, which no SAE of its kind has: expected {', '.join(wanted.values())}"
        )
    sizes: dict[str, int] = {}
    found = {}
    for name, (theirs, axes) in table.items():
        if theirs in stored:
            tensor = floats(stored[theirs], theirs, source)
            _fit(tensor, axes, sizes, theirs, source)
            found[name] = tensor.T if axes.split() == AXES.get(name, axes).split()[::-1] and " " in axes else tensor
    return found


def floats(value: Any, name: str, source: str) -> Tensor:
    """A tensor of floats. Raises CorruptFile."""
    if not isinstance(value, Tensor):
        raise CorruptFile(f"{source}: {shown(name, 60)} is a {type(value).__name__}, expected a tensor")
    if not value.dtype.is_floating_point:
        raise CorruptFile(f"{source}: {shown(name, 60)} is of dtype {value.dtype}, expected floats")
    return value


def number(value: Any, name: str, source: str) -> float:
    """One number, as such or as a tensor of one. Raises CorruptFile."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CorruptFile(f"{source}: {shown(name, 60)} is no number, as it has to be")
    return value


def whole(value: Any, name: str, source: str) -> int:
    """One whole number from 1. Raises CorruptFile."""
    found = number(value, name, source)
    if not (found >= 1 and float(found).is_integer()):
        raise CorruptFile(f"{source}: {shown(name, 60)} is {found:g}, expected a whole number from 1")
    return int(found)


def _fit(tensor: Tensor, axes: str, sizes: dict[str, int], name: str, source: str) -> None:
    letters = axes.split()
    shape = tuple(tensor.shape)
    expected = [sizes.get(letter, letter) for letter in letters]
    if len(shape) != len(letters) or any(
        isinstance(want, int) and want != size for want, size in zip(expected, shape, strict=True)
    ):
        raise CorruptFile(f"{source}: {name} has the shape {shape}, expected [{', '.join(map(str, expected))}]")
    sizes.update(zip(letters, shape, strict=True))
