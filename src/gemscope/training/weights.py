"""What is trained, one feature a row, and what it makes of scaled rows. Losses and gradients are `objective.py`'s."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gemscope.features.kernels import Kernels, Rows
from gemscope.features.kernels.choice import choose
from gemscope.features.kernels.rows import below
from gemscope.shapes import Float, Int
from gemscope.training.products import FLOAT32, Products

ROWS = 512
"""Rows of a dense step held at a time: what is computed of them stays in a processor's cache."""
_HELD = 1 << 26
"""Entries of a dense step held at a time on a GPU, which is slow on small products."""


@dataclass
class Weights:
    """What is trained, one feature a row: `W_enc` [F, D] (the transpose of the SAE's), `b_enc` [F], `W_dec` [F, O],
    `b_dec` [O], `threshold` [F], and `W_skip` [O, D] where there is one.
    """

    W_enc: Float[Tensor, "F D"]
    b_enc: Float[Tensor, "F"]
    W_dec: Float[Tensor, "F O"]
    b_dec: Float[Tensor, "O"]
    threshold: Float[Tensor, "F"]
    W_skip: Float[Tensor, "O D"] | None = None

    def to(self, device: torch.device) -> Weights:
        """The same elsewhere; itself where it lies there."""
        return type(self)(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """By name, the very tensors."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}


def at_once(x: Tensor, width: int) -> int:
    """Rows of a dense step over so many features that are held at a time."""
    return ROWS if x.device.type == "cpu" else max(128, _HELD // width)


@torch.no_grad()
def reconstruct(
    weights: Weights, x: Float[Tensor, "B D"], *, k: int | None = None, kernels: Kernels | None = None
) -> tuple[Float[Tensor, "B O"], Int[Tensor, "F"]]:
    """x̂, and how often each feature fired. With `k`, the row's k largest fire; else what exceeds its threshold."""
    kernels = kernels or choose(x.device)
    if k is None:
        on = kernels.above(kernels.pack(weights.W_enc, weights.b_enc, weights.threshold.clamp(min=0)), x)
    else:
        on = largest(weights, x, k)
    counts = torch.bincount(on.ids, minlength=len(weights.b_enc))
    out = kernels.sums(on, weights.W_dec).add_(weights.b_dec)
    return out if weights.W_skip is None else out.addmm_(x, weights.W_skip.T), counts


def lengths(weights: Weights) -> Float[Tensor, "F"]:
    """‖d‖, by which batchtopk ranks; never 0, so that there are ranks where a decoder begins at 0."""
    norms: Tensor = weights.W_dec.norm(dim=-1)
    return norms.clamp_(min=1e-12)


def cut(weights: Weights, share: float) -> Float[Tensor, "F"]:
    """What z must exceed for z‖d‖ to exceed this share of batchtopk's one threshold on it."""
    norms = lengths(weights)
    return share * (weights.threshold.clamp(min=0) * norms).median() / norms


def norms_by_part(W_dec: Float[Tensor, "F O"], parts: tuple[int, ...]) -> list[Float[Tensor, "F"]]:
    """Of each site's part of the decoder rows. What a penalty weighs a feature by is their sum."""
    return [part.norm(dim=-1) for part in torch.split(W_dec, list(parts or W_dec.shape[1:]), dim=-1)]


def largest(weights: Weights, x: Tensor, k: int, products: Products = FLOAT32) -> Rows:
    """Of each row the k largest entries, of those above zero."""
    parts, encoder, width = [], products.rounded(weights.W_enc), len(weights.b_enc)
    for rows in torch.split(x, at_once(x, width)):
        kept = products.affine(weights.b_enc, rows, encoder.T).topk(min(k, width), dim=-1)
        ids, order = kept.indices.sort(dim=-1)
        values = kept.values.gather(1, order)
        every = torch.arange(len(rows) + 1, device=x.device) * ids.shape[1]
        found = Rows(every, ids.flatten().to(torch.int32), values.flatten())
        parts.append(found.where(found.values > 0))
    return below(parts)
