"""One feature as an atlas takes it in: numbers alone, from whoever made them (a pass over text, an import)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.integer[Any]]]
Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]


def _ints() -> Ints:
    return np.zeros(0, np.int64)


def _floats() -> Floats:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Figures, examples and relatives of feature `index`.

    Its n examples lie at flat `positions` of the atlas's corpus (row * length + column), the strongest first. Their
    activations are z sparse cells: example `owners[i]` has `values[i]` at column `columns[i]` of its row; the one at
    the example's own column is its peak.
    """

    index: int
    count: int
    max: float
    mean: float
    encoder_cosine: float | None = None
    decoder_norm: float | None = None
    step: float = 0.0
    """Width of the activation histogram's bins, the first of which starts at 0."""
    histogram: Ints = field(default_factory=_ints)
    edges: Floats = field(default_factory=_floats)
    """Ascending bounds [i + 1] of the intervals that examples were drawn from: edges[j] ≤ value < edges[j + 1]."""
    interval_counts: Ints = field(default_factory=_ints)
    """[i] firings in each."""
    positions: Ints = field(default_factory=_ints)
    """[n]"""
    intervals: Ints = field(default_factory=_ints)
    """[n] -1 among the strongest, else the interval drawn from."""
    owners: Ints = field(default_factory=_ints)
    """[z] ascending."""
    columns: Ints = field(default_factory=_ints)
    """[z] ascending within an example."""
    values: Floats = field(default_factory=_floats)
    """[z]"""
    promoted: Ints = field(default_factory=_ints)
    """Token ids, strongest first, and what a unit of the feature adds to their logits."""
    promoted_values: Floats = field(default_factory=_floats)
    suppressed: Ints = field(default_factory=_ints)
    suppressed_values: Floats = field(default_factory=_floats)
    logit_low: float = 0.0
    logit_step: float = 0.0
    logit_histogram: Ints = field(default_factory=_ints)
    neighbours: Ints = field(default_factory=_ints)
    """Features by decoder cosine, closest first."""
    cosines: Floats = field(default_factory=_floats)
    partners: Ints = field(default_factory=_ints)
    """Features that fire on the same tokens, by Jaccard index."""
    jaccards: Floats = field(default_factory=_floats)
    shares: Floats = field(default_factory=_floats)
    """Share of this feature's tokens on which each partner fires too."""
