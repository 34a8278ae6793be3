"""What an SAE's output is worth: pure functions and running sums. Masks are the caller's; means are over what is given.

Formulas and their names follow Lieberum et al. 2024 (Gemma Scope, arXiv 2408.05147, section 4) where not stated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from gemscope.shapes import Float, Int


@dataclass
class Variance:
    """Running sums for explained variance and its kin over any number of batches, in float64.

    FVU = Σ‖x − x̂‖² / Σ‖x − μ‖²      μ: mean over all tokens added, one global ratio
    EV  = 1 − FVU
    """

    n: int = 0
    error: float = 0.0
    square: float = 0.0
    total: Tensor | None = None
    cosines: float = 0.0

    def add(self, x: Float[Tensor, "N D"], reconstruction: Float[Tensor, "N D"]) -> None:
        """Counted tokens of one batch and what the SAE made of them."""
        if not len(x):
            return
        exact = x.double()
        self.n += len(x)
        self.error += (exact - reconstruction.double()).pow(2).sum().item()
        self.square += exact.pow(2).sum().item()
        self.total = exact.sum(0) if self.total is None else self.total + exact.sum(0)
        self.cosines += F.cosine_similarity(x.float(), reconstruction.float(), dim=-1).double().sum().item()

    @property
    def spread(self) -> float:
        """Σ‖x − μ‖²."""
        return 0.0 if self.total is None else self.square - self.total.pow(2).sum().item() / self.n

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained; NaN for fewer than two tokens."""
        return self.error / self.spread if self.n > 1 and self.spread > 0 else math.nan

    @property
    def explained_variance(self) -> float:
        """1 − FVU."""
        return 1 - self.fvu

    @property
    def cosine(self) -> float:
        """Mean cosine between x and x̂."""
        return self.cosines / self.n if self.n else math.nan


def explained_variance(x: Float[Tensor, "N D"], reconstruction: Float[Tensor, "N D"]) -> float:
    """1 − Σ‖x − x̂‖² / Σ‖x − μ‖² over the tokens given."""
    sums = Variance()
    sums.add(x, reconstruction)
    return sums.explained_variance


def next_token_loss(logits: Float[Tensor, "B T V"], ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T-1"]:
    """Cross-entropy in nats of each next token; entry t is the loss of predicting token t + 1."""
    losses = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(ids), -1)


def kl_divergence(clean: Float[Tensor, "B T V"], other: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
    """KL(clean ‖ other) of the next-token distributions, in nats."""
    p, q = clean.float().log_softmax(-1), other.float().log_softmax(-1)
    terms = p.exp() * (p - q)
    return terms.masked_fill_(p == -math.inf, 0).sum(-1)  # 0 log 0 = 0: ids that the model rules out
