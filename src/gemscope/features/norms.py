"""How long activations are, over any amount of text: how many there are of each length. Counts are of whole numbers, so
what comes out depends neither on how the text was cut into batches nor on their order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Counts = np.ndarray[Any, np.dtype[np.int64]]

_LOWEST, _OCTAVES, _EACH = -32, 64, 256
"""From 2^-32 to 2^32, each power of two in 256 equal parts: what is beyond counts as the outermost."""
_BITS = 23 - 8
"""Of a float32's fraction, those that say where it lies within its part."""


class Norms:
    """How many activations there are of each length."""

    def __init__(self) -> None:
        self.counts: Counts = np.zeros(_OCTAVES * _EACH, np.int64)

    @classmethod
    def of(cls, counts: Counts, most: int) -> Norms:
        """Those whose `counts` were stored, of at most so many activations. Raises ValueError for what were none."""
        if not ((counts >= 0) & (counts <= most)).all() or counts.sum() > most:
            raise ValueError("its norms are not of its tokens")
        norms = cls()
        norms.counts += counts
        return norms

    def add(self, lengths: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        """`lengths` [n], none negative."""
        # The bits of a float, as a whole number, are in the order of the floats.
        parts = (lengths.astype(np.float32).view(np.int32) >> _BITS) - (127 + _LOWEST) * _EACH
        self.counts += np.bincount(parts.clip(0, len(self.counts) - 1), minlength=len(self.counts))

    def merge(self, other: Norms) -> None:
        """What another text gave."""
        self.counts += other.counts

    @property
    def seen(self) -> int:
        """How many activations."""
        return int(self.counts.sum())

    @property
    def median(self) -> float:
        """To within a thousandth, as if lengths were spread evenly over their part; NaN where there are none."""
        if not self.seen:
            return float("nan")
        before = self.counts.cumsum()
        half = self.seen / 2
        part = int(np.searchsorted(before, half))
        within = 1 - (before[part] - half) / self.counts[part]
        return float(np.ldexp(1 + (part % _EACH + within) / _EACH, part // _EACH + _LOWEST))
