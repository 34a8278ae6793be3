"""The matrix products of a training step: of float32 numbers, or of the same rounded to bfloat16, which GPUs multiply
several times as fast. What is summed and what is learned is float32 in either.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gemscope.shapes import Float


@dataclass(frozen=True)
class Products:
    """How rows are multiplied."""

    of: torch.dtype = torch.float32
    """float32 or bfloat16."""

    def rounded(self, rows: Float[Tensor, "N O"]) -> Float[Tensor, "N M"]:
        """As they are multiplied; the very tensor in float32."""
        return rows.to(self.of)

    def mm(
        self, left: Float[Tensor, "N K"], right: Float[Tensor, "K O"], *, out: Float[Tensor, "N O"] | None = None
    ) -> Float[Tensor, "N O"]:
        """left · right, in `out` where that saves memory."""
        if self.of == torch.float32:
            return torch.mm(left, right, out=out)
        left, right = self.rounded(left), self.rounded(right)
        if left.is_cuda:
            try:
                return torch.mm(left, right, out_dtype=torch.float32)
            except TypeError:  # torch before 2.8, which rounds the sums as well
                return torch.mm(left, right).float()
        return torch.mm(left.float(), right.float(), out=out)  # the same products: those of bfloat16 are exact

    def into(self, out: Float[Tensor, "N O"], left: Float[Tensor, "N K"], right: Float[Tensor, "K O"]) -> None:
        """Writes left · right to `out`."""
        if (product := self.mm(left, right, out=out)) is not out:
            out.copy_(product)

    def add(self, out: Float[Tensor, "N O"], left: Float[Tensor, "N K"], right: Float[Tensor, "K O"]) -> None:
        """Adds left · right to `out`."""
        if self.of == torch.float32:
            out.addmm_(left, right)
        else:
            out += self.mm(left, right)

    def affine(
        self,
        bias: Float[Tensor, "O"],
        left: Float[Tensor, "N K"],
        right: Float[Tensor, "K O"],
        *,
        out: Float[Tensor, "N O"] | None = None,
    ) -> Float[Tensor, "N O"]:
        """bias + left · right."""
        if self.of == torch.float32:
            return torch.addmm(bias, left, right, out=out)
        return self.mm(left, right, out=out).add_(bias)


FLOAT32 = Products()
