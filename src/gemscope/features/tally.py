"""Running statistics of every feature over any amount of text: how often, how strongly, how its activations spread.

All sums are of whole numbers, so what comes out depends neither on how the text was cut into batches nor on the order
in which batches or tallies were added: two tallies of two texts, merged, are bit for bit the tally of both.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gemscope.errors import Mismatch, NotFinite
from gemscope.features.activations import FeatureActivations
from gemscope.shapes import Float, Int

BINS = 64
"""Bins of a feature's histogram: equal parts of 0 to the power of two above its maximum, so half or more are in use."""
NEVER = -200
"""Below the exponent of every float32."""
_FRACTION = 32
"""Activations are summed in units of 2^-32, in two halves of 32 bits each."""


class Tally:
    """Counts, sums, maxima and histograms of the activations of F features on counted tokens."""

    def __init__(self, d_sae: int) -> None:
        self.tokens = 0
        """Counted tokens."""
        self.counts = torch.zeros(d_sae, dtype=torch.int64)
        """[F] tokens on which each feature fired."""
        self.max = torch.zeros(d_sae)
        self.bins = torch.zeros(d_sae, BINS, dtype=torch.int64)
        """[F, BINS] firings by activation: bin i of feature f holds i * step(f) ≤ activation < (i + 1) * step(f)."""
        self._sums = torch.zeros(2, d_sae, dtype=torch.int64)

    @property
    def d_sae(self) -> int:
        """Features."""
        return len(self.counts)

    @property
    def exponents(self) -> Int[Tensor, "F"]:
        """The power of two just above each maximum: max < 2^exponent; NEVER for a feature that never fired."""
        return torch.where(self.max > 0, torch.frexp(self.max).exponent.long(), NEVER)

    @property
    def steps(self) -> Float[Tensor, "F"]:
        """Width of each feature's bins; 0 for a feature that never fired."""
        return torch.from_numpy(np.ldexp(np.float32(1 / BINS), self.exponents.numpy()))  # 2^NEVER is 0 in float32

    @property
    def means(self) -> Float[Tensor, "F"]:
        """Mean activation over the tokens on which a feature fired, in float64; 0 for one that never did."""
        high, low = self._sums.double()
        means: Tensor = (high + low * 2.0**-_FRACTION) / self.counts.clamp(min=1)
        return means

    def add(self, features: FeatureActivations) -> None:
        """The counted tokens of one batch. Raises NotFinite for an activation beyond 2^31."""
        ids, values, counted = _counted(features)
        self.tokens += counted
        if not len(ids):
            return
        if not bool((values < 2.0**31).all()):
            raise NotFinite(f"an activation of {values.max().item():.3g}: expected finite numbers below 2^31")
        before = self.exponents
        self.max.scatter_reduce_(0, ids, values, "amax")
        after = self.exponents
        self._widen((after - before).where(self.counts > 0, 0))
        self.counts.index_add_(0, ids, torch.ones_like(ids))
        fixed = values.double().mul_(1 << _FRACTION).round_().long()
        self._sums[0].index_add_(0, ids, fixed >> _FRACTION)
        self._sums[1].index_add_(0, ids, fixed & (1 << _FRACTION) - 1)
        self.bins.view(-1).index_add_(0, ids * BINS + bin_of(values, after[ids]), torch.ones_like(ids))

    def merge(self, other: Tally) -> None:
        """What another text gave. Raises Mismatch for another number of features."""
        if other.d_sae != self.d_sae:
            raise Mismatch(f"a tally of {other.d_sae} features cannot be added to one of {self.d_sae}")
        theirs = Tally.of(other.state())
        top = torch.maximum(self.max, theirs.max)
        for one in (self, theirs):
            before = one.exponents
            one.max.copy_(top)
            one._widen((one.exponents - before).where(one.counts > 0, 0))
        self.tokens += theirs.tokens
        self.counts += theirs.counts
        self.bins += theirs.bins
        self._sums += theirs._sums

    def _widen(self, shifts: Int[Tensor, "F"]) -> None:
        """Bins twice as wide, as often as `shifts` says: neighbours go together."""
        for shift in torch.unique(shifts[shifts > 0]).tolist():
            rows = (shifts == shift).nonzero().flatten()
            together = min(1 << shift, BINS)
            merged = self.bins[rows].view(len(rows), -1, together).sum(-1)
            self.bins[rows] = 0
            self.bins[rows, : merged.shape[1]] = merged

    def state(self) -> dict[str, Tensor]:
        """All of it, to be stored; `of` makes the tally again."""
        return {
            "tokens": torch.tensor([self.tokens]),
            "counts": self.counts.clone(),
            "max": self.max.clone(),
            "bins": self.bins.clone(),
            "sums": self._sums.clone(),
        }

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Tally:
        """The tally whose `state` was stored. Raises ValueError for what was none."""
        top, counts, bins, tokens = state["max"], state["counts"], state["bins"], int(state["tokens"])
        if not (
            ((top >= 0) & (top < 2.0**31) & ((top > 0) == (counts > 0))).all()
            and ((counts >= 0) & (counts <= tokens)).all()
            and ((bins >= 0) & (bins <= counts[:, None])).all()  # so that their sum is one
            and torch.equal(bins.sum(1), counts)
        ):
            raise ValueError("its counts and maxima are no tally's")
        tally = cls(len(state["counts"]))
        tally.tokens = tokens
        tally.counts, tally.max, tally.bins, tally._sums = (
            state[name].clone() for name in ("counts", "max", "bins", "sums")
        )
        if not ((tally._sums >= 0).all() and (tally.means <= top.double() * (1 + 1e-12) + 2.0**-_FRACTION).all()):
            raise ValueError("its sums are no tally's")
        return tally


def bin_of(values: Float[Tensor, "Z"], exponents: Int[Tensor, "Z"], bins: int = BINS) -> Int[Tensor, "Z"]:
    """Which of `bins` equal parts of 0 to 2^exponent each value lies in. Exact: a float32 times a power of two."""
    return torch.from_numpy(np.ldexp(values.double().numpy() * bins, -exponents.numpy())).long()


def _counted(features: FeatureActivations) -> tuple[Tensor, Tensor, int]:
    """Feature ids and values of counted tokens, and how many tokens those are."""
    ids, values = features.features.cpu().long(), features.values.cpu().float()
    if features.counted is None:
        return ids, values, features.n_tokens
    counted = features.counted.cpu().flatten()
    kept = counted[features.tokens.cpu()]
    return ids[kept], values[kept], int(counted.sum())
