"""What computing with weights keeps beside them: encoder rows ready to be searched, a decoder in float32.

Wide SAEs whose weights are mapped from a file are prepared a tile of features at a time, and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import torch
from torch import Tensor

from gemscope.features.kernels import Kernels, Packed
from gemscope.features.mapped import Mapped, release
from gemscope.features.weights import Weights
from gemscope.shapes import Float, Int

_KEPT = 1 << 30
"""Bytes beside mapped weights from which on nothing is kept."""
_TILE = 1 << 24
"""Weights at a time where nothing is kept: 64 MB in float32."""


class Prepared:
    """Weights ready for one implementation of the kernels, as long as they stay what they are (`content`)."""

    def __init__(self, weights: Weights, kernels: Kernels, content: Hashable) -> None:
        self.weights, self.kernels, self.content = weights, kernels, content
        self.encoder: Packed | None = None
        """What is kept of it, once it was needed."""
        self.decoder: Float[Tensor, "F O"] | None = None

    def __len__(self) -> int:
        """Features."""
        return len(self.weights.b_enc)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.weights.W_enc.device

    def encoder_tiles(self) -> Iterator[Packed]:
        """The encoder of all features in order: in one piece, where that may be kept. Otherwise a piece is good until
        the next one, which takes its place in memory."""
        W_enc = self.weights.W_enc
        mapped = _streamed(W_enc)
        if mapped is None:
            if self.encoder is None:
                self.encoder = self._pack(slice(None), W_enc.detach().T.float().contiguous())
                release(W_enc)
            yield self.encoder
            return
        space = torch.empty(0)
        for features in _tiles(W_enc.T):
            n_features = features.stop - features.start
            space = space if len(space) else torch.empty(n_features, len(W_enc))
            rows = space[:n_features]
            _read(W_enc, mapped, features, rows)
            yield self._pack(features, rows)

    def encoder_of(self, features: Int[Tensor, "f"]) -> Packed:
        """The encoder of chosen features."""
        W_enc = self.weights.W_enc
        mapped = _streamed(W_enc)
        if mapped is None:
            return self._pack(features, W_enc.detach()[:, features].T.float().contiguous())
        rows = torch.empty(len(features), len(W_enc))
        _read(W_enc, mapped, features, rows)
        return self._pack(features, rows)

    def decoder_tiles(self) -> Iterator[tuple[slice, Float[Tensor, "F O"]]]:
        """The decoder's rows in float32 with the features that they are of: in one piece, where that may be kept."""
        W_dec = self.weights.W_dec.detach()
        mapped = _streamed(self.weights.W_dec)
        if mapped is not None:
            for features in _tiles(W_dec):
                yield features, W_dec[features].float().contiguous()
                mapped.release()
            return
        if self.decoder is None:
            self.decoder = W_dec.float().contiguous()
        yield slice(0, len(W_dec)), self.decoder

    def _pack(self, features: slice | Tensor, rows: Tensor) -> Packed:
        """Ready to be searched for what the gate lets through."""
        b, threshold = self.weights.b_enc.detach()[features].float(), self.weights.threshold
        floor = torch.zeros_like(b) if threshold is None else threshold.detach()[features].float().clamp(min=0)
        return self.kernels.pack(rows, b.contiguous(), floor.contiguous())


def _read(weight: Tensor, mapped: Mapped, features: slice | Tensor, to: Tensor) -> None:
    """Some columns of a mapped matrix, as rows. A little at a time: to read a number may bring megabytes with it."""
    for start in range(0, len(weight), each := max(1, _TILE // weight.shape[1])):
        some = slice(start, start + each)
        to[:, some] = weight.detach()[some, features].T
        mapped.release()


def _streamed(weight: Tensor) -> Mapped | None:
    """The map of a weight that is too large to keep its rows in float32 beside it, and a copy in half of that."""
    return Mapped.of(weight) if 6 * weight.numel() > _KEPT else None


def _tiles(rows: Tensor) -> Iterator[slice]:
    """Features, a tile at a time, of one feature a row."""
    n_features, d = rows.shape
    each = max(64, _TILE // d // 64 * 64)
    for start in range(0, n_features, each):
        yield slice(start, min(start + each, n_features))
