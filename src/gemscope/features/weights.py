"""The weights of a sparse autoencoder as one value: what encoding and decoding take. It does not know where
they came from or what they are for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gemscope.features.mapped import release
from gemscope.shapes import Float

Gate = Literal["jumprelu", "relu", "topk"]
Norm = Literal["deviation", "length"]
"""What each token is divided by before it is read: its standard deviation over the width (of D − 1, and 1e-5 more, as
LayerNorm without gain has it beside `centred`), or its root mean square."""

_PIECE = 1 << 22
"""Numbers hashed at a time."""


class Weights(NamedTuple):
    """With the tutorial's names and shapes; `SAE` says what is computed with them."""

    W_enc: Float[Tensor, "D F"]
    b_enc: Float[Tensor, "F"]
    W_dec: Float[Tensor, "F O"]
    b_dec: Float[Tensor, "O"]
    threshold: Float[Tensor, "F"] | None
    """Of JumpReLU alone."""
    W_skip: Float[Tensor, "O D"] | None
    gate: Gate
    k: int | None
    """Of topk alone."""
    centred: bool
    norm: Norm | None = None

    @property
    def content(self) -> Hashable:
        """Another as soon as anything here is: writing into a tensor raises its version, moving it changes its
        address. Good within one process, while the tensors live.
        """
        return tuple(
            (held.data_ptr(), held._version, held.dtype) if isinstance(held, Tensor) else held for held in self
        )

    @property
    def digest(self) -> str:
        """SHA-256 over the tensors in float32, the gate, the norm and whether it is centred. Reads them all, in seconds
        for many.
        """
        more = (":centred" if self.centred else "") + (f":{self.norm}" if self.norm else "")
        hashed = hashlib.sha256(f"{self.gate}:{self.k}{more}".encode())
        tensors = {name: held for name, held in self._asdict().items() if isinstance(held, Tensor)}
        for name, tensor in sorted(tensors.items()):
            hashed.update(f"{name}{tuple(tensor.shape)}".encode())
            for piece in _pieces(tensor):
                hashed.update(piece.float().cpu().contiguous().numpy().data)
            release(tensor)
        return hashed.hexdigest()


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Rows of a matrix, as many at a time as make a moderate copy."""
    each = max(1, _PIECE // max(1, tensor[0].numel())) if tensor.ndim > 1 else _PIECE
    yield from torch.split(tensor.detach(), each)
