"""What computing with an SAE keeps beside its weights: encoder rows ready to be searched, a decoder in float32.

Wide SAEs whose weights are mapped from a file are prepared a tile of features at a time, and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemscope.features.kernels import Kernels, Packed
from gemscope.features.mapped import Mapped, release
from gemscope.shapes import Float, Int

if TYPE_CHECKING:
    from gemscope.features.sae import SAE

_KEPT = 1 << 30
"""Bytes beside mapped weights from which on nothing is kept."""
_TILE = 1 << 24
"""Weights at a time where nothing is kept: 64 MB in float32."""


@dataclass
class Prepared:
    """Of one SAE, for one implementation of the kernels."""

    content: tuple[object, ...]
    """What the weights were when it was made."""
    encoder: Packed | None = None
    decoder: Float[Tensor, "F O"] | None = None


def encoder_tiles(sae: SAE, kernels: Kernels) -> Iterator[Packed]:
    """The encoder of all features in order: in one piece, where that may be kept. Otherwise a piece is good until the
    next one, which takes its place in memory."""
    mapped = _streamed(sae.W_enc)
    if mapped is None:
        kept = _kept(sae, kernels)
        if kept.encoder is None:
            kept.encoder = _pack(sae, kernels, slice(0, sae.d_sae), sae.W_enc.detach().T.float().contiguous())
            release(sae.W_enc)
        yield kept.encoder
        return
    space = torch.empty(0)
    for features in _tiles(sae.d_sae, sae.d_in):
        n_features = features.stop - features.start
        space = space if len(space) else torch.empty(n_features, sae.d_in)
        rows = space[:n_features]
        _read(sae.W_enc, mapped, features, rows)
        yield _pack(sae, kernels, features, rows)


def encoder_of(sae: SAE, kernels: Kernels, features: Int[Tensor, "f"]) -> Packed:
    """The encoder of chosen features."""
    mapped = _streamed(sae.W_enc)
    if mapped is None:
        return _pack(sae, kernels, features, sae.W_enc.detach()[:, features].T.float().contiguous())
    rows = torch.empty(len(features), sae.d_in)
    _read(sae.W_enc, mapped, features, rows)
    return _pack(sae, kernels, features, rows)


def _pack(sae: SAE, kernels: Kernels, features: slice | Tensor, rows: Tensor) -> Packed:
    """Ready to be searched for what the gate lets through."""
    b = sae.b_enc.detach()[features].float()
    floor = torch.zeros_like(b) if sae.threshold is None else sae.threshold.detach()[features].float().clamp(min=0)
    return kernels.pack(rows, b.contiguous(), floor.contiguous())


def _read(weight: Tensor, mapped: Mapped, features: slice | Tensor, to: Tensor) -> None:
    """Some columns of a mapped matrix, as rows. A little at a time: to read a number may bring megabytes with it."""
    for start in range(0, len(weight), each := max(1, _TILE // weight.shape[1])):
        some = slice(start, start + each)
        to[:, some] = weight.detach()[some, features].T
        mapped.release()


def decoder_tiles(sae: SAE, kernels: Kernels) -> Iterator[tuple[slice, Float[Tensor, "F O"]]]:
    """The decoder's rows in float32 with the features that they are of: in one piece, where that may be kept."""
    W_dec = sae.W_dec.detach()
    mapped = _streamed(sae.W_dec)
    if mapped is not None:
        for features in _tiles(sae.d_sae, sae.d_out):
            yield features, W_dec[features].float().contiguous()
            mapped.release()
        return
    kept = _kept(sae, kernels)
    if kept.decoder is None:
        kept.decoder = W_dec.float().contiguous()
    yield slice(0, sae.d_sae), kept.decoder


def _kept(sae: SAE, kernels: Kernels) -> Prepared:
    # Writing into a weight raises its version; moving it gives it another address.
    content = (kernels, *((weight.data_ptr(), weight._version, weight.dtype) for weight in sae.parameters()))
    if sae.prepared is None or sae.prepared.content != content:
        sae.prepared = Prepared(content)
    return sae.prepared


def _streamed(weight: Tensor) -> Mapped | None:
    """The map of a weight that is too large to keep its rows in float32 beside it, and a copy in half of that."""
    return Mapped.of(weight) if 6 * weight.numel() > _KEPT else None


def _tiles(d_sae: int, d: int) -> Iterator[slice]:
    each = max(64, _TILE // d // 64 * 64)
    for start in range(0, d_sae, each):
        yield slice(start, min(start + each, d_sae))
