"""Numbers in other tools' JSON: taken for what they should be or not at all, and written with few digits."""

from __future__ import annotations

from math import isnan
from typing import Any, TypeGuard

import numpy as np

from gemscope.checked import EXACT, row_of
from gemscope.errors import CorruptFile

_MOST = 3e38
"""Below the largest float32."""


def as_number(value: object) -> float | None:
    """What JSON may hold as a number, when it is one that float32 has room for."""
    if type(value) is not int and type(value) is not float:  # True is an int to isinstance
        return None
    return float(value) if abs(value) < _MOST else None  # NaN is not below it either


def as_whole(value: object) -> int | None:
    """What JSON may hold as a whole number, when it is one: true is none."""
    return value if type(value) is int and abs(value) <= EXACT else None


def are_numbers(values: object) -> TypeGuard[list[float]]:
    """Whether it is a list of nothing but such numbers."""
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
        return False
    return not values or (-_MOST < min(values) <= max(values) < _MOST and not any(map(isnan, values)))


def are_texts(values: object) -> TypeGuard[list[str]]:
    """Whether it is a list of nothing but strings."""
    return isinstance(values, list) and set(map(type, values)) <= {str}


def object_of(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object that was fetched from somewhere. Raises CorruptFile."""
    try:
        return row_of(data, where=where)
    except CorruptFile as error:
        raise CorruptFile(f"{error}: fetch the file again") from error


def short(value: float) -> float:
    """The float with the fewest digits that is this one as float32, which is what activations are kept as."""
    return float(str(np.float32(value)))
