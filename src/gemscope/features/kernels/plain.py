"""The kernels in torch alone: a low-precision product of tiles finds the candidates, float32 decides. Runs anywhere;
fast where the processor multiplies bfloat16 faster than float32.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gemscope.activations import measured
from gemscope.features.kernels import Packed, Rows
from gemscope.features.kernels.rows import below, empty, offsets_of, stable_order, totals
from gemscope.shapes import Float, Int

_TOKENS = 2048
"""Tokens searched at a time."""
_TILE = 1 << 22
"""Entries of the product held at a time: 8 MB in bfloat16, which the scan finds still in the cache."""
_EXTRA = 32
"""Columns beside the D of the product; a multiple of what matrix units take at once."""
_QUICK = 0.7
"""Share of a float32 product's time from which down the search in bfloat16 pays, its copies and residuals included."""
_DENSE = 1 / 16
"""Share of candidates in a tile from which on a dense product beats products at chosen entries."""
_TAME = 1e12
"""Norms between 1 / this and this can be multiplied in low precision without over- or underflow."""


@dataclass(frozen=True)
class _Low:
    """The features' half of the search: columns for W in low precision, and for the bound and the floors."""

    matrix: Float[Tensor, "F D_and_extra"]
    """Searching in float32, the extra columns alone: W itself has the others."""
    wild: Int[Tensor, "w"]
    """Features whose size rules the search out: all their entries are candidates."""


