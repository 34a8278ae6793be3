"""What the features of an SAE mean and how telling they are, where an atlas of it is at hand."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from gemscope.atlas.bundled import BUNDLED
from gemscope.atlas.entry import Floats, Ints
from gemscope.atlas.reader import Atlas
from gemscope.errors import Mismatch
from gemscope.features.sae import SAE


class Meanings:
    """Of all features of one SAE."""

    def __init__(self, atlas: Atlas) -> None:
        self.atlas = atlas
        ids, densities, maxima = atlas.scatter()
        self._max = np.zeros(len(atlas), np.float64)
        self._max[ids] = maxima
        # One that never fired is rarer than one that fired once.
        self._density = np.full(len(atlas), 0.5 / max(1, atlas.manifest.tokens))
        self._density[ids] = densities

    def densities(self, features: Ints) -> Floats:
        """Share of the atlas's tokens on which each fires; half a token's for one that never did."""
        return self._density[features]

    def shares(self, features: Ints, activations: Floats) -> Floats:
        """Activations in parts of each feature's largest; 1 for one that never fired in the atlas's text."""
        return activations / np.where(self._max[features] > 0, self._max[features], activations)

    def telling(self, features: Ints, activations: Floats) -> Floats:
        """How much it says that features fire so: (activation / max) · ln(1 / density), in nats.

        What fires everywhere says next to nothing, however strongly; what fires seldom says much, unless hardly at all.
        """
        told: Floats = self.shares(features, activations) * -np.log(np.minimum(self._density[features], 1.0))
        return told


def meanings(sae: SAE, atlas: Atlas | str | Path | None = None) -> Meanings | None:
    """By an atlas; by none given, the one that comes with the package if it is this SAE's, else None.

    Raises Mismatch where a given atlas is another SAE's, and what opening it raises.
    """
    if atlas is None:
        bundled = _bundled()
        return bundled if sae.info.name == bundled.atlas.manifest.sae and _is_of(bundled.atlas, sae) else None
    opened = atlas if isinstance(atlas, Atlas) else Atlas(atlas)
    if not _is_of(opened, sae):
        raise Mismatch(
            f"the atlas at {opened.folder} was made with {opened.manifest.sae}, not with {sae.info.name}: "
            "its labels are of other features"
        )
    return Meanings(opened)


@cache
def _bundled() -> Meanings:
    return Meanings(Atlas(BUNDLED))


def _is_of(atlas: Atlas, sae: SAE) -> bool:
    return atlas.manifest.sae_digest == sae.digest
