"""Sparse feature activations back to dense activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from gemscope.errors import Mismatch
from gemscope.features.activations import FeatureActivations
from gemscope.shapes import Float

if TYPE_CHECKING:
    from gemscope.features.sae import SAE


def decode_sparse(sae: SAE, features: FeatureActivations) -> Float[Tensor, "... O"]:
    """f @ W_dec + b_dec, reading only the decoder rows of active features."""
    if features.d_sae != sae.d_sae:
        raise Mismatch(f"activations of {features.d_sae} features given to an SAE of {sae.d_sae}")
    features = features.to(sae.W_dec.device)
    out = F.embedding_bag(
        features.features.long(),
        sae.W_dec.float(),
        features.offsets.long(),
        mode="sum",
        per_sample_weights=features.values,
        include_last_offset=True,
    )
    return (out + sae.b_dec.float()).reshape(*features.lead, sae.d_out)
