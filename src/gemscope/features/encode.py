"""Dense activations to sparse feature activations: which floors an SAE's gate sets, and what comes out above them. How
entries above a floor are found, `kernels` knows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gemscope.features.kernels import Rows
from gemscope.features.kernels.rows import below, beside, by_strength, empty, offsets_of
from gemscope.features.prepared import Prepared
from gemscope.features.sliced import spans
from gemscope.shapes import Float

_TOKENS = 1 << 14
"""Tokens encoded at a time: what is found of them in several tiles is put together once."""
_SAMPLE = 1024
"""Features, at least, from whose pre-activations a token's k-th largest is guessed."""


@torch.no_grad()
def encode_rows(slices: Sequence[Prepared], x: Float[Tensor, "N D"]) -> Rows:
    """The active entries of every token, from the slices of an SAE, each on its device; `x` is float32 and finite, and
    what is found comes to where it lies.
    """
    if not len(x):
        return empty(0, x.device)
    find = _above if slices[0].weights.k is None else _largest

    def found(block: Tensor) -> Rows:
        return _merged([find(ready, block.to(ready.device)) for ready in slices], slices, x.device)

    return below([found(block) for block in torch.split(x.contiguous(), _TOKENS)])


@torch.no_grad()
def encode_subset(slices: Sequence[Prepared], x: Float[Tensor, "N D"], features: Tensor) -> Rows:
    """The active entries among chosen features (ascending ids), at the cost of those alone."""
    if slices[0].weights.k is not None:  # whether one is among the k largest depends on all
        rows = encode_rows(slices, x)
        return rows.where(torch.isin(rows.ids, features))
    parts = []
    for ready, span in zip(slices, spans([len(ready) for ready in slices]), strict=True):
        own = features[(features >= span.start) & (features < span.stop)].to(ready.device) - span.start
        rows = ready.kernels.above(ready.encoder_of(own), x.contiguous().to(ready.device))
        parts.append(Rows(rows.offsets, own.to(torch.int32)[rows.ids.long()], rows.values))
    return _merged(parts, slices, x.device)


def _merged(parts: Sequence[Rows], slices: Sequence[Prepared], device: torch.device) -> Rows:
    """What slices have found, beside each other; of a gate that counts the k largest of the k that each has given."""
    rows = beside([part.to(device) for part in parts], [len(ready) for ready in slices])
    k = slices[0].weights.k
    return rows if k is None or len(parts) == 1 else _strongest(rows, k)


def _above(ready: Prepared, x: Tensor, token_floor: Tensor | None = None) -> Rows:
    parts, widths = [], []
    for packed in ready.encoder_tiles():
        parts.append(ready.kernels.above(packed, x, token_floor))
        widths.append(len(packed.b))
    return beside(parts, widths)


def _largest(ready: Prepared, x: Tensor) -> Rows:
    """The k largest entries of each token, of those above zero.

    A floor that lets through about twice as many is guessed from some of the features; where it let through too few
    it is lowered, in the end to zero. What it lets through holds the k largest: the guess costs time, never truth.
    """
    k, d_sae = ready.weights.k, len(ready.weights.b_enc)
    assert k is not None
    step = max(1, d_sae // max(_SAMPLE, d_sae // 16))
    some = ready.encoder_of(torch.arange(0, d_sae, step, device=x.device))
    sample = torch.addmm(some.b, x, some.W.T)
    wanted = 2 * -(-k // step) + 4
    parts: list[Rows] = []
    whose: list[Tensor] = []
    missing = torch.arange(len(x), device=x.device)
    while len(missing):
        if wanted < sample.shape[1]:
            floor = sample[missing].topk(wanted, dim=-1).values[:, -1].clamp(min=0)
        else:
            floor = torch.zeros(len(missing), device=x.device)
        rows = _above(ready, x[missing], floor)
        enough = (rows.offsets.diff() >= k) | (floor == 0)
        whose.append(missing[enough])
        parts.append(_strongest(_rows_at(rows, enough.nonzero().flatten()), k))
        missing, wanted = missing[~enough], 2 * wanted
    return _rows_at(below(parts), torch.cat(whose).argsort())


def _strongest(rows: Rows, k: int) -> Rows:
    """At most k entries of each row."""
    if not len(rows.ids) or int(rows.offsets.diff().max()) <= k:
        return rows
    order, rank = by_strength(rows.offsets, rows.rows, rows.values)
    kept = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    kept[order[rank < k]] = True
    return rows.where(kept)


def _rows_at(rows: Rows, chosen: Tensor) -> Rows:
    """Chosen rows, in the order of `chosen`."""
    counts = rows.offsets.diff()[chosen]
    offsets = offsets_of(counts)
    places = torch.arange(int(offsets[-1]), device=chosen.device)
    places += torch.repeat_interleave(rows.offsets[:-1][chosen] - offsets[:-1], counts)
    return Rows(offsets, rows.ids[places], rows.values[places])
