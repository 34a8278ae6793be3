"""Features edited in one way, and what that is compared with: other features that have nothing to do with them, and
vectors that mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gemscope.activations.editing import Edit, Positions
from gemscope.edits.steer import Steer
from gemscope.edits.strength import Amount, Strength
from gemscope.edits.units import Units
from gemscope.edits.ways import edit, require_added
from gemscope.errors import InputError
from gemscope.features.fit import sites_of
from gemscope.features.sae import SAE
from gemscope.shapes import Float

_TRIES = 2000
"""Features looked at for one of like maximum before the most like of them is taken."""
_FACTOR = 1.2
"""How far apart two maxima may be and still be alike."""
_ASIDE = 0.2
"""The cosine between directions from which two features have to do with each other."""


@dataclass(frozen=True)
class Control:
    """What stands in the features' place: in words, and as edits by what is set for the features."""

    name: str
    edits: Callable[[Mapping[int, Amount | float]], list[Edit]]


@dataclass(frozen=True, kw_only=True)
class Act:
    """One of the `WAYS`, to be done to features of an SAE: by an amount where it takes a strength, else by a number."""

    how: str
    sae: SAE
    units: Units
    at: Positions = "all"
    every_token: bool = False
    seed: int = 0

    def edits(self, by: Mapping[int, Amount | float]) -> list[Edit]:
        """One for each feature. Raises InputError for one that is not there, or that never fired and has no unit."""
        return [
            edit(self.how, self.sae, feature, self._by(feature, size), **self._where) for feature, size in by.items()
        ]

    def random(self, features: Sequence[int]) -> Control:
        """A `random_feature` for each, as strong: no two the same, and none of these."""
        others: dict[int, int] = {}
        for place, feature in enumerate(features):
            taken = {*features, *others.values()}
            others[feature] = random_feature(self.sae, feature, self.units, self.seed + place, without=taken)
        return Control(
            "random feature " + ", ".join(f"{other} in place of {feature}" for feature, other in others.items()),
            lambda by: self.edits({others[feature]: size for feature, size in by.items()}),
        )

    def noise(self) -> Control:
        """`noise` for each, added. Raises InputError where the way adds nothing of a length."""
        require_added(self.how)
        return Control("random directions of the same length", self._noise)

    def _noise(self, by: Mapping[int, Amount | float]) -> list[Edit]:
        _, site = sites_of(self.sae)
        return [
            Steer.along(
                site,
                noise(self.sae, feature, self.seed + place),
                self._by(feature, size),
                name=f"noise as long as feature {feature}'s direction",
                **self._where,
            )
            for place, (feature, size) in enumerate(by.items())
        ]

    def _by(self, feature: int, size: Amount | float) -> Strength | float:
        return self.units.of(size, feature) if isinstance(size, Amount) else size

    @property
    def _where(self) -> dict[str, Any]:
        return {"at": self.at, "every_token": self.every_token}


def random_feature(sae: SAE, feature: int, units: Units, seed: int = 0, *, without: Collection[int] = ()) -> int:
    """Another living feature, none of `without`, whose largest activation is much the same (within a factor of 1.2, or
    the most alike of 2,000) and whose direction is another (cosine below 0.2 either way). The same for the same `seed`.

    Raises InputError for a feature that there is not or that never fired, and where no other one fits.
    """
    wanted, direction = units.maximum(feature), _unit(sae.direction(feature))
    order = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(seed))[:_TRIES].tolist()
    best: tuple[float, int] | None = None
    for other in order:
        if other in (feature, *without) or not (largest := _maximum(units, other)):
            continue
        if abs(float(_unit(sae.direction(other)) @ direction)) >= _ASIDE:
            continue
        apart = max(largest / wanted, wanted / largest)
        if apart <= _FACTOR:
            return int(other)
        if best is None or apart < best[0]:
            best = (apart, int(other))
    if best is None:
        raise InputError(f"no other feature of {sae.info.name} fires and points elsewhere: use noise as the control")
    return best[1]


def noise(sae: SAE, feature: int, seed: int = 0) -> Float[Tensor, "O"]:
    """A random vector as long as what one unit of the feature writes: for `Steer.along`. The same for the same `seed`.

    Raises InputError for a feature that there is not.
    """
    direction = sae.direction(feature)
    drawn = torch.randn(len(direction), generator=torch.Generator().manual_seed(seed)).to(direction.device)
    found: Tensor = _unit(drawn) * torch.linalg.vector_norm(direction)
    return found


def _unit(vector: Tensor) -> Tensor:
    unit: Tensor = vector / torch.linalg.vector_norm(vector).clamp_min(1e-12)
    return unit


def _maximum(units: Units, feature: int) -> float:
    try:
        return units.maximum(feature)
    except InputError:  # it never fired
        return 0.0
