"""What one unit of each feature adds to the logits by the direct path, told from weights alone: the tokens that it
promotes and suppresses, and how its effects are spread. Where the path leads is `activations/direct.py`'s knowledge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gemscope.activations.direct import DirectPath, obstacle
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.activations.suited import with_float64
from gemscope.errors import InputError, Mismatch
from gemscope.features.sae import SAE
from gemscope.features.sliced import Sliced
from gemscope.shapes import Float, Int

_ENTRIES = 1 << 24
"""Effects held at a time: 64 MB, with as much again while their histograms are made."""
_WEIGHTS = 1 << 23
"""Of the unembedding in float32 at a time: 32 MB."""


@dataclass(frozen=True, kw_only=True)
class LogitEffects:
    """What a unit of each of some features adds to the logits, by the convention that `convention` states."""

    features: range
    promoted: Int[Tensor, "F K"]
    """Token ids, most promoted first."""
    promoted_values: Float[Tensor, "F K"]
    suppressed: Int[Tensor, "F K"]
    """Token ids, most suppressed first."""
    suppressed_values: Float[Tensor, "F K"]
    low: Float[Tensor, "F"]
    """Where the first bin of a feature's histogram starts: its lowest effect."""
    step: Float[Tensor, "F"]
    """Width of its bins; the last one holds the highest effect too."""
    counts: Int[Tensor, "F bins"]
    """Tokens of the vocabulary in each bin."""


def no_logits(sae: SAE, *, site: Site | str | None = None) -> str | None:
    """Why features of this SAE have no effect on the logits by the direct path, in one line; None where they have."""
    return obstacle(_written(sae, site))


def convention(model: LanguageModel, sae: SAE, *, site: Site | str | None = None) -> str:
    """What the figures of `logit_effects` are, in words. Raises what `logit_effects` raises."""
    path = _path(model, sae, site)
    with path.unembedding() as rows:
        missing = len(rows) - len(vocabulary(model, len(rows)))
    said = [
        "what one unit of a feature adds to each token's logit by the direct path, no later attention or MLP answering",
        f"its decoder direction at {path.site}, {path.words}",
        "the mean over the vocabulary subtracted, which softmax does not see",
    ]
    if path.softcap is not None:
        said.append(f"before the model's softcapping of logits at {path.softcap:g}")
    if missing:
        said.append(f"over the tokens of the tokenizer (the model has {missing} more rows, which no token uses)")
    return "; ".join(said)


def logit_effects(
    model: LanguageModel,
    sae: SAE,
    *,
    k: int = 10,
    bins: int = 50,
    block: int | None = None,
    site: Site | str | None = None,
) -> Iterator[LogitEffects]:
    """For all features in order, `block` of them at a time (by default as many as memory is bounded for).

    `site` is where the features write, the SAE's own `site_out` by default. Computed in float32 on the device of the
    unembedding; the results lie on the CPU. A feature whose direction is zero has effects of zero: its tokens say
    nothing. Fewer than `k` tokens come where the vocabulary is smaller.

    Raises SiteNotFound where there is no direct path (`no_logits` says so beforehand), Mismatch when the SAE writes
    another width than the site has, InputError for an SAE without a site.
    """
    path = _path(model, sae, site)
    if k < 1 or bins < 1:
        raise InputError(f"k={k}, bins={bins}: at least one token and one bin must be asked for")
    return _effects(model, path, sae.decoder, k=k, bins=bins, block=block)


@torch.no_grad()
def promoted(
    model: LanguageModel, sae: SAE, feature: int, *, k: int = 10, site: Site | str | None = None
) -> Int[Tensor, "K"]:
    """Ids of the tokens that one feature promotes, most promoted first: the first column of what `logit_effects` finds,
    at the cost of one feature. Raises what `logit_effects` raises, and InputError for a feature that there is not.
    """
    path = _path(model, sae, site)
    if k < 1:
        raise InputError(f"k={k}: at least one token must be asked for")
    direction = sae.direction(feature)[None]
    with path.unembedding() as W_U:
        tokens = vocabulary(model, len(W_U)).to(W_U.device)
        carried = path.carried(direction.to(W_U.device))[0]
        # The mean over the vocabulary is the same for every token, so it changes no order.
        effects = torch.cat([W_U[some].float() @ carried for _, some in pieces(tokens, W_U)])
        return tokens[effects.topk(min(k, len(tokens))).indices].cpu()


