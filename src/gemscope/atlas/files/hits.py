"""For one token, the features whose examples peak on it, packed: most examples first, then the strongest."""

from __future__ import annotations

from typing import Any

import numpy as np

from gemscope.errors import CorruptFile

Hits = np.ndarray[Any, np.dtype[Any]]

MOST = 255
"""Examples on one token beyond this many are not told apart."""
KIND = np.dtype([("feature", "<u4"), ("examples", "u1"), ("strength", "<f2")])
_SHORT = np.dtype([("feature", "<u2"), ("examples", "u1"), ("strength", "<f2")])
SIZES = (_SHORT.itemsize, KIND.itemsize)
"""Bytes that a feature takes, of either kind."""


def pack(hits: Hits) -> bytes:
    """[n] of `KIND`, in any order."""
    order = np.lexsort((hits["feature"], -hits["strength"].astype(np.float32), -hits["examples"].astype(np.int64)))
    short = not len(hits) or int(hits["feature"].max()) < 1 << 16
    return hits[order].astype(_SHORT if short else KIND).tobytes()


def unpack(packed: bytes, features: int, size: int) -> Hits:
    """[features] of `KIND`, in the order of rank, of an SAE with `size` features. Raises CorruptFile."""
    for kind in (_SHORT, KIND):
        if len(packed) == features * kind.itemsize:
            found = np.frombuffer(packed, kind).astype(KIND)
            if (found["feature"] < size).all() and np.isfinite(found["strength"]).all():
                return found
            raise CorruptFile(f"the features of a token are damaged: they are not all among the {size}")
    raise CorruptFile(f"the features of a token are damaged: {len(packed)} bytes for {features} of them")


def of(features: list[int], examples: list[int], strengths: list[float]) -> Hits:
    """Features, how many of the examples of each peak on the token, the strongest of those relative to the feature."""
    hits = np.zeros(len(features), KIND)
    hits["feature"] = features
    hits["examples"] = np.minimum(examples, MOST)
    hits["strength"] = strengths
    return hits
