"""What every feature of an SAE promotes and suppresses by the effect of the site at which it writes: all features, some
at a time, in memory that neither their number nor the vocabulary sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gemscope.activations.direct import unembedding
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import logit_divisor
from gemscope.errors import InputError
from gemscope.features.effect import Effect
from gemscope.features.logit_lens import mean_row, pieces, vocabulary
from gemscope.features.sae import SAE
from gemscope.features.sliced import Sliced
from gemscope.shapes import Float, Int

_ENTRIES = 1 << 24
"""Effects on logits held at a time: 64 MB."""


@dataclass(frozen=True, kw_only=True)
class Promotions:
    """What a unit of each of some features does to the logits, the mean over the vocabulary taken out.

    A value over `spread` says how far a token stands out among all of them. For a feature that writes nothing spreads
    and values are 0, and the other figures NaN.
    """

    features: range
    promoted: Int[Tensor, "F K"]
    """Token ids, most promoted first."""
    promoted_values: Float[Tensor, "F K"]
    least: Float[Tensor, "F K"]
    """The lower of the two values that the halves of the text give each promoted token alone, each over its own
    spread.
    """
    kinship: Float[Tensor, "F K K"]
    """How near the model holds its promoted tokens to each other: cosines of their rows of the unembedding, the mean
    row taken out and the strongest 1 in 100 of its principal directions, which most rows share, those above all of
    tokens that were hardly met in training (all-but-the-top: Mu, Viswanath 2018, arXiv 1702.01417).
    """
    suppressed: Int[Tensor, "F K"]
    """Token ids, most suppressed first."""
    suppressed_values: Float[Tensor, "F K"]
    spread: Float[Tensor, "F"]
    """Standard deviation of the effects over the vocabulary."""
    agreement: Float[Tensor, "F"]
    """Correlation over the vocabulary of what the two halves of the text say."""
    this: Float[Tensor, "F"]
    """Share of the effect that is on the prediction at this position: its projection on the whole; the rest is on later
    ones.
    """


def promotions(
    model: LanguageModel, sae: SAE, effect: Effect, *, k: int = 10, block: int | None = None
) -> Iterator[Promotions]:
    """Of all features in order, `block` of them at a time (by default as many as memory is bounded for), `k` tokens
    each way. Computed on the device of the unembedding, in float32 but for what the vocabulary is summed over; the
    results lie on the CPU.

    Raises Mismatch for an effect of another model, site or width, InputError for fewer than one token.
    """
    if k < 1:
        raise InputError(f"k={k}: at least one token must be asked for")
    effect.require_of(model, sae)
    return _promotions(model, sae.decoder, effect, k, block)


@torch.no_grad()
def _promotions(model: LanguageModel, W_dec: Sliced, effect: Effect, k: int, block: int | None) -> Iterator[Promotions]:
    with unembedding(model.hf) as W_U:
        tokens = vocabulary(model, len(W_U)).to(W_U.device)
        mean, square = mean_row(W_U, tokens), _square(W_U, tokens)
        shared = torch.linalg.eigh(square).eigenvectors[:, -max(1, round(len(square) / 100)) :].float()
        k = min(k, len(tokens))
        block = block or max(1, _ENTRIES // max(len(tokens), k * W_U.shape[1]))
        whole, here, *halves = (
            one.to(W_U.device) / logit_divisor(model.hf)
            for one in (effect.jacobian(), effect.jacobian("this"), *effect.halves())
        )
        space = torch.empty(min(block, len(W_dec)), len(tokens), device=W_U.device)
        for start in range(0, len(W_dec), block):
            directions = W_dec[start : start + block].to(W_U.device).float()
            written, part, *both = (directions @ one.T for one in (whole, here, *halves))
            effects = space[: len(directions)]
            for first, some in pieces(tokens, W_U):
                torch.mm(written, (W_U[some].float() - mean).T, out=effects[:, first : first + len(some)])
            W_dec.release()
            high, low = effects.topk(k, dim=-1), effects.topk(k, dim=-1, largest=False)
            promoted = tokens[high.indices]
            rows = W_U[promoted].float() - mean
            spreads = [_products(square, one, one).clamp(min=0).sqrt() for one in (written, *both)]
            least = torch.stack(
                [
                    torch.einsum("fkh,fh->fk", rows, half) / spread[:, None].float()
                    for half, spread in zip(both, spreads[1:], strict=True)
                ]
            ).amin(0)
            own = torch.nn.functional.normalize(rows - rows @ shared @ shared.T, dim=-1)
            yield Promotions(
                features=range(start, start + len(directions)),
                promoted=promoted.cpu(),
                promoted_values=high.values.cpu(),
                least=least.cpu(),
                kinship=(own @ own.mT).cpu(),
                suppressed=tokens[low.indices].cpu(),
                suppressed_values=low.values.cpu(),
                spread=spreads[0].float().cpu(),
                agreement=(_products(square, *both) / (spreads[1] * spreads[2])).float().cpu(),
                this=(_products(square, part, written) / spreads[0] ** 2).float().cpu(),
            )


def _square(W_U: Tensor, tokens: Tensor) -> Float[Tensor, "H H"]:
    """Covariance over the vocabulary of the unembedding's rows, in float64: a quadratic form in it is the variance of
    the logits, so that none of them need be made for it.
    """
    mean = torch.zeros(W_U.shape[1], dtype=torch.float64, device=W_U.device)
    total = torch.zeros(W_U.shape[1], W_U.shape[1], dtype=torch.float64, device=W_U.device)
    for _, some in pieces(tokens, W_U):
        rows = W_U[some].double()
        mean += rows.sum(0)
        total += rows.T @ rows
    mean /= len(tokens)
    return total / len(tokens) - torch.outer(mean, mean)


def _products(square: Tensor, one: Tensor, other: Tensor) -> Float[Tensor, "F"]:
    return ((one.double() @ square) * other.double()).sum(-1)
