"""What flowed through a site while tokens were read, and which of those tokens count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gemscope.activations.site import Site
from gemscope.shapes import Bool, Float
from gemscope.text.tokens import Tokens

SINK_FACTOR = 10.0
"""A token whose norm is above this many medians is an attention sink. On SmolLM2-135M sinks lie at 139 medians and
everything else below 9, so nothing hangs on the exact figure."""


@dataclass(frozen=True)
class Activations:
    """Activations [B, T, D] at one site, the tokens they belong to, and the model's name.

    `counted` [B, T] is the tokens' own mask without the attention sinks found here.
    """

    values: Float[Tensor, "B T D"]
    counted: Bool[Tensor, "B T"]
    tokens: Tokens
    site: Site
    model: str

    @property
    def rows(self) -> Float[Tensor, "N D"]:
        """Only the counted tokens, flattened."""
        return self.values[self.counted]

    @property
    def d(self) -> int:
        """Width of the site."""
        return self.values.shape[-1]

    @property
    def dropped(self) -> dict[str, int]:
        """How many places do not count, by reason: padding, first (of its row), special, sink."""
        tokens, counted = self.tokens, self.counted.cpu()
        masked = tokens.real & ~tokens.counted
        first = masked & (tokens.positions == 0)
        reasons = {
            "padding": ~tokens.real,
            "first": first,
            "special": masked & ~first,
            "sink": tokens.counted & ~counted,
        }
        return {reason: int(mask.sum()) for reason, mask in reasons.items()}


def counted_at_all(found: Sequence[Activations]) -> Bool[Tensor, "B T"]:
    """Which tokens count at every one of the sites: a sink at one is one at all. On the CPU."""
    counted = found[0].counted.cpu()
    for acts in found[1:]:
        counted = counted & acts.counted.cpu()
    return counted


class Captured(Mapping[Site, Activations]):
    """Activations by site, of one pass. Keys may be written as text: `captured["20.res"]`."""

    def __init__(self, found: Mapping[Site, Activations], logits: Tensor | None = None) -> None:
        self._found = dict(found)
        self.logits = logits

    def __getitem__(self, site: Site | str | None) -> Activations:
        if site is None:
            raise KeyError("no site given: the SAE does not say where it reads (set sae.site)")
        return self._found[Site.parse(site)]

    def __iter__(self) -> Iterator[Site]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def sinks(values: Float[Tensor, "B T D"], counted: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Where the norm is above SINK_FACTOR times the median norm of its row's counted tokens."""
    norms = torch.linalg.vector_norm(values, dim=-1, dtype=torch.float32)
    found: Tensor = norms > sink_limits(norms, counted)
    return found


def sink_limits(norms: Float[Tensor, "B T"], counted: Bool[Tensor, "B T"]) -> Float[Tensor, "B 1"]:
    """The norm above which a token of each row is an attention sink, given which of its tokens count; infinite for a
    row without any. A row by itself, so that what is found does not hang on what else is in the batch.
    """
    medians = norms.masked_fill(~counted, torch.nan).nanmedian(-1, keepdim=True).values
    limits: Tensor = (SINK_FACTOR * medians).nan_to_num(nan=torch.inf, posinf=torch.inf)
    return limits
