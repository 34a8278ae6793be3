"""The gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014): which features fire and how strongly are learned apart.
A JumpReLU SAE does the same with one encoder, and it is exported as one; here for comparison, by dense autograd.

    z = x W_enc + b_enc,      m = e^r z' + b_mag with z' = x W_enc,      f = 1[z > 0] max(m, 0)
    loss = 1/B Σ ‖y − x̂‖² + λ 1/B Σ max(z_i, 0) n_i' + 1/B Σ ‖y − (max(z, 0) W_dec' + b_dec')‖²

where ' says that a term does not move the decoder, nor its norms n. Were the penalty to shrink them, magnitudes would
make up for it at once and the gates would be left behind, open.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gemscope.shapes import Float
from gemscope.training.deal import Deal
from gemscope.training.group import Group
from gemscope.training.objective import Step, Terms
from gemscope.training.weights import Weights, at_once, norms_by_part


@dataclass
class GatedWeights(Weights):
    """`r_mag` and `b_mag` [F] beside the others; `threshold` is not used."""

    r_mag: Float[Tensor, "F"] | None = None
    b_mag: Float[Tensor, "F"] | None = None

    @classmethod
    def of(cls, weights: Weights) -> GatedWeights:
        """With magnitudes that equal the gate's pre-activations."""
        zero = torch.zeros_like(weights.b_enc)
        return cls(**weights.tensors(), r_mag=zero, b_mag=zero.clone())

    def as_jumprelu(self) -> Weights:
        """The same function: z > 0 just where m > b_mag − e^r b_enc."""
        assert self.r_mag is not None
        assert self.b_mag is not None
        scale = self.r_mag.exp()
        return Weights(
            W_enc=self.W_enc * scale[:, None],
            b_enc=self.b_mag.clone(),
            W_dec=self.W_dec,
            b_dec=self.b_dec,
            threshold=(self.b_mag - scale * self.b_enc).clamp(min=0),
            W_skip=self.W_skip,
        )


def gated_step(
    weights: GatedWeights,
    x: Float[Tensor, "B D"],
    y: Float[Tensor, "B O"],
    terms: Terms,
    *,
    deal: Deal | None = None,
) -> tuple[Step, GatedWeights]:
    """Loss and gradients (weights of the same shapes) on one batch, by the features of all ranks of a `deal`."""
    deal = deal or Deal(len(weights.b_enc))
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in weights.tensors().items()}
    held = replace(weights, **leaves)
    count, parts = len(x), []
    firings = torch.zeros(len(weights.b_enc), dtype=torch.int64, device=x.device)
    rows = at_once(x, deal.most)
    for part, wanted in zip(torch.split(x, rows), torch.split(y, rows), strict=True):
        *sums, fired = _loss(held, part, wanted, terms, deal.group)
        (sum(sums[1:], sums[0]) / count).backward()  # type: ignore[no-untyped-call]
        parts.append(torch.stack(sums).detach())
        firings += fired
    error, penalty, frozen = (sum(one / count for one in column) for column in torch.stack(parts).T.tolist())
    penalty = deal.group.total(penalty)  # each rank's own; all else is of all of them
    loss = error + penalty + frozen
    grads = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
    told = Step(loss, error, deal.group.total(firings.sum().item()) / count, 0.0, firings, penalty=penalty)
    return told, replace(weights, **grads)


def _loss(
    held: GatedWeights, x: Tensor, y: Tensor, terms: Terms, group: Group
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The parts of the loss, and how often each feature fired."""
    assert held.r_mag is not None
    assert held.b_mag is not None
    raw = x @ held.W_enc.T
    gate = raw + held.b_enc
    fires = gate > 0
    f = fires * torch.relu(held.r_mag.exp() * raw + held.b_mag)
    beside = 0.0 if held.W_skip is None else x @ held.W_skip.T
    open_ = torch.relu(gate)
    written, gated = f @ held.W_dec, open_ @ held.W_dec.detach()
    if group.size > 1:
        written, gated = _Summed.apply(torch.stack([written, gated]), group)  # type: ignore[no-untyped-call]
    error = (y - (written + held.b_dec + beside)).pow(2).sum()
    norms = torch.stack(norms_by_part(held.W_dec.detach(), terms.parts)).sum(0)
    rare = terms.sparsity * (open_ * norms).sum()
    skip = 0.0 if held.W_skip is None else x @ held.W_skip.detach().T
    frozen = (y - (gated + held.b_dec.detach() + skip)).pow(2).sum()
    return error, rare, frozen, (f > 0).sum(0)


class _Summed(torch.autograd.Function):
    """The sum of what all ranks write. All have the same loss of it, and so its gradient without a word."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Group) -> Tensor:
        return group.sum_(part.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
