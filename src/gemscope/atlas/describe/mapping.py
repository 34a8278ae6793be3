"""The map of an atlas that has none, or of another seed: from the weights of its SAE."""

from __future__ import annotations

from gemscope.atlas.files.manifest import Mapped
from gemscope.atlas.reader import Atlas
from gemscope.errors import Mismatch, MissingDependency
from gemscope.features.map import SEED, Plane, plane
from gemscope.features.sae import SAE
from gemscope.progress import Progress, silent


def add_map(atlas: Atlas, sae: SAE, *, seed: int = SEED, progress: Progress = silent) -> Plane:
    """Places the features of an atlas on a map by the directions of its SAE, and keeps that in the atlas.

    Raises Mismatch for another SAE, MissingDependency without scikit-learn, AccessError where nothing can be written.
    """
    if atlas.manifest.sae_digest != sae.digest:
        raise Mismatch(
            f"{atlas.folder} was made with another SAE (digest {atlas.manifest.sae_digest[:12]}) than {sae.info.name} "
            f"({sae.digest[:12]}): name the one that it was made with"
        )
    with progress("map", None, ""):
        made = plane(sae.decoder, seed=seed)
    atlas.put_places(made.places, mapped(made))
    return made


def mapped(made: Plane) -> Mapped:
    """As the manifest says it."""
    return Mapped(method=made.method, kept=round(made.kept, 4))


def plane_or_why(sae: SAE, progress: Progress) -> Plane | str:
    """The map, or why there is none."""
    if sae.d_sae < 2:
        return "there is one feature alone"
    try:
        with progress("map", None, ""):
            return plane(sae.decoder)
    except MissingDependency as error:
        return str(error)


def plane_of(atlas: Atlas) -> Plane | str:
    """The map that an atlas has, or why it has none."""
    places, said = atlas.places, atlas.manifest.map
    if places is None or said is None:
        return atlas.manifest.no_map or "none was made"
    return Plane(places, said.method, said.kept)
