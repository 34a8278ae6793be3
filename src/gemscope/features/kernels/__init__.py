"""The operations that everything sparse is made of: finding the entries above a floor, products at chosen entries,
weighted sums of chosen rows, and sums by column. What they promise stands here; how they keep it, in one file for each
kind of machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gemscope.features.kernels.rows import Rows
from gemscope.shapes import Float, Int

__all__ = ["Kernels", "Packed", "Rows", "tie_bound"]


@dataclass(frozen=True)
class Packed:
    """Encoder rows made ready to be searched, by the implementation that packed them; good while its tensors stay as
    they are."""

    W: Float[Tensor, "F D"]
    """One feature a row; float32, contiguous. The caller's own tensor, not a copy."""
    b: Float[Tensor, "F"]
    floor: Float[Tensor, "F"]
    low: Any
    """What the implementation keeps beside them: a low-precision copy, norms, rounding residuals."""


@runtime_checkable
class Kernels(Protocol):
    """One implementation. With z = x·w + b summed in float32, `above` returns every entry whose z exceeds its floor,
    with that z: a low-precision product only looks for candidates, within a proven bound on its error.

    Two float32 sums of the same D products in different orders differ by at most `tie_bound`, in practice by a few
    hundredths of it. An entry that lies within that distance of its floor may be on either side of it for another
    implementation; all others agree. As long as few entries are above their floors, z is summed in one fixed order,
    and neither batch nor tile nor threads change a bit of the answer; where many are (more than about a sixteenth), an
    implementation may take z from a dense product, which keeps within the bound too.
    """

    @property
    def name(self) -> str: ...

    @property
    def sparse_below(self) -> float:
        """Share of entries above their floors up to which `dots` and `sums` beat dense products, as measured."""
        ...

    def pack(self, W: Float[Tensor, "F D"], b: Float[Tensor, "F"], floor: Float[Tensor, "F"]) -> Packed:
        """`W`, `b` and `floor` are float32 and contiguous, one feature a row."""
        ...

    def above(self, packed: Packed, x: Float[Tensor, "T D"], token_floor: Float[Tensor, "T"] | None = None) -> Rows:
        """Every (token, feature) with z = x·W + b > max(floor[feature], token_floor[token]): its z, a token a row.

        `x` is float32, contiguous and finite.
        """
        ...

    def dots(
        self,
        offsets: Int[Tensor, "starts"],
        ids: Int[Tensor, "Z"],
        left: Float[Tensor, "R D"],
        right: Float[Tensor, "C D"],
    ) -> Float[Tensor, "Z"]:
        """left[row] · right[id] for every entry of a pattern in compressed rows. Rows may be in bfloat16; products and
        their sums are float32's.
        """
        ...

    def sums(self, entries: Rows, rows: Float[Tensor, "C D"]) -> Float[Tensor, "R D"]:
        """For each row of `entries` the sum of value · rows[id] over its entries, in their order; empty ones give 0.
        `rows` may be in bfloat16, sums are float32's.
        """
        ...

    def transposed(self, entries: Rows, n_columns: int) -> tuple[Rows, Int[Tensor, "Z"]]:
        """Columns as rows, and for each new entry which old one it was (so that other values can follow)."""
        ...

    def totals(self, ids: Int[Tensor, "Z"], values: Float[Tensor, "Z"], n_columns: int) -> Float[Tensor, "F"]:
        """For each column the sum of the values in it, in an order that they alone decide."""
        ...


def tie_bound(x: Float[Tensor, "T D"], W: Float[Tensor, "F D"], b: Float[Tensor, "F"]) -> Float[Tensor, "T F"]:
    """How far two float32 evaluations of x·w + b can lie apart, whatever their orders of summation; float64.

    Each differs from the exact value by at most γ Σ|x_i w_i| + 2^-24 |z| with γ = D u / (1 − D u), u = 2^-24 (Higham,
    Accuracy and Stability of Numerical Algorithms, §3.1), and by D 2^-149 where products underflow; Cauchy–Schwarz
    bounds the sum by ‖x‖ ‖w‖. Infinite where sums may overflow.
    """
    depth = x.shape[1] * 2.0**-24
    products = x.double().norm(dim=-1)[:, None] * W.double().norm(dim=-1)
    rounding = depth / (1 - depth) * products + 2.0**-24 * (products + b.double().abs())
    bound: Tensor = 2 * (rounding + x.shape[1] * 2.0**-149)
    return bound.where(products + b.double().abs() < torch.finfo(torch.float32).max, torch.inf)
