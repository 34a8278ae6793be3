"""Edits of one feature's activation f. The decoder is affine, so that what the SAE does not explain of x (its error)
stays exactly as it is: only the feature's own part, f d, moves.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

from torch import Tensor

from gemscope.activations.editing import Positions
from gemscope.edits.feature import OfFeature
from gemscope.edits.strength import Strength
from gemscope.errors import InputError
from gemscope.features.sae import SAE
from gemscope.shapes import Float


class _Setting(OfFeature):
    """What says how active the feature shall be."""

    @property
    def fixes(self) -> Hashable:
        return ("feature", id(self.sae), self.feature)

    def change(self, x: Float[Tensor, "N D"], read: Float[Tensor, "N I"]) -> Float[Tensor, "N D"]:
        return (self.difference(self.activation(read)) * self.scale(x))[:, None] * self.direction(x)

    def difference(self, f: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """How much is added to the activation f."""
        raise NotImplementedError


class Clamp(_Setting):
    """x + (c − f) d: the feature as active as c = `to`, whatever it was (Templeton et al. 2024, Scaling
    Monosemanticity).
    """

    def __init__(
        self, sae: SAE, feature: int, to: Strength | float, *, at: Positions = "all", every_token: bool = False
    ) -> None:
        super().__init__(sae, feature, strength=to, at=at, every_token=every_token)

    def difference(self, f: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        assert self.strength is not None
        return self.strength.raw - f

    def __str__(self) -> str:
        return self.described(f"clamp {self.name} to {self.strength}")


class AtLeast(_Setting):
    """x + max(0, c − f) d: the feature at least as active as c = `to`."""

    def __init__(
        self, sae: SAE, feature: int, to: Strength | float, *, at: Positions = "all", every_token: bool = False
    ) -> None:
        super().__init__(sae, feature, strength=to, at=at, every_token=every_token)

    def difference(self, f: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        assert self.strength is not None
        return (self.strength.raw - f).clamp(min=0)

    def __str__(self) -> str:
        return self.described(f"raise {self.name} to at least {self.strength}")


class Scale(_Setting):
    """x + (s − 1) f d: the feature s = `by` times as active as it is."""

    def __init__(self, sae: SAE, feature: int, by: float, *, at: Positions = "all", every_token: bool = False) -> None:
        super().__init__(sae, feature, at=at, every_token=every_token)
        if not math.isfinite(by):
            raise InputError(f"by={by}: expected a finite factor, 0 to silence the feature")
        self.by = float(by)

    def difference(self, f: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        return (self.by - 1) * f

    def __str__(self) -> str:
        return self.described(f"scale {self.name} by {self.by:g}")


class Ablate(Scale):
    """x − f d: the feature silenced."""

    def __init__(self, sae: SAE, feature: int, *, at: Positions = "all", every_token: bool = False) -> None:
        super().__init__(sae, feature, 0.0, at=at, every_token=every_token)

    def __str__(self) -> str:
        return self.described(f"ablate {self.name}")