@dataclass(frozen=True)
class Plain:
    """`Kernels` in torch alone, searching in bfloat16 or float32.

    An entry is a candidate where its bound from above exceeds its floor, and since that bound factorises,

        x̂·ŵ + ‖x − x̂‖ ‖w‖ + ‖x̂‖ (‖w − ŵ‖ + ρ ‖w‖) + (b + ρ |b|) − (floor − ρ |floor|) > 0

    is the sign of one matrix product with a few columns more. Hats are rounded rows, ρ what float32 sums can lose; the
    residuals are measured. Rounding the result to bfloat16 keeps its sign.
    """

    search: torch.dtype
    name: str = "torch"
    sparse_below: float = 1 / 12

    # --- finding ----------------------------------------------------------------------------------------------

    def pack(self, W: Float[Tensor, "F D"], b: Float[Tensor, "F"], floor: Float[Tensor, "F"]) -> Packed:
        """See Kernels. Searching in bfloat16 this keeps a copy of W in it."""
        matrix, norm, lost = self._rounded(W)
        one, rho = torch.ones_like(norm), _rounding(W.shape[1])
        columns = [norm, lost + rho * norm, *self._split(b + rho * b.abs()), *self._split(_lowered(-floor, rho))]
        self._fill(matrix, [*columns, one, one, one])
        wild = _is_wild(norm) | (b.abs() > _TAME)
        matrix[wild] = 0
        return Packed(W, b, floor, _Low(matrix, wild.nonzero().flatten()))

    def above(self, packed: Packed, x: Float[Tensor, "T D"], token_floor: Float[Tensor, "T"] | None = None) -> Rows:
        """See Kernels."""
        if not len(x) or not len(packed.b):
            return empty(len(x), x.device)
        floors = [None] * len(x) if token_floor is None else torch.split(token_floor, _TOKENS)
        return below([self._block(packed, *block) for block in zip(torch.split(x, _TOKENS), floors, strict=False)])

    def _block(self, packed: Packed, x: Tensor, token_floor: Tensor | None) -> Rows:
        matrix, wild = self._low_tokens(x, token_floor)
        each = max(1, _TILE // len(x))
        rough = x.new_empty(min(each, len(packed.W)) * len(x), dtype=self.search)
        found = []
        for start in range(0, len(packed.W), each):
            features = slice(start, min(start + each, len(packed.W)))
            product = self._product(packed, features, x, matrix, rough)
            always = packed.low.wild - start
            flat = _positive(product, always[(always >= 0) & (always < len(product))], wild)
            found.append(self._exact(packed, features, x, token_floor, flat))
        # Features ascend through the tiles and within them: sorting by token, stably, gives compressed rows.
        tokens, ids, values = (torch.cat(column) for column in zip(*found, strict=True))
        order = stable_order(tokens)
        return Rows(offsets_of(torch.bincount(tokens, minlength=len(x))), ids[order], values[order])

    def _product(self, packed: Packed, features: slice, x: Tensor, matrix: Tensor, space: Tensor) -> Tensor:
        low = packed.low.matrix[features]
        out = space[: len(low) * len(x)].view(len(low), len(x))
        torch.mm(low, matrix.T, out=out)
        return out if self.search == torch.bfloat16 else out.addmm_(packed.W[features], x.T)

    def _exact(
        self, packed: Packed, features: slice, x: Tensor, token_floor: Tensor | None, flat: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(token, feature, z) of those candidates that are above their floors, by feature."""
        W, b, floor = packed.W[features], packed.b[features], packed.floor[features]
        ids = flat // len(x)
        tokens = flat - ids * len(x)
        if len(flat) < _DENSE * len(W) * len(x):
            z = self.dots(offsets_of(torch.bincount(ids, minlength=len(W))), tokens, W, x)
        else:
            z = torch.cat([(piece @ x.T).flatten() for piece in torch.split(W, max(1, _TILE // len(x)))])[flat]
        z += b[ids]
        level = floor[ids] if token_floor is None else torch.maximum(floor[ids], token_floor[tokens])
        kept = z > level
        return tokens[kept], (ids[kept] + features.start).to(torch.int32), z[kept]

    def _low_tokens(self, x: Tensor, token_floor: Tensor | None) -> tuple[Tensor, Tensor]:
        """The tokens' half of the search, and which tokens rule it out."""
        matrix, norm, lost = self._rounded(x)
        one, zero = torch.ones_like(norm), torch.zeros_like(norm)
        if token_floor is None:
            floors = [one, one, one]
        else:  # the search asks for the token's floor alone; that the feature's is exceeded too is seen afterwards
            floors = [zero, zero, zero, *self._split(_lowered(-token_floor, _rounding(x.shape[1])))]
        self._fill(matrix, [lost, norm + lost, one, one, one, *floors])
        wild = _is_wild(norm)
        matrix[wild] = 0
        return matrix, wild.nonzero().flatten()

    def _rounded(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows in low precision with room for the extra columns; ‖row‖ and ‖row − rounded row‖, from above."""
        d = rows.shape[1]
        width = d if self.search == torch.bfloat16 else 0
        matrix = rows.new_zeros(len(rows), width + _EXTRA, dtype=self.search)
        norm, lost = rows.new_empty(len(rows)), rows.new_zeros(len(rows))
        for start in range(0, len(rows), 512):  # so that temporaries stay small
            some = slice(start, start + 512)
            norm[some] = torch.linalg.vector_norm(rows[some], dim=-1)
            if width:
                matrix[some, :d] = rows[some]
                lost[some] = torch.linalg.vector_norm(rows[some] - matrix[some, :d], dim=-1)
        vanished = (norm == 0).nonzero().flatten()  # squares may underflow: such rows are wild, those of zeros are not
        norm[vanished] = (rows[vanished] != 0).any(-1) * (0.1 / _TAME)
        # A float32 norm is itself a sum of d terms. Matrix units take denormals for zero: those are below 1e-38.
        share = 1 + 2 * _rounding(d)
        return matrix, norm * share, lost * share + 1e-30 * (norm > 0)

    def _fill(self, matrix: Tensor, columns: list[Tensor]) -> None:
        """Writes the extra columns: both halves of the bound, then b, the floor and the token's floor, three each."""
        # The halves are rounded in their turn, and must stay a bound.
        raised = 1.01 if self.search == torch.bfloat16 else 1.0001
        columns = [columns[0] * raised, columns[1] * raised, *columns[2:]]
        start = matrix.shape[1] - _EXTRA
        matrix[:, start : start + len(columns)] = torch.stack(columns, dim=-1).to(matrix.dtype)

    def _split(self, column: Tensor) -> list[Tensor]:
        """Three summands that the search's precision holds exactly, which make up a float32 to its last bit."""
        parts = []
        for _ in range(3):
            part = column.to(self.search).to(column.dtype)
            parts.append(part)
            column = column - part
        return parts

    # --- with the patterns found ----------------------------------------------------------------------------------

    def dots(
        self,
        offsets: Int[Tensor, "starts"],
        ids: Int[Tensor, "Z"],
        left: Float[Tensor, "R D"],
        right: Float[Tensor, "C D"],
    ) -> Float[Tensor, "Z"]:
        """See Kernels."""
        if not len(ids):
            return torch.zeros(0, device=left.device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            pattern = torch.sparse_csr_tensor(
                *(offsets, ids.long(), torch.zeros(len(ids), device=left.device), (len(left), len(right))),
                check_invariants=False,
            )
            values: Tensor = torch.sparse.sampled_addmm(pattern, left.float(), right.float().T, beta=0.0).values()
            return values

    def sums(self, entries: Rows, rows: Float[Tensor, "C D"]) -> Float[Tensor, "R D"]:
        """See Kernels."""
        return F.embedding_bag(
            entries.ids.long(),
            rows.float(),
            entries.offsets,
            mode="sum",
            per_sample_weights=entries.values,
            include_last_offset=True,
        )

    def transposed(self, entries: Rows, n_columns: int) -> tuple[Rows, Int[Tensor, "Z"]]:
        """See Kernels."""
        return entries.transposed(n_columns)

    def totals(self, ids: Int[Tensor, "Z"], values: Float[Tensor, "Z"], n_columns: int) -> Float[Tensor, "F"]:
        """See Kernels."""
        return totals(ids, values, n_columns)


def load() -> Plain:
    """Searching in bfloat16 where this machine multiplies it much faster than float32."""
    return Plain(torch.bfloat16 if measured.relative_time(torch.bfloat16) < _QUICK else torch.float32)


def _rounding(d: int) -> float:
    """ρ: what float32 sums of d products can lose, relative to ‖x‖ ‖w‖. Those of the search have d terms and the extra
    columns; those of the exact product are at most d / 8 deep in the vector lanes of any processor."""
    return (1.25 * d + 128) * 2.0**-24


def _lowered(negative_floor: Tensor, rho: float) -> Tensor:
    return negative_floor.clamp(-_TAME, _TAME) + rho * negative_floor.abs().clamp(max=_TAME)


def _is_wild(norm: Tensor) -> Tensor:
    """Rows that low precision cannot be trusted with; rows of zeros are none."""
    return ~((norm < _TAME) & ((norm > 1 / _TAME) | (norm == 0)))


def _positive(rough: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Flat indices of the entries above zero, and of whole rows and columns."""
    if rough.device.type != "cpu":
        kept = rough > 0
        kept[rows], kept[:, columns] = True, True
        return kept.flatten().nonzero().flatten()
    # A float above zero is an integer above zero in the same bits; numpy compares and lists these many times faster.
    bits = rough.view(torch.int16 if rough.dtype == torch.bfloat16 else torch.int32).numpy()
    above = bits > 0
    above[rows.numpy()], above[:, columns.numpy()] = True, True
    return torch.from_numpy(np.flatnonzero(above))
