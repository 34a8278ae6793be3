"""What an SAE's output is worth: pure functions and running sums. Masks are the caller's; means are over what is given.

Formulas and their names follow Lieberum et al. 2024 (Gemma Scope, arXiv 2408.05147, section 4) where not stated.
docs/score.md says why these and not others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gemscope.features.activations import FeatureActivations
from gemscope.shapes import Bool, Float, Int

DENSE = 0.1
"""A feature that fires on more than this share of tokens is dense."""

_PIECE, _THERE = 1 << 20, 1 << 25
"""Numbers of a vocabulary-wide matrix that are held in float32 at a time: a few tens of tokens, which the processor's
cache holds; and on another device, where each piece costs a start.
"""


@dataclass
class Variance:
    """Running sums for explained variance and its kin over any number of batches, in float64.

    FVU = Σ‖x − x̂‖² / Σ‖x − μ‖²      μ: mean over all tokens added, one global ratio
    EV  = 1 − FVU
    """

    n: int = 0
    total: Tensor | None = None
    """[D] Σ x"""
    _sums: Tensor | None = field(default=None, init=False)
    """Of the squared error, ‖x‖², cosines, ratios of lengths, ‖x̂‖², x·x̂: where the activations are, so that nobody
    waits for them."""

    def add(self, x: Float[Tensor, "N D"], reconstruction: Float[Tensor, "N D"]) -> None:
        """Counted tokens of one batch and what the SAE made of them."""
        if not len(x):
            return
        exact, back = x.double(), reconstruction.double()
        self.n += len(x)
        self.total = exact.sum(0) if self.total is None else self.total + exact.sum(0)
        squares, written, products = exact.pow(2).sum(-1), back.pow(2).sum(-1), (exact * back).sum(-1)
        # Where a norm is 0 there is no direction and nothing to compare with: 0, as elsewhere.
        cosines = products / (squares * written).sqrt().clamp(min=1e-16)
        ratios = torch.where(squares > 0, (written / squares).sqrt(), 0)
        parts = ((exact - back).pow(2), squares, cosines, ratios, written, products)
        sums = torch.stack([part.sum() for part in parts])
        self._sums = sums if self._sums is None else self._sums + sums

    def merge(self, other: Variance) -> None:
        """What other text gave. Sums of float64: the order counts in the last digits."""
        self.n += other.n
        if other.total is not None:
            self.total = other.total if self.total is None else self.total + other.total
        if other._sums is not None:
            self._sums = other._sums if self._sums is None else self._sums + other._sums

    def state(self) -> dict[str, Tensor]:
        """All of it, to be stored; `of` makes it again."""
        total = torch.zeros(0, dtype=torch.float64) if self.total is None else self.total
        return {"n": torch.tensor([self.n]), "total": total, "sums": torch.tensor(self.sums, dtype=torch.float64)}

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Variance:
        """The sums whose `state` was stored. Raises ValueError for what were none."""
        made, number = cls(), int(state["n"])
        if number < 0 or not all(part.isfinite().all() for part in state.values()):
            raise ValueError("its sums are no such sums")
        if number:
            made.n, made.total, made._sums = number, state["total"], state["sums"]
        return made

    @property
    def sums(self) -> list[float]:
        """Σ‖x − x̂‖², Σ‖x‖², Σ cos(x, x̂), Σ‖x̂‖ / ‖x‖, Σ‖x̂‖², Σ x·x̂."""
        return [0.0] * 6 if self._sums is None else list(map(float, self._sums.tolist()))

    @property
    def mean(self) -> Float[Tensor, "D"]:
        """μ, in float64. Only after something was added."""
        assert self.total is not None
        return self.total / self.n

    @property
    def spread(self) -> float:
        """Σ‖x − μ‖²."""
        return 0.0 if self.total is None else self.sums[1] - self.total.pow(2).sum().item() / self.n

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained; NaN for fewer than two tokens, and where all are alike."""
        # Of equal tokens rounding leaves some 1e-16 of the squares, which would make anything of the fraction.
        error, square, *_ = self.sums
        return error / self.spread if self.n > 1 and self.spread > 1e-12 * square else math.nan

    @property
    def explained_variance(self) -> float:
        """1 − FVU."""
        return 1 - self.fvu

    @property
    def cosine(self) -> float:
        """Mean cosine between x and x̂."""
        return self.sums[2] / self.n if self.n else math.nan

    @property
    def l2_ratio(self) -> float:
        """Mean ‖x̂‖ / ‖x‖: below 1, reconstructions are too short."""
        return self.sums[3] / self.n if self.n else math.nan

    @property
    def relative_bias(self) -> float:
        """γ = E‖x̂‖² / E[x·x̂], the factor by which x̂ is too long (Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 10).

        x̂ / γ is the rescaled reconstruction with the least error: γ < 1 is shrinkage. NaN where Σ x·x̂ is 0.
        """
        *_, written, product = self.sums
        return written / product if product else math.nan


