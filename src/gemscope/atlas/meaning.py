"""What the features of an SAE mean and how telling they are, where an atlas of it is at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gemscope.activations.editing import Edit
from gemscope.atlas.bundled import BUNDLED
from gemscope.atlas.entry import Floats, Ints
from gemscope.atlas.files.manifest import IMPORTED, Manifest
from gemscope.atlas.reader import Atlas
from gemscope.edits.feature import Along
from gemscope.errors import Mismatch
from gemscope.features.activations import FeatureActivations
from gemscope.features.sae import SAE

Given = Atlas | str | Path | None
"""An atlas, or its folder; None: the one that comes with the package, where it is of the SAE."""


class Place(NamedTuple):
    """A feature, and how strongly it fires on one token of a text."""

    feature: int
    position: int
    activation: float


class Meanings:
    """Of all features of one SAE."""

    def __init__(self, atlas: Atlas, sae: SAE) -> None:
        self.atlas = atlas
        ids, densities, maxima = atlas.scatter()
        self._max = np.zeros(len(atlas), np.float64)
        self._max[ids] = maxima
        if atlas.manifest.options.get(IMPORTED) == "neuronpedia":  # theirs are activations for a decoder of norm 1
            self._max /= sae.decoder.norms().clamp(min=1e-12).numpy()
        self._right = atlas.right()
        # One that never fired is rarer than one that fired once.
        self._density = np.full(len(atlas), 0.5 / max(1, atlas.manifest.tokens))
        self._density[ids] = densities

    def densities(self, features: Ints) -> Floats:
        """Share of the atlas's tokens on which each fires; half a token's for one that never did."""
        return self._density[features]

    def shares(self, features: Ints, activations: Floats) -> Floats:
        """Activations in parts of each feature's largest; NaN for one that never fired in the atlas's text."""
        largest = self._max[features]
        shares: Floats = np.where(largest > 0, activations / np.where(largest > 0, largest, 1.0), np.nan)
        return shares

    def telling(self, features: Ints, activations: Floats) -> Floats:
        """How much it says that features fire so: (activation / max) · ln(1 / density) · r, in nats, where r is how far
        the feature's label is right (its balanced accuracy; ½ without a label, as a guess has).

        What fires everywhere says next to nothing, however strongly; what fires seldom says much, unless hardly at all.
        Of what never fired in the atlas's text nothing is known, and it says nothing.
        """
        rare = -np.log(np.minimum(self._density[features], 1.0))
        told: Floats = self.shares(features, activations) * rare * self._right[features]
        return np.where(np.isnan(told), 0.0, told)

    def foremost(self, found: FeatureActivations, *, limit: int, max_density: float = 1.0) -> list[Place]:
        """Each feature that fires on a counted token, on the one where it is most telling: the `limit` that are most
        so, those first that are more so, then the stronger ones. What is denser than `max_density` is left out.
        """
        tokens, features = found.tokens.cpu().numpy(), found.features.long().cpu().numpy()
        values = found.values.detach().double().cpu().numpy()
        chosen = self._density[features] <= max_density
        if found.counted is not None:
            chosen &= found.counted.reshape(-1).cpu().numpy()[tokens]
        tokens, features, values = tokens[chosen], features[chosen], values[chosen]
        order = np.lexsort((-values, -self.telling(features, values)))
        _, firsts = np.unique(features[order], return_index=True)
        best = order[np.sort(firsts)[:limit]]
        return list(map(Place, features[best].tolist(), tokens[best].tolist(), values[best].tolist()))


@contextmanager
def meanings(sae: SAE, atlas: Given = None) -> Iterator[Meanings | None]:
    """By an atlas; None where none is given and the bundled one is not of this SAE.

    An atlas that names no weights, as one that was made of somebody else's files, is of the SAE that has the name or
    the Neuronpedia id which it has. Raises Mismatch where a given atlas is another SAE's, and what opening it raises.
    """
    if isinstance(atlas, Atlas):
        _require_of(atlas, sae)
        yield Meanings(atlas, sae)
    elif atlas is not None:
        with Atlas(atlas) as opened:
            _require_of(opened, sae)
            yield Meanings(opened, sae)
    else:
        bundled = _bundled()
        yield Meanings(bundled, sae) if misfit(bundled.manifest, sae) is None else None


def labels(sae: SAE, features: Iterable[int], atlas: Given = None) -> dict[int, str]:
    """What features stand for and promote, of those of which it is known; of none where no atlas is at hand. Raises
    what `meanings` raises.
    """
    with meanings(sae, atlas) as known_of:
        return {} if known_of is None else known_of.atlas.meanings(features)


def labels_of(edits: Sequence[Edit], atlas: Given = None) -> tuple[str | None, ...]:
    """What the feature stands for that each edit is of; None for one without a label, and for edits of no feature.

    Raises what `meanings` raises; where edits are of several SAEs, a given atlas need be of one of them alone.
    """
    whose = [edit.of if isinstance(edit, Along) else None for edit in edits]
    found: dict[tuple[SAE, int], str] = {}
    amiss: list[Mismatch] = []
    saes = list(dict.fromkeys(one[0] for one in whose if one is not None))
    for sae in saes:
        try:
            own = labels(sae, {one[1] for one in whose if one is not None and one[0] is sae}, atlas)
        except Mismatch as error:
            amiss.append(error)
        else:
            found |= {(sae, feature): label for feature, label in own.items()}
    if amiss and len(amiss) == len(saes):
        raise amiss[0]
    return tuple(None if one is None else found.get(one) for one in whose)


@cache
def _bundled() -> Atlas:
    return Atlas(BUNDLED)


def _require_of(atlas: Atlas, sae: SAE) -> None:
    if amiss := misfit(atlas.manifest, sae):
        raise Mismatch(f"the atlas at {atlas.folder} {amiss}: its labels are of other features")


def misfit(manifest: Manifest, sae: SAE) -> str | None:
    """What tells that an atlas is of other features than the SAE's; what is quick to tell comes first."""
    if manifest.d_sae != sae.d_sae:
        return f"is of {manifest.d_sae:,} features of {manifest.sae}, {sae.info.name} has {sae.d_sae:,}"
    if sae.site is not None and manifest.site not in ("unknown", str(sae.site)):
        return f"is of features of {manifest.sae} at {manifest.site}, {sae.info.name} reads {sae.site}"
    if manifest.sae_digest:
        if manifest.sae_digest == sae.digest:
            return None
        return (
            f"was made with {manifest.sae} ({manifest.sae_digest[:12]}), not with {sae.info.name} ({sae.digest[:12]})"
        )
    if _names(manifest.sae, manifest.neuronpedia_id) & _names(sae.info.name, sae.info.neuronpedia_id):
        return None
    there = sae.info.neuronpedia_id or "nothing"
    told = manifest.neuronpedia_id or manifest.sae
    return f"was made of files about {told}, and {sae.info.name} is {there} on Neuronpedia"


def _names(*given: str | None) -> set[str]:
    """What a published SAE is called, whichever of its names is given."""
    from gemscope.features.published import find

    known = {name: find(name) for name in given if name}
    return {name if entry is None else entry.address for name, entry in known.items()}
