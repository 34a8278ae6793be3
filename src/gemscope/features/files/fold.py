"""Arithmetic of folding: in float64, and what comes of it never rounded below float32, whatever a file is in. Half
precision would move features across their thresholds.
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
    """The product, rounded once."""
    return rounded(tensor.double() * factor, tensor)


def through(vector: Float[Tensor, "D"], W: Float[Tensor, "D F"]) -> Float[Tensor, "F"]:
    """vector @ W in float64, without a copy of W in it."""
    out = torch.zeros(W.shape[1], dtype=torch.float64)
    for rows, part in zip(torch.split(W, _ROWS), torch.split(vector, _ROWS), strict=True):
        out += part.double() @ rows.double()
    return out
