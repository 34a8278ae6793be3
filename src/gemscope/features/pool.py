"""Rows of text with all that fires on them: what labels are tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_DROPPED = 20
"""Bits of an activation's float32 that are not kept."""


@dataclass(frozen=True)
class Pool:
    """R rows of text with all activations of all features on them."""

    ids: Array
    """int64 [R, T]; -1 where there is no token."""
    counted: Array
    """bool [R, T]: the tokens on which features could fire."""
    positions: Array
    """int64 [R]: of the rows' first tokens, in the text that they are of."""
    firings: Callable[[int], tuple[Array, Array]]
    """Of one feature: flat places [n] in the rows, ascending, and codes [n] of its activations there."""

    def __len__(self) -> int:
        return len(self.ids)


def codes(activations: Array) -> Array:
    """Positive float32 as whole numbers in the same order: powers of two, in eighths."""
    coded: Array = np.ascontiguousarray(activations, np.float32).view(np.int32) >> _DROPPED
    return coded


def activations(coded: Array) -> Array:
    """float32: the least activation with each code; the one that was coded is at most an eighth larger."""
    return (coded.astype(np.int32) << _DROPPED).view(np.float32)