def explained_variance(x: Float[Tensor, "N D"], reconstruction: Float[Tensor, "N D"]) -> float:
    """1 − Σ‖x − x̂‖² / Σ‖x − μ‖² over the tokens given."""
    sums = Variance()
    sums.add(x, reconstruction)
    return sums.explained_variance


class Firings:
    """How often each feature fires and how many fire at once, counted exactly over any number of batches.

    Fires: f ≠ 0. Density of a feature = tokens on which it fires / tokens. L0 of a token = features that fire on it.
    """

    def __init__(self, d_sae: int) -> None:
        self.n = 0
        self._counts = torch.zeros(2 * d_sae + 1, dtype=torch.int64)
        """Of features, and of numbers of active features: where they come in, until they are asked for."""

    def add(self, features: FeatureActivations) -> None:
        """The features of one batch of counted tokens."""
        l0, ids = features.l0.flatten(), features.features
        self.n += len(l0)
        self._counts = self._counts.to(ids.device)
        places = torch.cat([ids.long(), l0.long() + len(self._counts) // 2])
        self._counts.index_add_(0, places, torch.ones_like(places))

    def merge(self, other: Firings) -> None:
        """What other text gave."""
        self.n += other.n
        self._counts = self._counts.cpu() + other._counts.cpu()

    def state(self) -> dict[str, Tensor]:
        """All of it, to be stored; `of` makes it again."""
        self._counts = self._counts.cpu()
        return {"n": torch.tensor([self.n]), "counts": self._counts}

    @classmethod
    def of(cls, state: Mapping[str, Tensor], d_sae: int) -> Firings:
        """The counts whose `state` was stored. Raises ValueError for what were none."""
        made, number, counts = cls(d_sae), int(state["n"]), state["counts"]
        # As many tokens as have any number of active features; on no more of them does one fire.
        if not (counts >= 0).all() or (counts > number).any() or counts[d_sae:].sum() != number:
            raise ValueError("its counts are no such counts")
        made.n, made._counts = number, counts
        return made

    @property
    def of_feature(self) -> Int[Tensor, "F"]:
        """Tokens on which each feature fired."""
        self._counts = self._counts.cpu()
        return self._counts[: len(self._counts) // 2]

    @of_feature.setter
    def of_feature(self, counts: Int[Tensor, "F"]) -> None:
        self.of_feature.copy_(counts)

    @property
    def of_l0(self) -> Int[Tensor, "starts"]:
        """[l] tokens with exactly l active features."""
        self._counts = self._counts.cpu()
        return self._counts[len(self._counts) // 2 :]

    @of_l0.setter
    def of_l0(self, counts: Int[Tensor, "starts"]) -> None:
        self.of_l0.copy_(counts)

    @property
    def l0(self) -> float:
        """Mean L0."""
        return self.of_feature.sum().item() / self.n if self.n else math.nan

    @property
    def l0_std(self) -> float:
        """Standard deviation of L0 over tokens (that of these tokens: divided by n)."""
        if not self.n:
            return math.nan
        values = torch.arange(len(self.of_l0), dtype=torch.float64)
        return math.sqrt(((values - self.l0).pow(2) * self.of_l0).sum().item() / self.n)

    def l0_quantile(self, share: float) -> int:
        """The least L0 that at least this share of tokens does not exceed."""
        reached = self.of_l0.cumsum(0) >= math.ceil(share * self.n - 1e-9)
        return int(reached.int().argmax())

    @property
    def dead(self) -> float:
        """Share of features that never fired."""
        return (self.of_feature == 0).double().mean().item()

    @property
    def dense(self) -> float:
        """Share of features that fired on more than a tenth of the tokens."""
        return (self.of_feature > DENSE * self.n).double().mean().item()

    def densities(self, per_decade: int = 4) -> tuple[float, float, tuple[int, ...]]:
        """log10 of the density of living features as a histogram: where it starts, its step, features in each bin.

        Bins are [start + i · step, start + (i + 1) · step), from just below one firing up to 0, where the last one
        closes: density 1.
        """
        if not self.n:
            return 0.0, 1 / per_decade, ()
        bins = math.floor(math.log10(self.n) * per_decade) + 1
        living = self.of_feature[self.of_feature > 0].double()
        place = (living / self.n).log10().mul(per_decade).floor().long().clamp(-bins, -1) + bins
        return -bins / per_decade, 1 / per_decade, tuple(torch.bincount(place, minlength=bins).tolist())

    def l0s(self, most: int = 40) -> tuple[float, float, tuple[int, ...]]:
        """L0 over tokens as a histogram of at most so many bins of one whole width, from 0."""
        top = int(self.of_l0.nonzero().max()) if self.n else 0
        step = max(1, math.ceil((top + 1) / most))
        bins = top // step + 1
        padded = torch.zeros(bins * step, dtype=torch.int64)
        kept = self.of_l0[: bins * step]
        padded[: len(kept)] = kept
        return 0.0, float(step), tuple(padded.view(bins, step).sum(1).tolist())


class Predictions:
    """What a model predicts after chosen tokens, given its logits.

    Works through the vocabulary a few tokens at a time, in float32: beside the logits themselves it holds a few
    megabytes, whatever the vocabulary and however many tokens.
    """

    def __init__(self, logits: Float[Tensor, "B T V"], where: Bool[Tensor, "B T"]) -> None:
        self._logits = logits.flatten(0, 1)
        self._rows = where.flatten().nonzero().flatten().to(logits.device)
        self._log_z = torch.cat([self._empty, *(piece.logsumexp(-1) for piece in self._pieces())])

    def __len__(self) -> int:
        return len(self._rows)

    def loss(self, following: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
        """Cross-entropy in nats of the id that follows each chosen token: log Σ exp z − z[id]."""
        chosen = self._logits[self._rows, following.to(self._rows.device)].float()
        return self._log_z - chosen

    def divergence(self, other: Predictions) -> Float[Tensor, "N"]:
        """KL(self ‖ other) in nats after each chosen token: Σ p (z − z′) − (log Σ exp z − log Σ exp z′), p = softmax z.

        Both must be of the same tokens.
        """
        # Where both models rule an id out (a logit of −inf), it adds 0 log 0 = 0.
        sums = self._products(other)
        if not sums.isfinite().all():
            sums = self._products(other, ruled_out=True)
        return sums - (self._log_z - other._log_z)

    def _products(self, other: Predictions, *, ruled_out: bool = False) -> Float[Tensor, "N"]:
        """Σ p (z − z′); `ruled_out` looks for what either model rules out, which takes longer."""
        sums = [self._empty]
        start = 0
        for z, q in zip(self._pieces(), other._pieces(), strict=True):
            difference = torch.sub(z, q, out=q)
            p = z.sub_(self._log_z[start : start + len(z), None]).exp_()
            start += len(z)
            terms = difference.mul_(p)
            sums.append((terms.masked_fill_(p == 0, 0) if ruled_out else terms).sum(-1))
        return torch.cat(sums)

    @property
    def _empty(self) -> Float[Tensor, "0"]:
        return torch.zeros(0, device=self._logits.device)

    def _pieces(self) -> Iterator[Float[Tensor, "M V"]]:
        """Copies in float32, free to be written over."""
        piece = _PIECE if self._logits.device.type == "cpu" else _THERE
        for rows in torch.split(self._rows, max(1, piece // self._logits.shape[-1])):
            yield self._logits[rows].to(torch.float32, copy=True)


def recovered(clean: float, spliced: float, ablated: float) -> float:
    """Loss recovered, (ablated − spliced) / (ablated − clean): 1 when the SAE costs nothing, 0 when it is worth no more
    than the ablation. NaN where the ablation costs nothing.

    With KL in the place of losses (`clean` 0) it is SAELens's KL score.
    """
    return (ablated - spliced) / (ablated - clean) if ablated != clean else math.nan
