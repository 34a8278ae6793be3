"""How attention sinks are told: the one place that knows.

A sink is a token on which a model parks the attention that it has no use for (Xiao et al. 2023, arXiv:2309.17453). It
is a property of the token in its row and has little to do with what the token means: from an early MLP on a few
coordinates of its residual stream are far larger than anything of an ordinary token, and stay so until the last layers
("massive activations", Sun et al. 2024, arXiv:2402.17762). So the stream is looked at where they always are, in the
middle of the model, and what is found there holds at every site. No one site can tell by itself: before they appear the
stream of ordinary tokens may be spread as widely (commas of Gemma 3 270M lie at 19 medians at 0.res), and near the end
they fade. In the middle ordinary tokens are alike: within 1.7 medians on SmolLM2-135M, 2 on Gemma 3 270M, while sinks
begin at 5.8 and 9.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from gemscope.activations import site as places
from gemscope.activations.families import Point
from gemscope.activations.site import Site
from gemscope.shapes import Bool, Float, Int

SINK_FACTOR = 3.0
"""A token is a sink from so many times the typical norm in the middle of the model on."""
SAMPLE = 64
"""Tokens of the vocabulary that the typical norm is the median of."""


def middle(model: nn.Module) -> Site:
    """The residual stream half-way through the blocks, where sinks are told."""
    return Site(places.n_layers(model) // 2, "res")


def norms_at_middle(model: nn.Module) -> Point:
    """Where the norms are read."""
    return replace(places.locate(model, middle(model)), transform="norm")


def vocabulary(size: int, *, without: frozenset[int]) -> Int[Tensor, "N"]:
    """Ids spread evenly over a vocabulary, special ones left out: text of no kind, so that the typical norm does not
    hang on a language, and any tokenizer has it.
    """
    plain = torch.tensor([id_ for id_ in range(size) if id_ not in without], dtype=torch.int64)
    return plain[torch.linspace(0, len(plain) - 1, min(SAMPLE, len(plain))).long()]


def limit(norms: Float[Tensor, "N"]) -> float:
    """The norm that no ordinary token reaches, given those of ordinary tokens; infinite where there are none, or where
    they are nothing.
    """
    return (SINK_FACTOR * norms.median().item() if len(norms) else 0.0) or float("inf")


def told(norms: Float[Tensor, "B T"], limit: float) -> Bool[Tensor, "B T"]:
    """Which tokens are sinks, by their norms in the middle of the model."""
    found: Tensor = norms >= limit
    return found
