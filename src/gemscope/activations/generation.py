"""Text continued token by token: the loop, its cache, and the dice. What a pass is, the model knows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gemscope.shapes import Bool, Float, Int
from gemscope.text.tokens import Tokens

Forward = Callable[[Tokens, Any], tuple[Tensor, Any]]
"""From all tokens so far and the cache of a beginning of them (or None) to the last one's logits [B, V] and a cache."""


@dataclass(frozen=True)
class Step:
    """One new token of every row."""

    ids: Int[Tensor, "B"]
    """Padding on rows that ended earlier."""
    logprobs: Float[Tensor, "B"]
    """Of these tokens as the model has it (edits in force included), at temperature 1; 0 on rows that ended earlier."""
    ended: Bool[Tensor, "B"]
    """Rows that have come to their end, with this token or before."""


class Dice:
    """Noise for choosing tokens: a stream of its own for each number that is drawn for, whatever the batch."""

    def __init__(self, seed: int, draws: Sequence[int]) -> None:
        self._draws = list(draws)
        self._generators = {draw: torch.Generator().manual_seed(_mixed(seed, draw)) for draw in set(draws)}

    def thrown(self, logits: Float[Tensor, "B V"], temperature: float) -> Int[Tensor, "B"]:
        """One token of each row, with the probabilities that softmax gives at this temperature.

        By the Gumbel trick: rows with the same noise and nearly the same logits nearly always get the same token.
        """
        width = logits.shape[-1]
        noise = {draw: torch.empty(width).exponential_(generator=one) for draw, one in self._generators.items()}
        gumbel = -torch.stack([noise[draw] for draw in self._draws]).log()
        return (logits.float().cpu() / temperature + gumbel).argmax(-1)


def _mixed(seed: int, draw: int) -> int:
    # Neighbouring seeds and draws must not share streams: odd constants part them (Steele et al. 2014, SplitMix).
    return ((seed * 0x9E3779B97F4A7C15) ^ ((draw + 1) * 0xBF58476D1CE4E5B9)) % (1 << 63)


def continued(
    forward: Forward,
    tokens: Tokens,
    *,
    max_new_tokens: int,
    temperature: float,
    dice: Dice,
    ends: Collection[int],
    pad: int,
    cache: bool,
) -> Iterator[Step]:
    """One `Step` after another, until every row has ended or has its tokens. `temperature` 0: the likeliest token."""
    kept: Any = None
    ended = torch.zeros(len(tokens), dtype=torch.bool)
    final = torch.tensor(sorted(ends), dtype=torch.int64)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits, kept = forward(tokens, kept if cache else None)
            ids = (logits.argmax(-1) if temperature == 0 else dice.thrown(logits, temperature)).cpu()
            logprobs = logits.float().log_softmax(-1).cpu().gather(-1, ids[:, None])[:, 0]
        ids = ids.masked_fill(ended, pad)
        logprobs = logprobs.masked_fill(ended, 0.0)
        going = ~ended
        ended = ended | torch.isin(ids, final)
        yield Step(ids, logprobs, ended)
        if ended.all():
            return
        tokens = replace(
            tokens,
            ids=torch.cat([tokens.ids, ids[:, None]], dim=1),
            real=torch.cat([tokens.real, going[:, None]], dim=1),
            counted=torch.cat([tokens.counted, going[:, None]], dim=1),
        )
