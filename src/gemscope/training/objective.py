"""The loss of a JumpReLU SAE and its gradients in closed form, computed only where a feature is active or nearly so.

For one batch of B rows x, with z = x W_enc + b_enc, f = z · 1[z > θ] · 1[z > 0], x̂ = f W_dec + b_dec:

    loss = 1/B Σ ‖x − x̂‖² + λ (L0/L0* − 1)²,      L0 = 1/B Σ 1[f > 0]

Weights get the plain gradient through active entries. Thresholds get the pseudo-derivatives of Rajamanoharan et al.
2024 (arXiv 2407.14435, eqs. 11 and 12) with the rectangle K of width ε around θ, taken on z and only where z > 0:

    ∂f/∂θ = −(θ/ε) K((z − θ)/ε),      ∂1[z > θ]/∂θ = −(1/ε) K((z − θ)/ε)

While few entries lie above θ − ε/2 those alone are computed; while many do (a fresh SAE), dense products are cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gemscope.features.kernels import Kernels, Rows
from gemscope.features.kernels.choice import choose
from gemscope.shapes import Float, Int

_ROWS = 512
"""Rows of a dense step held at a time."""


@dataclass
class Weights:
    """What is trained, one feature a row: `W_enc` [F, D] (the transpose of the SAE's), `b_enc` [F], `W_dec` [F, D],
    `b_dec` [D], `threshold` [F]."""

    W_enc: Float[Tensor, "F D"]
    b_enc: Float[Tensor, "F"]
    W_dec: Float[Tensor, "F D"]
    b_dec: Float[Tensor, "D"]
    threshold: Float[Tensor, "F"]

    def tensors(self) -> dict[str, Tensor]:
        """By name, the very tensors."""
        return dict(vars(self))


@dataclass(frozen=True)
class Step:
    """What one batch says: the loss and its parts, all means over the batch."""

    loss: float
    error: float
    """Mean ‖x − x̂‖²; the FVU where x has mean 0 and mean squared norm 1."""
    l0: float
    window: float
    """Entries per row within ε/2 of their threshold: what the thresholds' gradient is estimated from."""
    firings: Int[Tensor, "F"]


def step(
    weights: Weights,
    x: Float[Tensor, "B D"],
    *,
    bandwidth: float,
    target: float,
    sparsity: float,
    kernels: Kernels | None = None,
    dense: bool | None = None,
) -> tuple[Step, Weights]:
    """Loss and gradients (a `Weights` of the same shapes) on one batch.

    `kernels` are those that suit the device, and `dense` is decided by a look at a few rows, unless given.
    """
    terms = _Terms(bandwidth, target, sparsity, len(x))
    # A little below θ − ε/2, for the window's edge is computed in another order below.
    floor = weights.threshold * (1 - 2.0**-22) - bandwidth / 2 * (1 + 2.0**-22)
    floor.clamp_(min=0)
    kernels = kernels or choose(x.device)
    if _share_above(weights, floor, x) > kernels.sparse_below if dense is None else dense:
        return _dense_step(weights, x, terms)
    return _sparse_step(weights, floor, x, terms, kernels)


@torch.no_grad()
def reconstruct(
    weights: Weights, x: Float[Tensor, "B D"], kernels: Kernels | None = None
) -> tuple[Float[Tensor, "B D"], Int[Tensor, "F"]]:
    """x̂, and how often each feature fired."""
    kernels = kernels or choose(x.device)
    on = kernels.above(kernels.pack(weights.W_enc, weights.b_enc, weights.threshold.clamp(min=0)), x)
    counts = torch.bincount(on.ids, minlength=len(weights.b_enc))
    return kernels.sums(on, weights.W_dec).add_(weights.b_dec), counts


@dataclass(frozen=True)
class _Terms:
    """What the loss of one batch is made of, beside weights and rows."""

    bandwidth: float
    target: float
    sparsity: float
    count: int
    """Rows in the batch."""

    def step(self, error: float, l0: float, window: int, firings: Tensor) -> Step:
        """The loss that the error and the L0 make."""
        return Step(error + self.sparsity * (l0 / self.target - 1) ** 2, error, l0, window / self.count, firings)

    def pulls(self, theta: Tensor, df: Tensor, near: Tensor, l0: float) -> Tensor:
        """∂loss/∂θ: of all entries in a feature's window, θ times ∂loss/∂f and what the sparsity term adds to each.

        `df` is the sum of ∂loss/∂f over the window's entries, `near` their number."""
        each = self.sparsity * 2 * (l0 / self.target - 1) / (self.target * self.count)
        return (theta * df).add_(near, alpha=each).mul_(-1 / self.bandwidth)


def _share_above(weights: Weights, floor: Tensor, x: Tensor) -> float:
    """Of a few rows spread over the batch: a function of the batch alone, so that a run can be repeated."""
    few = x[:: max(1, len(x) // 16)]
    return (torch.addmm(weights.b_enc, few, weights.W_enc.T) > floor).float().mean().item()


def _sparse_step(weights: Weights, floor: Tensor, x: Tensor, terms: _Terms, kernels: Kernels) -> tuple[Step, Weights]:
    n_features, count = len(weights.b_enc), len(x)
    found = kernels.above(kernels.pack(weights.W_enc, weights.b_enc, floor), x)
    theta = weights.threshold[found.ids]
    active = found.values > theta
    window = (found.values - theta).abs_() < terms.bandwidth / 2

    on = found.where(active)
    residual = kernels.sums(on, weights.W_dec).add_(weights.b_dec).sub_(x)
    error = residual.pow(2).sum().item() / count
    l0 = len(on.ids) / count

    g = residual.mul_(2 / count)
    # ∂loss/∂f wherever it is needed: at active entries for the weights, in the window for the thresholds.
    df = kernels.dots(found.offsets, found.ids, g, weights.W_dec)
    df_on, ids_near = df[active], found.ids[window]
    near = torch.bincount(ids_near, minlength=n_features)
    by_feature, origin = kernels.transposed(on, n_features)
    dz = Rows(by_feature.offsets, by_feature.ids, df_on[origin])
    grads = Weights(
        W_enc=kernels.sums(dz, x),
        b_enc=_summed(on.ids, df_on, n_features),
        W_dec=kernels.sums(by_feature, g),
        b_dec=g.sum(0),
        threshold=terms.pulls(weights.threshold, _summed(ids_near, df[window], n_features), near, l0),
    )
    return terms.step(error, l0, len(ids_near), by_feature.offsets.diff()), grads


def _dense_step(weights: Weights, x: Tensor, terms: _Terms) -> tuple[Step, Weights]:
    count, theta = len(x), weights.threshold
    grads = Weights(**{name: torch.zeros_like(tensor) for name, tensor in weights.tensors().items()})
    firings, near, pulled = (torch.zeros_like(theta) for _ in range(3))
    error = 0.0
    buffers = torch.empty(4, min(count, _ROWS), len(theta), device=x.device)
    for rows in torch.split(x, _ROWS):
        z, active, window, df = buffers[:, : len(rows)]
        torch.addmm(weights.b_enc, rows, weights.W_enc.T, out=z)
        # Masks as numbers: torch multiplies and sums those many times faster than booleans.
        torch.gt(z, theta.clamp(min=0), out=active)
        torch.gt(z, (theta - terms.bandwidth / 2).clamp(min=0), out=window)
        window.mul_(torch.lt(z, theta + terms.bandwidth / 2, out=df))
        firings += active.sum(0)
        near += window.sum(0)
        f = z.mul_(active)
        residual = torch.addmm(weights.b_dec, f, weights.W_dec).sub_(rows)
        error += residual.pow(2).sum().item() / count

        g = residual.mul_(2 / count)
        torch.mm(g, weights.W_dec.T, out=df)
        pulled += window.mul_(df).sum(0)
        dz = df.mul_(active)
        grads.W_enc.addmm_(dz.T, rows)
        grads.b_enc += dz.sum(0)
        grads.W_dec.addmm_(f.T, g)
        grads.b_dec += g.sum(0)
    l0 = firings.double().sum().item() / count
    grads.threshold = terms.pulls(theta, pulled, near, l0)
    return terms.step(error, l0, int(near.double().sum()), firings.to(torch.int64)), grads


def _summed(features: Tensor, values: Tensor, n_features: int) -> Tensor:
    return torch.zeros(n_features, dtype=values.dtype, device=values.device).index_add_(0, features, values)
