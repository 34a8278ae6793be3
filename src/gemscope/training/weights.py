"""What is trained, one feature a row, and what it makes of scaled rows. Losses and gradients are `objective.py`'s."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gemscope.features.kernels import Kernels, Rows
from gemscope.features.kernels.choice import choose
from gemscope.features.kernels.rows import below
from gemscope.shapes import Float, Int
from gemscope.training.deal import Deal
from gemscope.training.products import FLOAT32, Products

ROWS = 512
"""Rows of a dense step held at a time: what is computed of them stays in a processor's cache."""
_HELD = 1 << 26
"""Entries of a dense step held at a time on a GPU, which is slow on small products."""


@dataclass
class Weights:
    """What is trained, one feature a row: `W_enc` [F, D] (the transpose of the SAE's), `b_enc` [F], `W_dec` [F, O],
    `b_dec` [O], `threshold` [F], and `W_skip` [O, D] where there is one. Of several ranks each has its own features,
    and all have the same `b_dec` and `W_skip`.
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


def alike(name: str) -> bool:
    """Whether a weight, or what a run remembers of one, is the same with every rank; of others each has its features'
    rows.
    """
    return name.endswith(".step") or any(part in ("b_dec", "W_skip") for part in name.split("."))


def at_once(x: Tensor, width: int) -> int:
    """Rows of a dense step over so many features that are held at a time."""
    return ROWS if x.device.type == "cpu" else max(128, _HELD // width)


@torch.no_grad()
def active(
    weights: Weights,
    x: Float[Tensor, "B D"],
    *,
    k: int | None = None,
    kernels: Kernels | None = None,
    deal: Deal | None = None,
) -> Rows:
    """What fires of the features at hand: with `k`, the row's k largest; else what exceeds its threshold."""
    if k is not None:
        return largest(weights, x, k, deal=deal)
    kernels = kernels or choose(x.device)
    return kernels.above(kernels.pack(weights.W_enc, weights.b_enc, weights.threshold.clamp(min=0)), x)


@torch.no_grad()
def reconstruct(
    weights: Weights,
    x: Float[Tensor, "B D"],
    *,
    k: int | None = None,
    kernels: Kernels | None = None,
    deal: Deal | None = None,
) -> tuple[Float[Tensor, "B O"], Int[Tensor, "F"]]:
    """x̂ by the features of all ranks, and how often each of those at hand fired."""
    kernels, deal = kernels or choose(x.device), deal or Deal(len(weights.b_enc))
    on = active(weights, x, k=k, kernels=kernels, deal=deal)
    counts = torch.bincount(on.ids, minlength=len(weights.b_enc))
    out = deal.group.sum_(kernels.sums(on, weights.W_dec)).add_(weights.b_dec)
    return out if weights.W_skip is None else out.addmm_(x, weights.W_skip.T), counts


def lengths(weights: Weights) -> Float[Tensor, "F"]:
    """‖d‖, by which batchtopk ranks; never 0, so that there are ranks where a decoder begins at 0."""
    norms: Tensor = weights.W_dec.norm(dim=-1)
    return norms.clamp_(min=1e-12)


def cut(weights: Weights, share: float) -> Float[Tensor, "F"]:
    """What z must exceed for z‖d‖ to exceed this share of batchtopk's one threshold on it. That is the same with every
    feature, so that the median of some is that of all, to rounding.
    """
    norms = lengths(weights)
    return share * (weights.threshold.clamp(min=0) * norms).median() / norms


def norms_by_part(W_dec: Float[Tensor, "F O"], parts: tuple[int, ...]) -> list[Float[Tensor, "F"]]:
    """Of each site's part of the decoder rows. What a penalty weighs a feature by is their sum."""
    return [part.norm(dim=-1) for part in torch.split(W_dec, list(parts or W_dec.shape[1:]), dim=-1)]


def largest(weights: Weights, x: Tensor, k: int, products: Products = FLOAT32, deal: Deal | None = None) -> Rows:
    """Of each row the k largest entries of all ranks, of those above zero; this rank's of them."""
    parts, encoder, width = [], products.rounded(weights.W_enc), len(weights.b_enc)
    deal = deal or Deal(width)
    for rows in torch.split(x, at_once(x, deal.most)):
        kept = products.affine(weights.b_enc, rows, encoder.T).topk(min(k, width), dim=-1)
        ids, order = kept.indices.sort(dim=-1)
        values = kept.values.masked_fill(~deal.group.among(kept.values, k), 0.0).gather(1, order)
        every = torch.arange(len(rows) + 1, device=x.device) * ids.shape[1]
        found = Rows(every, ids.flatten().to(torch.int32), values.flatten())
        parts.append(found.where(found.values > 0))
    return below(parts)
