"""From what was trained on centred and scaled rows to weights that read and write activations as they are; exact, in
float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gemscope.shapes import Float
from gemscope.training.weights import Weights


@dataclass(frozen=True)
class Scale:
    """x' = (x − mean) · factor, so that x' has mean 0 (unless it is not centred) and mean squared norm 1, to which
    each of S sites side by side adds 1/S.
    """

    mean: Float[Tensor, "D"]
    factor: Float[Tensor, "D"]
    widths: tuple[int, ...]
    """Numbers of each site."""

    @classmethod
    def of(cls, x: Float[Tensor, "N D"], widths: tuple[int, ...], *, centre: bool = True) -> Scale:
        """From rows of sites of these widths side by side."""
        exact = x.double()
        mean = exact.mean(0) if centre else torch.zeros_like(exact[0])
        factors = [
            (part.pow(2).sum(-1).mean() * len(widths)).rsqrt().expand(width)
            for part, width in zip(torch.split(exact - mean, list(widths), dim=-1), widths, strict=True)
        ]
        return cls(mean.float(), torch.cat(factors).float(), tuple(widths))

    @property
    def lengths(self) -> tuple[float, ...]:
        """By site, the root of its mean squared norm (of what is left without the mean)."""
        first = [part[0].item() for part in torch.split(self.factor, list(self.widths))]
        return tuple(1 / (factor * len(first) ** 0.5) for factor in first)

    def to(self, device: torch.device) -> Scale:
        """The same for rows that lie elsewhere."""
        return Scale(self.mean.to(device), self.factor.to(device), self.widths)

    def __call__(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Rows as they are trained on."""
        return (x - self.mean).mul_(self.factor)


def folded(weights: Weights, x: Scale, y: Scale, *, pre_bias: bool = False, free: bool = True) -> dict[str, Tensor]:
    """An SAE's weights by name, its decoder rows of norm 1 where they are `free` to be scaled: the k largest of
    activations (topk) are others once each is scaled by a number of its own.

    With c the factors and m the means of either side, D = W_dec / c_y, n = ‖D_i‖ (1 where not free), and x' as above:

        f n = gate((x ∘ c_x − m ∘ c_x) W_enc + b_enc) n      features are counted in units of their written norm
        ŷ = m_y + (Σ f W_dec + b_dec + x' W_skip) / c_y
    """
    W_enc, W_dec = weights.W_enc.double(), weights.W_dec.double() / y.factor.double()
    b_enc = weights.b_enc.double()
    if pre_bias:
        b_enc = b_enc - W_enc @ weights.b_dec.double()
    norm = W_dec.norm(dim=-1).clamp(min=1e-12) if free else torch.ones_like(b_enc)
    inward = W_enc * x.factor.double()
    out = {
        "W_enc": (inward * norm[:, None]).T,
        "b_enc": (b_enc - inward @ x.mean.double()) * norm,
        "W_dec": W_dec / norm[:, None],
        "b_dec": y.mean.double() + weights.b_dec.double() / y.factor.double(),
        "threshold": weights.threshold.double() * norm,
    }
    if weights.W_skip is not None:
        skip = weights.W_skip.double() * x.factor.double() / y.factor.double()[:, None]
        out["W_skip"] = skip
        out["b_dec"] = out["b_dec"] - skip @ x.mean.double()
    return {name: tensor.float().contiguous() for name, tensor in out.items()}
