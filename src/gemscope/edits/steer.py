"""Edits along a direction, whatever the feature's activation: add to it, remove or scale it, keep it within bounds."""

from __future__ import annotations

import math

from torch import Tensor

from gemscope.activations.editing import Positions
from gemscope.activations.site import Site
from gemscope.edits.feature import Along, written
from gemscope.edits.strength import Strength
from gemscope.errors import InputError
from gemscope.features.sae import SAE
from gemscope.shapes import Float


class Steer(Along):
    """x + α d: the feature's direction added, α = `by` times."""

    def __init__(
        self, sae: SAE, feature: int, by: Strength | float, *, at: Positions = "all", every_token: bool = False
    ) -> None:
        super().__init__(*written(sae, feature), strength=by, at=at, every_token=every_token)

    @classmethod
    def along(
        cls,
        site: Site | str,
        direction: Float[Tensor, "D"],
        by: Strength | float = 1.0,
        *,
        name: str = "a vector",
        at: Positions = "all",
        every_token: bool = False,
    ) -> Steer:
        """With a vector of one's own in the place of a feature's."""
        made = cls.__new__(cls)
        Along.__init__(made, direction, Site.parse(site), name, strength=by, at=at, every_token=every_token)
        return made

    def change(self, x: Float[Tensor, "N D"], read: Float[Tensor, "N I"]) -> Float[Tensor, "N D"]:
        assert self.strength is not None
        return (self.strength.raw * self.scale(x))[:, None] * self.direction(x)

    def __str__(self) -> str:
        return self.described(f"add {self.name} ({self.strength})")


class _Onto(Along):
    """What looks at the part of x that lies along d."""

    def _check(self) -> None:
        if not self._direction.any():
            raise InputError(f"{self.name} writes nothing (its decoder row is zero): no part of x lies along it")

    def _share(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N"]:
        """How many d's of x lie along d: (x · d) / ‖d‖²."""
        direction = self.direction(x)
        return (x @ direction) / direction.pow(2).sum()


class Project(_Onto):
    """x + (k − 1)(x · d̂) d̂: what lies along the direction scaled by k = `keep`, which 0 removes. A factor, not an
    activation: directional ablation (Arditi et al. 2024, arXiv 2406.11717, eq. 4) at k = 0.
    """

    def __init__(
        self, sae: SAE, feature: int, keep: float = 0.0, *, at: Positions = "all", every_token: bool = False
    ) -> None:
        super().__init__(*written(sae, feature), at=at, every_token=every_token)
        self._set(keep)

    @classmethod
    def along(
        cls,
        site: Site | str,
        direction: Float[Tensor, "D"],
        keep: float = 0.0,
        *,
        name: str = "a vector",
        at: Positions = "all",
        every_token: bool = False,
    ) -> Project:
        """With a vector of one's own in the place of a feature's."""
        made = cls.__new__(cls)
        Along.__init__(made, direction, Site.parse(site), name, at=at, every_token=every_token)
        made._set(keep)
        return made

    def _set(self, keep: float) -> None:
        self._check()
        if not math.isfinite(keep):
            raise InputError(f"keep={keep}: expected a finite factor, 0 to remove the direction")
        self.keep = float(keep)

    def change(self, x: Float[Tensor, "N D"], read: Float[Tensor, "N I"]) -> Float[Tensor, "N D"]:
        return ((self.keep - 1) * self._share(x))[:, None] * self.direction(x)

    def __str__(self) -> str:
        return self.described(f"{f'scale by {self.keep:g}' if self.keep else 'remove'} what lies along {self.name}")


class Cap(_Onto):
    """x + (clamp(p, low, high) − p) d with p = (x · d) / ‖d‖²: what lies along the direction kept within bounds, which
    are in the units of the feature's activation (None: unbounded).
    """

    def __init__(
        self,
        sae: SAE,
        feature: int,
        *,
        low: Strength | float | None = None,
        high: Strength | float | None = None,
        at: Positions = "all",
        every_token: bool = False,
    ) -> None:
        super().__init__(*written(sae, feature), at=at, every_token=every_token)
        self._set(low, high)

    @classmethod
    def along(
        cls,
        site: Site | str,
        direction: Float[Tensor, "D"],
        *,
        low: Strength | float | None = None,
        high: Strength | float | None = None,
        name: str = "a vector",
        at: Positions = "all",
        every_token: bool = False,
    ) -> Cap:
        """With a vector of one's own in the place of a feature's."""
        made = cls.__new__(cls)
        Along.__init__(made, direction, Site.parse(site), name, at=at, every_token=every_token)
        made._set(low, high)
        return made

    def _set(self, low: Strength | float | None, high: Strength | float | None) -> None:
        self._check()
        if low is None and high is None:
            raise InputError("neither low nor high: a cap needs at least one bound")
        self.low, self.high = (None if bound is None else Strength.of(bound) for bound in (low, high))
        if self.low and self.high and self.low.raw > self.high.raw:
            raise InputError(f"low={self.low.raw:g} above high={self.high.raw:g}: nothing lies between them")
        self.strength = self.high or self.low

    def change(self, x: Float[Tensor, "N D"], read: Float[Tensor, "N I"]) -> Float[Tensor, "N D"]:
        share, scale = self._share(x), self.scale(x)
        low, high = (bound.raw * scale if bound else None for bound in (self.low, self.high))
        return (share.clamp(low, high) - share)[:, None] * self.direction(x)

    def __str__(self) -> str:
        bounds = [f"{word} ({bound})" for word, bound in (("above", self.low), ("below", self.high)) if bound]
        return self.described(f"keep what lies along {self.name} {' and '.join(bounds)}")
