"""Arithmetic of folding: in float64, and what comes of it never rounded below float32, whatever a file is in. Half
precision would move features across their thresholds. What several formats do before or behind their weights is folded
into weights here, of the names and shapes that SAE has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gemscope.shapes import Float

_ROWS = 256
"""Of a matrix in float64 at a time."""


def rounded(exact: Tensor, stored: Tensor) -> Tensor:
    """What came of a stored tensor, in its format or in float32."""
    return exact.to(torch.promote_types(stored.dtype, torch.float32))


def times(tensor: Tensor, factor: float | Tensor) -> Tensor:
    """The product, rounded once; a matrix some rows at a time, as it lies in memory."""
    factors = torch.as_tensor(factor, dtype=torch.float64).expand(tensor.shape)
    out = torch.empty_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
    for piece, part, by in zip(*(torch.split(one, _ROWS) for one in (out, tensor, factors)), strict=True):
        piece.copy_(part.double() * by)
    return out


def through(vector: Float[Tensor, "D"], W: Float[Tensor, "D F"]) -> Float[Tensor, "F"]:
    """vector @ W in float64, without a copy of W in it."""
    out = torch.zeros(W.shape[1], dtype=torch.float64)
    for rows, part in zip(torch.split(W, _ROWS), torch.split(vector, _ROWS), strict=True):
        out += part.double() @ rows.double()
    return out


def fold_input_bias(tensors: dict[str, Tensor]) -> None:
    """(x − b_dec) @ W_enc + b_enc = x @ W_enc + (b_enc − b_dec @ W_enc)."""
    W_enc, b_dec = tensors["W_enc"], tensors["b_dec"]
    tensors["b_enc"] = rounded(tensors["b_enc"].double() - through(b_dec, W_enc), tensors["b_enc"])


def fold_decoder_norms(tensors: dict[str, Tensor]) -> None:
    """Pre-activations times the norm of their decoder row, and that row of norm 1: the same is written, in its units. A
    threshold stays: whoever calls this knows on which side of it the norms are.
    """
    rows = torch.split(tensors["W_dec"], _ROWS)
    norm = torch.cat([part.double().norm(dim=1) for part in rows])
    tensors["W_enc"] = times(tensors["W_enc"], norm)
    tensors["b_enc"] = times(tensors["b_enc"], norm)
    tensors["W_dec"] = times(tensors["W_dec"], torch.where(norm > 0, 1 / norm, 0.0).unsqueeze(1))


def fold_scales(tensors: dict[str, Tensor], scale_in: float, scale_out: float) -> None:
    """(s·x) @ W_enc = x @ (s·W_enc), and what comes out is in units of the other scale: features as they were."""
    tensors["W_enc"] = times(tensors["W_enc"], scale_in)
    tensors["W_dec"] = times(tensors["W_dec"], 1 / scale_out)
    tensors["b_dec"] = times(tensors["b_dec"], 1 / scale_out)


def fold_gate(tensors: dict[str, Tensor]) -> None:
    """A gated SAE (of b_gate, b_mag, r_mag) as a JumpReLU one (Rajamanoharan et al. 2024, appendix H).

    Active where x @ W_enc + b_gate > 0, of strength relu(x @ (W_enc · e^r) + b_mag). Multiplying the gate by e^r > 0
    makes it a threshold on the strength's own pre-activation: z > b_mag − b_gate · e^r.
    """
    grown = tensors.pop("r_mag").double().exp()
    b_gate, b_mag = tensors.pop("b_gate"), tensors.pop("b_mag")
    tensors["W_enc"] = times(tensors["W_enc"], grown)
    tensors["b_enc"] = b_mag
    tensors["threshold"] = rounded(b_mag.double() - b_gate.double() * grown, b_mag)


def mean_free(W_enc: Tensor) -> Tensor:
    """What reads x as W_enc reads x − mean(x): (x − mean(x)) @ W = x @ (W − the mean of W's rows)."""
    mean = through(torch.full((len(W_enc),), 1 / len(W_enc), dtype=torch.float64), W_enc)
    out = torch.empty_like(W_enc, dtype=torch.promote_types(W_enc.dtype, torch.float32))
    for piece, part in zip(torch.split(out, _ROWS), torch.split(W_enc, _ROWS), strict=True):
        piece.copy_(part.double() - mean)
    return out
