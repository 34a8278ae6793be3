"""How the last hidden states, or a later site, answer to what is written at a site, to first order: sums of Jacobians
over the counted tokens of some rows, this position and later ones apart. What is made of them, `features/effect.py`
knows.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from gemscope.activations.families import Point
from gemscope.activations.suited import with_float64
from gemscope.errors import InputError
from gemscope.shapes import Bool, Float, Int
from gemscope.text.tokens import Tokens

_AT_ONCE = 1 << 9
"""Positions that a backward pass goes through, at least: fewer leave a matrix product waiting for its weights."""
_CACHED = 1 << 12
"""Positions of the caches that are held at a time: each counted token has the row before it in one of its own."""


@dataclass(frozen=True)
class Jacobian:
    """Sums over counted tokens of some rows, in float64: of ∂h_s/∂x_s, and of ∂h_t/∂x_s for t > s, both counted. x is
    what flows through the site, O wide, h what the unembedding reads, or what flows through a later site, H wide.
    Columns are the coordinates of x, or the directions that were asked for alone.
    """

    this: Float[Tensor, "H columns"]
    later: Float[Tensor, "H columns"]
    n: int
    """Tokens in the sums."""
    dropped: Mapping[str, int]
    """Places that are in none, by reason."""


def unembedding_reads(model: nn.Module) -> Point:
    """Where the last hidden states are, behind the final norm and whatever follows it."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return Point(next(name for name, module in model.named_modules() if module is head), "input")


def repeated(tokens: Tokens, times: int) -> Tokens:
    """The rows, and again."""
    return Tokens(*(part.repeat(times, 1) for part in (tokens.ids, tokens.real, tokens.counted)))


@contextmanager
def forward() -> Iterator[None]:
    """While the block runs, tangents travel with what is computed, through attention too. Raises InputError where a
    module of the model does not let them.
    """
    with warnings.catch_warnings():  # of torch, to itself: it scripts its formulas when it first needs them
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")
    try:
        # The attention that torch takes otherwise is fused, and knows no forward mode.
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            yield
    except NotImplementedError as error:  # BLOOM's activation brings its own gradient, backward alone
        raise InputError(
            "torch's forward mode does not get through this model, so there is no effect of single features by "
            f"themselves ({' '.join(str(error).split())[:100]}): measure the effect of the whole site"
        ) from error


@dataclass(frozen=True)
class Through:
    """How the last hidden states of some rows answer to what is written in these, summed over the counted tokens of
    each owner's rows. The model is given the rows several times side by side, each time with another coordinate or
    direction: N is a multiple of B.
    """

    counted: Bool[Tensor, "B T"]
    owners: Int[Tensor, "B"]
    parts: int
    """So many owners."""

    @property
    def copies(self) -> int:
        """How often the rows are worth reading side by side."""
        return max(1, _AT_ONCE // self.counted.numel())

    def backward(
        self, h: Float[Tensor, "N T H"], x: Float[Tensor, "N T O"], advance: Callable[[int], None]
    ) -> Float[Tensor, "parts H O"]:
        """Σ ∂h_t/∂x_s over the counted t and s of each row, coordinate by coordinate of h."""
        times, width = len(h) // len(self.counted), h.shape[-1]
        total = torch.empty(self.parts, width, x.shape[-1], dtype=torch.float64)
        counts = self.counted.to(h.device, h.dtype)
        for start in range(0, width, times):
            some = min(times, width - start)
            weights = torch.zeros(times, *self.counted.shape, width, dtype=h.dtype, device=h.device)
            for copy in range(some):
                weights[copy, ..., start + copy] = counts
            # Zeros where h does not answer to x at all: of attention and an MLP that are computed side by side.
            (gradient,) = torch.autograd.grad(
                h, x, weights.view_as(h), retain_graph=start + times < width, materialize_grads=True
            )
            total[:, start : start + some] = self._summed(gradient)[:, :some]
            advance(some)
        return total

    def tangent(self, directions: Float[Tensor, "F O"]) -> Float[Tensor, "N T O"]:
        """Each direction written on all counted tokens of its own copy of the rows."""
        counted = self.counted.to(directions)
        return (directions[:, None, None] * counted[None, ..., None]).flatten(0, 1)

    def forward(self, h: Float[Tensor, "N T H"]) -> Float[Tensor, "parts H F"]:
        """Σ ∂h_t/∂x_s d over the counted t and s of each row, from the tangent of h."""
        tangent = forward_ad.unpack_dual(h).tangent  # type: ignore[no-untyped-call]
        # None: nothing of what is written there gets to h.
        return self._summed(torch.zeros_like(h) if tangent is None else tangent).mT

    def _summed(self, values: Float[Tensor, "N T D"]) -> Float[Tensor, "parts copies D"]:
        counted = self.counted.to(values.device)
        of_tokens = values.view(-1, *counted.shape, values.shape[-1])[:, counted]
        belongs = self.owners[self.counted.nonzero()[:, 0]].to(values.device)
        found = [with_float64(of_tokens[:, belongs == part]) for part in range(self.parts)]
        sums = [one.sum(1, dtype=torch.float64) for one in found]
        return torch.stack(sums).cpu()


def ends(tokens: Tokens, counted: Bool[Tensor, "B T"], *, pad: int) -> Iterator[tuple[Tokens, Int[Tensor, "N"]]]:
    """Each counted token as the last of a row of its own, which holds what is before it: many rows of about one length
    at a time, and which rows they are of.
    """
    found = counted.nonzero()
    if not len(found):
        return
    lengths = (tokens.real.cumsum(-1) * counted)[counted]
    order = lengths.argsort(stable=True)
    groups = max(1, -(-int(lengths.sum()) // _CACHED))
    for some in order.chunk(groups):
        rows = [tokens.ids[row, : at + 1][tokens.real[row, : at + 1]].tolist() for row, at in found[some].tolist()]
        yield Tokens.of(rows, pad=pad, side="left"), found[some, 0]
