"""The loss of a JumpReLU SAE and its gradients in closed form, computed only where a feature is active or nearly so.

For one batch of B rows x, with z = x W_enc + b_enc, f = z · 1[z > θ] · 1[z > 0], x̂ = f W_dec + b_dec:

    loss = 1/B Σ ‖x − x̂‖² + λ (L0/L0* − 1)²,      L0 = 1/B Σ 1[f > 0]

Weights get the plain gradient through active entries. Thresholds get the pseudo-derivatives of Rajamanoharan et al.
2024 (arXiv 2407.14435, eqs. 11 and 12) with the rectangle K of width ε around θ, taken on z and only where z > 0:

    ∂f/∂θ = −(θ/ε) K((z − θ)/ε),      ∂1[z > θ]/∂θ = −(1/ε) K((z − θ)/ε)

A low-precision matrix product finds the entries above θ − ε/2; those alone are recomputed in float32.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gemscope.shapes import Float, Int


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
class Entries:
    """Pre-activations of the entries (row, feature) above θ − ε/2, in row-major order."""

    offsets: Int[Tensor, "B_and_1"]
    rows: Int[Tensor, "Z"]
    features: Int[Tensor, "Z"]
    z: Float[Tensor, "Z"]


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


@cache
def prefilter_dtype() -> torch.dtype:
    """bfloat16 where this machine multiplies it faster than float32 (measured once), else float32."""
    took = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(256, 512, dtype=dtype), torch.ones(512, 2048, dtype=dtype)
        a @ b
        start = time.perf_counter()
        for _ in range(5):
            a @ b
        took[dtype] = time.perf_counter() - start
    return min(took, key=lambda dtype: took[dtype])


def entries(weights: Weights, x: Float[Tensor, "B D"], bandwidth: float, dtype: torch.dtype | None = None) -> Entries:
    """The entries that the loss and its gradients depend on. `dtype` is the prefilter's."""
    dtype = prefilter_dtype() if dtype is None else dtype
    floor = (weights.threshold - bandwidth / 2).clamp(min=0) - weights.b_enc
    floor -= 2.0**-22 * (weights.threshold + weights.b_enc.abs())  # what float32 may have lost on the way to it
    # Rounding is monotonic, so >= loses nothing to the rounding of the two sides.
    keep = _at_least(x, weights.W_enc, dtype) >= floor.to(dtype)
    flat = np.flatnonzero(keep.numpy())
    rows, features = np.divmod(flat, weights.W_enc.shape[0])
    offsets = np.zeros(len(x) + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows, minlength=len(x)), out=offsets[1:])
    found = torch.from_numpy(offsets), torch.from_numpy(rows), torch.from_numpy(features)
    z = _sampled(found[0], found[2], x, weights.W_enc) + weights.b_enc[found[2]]
    return Entries(*found, z)


def step(
    weights: Weights,
    x: Float[Tensor, "B D"],
    *,
    bandwidth: float,
    target: float,
    sparsity: float,
    dtype: torch.dtype | None = None,
) -> tuple[Step, Weights]:
    """Loss and gradients (a `Weights` of the same shapes) on one batch."""
    found = entries(weights, x, bandwidth, dtype)
    count = len(x)
    theta = weights.threshold[found.features]
    active = (found.z > theta) & (found.z > 0)
    window = ((found.z - theta).abs() < bandwidth / 2) & (found.z > 0)

    on = _Pattern.of(found, active, count, weights.W_enc.shape[0])
    f = found.z[active]
    out = F.embedding_bag(
        on.features, weights.W_dec, on.row_offsets, mode="sum", per_sample_weights=f, include_last_offset=True
    )
    residual = out.add_(weights.b_dec).sub_(x)
    error = residual.pow(2).sum().item() / count
    l0 = len(f) / count
    excess = l0 / target - 1

    g = residual.mul_(2 / count)
    # ∂loss/∂f wherever it is needed: at active entries for the weights, in the window for the thresholds.
    df = _sampled(found.offsets, found.features, g, weights.W_dec)
    dz = df[active]
    per_entry = theta * df + sparsity * 2 * excess / (target * count)
    pulls = -(1 / bandwidth) * per_entry[window]
    grads = Weights(
        W_enc=on.by_feature(x, dz),
        b_enc=_summed(on.features, dz, len(weights.b_enc)),
        W_dec=on.by_feature(g, f),
        b_dec=g.sum(0),
        threshold=_summed(found.features[window], pulls, len(weights.threshold)),
    )
    loss = error + sparsity * excess**2
    return Step(loss, error, l0, window.sum().item() / count, on.counts), grads


