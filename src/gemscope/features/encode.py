"""Dense activations to sparse feature activations, without ever holding [tokens, features] at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemscope.features.activations import FeatureActivations
from gemscope.shapes import Bool, Float

if TYPE_CHECKING:
    from gemscope.features.sae import SAE

_TILE = 1 << 24
"""Pre-activations held at a time: 64 MB in float32."""


def encode_sparse(sae: SAE, x: Float[Tensor, "... D"], counted: Bool[Tensor, "..."] | None) -> FeatureActivations:
    """`sae.gated(x @ W_enc + b_enc)` in tiles of tokens, keeping the non-zero entries."""
    flat = x.reshape(-1, sae.d_in)
    W_enc, b_enc = sae.W_enc.float(), sae.b_enc.float()
    each = max(1, _TILE // sae.d_sae)
    counts, features, values = [], [], []
    for tile in torch.split(flat, each):
        acts = sae.gated(torch.addmm(b_enc, tile, W_enc))
        tokens, ids = acts.nonzero(as_tuple=True)
        counts.append(torch.bincount(tokens, minlength=len(tile)))
        features.append(ids.to(torch.int32))
        values.append(acts[tokens, ids])
    offsets = torch.zeros(len(flat) + 1, dtype=torch.int64, device=x.device)
    if counts:
        offsets[1:] = torch.cat(counts).cumsum(0)
    return FeatureActivations(
        offsets,
        torch.cat(features) if features else torch.zeros(0, dtype=torch.int32, device=x.device),
        torch.cat(values) if values else x.new_zeros(0),
        sae.d_sae,
        tuple(x.shape[:-1]),
        counted,
    )
