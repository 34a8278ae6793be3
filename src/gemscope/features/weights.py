"""The weights of a sparse autoencoder as one value: what encoding and decoding take. It does not know where
they came from or what they are for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from typing import Literal, NamedTuple

from torch import Tensor

from gemscope.features.sliced import Sliced
from gemscope.shapes import Float

Gate = Literal["jumprelu", "relu", "topk"]
Norm = Literal["deviation", "length"]
"""What each token is divided by before it is read: its standard deviation over the width (of D − 1, and 1e-5 more, as
LayerNorm without gain has it beside `centred`), or its root mean square."""


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


def digest(tensors: Mapping[str, Sliced], gate: Gate, k: int | None, centred: bool, norm: Norm | None) -> str:
    """SHA-256 over the tensors in float32, the gate, the norm and whether it is centred. Reads them all, in seconds
    for many.
    """
    more = (":centred" if centred else "") + (f":{norm}" if norm else "")
    hashed = hashlib.sha256(f"{gate}:{k}{more}".encode())
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name}{tuple(tensor.shape)}".encode())
        for piece in tensor.pieces():
            hashed.update(piece.float().contiguous().numpy().data)
        tensor.release()
    return hashed.hexdigest()
