"""What an edit is compared with: another feature that has nothing to do with it, and a vector that means nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from gemscope.edits.units import Units
from gemscope.errors import InputError
from gemscope.features.sae import SAE
from gemscope.shapes import Float

_TRIES = 2000
"""Features looked at for one of like maximum before the most like of them is taken."""
_FACTOR = 1.2
"""How far apart two maxima may be and still be alike."""
_ASIDE = 0.2
"""The cosine between directions from which two features have to do with each other."""


def random_feature(sae: SAE, feature: int, units: Units, seed: int = 0) -> int:
    """Another living feature whose largest activation is much the same (within a factor of 1.2, or the most alike of
    2,000) and whose direction is another (cosine below 0.2 either way). The same for the same `seed`.

    Raises InputError for a feature that there is not or that never fired, and where no other one fits.
    """
    wanted, direction = units.maximum(feature), _unit(sae.direction(feature))
    order = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(seed))[:_TRIES].tolist()
    best: tuple[float, int] | None = None
    for other in order:
        if other == feature or not (largest := _maximum(units, other)):
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
