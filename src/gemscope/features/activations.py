"""The sparse type: which features are active, where, and how strongly. Knows nothing of SAEs or models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from gemscope.errors import InputError
from gemscope.features.kernels.rows import by_strength
from gemscope.shapes import Bool, Float, Int


@dataclass(frozen=True)
class FeatureActivations:
    """Feature activations of N tokens in compressed sparse rows.

    Token n's active features are `features[offsets[n]:offsets[n + 1]]` (ascending ids) with strengths `values[...]`
    in the same order. `lead` is the shape that the tokens came in, usually (rows, positions); N is its product.
    `counted` says which tokens enter numbers and "top" lists (not BOS, padding, attention sinks); None means all.
    """

    offsets: Int[Tensor, "starts"]
    features: Int[Tensor, "Z"]
    values: Float[Tensor, "Z"]
    d_sae: int
    lead: tuple[int, ...]
    counted: Bool[Tensor, "..."] | None = None

    def __post_init__(self) -> None:
        if len(self.offsets) != self.n_tokens + 1:
            raise InputError(f"{len(self.offsets)} row offsets do not fit {self.n_tokens} tokens (expected one more)")
        if self.counted is not None and tuple(self.counted.shape) != self.lead:
            raise InputError(f"a mask of shape {tuple(self.counted.shape)} does not fit tokens of shape {self.lead}")

    @classmethod
    def from_dense(
        cls, dense: Float[Tensor, "... F"], counted: Bool[Tensor, "..."] | None = None
    ) -> FeatureActivations:
        """Keeps every entry that is not zero."""
        flat = dense.reshape(-1, dense.shape[-1])
        tokens, features = flat.nonzero(as_tuple=True)
        offsets = torch.zeros(len(flat) + 1, dtype=torch.int64, device=dense.device)
        offsets[1:] = torch.bincount(tokens, minlength=len(flat)).cumsum(0)
        return cls(offsets, features, flat[tokens, features], dense.shape[-1], tuple(dense.shape[:-1]), counted)

    @property
    def n_tokens(self) -> int:
        """Tokens, counted or not."""
        return prod(self.lead)

    @cached_property
    def tokens(self) -> Int[Tensor, "Z"]:
        """For every entry, the flat index of its token."""
        each = self.offsets.diff()
        return torch.arange(self.n_tokens, device=self.offsets.device).repeat_interleave(each)

    @cached_property
    def l0(self) -> Int[Tensor, "..."]:
        """How many features are active, per token; shape `lead`."""
        return self.offsets.diff().reshape(self.lead)

    @property
    def mean_l0(self) -> float:
        """Mean L0 over the counted tokens; NaN when none counts."""
        l0 = self.l0 if self.counted is None else self.l0[self.counted]
        return l0.double().mean().item()

    @property
    def firing(self) -> int:
        """How many features fire on counted tokens."""
        here = self.features if self.counted is None else self.features[self.counted.reshape(-1)[self.tokens]]
        return int(torch.unique(here).numel())

    def to_dense(self) -> Float[Tensor, "... F"]:
        """[*lead, d_sae], zeros included. Large: 8 GB for 2,048 tokens of a million features."""
        dense = self.values.new_zeros(self.n_tokens, self.d_sae)
        dense[self.tokens, self.features.long()] = self.values
        return dense.reshape(*self.lead, self.d_sae)

    def row(self, token: int) -> tuple[Int[Tensor, "z"], Float[Tensor, "z"]]:
        """Features and strengths of one token (flat index), strongest first."""
        start, stop = self.offsets[token], self.offsets[token + 1]
        values, order = self.values[start:stop].sort(descending=True, stable=True)
        return self.features[start:stop][order], values

    def top(self, k: int) -> tuple[Int[Tensor, "... K"], Float[Tensor, "... K"]]:
        """The k strongest features of each token and their strengths, strongest first.

        Where fewer than k are active the rest is feature -1 and strength 0. Tokens that do not count are included:
        `counted` says which they are.
        """
        ids = self.features.new_full((self.n_tokens, k), -1)
        strengths = self.values.new_zeros(self.n_tokens, k)
        order, rank = by_strength(self.offsets, self.tokens, self.values)
        kept = rank < k
        ids[self.tokens[kept], rank[kept]] = self.features[order[kept]]
        strengths[self.tokens[kept], rank[kept]] = self.values[order[kept]]
        return ids.reshape(*self.lead, k), strengths.reshape(*self.lead, k)

    def of(self, feature: int) -> Float[Tensor, "..."]:
        """One feature's strength on every token; shape `lead`."""
        if not 0 <= feature < self.d_sae:
            raise InputError(f"no feature {feature}: this SAE has features 0 to {self.d_sae - 1}")
        hits = self.features == feature
        strengths = self.values.new_zeros(self.n_tokens)
        strengths[self.tokens[hits]] = self.values[hits]
        return strengths.reshape(self.lead)

    def to(self, device: torch.device | str) -> FeatureActivations:
        """The same on another device."""
        counted = None if self.counted is None else self.counted.to(device)
        return replace(
            self,
            offsets=self.offsets.to(device),
            features=self.features.to(device),
            values=self.values.to(device),
            counted=counted,
        )