@torch.no_grad()
def _effects(
    model: LanguageModel, path: DirectPath, W_dec: Sliced, *, k: int, bins: int, block: int | None
) -> Iterator[LogitEffects]:
    with path.unembedding() as W_U:
        tokens = vocabulary(model, len(W_U)).to(W_U.device)
        mean = mean_row(W_U, tokens)
        block = block or max(1, _ENTRIES // len(tokens))
        space = torch.empty(min(block, len(W_dec)), len(tokens), device=W_U.device)
        for start in range(0, len(W_dec), block):
            directions = path.carried(W_dec[start : start + block].to(W_U.device))
            effects = space[: len(directions)]
            for first, some in pieces(tokens, W_U):
                rows = W_U[some].float().sub_(mean)
                torch.mm(directions, rows.T, out=effects[:, first : first + len(some)])
            W_dec.release()
            yield _summary(range(start, start + len(directions)), effects, tokens, min(k, len(tokens)), bins)


def _summary(features: range, effects: Tensor, tokens: Tensor, k: int, bins: int) -> LogitEffects:
    high, low = effects.topk(k, dim=-1), effects.topk(k, dim=-1, largest=False)
    least, span = low.values[:, 0], high.values[:, 0] - low.values[:, 0]
    step = span.where(span > 0, 1.0) / bins
    counts = [
        _counted((some - first[:, None]).div_(width[:, None]), bins)
        for some, first, width in zip(*(torch.split(column, 64) for column in (effects, least, step)), strict=True)
    ]
    return LogitEffects(
        features=features,
        promoted=tokens[high.indices].cpu(),
        promoted_values=high.values.cpu(),
        suppressed=tokens[low.indices].cpu(),
        suppressed_values=low.values.cpu(),
        low=least.cpu(),
        step=step.cpu(),
        counts=torch.cat(counts).cpu(),
    )


def _counted(places: Tensor, bins: int) -> Tensor:
    """How many numbers of each row fall into each bin; their whole parts are the bins."""
    counts = places.new_zeros(len(places), bins)  # float32 counts exactly up to 2^24, and vocabularies are smaller
    which = places.to(torch.int64).clamp_(0, bins - 1)
    return counts.scatter_add_(1, which, counts.new_ones(()).expand_as(which)).to(torch.int64)


def vocabulary(model: LanguageModel, rows: int) -> Int[Tensor, "V"]:
    """Ids of the tokens that the tokenizer has, ascending: models' matrices are often padded."""
    known = torch.tensor(sorted(set(model.tokenizer.get_vocab().values())), dtype=torch.int64)
    return known[known < rows]


def pieces(tokens: Tensor, W_U: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Tokens, as many at a time as their rows may be held of, and how many went before."""
    each = max(1, _WEIGHTS // W_U.shape[1])
    for first in range(0, len(tokens), each):
        yield first, tokens[first : first + each]


def mean_row(W_U: Tensor, tokens: Tensor) -> Float[Tensor, "D"]:
    """Of the unembedding's rows of these tokens."""
    total = torch.zeros(W_U.shape[1], dtype=torch.float64)
    for _, some in pieces(tokens, W_U):
        total += with_float64(W_U[some]).sum(0, dtype=torch.float64).cpu()
    return (total / len(tokens)).float().to(W_U.device)


def _path(model: LanguageModel, sae: SAE, site: Site | str | None) -> DirectPath:
    place = _written(sae, site)
    path = DirectPath(model, place)
    if (width := model.width(place)) != sae.d_out:
        raise Mismatch(f"this SAE writes {sae.d_out} numbers, and {place} of {model.name} has {width}")
    return path


def _written(sae: SAE, site: Site | str | None) -> Site:
    place = sae.site_out if site is None else Site.parse(site)
    if place is None:
        raise InputError(f"{sae.info.name} does not say where it writes: name the site, as in site='20.res'")
    return place
