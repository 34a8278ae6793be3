"""How the last hidden states answer to what is written at a site, to first order: sums of Jacobians over the counted
tokens of some rows, this position and later ones apart. What is made of them, `features/effect.py` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gemscope.activations.families import Point
from gemscope.shapes import Bool, Float
from gemscope.text.tokens import Tokens

_CACHED = 1 << 11
"""Positions of the caches that are held at a time: each counted token has the row before it in one of its own."""


@dataclass(frozen=True)
class Jacobian:
    """Sums over counted tokens of some rows, in float64: of ∂h_s/∂x_s, and of ∂h_t/∂x_s for t > s, both counted. x is
    what flows through the site, O wide, h what the unembedding reads, H wide.
    """

    this: Float[Tensor, "H O"]
    later: Float[Tensor, "H O"]
    n: int
    """Tokens in the sums."""
    dropped: Mapping[str, int]
    """Places that are in none, by reason."""


def unembedding_reads(model: nn.Module) -> Point:
    """Where the last hidden states are, behind the final norm and whatever follows it."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return Point(next(name for name, module in model.named_modules() if module is head), "input")


def summed(
    h: Float[Tensor, "B T H"], x: Float[Tensor, "B T O"], counted: Bool[Tensor, "B T"], advance: Callable[[int], None]
) -> Float[Tensor, "H O"]:
    """Σ ∂h_t/∂x_s over the counted t and s of each row, one backward pass for each coordinate of h."""
    total = torch.empty(h.shape[-1], x.shape[-1], dtype=torch.float64)
    counts, reads = counted.to(h.device, h.dtype), counted.to(x.device)
    for at in range(len(total)):
        (gradient,) = torch.autograd.grad(h[..., at], x, counts, retain_graph=at + 1 < len(total))
        total[at] = gradient[reads].sum(0, dtype=torch.float64).cpu()
        advance(1)
    return total


def ends(tokens: Tokens, counted: Bool[Tensor, "B T"], *, pad: int) -> Iterator[Tokens]:
    """Each counted token as the last of a row of its own, which holds what is before it: many rows at a time."""
    found = counted.nonzero().tolist()
    each = max(1, _CACHED // tokens.ids.shape[1])
    for start in range(0, len(found), each):
        rows = [
            tokens.ids[row, : at + 1][tokens.real[row, : at + 1]].tolist() for row, at in found[start : start + each]
        ]
        yield Tokens.of(rows, pad=pad, side="left")
