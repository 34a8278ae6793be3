"""Numbers that stand for text: the same wherever it is read, alike to chance between texts."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

REACH = 16
"""Two places are one text where a token and this many before it are the same."""
ODD = np.uint64(0x9E3779B97F4A7C15)


def text_keys(ids: Array) -> Array:
    """int64 [R, T]: for each token a hash of it and the REACH tokens before it in its row."""
    ids = ids.astype(np.int64)
    padded = np.concatenate([np.full((len(ids), REACH), -1), ids], axis=1).astype(np.uint64)
    key = np.zeros(ids.shape, np.uint64)
    for back in range(REACH + 1):
        # Each place has a weight of its own: the order of tokens matters.
        piece = padded[:, REACH - back : REACH - back + ids.shape[1]]
        key += scrambled(piece * ODD + np.uint64(back + 1))
    return key.view(np.int64)


def row_keys(ids: Array) -> Array:
    """uint64 [R]: for each row a hash of all its tokens and where they stand in it."""
    places = np.arange(1, ids.shape[1] + 1, dtype=np.uint64)
    keys: Array = scrambled(scrambled(ids.astype(np.int64).view(np.uint64) * ODD + places).sum(1, dtype=np.uint64))
    return keys


def scrambled(x: Array) -> Array:
    """The finisher of splitmix64 (Steele, Lea and Flood 2014): every bit depends on every other."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    done: Array = x ^ (x >> np.uint64(31))
    return done
