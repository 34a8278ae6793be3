"""How features lie to each other and to their own encoder, by the cosine of their directions: from weights alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemscope.errors import InputError
from gemscope.features.kernels import Kernels, Rows
from gemscope.features.kernels.choice import choose
from gemscope.features.kernels.rows import beside, by_strength, empty
from gemscope.features.sae import SAE
from gemscope.features.sliced import Sliced
from gemscope.features.together import Best
from gemscope.progress import Progress, silent
from gemscope.shapes import Float, Int

_TILE = 1 << 24
"""Weights compared with at a time: 64 MB in float32."""
_BLOCK = 1 << 25
"""Weights whose neighbours are looked for at a time."""
_SAMPLE = 1024
"""Features from which a first floor is taken."""


@torch.no_grad()
def nearest(
    W_dec: Float[Tensor, "F O"] | Sliced, k: int = 20, *, block: int | None = None
) -> tuple[Int[Tensor, "F k"], Float[Tensor, "F k"]]:
    """For each row the `k` others whose cosine with it is largest, largest first: their ids (int32), their cosines.

    Cosines are float32 dot products of rows scaled to length 1 in float32; of equal ones the lower id comes first.
    Only positive ones count: where there are fewer than `k`, and so for a row of zeros always, id -1 and cosine 0 fill
    the rest. Any float dtype, mapped from a file or not: memory holds a tile of rows, and the `block` of them whose
    neighbours are looked for.

    Raises InputError for a `k` below 1.
    """
    if k < 1:
        raise InputError(f"k={k}: at least one neighbour must be asked for")
    rows = Sliced.of(W_dec)
    kernels = choose(rows.device)
    block = block or max(1, _BLOCK // rows.shape[1])
    ids = torch.full((len(rows), k), -1, dtype=torch.int32, device=rows.device)
    cosines = torch.zeros(len(rows), k, device=rows.device)
    for start in range(0, len(rows), block):
        found = _nearest_to(units(rows[start : start + block]), start, rows, k, kernels)
        order, rank = by_strength(found.offsets, found.rows, found.values)
        own = found.rows[order] + start
        ids[own, rank], cosines[own, rank] = found.ids[order], found.values[order]
    return ids, cosines


def _nearest_to(x: Tensor, first: int, W_dec: Sliced, k: int, kernels: Kernels) -> Rows:
    """The neighbours of unit rows, which are those of W_dec from `first` on; their ids ascend.

    A tile is searched for what beats the k-th best of the tiles before it: what equals that has a higher id.
    """
    floor = _floor(x, W_dec, k)
    own = torch.arange(first, first + len(x), device=x.device)
    best = empty(len(x), x.device)
    each = max(64, _TILE // W_dec.shape[1])
    for start in range(0, len(W_dec), each):
        tile = units(W_dec[start : start + each])
        zero = tile.new_zeros(len(tile))
        found = kernels.above(kernels.pack(tile, zero, zero), x, floor)
        found.values.clamp_(max=1.0)
        W_dec.release()
        best = beside([best, found.where(found.ids + start != own[found.rows])], [start, len(tile)])
        best, floor = _strongest(best, floor, k)
    return best


def _floor(x: Tensor, W_dec: Sliced, k: int) -> Tensor:
    """[rows] What k others are certain to exceed, from comparing with some; 0 where that says nothing."""
    sample = units(W_dec[:: max(1, len(W_dec) // _SAMPLE)])
    if len(sample) <= k:
        return x.new_zeros(len(x))
    # One more than k, for the row itself may be among them; lower than the difference of two float32 sums.
    floors = [(some @ sample.T).topk(k + 1, dim=-1).values[:, -1] for some in torch.split(x, 4096)]
    return (torch.cat(floors) - 1e-4).clamp_(min=0)


def _strongest(rows: Rows, floor: Tensor, k: int) -> tuple[Rows, Tensor]:
    """At most k entries of each row, and the k-th where there are as many: the floor for what comes after."""
    order, rank = by_strength(rows.offsets, rows.rows, rows.values)
    last = order[rank == k - 1]
    floor = floor.clone()
    floor[rows.rows[last]] = rows.values[last]
    kept = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    kept[order[rank < k]] = True
    return rows.where(kept), floor


@torch.no_grad()
def closest(
    W_one: Float[Tensor, "F O"] | Sliced, W_other: Float[Tensor, "G O"] | Sliced, *, progress: Progress = silent
) -> tuple[Best, Best]:
    """For each row of one matrix the row of another whose cosine with it is largest, and the reverse; of equal ones the
    lower id. A row of zeros is close to none. Memory holds a tile of both, and its cosines.
    """
    one, other = Sliced.of(W_one), Sliced.of(W_other)
    found, back = _none(len(one)), _none(len(other))
    each = max(64, _TILE // one.shape[1] // 4)
    with progress("compare decoders", len(one), "features") as advance:
        for start in range(0, len(one), each):
            mine = units(one[start : start + each].cpu())
            for there in range(0, len(other), each):
                tile = mine @ units(other[there : there + each].cpu()).T
                tile.masked_fill_(~torch.isfinite(tile), 0).clamp_(-1, 1)
                _keep(found, slice(start, start + len(tile)), tile.max(1), there)
                _keep(back, slice(there, there + tile.shape[1]), tile.max(0), start)
            one.release()
            other.release()
            advance(len(mine))
    return found, back


def _none(rows: int) -> Best:
    return Best(np.full(rows, -1, np.int64), np.zeros(rows, np.float32))


def _keep(best: Best, rows: slice, found: Any, first: int) -> None:
    """Takes the largest of a tile where it is larger than what there was."""
    values = found.values.numpy()
    better = values > best.values[rows]
    best.ids[rows][better] = found.indices.numpy()[better] + first
    best.values[rows][better] = values[better]


def encoder_cosines(sae: SAE) -> Float[Tensor, "F"] | None:
    """The cosine of each feature's encoder column with its decoder row, float32 on the CPU; 0 where one is zero.

    None for a transcoder between widths: there is no angle between what it reads and what it writes.
    """
    if sae.d_in != sae.d_out:
        return None
    found = []
    encoder, decoder = sae.encoder, sae.decoder
    each = max(64, _TILE // sae.d_in)
    for start in range(0, sae.d_sae, each):
        some = slice(start, start + each)
        # Columns of a mapped matrix are read for many features at once: a page of the file holds a thousand of them.
        found.append((units(encoder[some]) * units(decoder[some])).sum(-1).clamp_(-1, 1).cpu())
        encoder.release()
        decoder.release()
    return torch.cat(found)


def units(rows: Tensor) -> Float[Tensor, "F O"]:
    """Rows scaled to length 1, in float32; rows of zeros as they are."""
    rows = rows.float()
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float64)
    units: Tensor = rows / norms.where(norms > 0, 1.0).float()
    return units.contiguous()
