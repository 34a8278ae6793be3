"""Sparse feature activations back to dense activations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gemscope.errors import Mismatch
from gemscope.features.activations import FeatureActivations
from gemscope.features.kernels import Rows
from gemscope.features.prepared import Prepared
from gemscope.features.sliced import spans
from gemscope.shapes import Float

_HEAVY = 1 / 20
"""Share of active features from which on a token is cheaper in a dense product."""
_ENTRIES = 1 << 23
"""Entries of dense activations held at a time: 32 MB."""


@torch.no_grad()
def decode_sparse(
    slices: Sequence[Prepared], b_dec: Float[Tensor, "O"], features: FeatureActivations
) -> Float[Tensor, "... O"]:
    """f @ W_dec + b_dec, reading only the decoder rows of active features. Each slice of an SAE sums up its own; those
    sums are added where `b_dec` lies.
    """
    d_sae = sum(len(ready) for ready in slices)
    if features.d_sae != d_sae:
        raise Mismatch(f"activations of {features.d_sae} features given to an SAE of {d_sae}")
    features = features.to(b_dec.device)
    rows = Rows(features.offsets.long(), features.features.to(torch.int32), features.values.float())
    out = None
    for ready, span in zip(slices, spans([len(ready) for ready in slices]), strict=True):
        part = _decoded(ready, _columns(rows, span, d_sae).to(ready.device)).to(b_dec.device)
        out = part if out is None else out.add_(part)
    assert out is not None
    return out.add_(b_dec.float()).reshape(*features.lead, len(b_dec))


def _decoded(ready: Prepared, rows: Rows) -> Tensor:
    d_sae = len(ready.weights.W_dec)
    heavy = rows.offsets.diff() > _HEAVY * d_sae
    # A dense product of few tokens reads all weights for little.
    few = int(heavy.sum()) < 8
    light = rows if few else rows.where(~heavy[rows.rows])
    out = None
    for features, W_dec in ready.decoder_tiles():
        part = ready.kernels.sums(_columns(light, features, d_sae), W_dec)
        out = part if out is None else out.add_(part)
        if not few:
            _add_dense(out, _columns(rows, features, d_sae), W_dec, heavy)
    assert out is not None
    return out


def _columns(rows: Rows, features: slice, d_sae: int) -> Rows:
    """The entries of some features, counted from the first of them."""
    if features == slice(0, d_sae):
        return rows
    part = rows.where((rows.ids >= features.start) & (rows.ids < features.stop))
    return Rows(part.offsets, part.ids - features.start, part.values)


def _add_dense(out: Tensor, rows: Rows, W_dec: Tensor, heavy: Tensor) -> None:
    for tokens in torch.split(heavy.nonzero().flatten(), max(1, _ENTRIES // len(W_dec))):
        place = torch.full_like(heavy, -1, dtype=torch.int64)
        place[tokens] = torch.arange(len(tokens), device=tokens.device)
        at = place[rows.rows]
        dense = W_dec.new_zeros(len(tokens), len(W_dec))
        dense[at[at >= 0], rows.ids[at >= 0].long()] = rows.values[at >= 0]
        out[tokens] += dense @ W_dec