@torch.no_grad()
def reconstruct(weights: Weights, x: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B D"], Int[Tensor, "F"]]:
    """x̂, and how often each feature fired."""
    found = entries(weights, x, 0.0)
    active = (found.z > weights.threshold[found.features]) & (found.z > 0)
    on = _Pattern.of(found, active, len(x), weights.W_enc.shape[0])
    out = F.embedding_bag(
        on.features,
        weights.W_dec,
        on.row_offsets,
        mode="sum",
        per_sample_weights=found.z[active],
        include_last_offset=True,
    )
    return out + weights.b_dec, on.counts


def _at_least(x: Float[Tensor, "B D"], W: Float[Tensor, "F D"], dtype: torch.dtype) -> Float[Tensor, "B F"]:
    """x W^T in low precision, raised by a bound on its error, so that no entry comes out below its true value.

    With x̂, ŵ the rounded rows, |x·w − x̂·ŵ| ≤ ‖x − x̂‖ ‖w‖ + ‖x̂‖ ‖w − ŵ‖, and products of D terms summed in float32
    are off by at most D 2^-24 ‖x̂‖ ‖ŵ‖. The bound is a number per row times a number per feature: one more column.
    """
    x_norm, W_norm = x.norm(dim=-1), W.norm(dim=-1)
    x_low, W_low = (torch.empty(len(rows), rows.shape[1] + 1, dtype=dtype) for rows in (x, W))
    x_low[:, :-1], W_low[:, :-1] = x, W
    # 4 instead of 1: the refined z is a float32 sum too, and b_enc is added to it.
    share = 4 * x.shape[1] * 2.0**-24
    if dtype != torch.float32:
        share += _rounded_off(x, x_low[:, :-1], x_norm) + _rounded_off(W, W_low[:, :-1], W_norm)
    x_low[:, -1], W_low[:, -1] = x_norm * (1.02 * share), W_norm  # 1.02: both are rounded in their turn, by 2^-8
    return x_low @ W_low.T


def _rounded_off(exact: Tensor, rounded: Tensor, norm: Tensor) -> float:
    """The largest ‖row − rounded row‖ / ‖row‖."""
    return float(((exact - rounded).norm(dim=-1) / norm.clamp(min=1e-30)).max())


@dataclass(frozen=True)
class _Pattern:
    """Which entries are active, by row and by feature."""

    row_offsets: Int[Tensor, "B_and_1"]
    rows: Int[Tensor, "Z"]
    features: Int[Tensor, "Z"]
    counts: Int[Tensor, "F"]

    @classmethod
    def of(cls, found: Entries, active: Tensor, n_rows: int, n_features: int) -> _Pattern:
        rows, features = found.rows[active], found.features[active]
        offsets = torch.zeros(n_rows + 1, dtype=torch.int64)
        offsets[1:] = torch.bincount(rows, minlength=n_rows).cumsum(0)
        return cls(offsets, rows, features, torch.bincount(features, minlength=n_features))

    def by_feature(self, source: Float[Tensor, "B D"], weight: Float[Tensor, "Z"]) -> Float[Tensor, "F D"]:
        """For each feature the sum of `source`'s rows where it is active, weighted: a matrix product with the
        transposed sparse matrix, in a fixed order and without atomic adds."""
        order = self.features.argsort(stable=True)
        offsets = torch.zeros(len(self.counts) + 1, dtype=torch.int64)
        offsets[1:] = self.counts.cumsum(0)
        return F.embedding_bag(
            self.rows[order], source, offsets, mode="sum", per_sample_weights=weight[order], include_last_offset=True
        )


def _sampled(offsets: Tensor, features: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """left[row] · right[feature] for every entry, in float32."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        pattern = torch.sparse_csr_tensor(
            offsets, features, left.new_zeros(len(features)), (len(left), len(right)), check_invariants=False
        )
        values: Tensor = torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values()
        return values


def _summed(features: Tensor, values: Tensor, n_features: int) -> Tensor:
    return torch.zeros(n_features, dtype=values.dtype).index_add_(0, features, values)
