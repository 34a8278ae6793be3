"""One feature as an atlas takes it in: numbers alone, from whoever made them (a pass over text, an import)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gemscope.errors import InputError, NotFinite

Ints = np.ndarray[Any, np.dtype[np.integer[Any]]]
Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]


AGREED = 0.8
"""Correlation of what the two halves of the text say of a feature, below which nothing is said of what it promotes. Of
five such features out of 250 steering raised 3.6 of the 20 tokens that were foretold, of the others 7.8 and more
(tools/effect_words.py).
"""


def _ints() -> Ints:
    return np.zeros(0, np.int64)


def _floats() -> Floats:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a unit of a feature does to the logits by the measured effect of the site at which it writes, on this
    position and later ones together, the mean over the vocabulary taken out.
    """

    promoted: Ints
    """Token ids, most promoted first, and by how much their logits rise."""
    promoted_values: Floats
    suppressed: Ints
    """Token ids, most suppressed first."""
    suppressed_values: Floats
    spread: float
    """Standard deviation of what it does to all tokens of the vocabulary: a value over it says how far a token stands
    out.
    """
    agreement: float
    """Correlation over the vocabulary of what the two halves of the text say."""
    this: float
    """Share of it that is on the prediction at the feature's own position; the rest is on later ones."""
    words: str = ""
    """What it promotes, in a few words; "" where that would say nothing."""


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
    written: Written | None = None
    """None where the effect of its site is not known, or the feature writes nothing."""


_COUNTED = (
    *("histogram", "interval_counts", "positions"),
    *("promoted", "suppressed", "logit_histogram", "neighbours", "partners"),
)
"""Fields of an entry that number something, or count it."""
_MOST_VALUE = 3e38
"""What is kept as a share of a peak, rounded, has to be a float32 when it is read again."""


def require_sound(entry: Entry, length: int) -> None:
    """Raises InputError, naming the feature, where its parts do not fit each other in rows of `length` tokens."""
    name, examples = f"feature {entry.index}", len(entry.positions)
    for one, other in (
        ("positions", "intervals"),
        ("owners", "columns"),
        ("owners", "values"),
        ("promoted", "promoted_values"),
        ("suppressed", "suppressed_values"),
        ("neighbours", "cosines"),
        ("partners", "jaccards"),
        ("partners", "shares"),
    ):
        ours, theirs = len(getattr(entry, one)), len(getattr(entry, other))
        if ours != theirs:
            raise InputError(f"{name} has {ours} {one} and {theirs} {other}: there must be as many of both")
    for one in (*_COUNTED, "intervals", "owners", "columns"):
        if (dtype := getattr(entry, one).dtype).kind not in "biu":
            raise InputError(f"{name} has numbers of type {dtype} as its {one}: whole numbers are expected")
    for one in _COUNTED:
        if len(numbers := getattr(entry, one)) and int(numbers.min()) < 0:
            raise InputError(f"{name} has {int(numbers.min())} among its {one}: none can be below 0")
    if not (np.abs(entry.values) < _MOST_VALUE).all():
        raise NotFinite(f"{name} has activations that are no numbers, or of {_MOST_VALUE:g} and more: none are kept")
    if len(entry.edges) != (len(entry.interval_counts) + 1 if len(entry.interval_counts) else 0):
        raise InputError(
            f"{name} has {len(entry.edges)} edges and {len(entry.interval_counts)} counts of intervals: "
            f"one edge more than counts, or neither, is expected"
        )
    if examples and (entry.intervals.min() < -1 or entry.intervals.max() >= len(entry.interval_counts)):
        raise InputError(f"{name} has an example from an interval that it does not have: -1 marks the strongest")
    if not len(entry.owners):
        if examples:
            raise InputError(f"{name} has {examples} examples without activations: each needs one at its own column")
        return
    cells = entry.owners.astype(np.int64) * length + entry.columns
    if entry.columns.min() < 0 or entry.columns.max() >= length or (np.diff(cells) <= 0).any():
        raise InputError(f"{name} has columns that do not ascend within an example, or lie outside 0 to {length - 1}")
    own = np.arange(examples) * length + entry.positions.astype(np.int64) % length
    found = cells[np.minimum(np.searchsorted(cells, own), len(cells) - 1)]
    if entry.owners.min() < 0 or entry.owners.max() >= examples or (found != own).any():
        raise InputError(f"{name} has activations that no example owns, or an example without one at its own column")
