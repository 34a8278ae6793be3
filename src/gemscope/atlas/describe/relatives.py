"""Puts relatives that were found across sites beside the atlases whose features they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gemscope.atlas.files import corpus
from gemscope.atlas.files.whole import RELATIVES
from gemscope.atlas.reader import Atlas
from gemscope.atlas.relatives import Relatives, require_of
from gemscope.errors import NotFound
from gemscope.features.relatives import Kin, Relation


def add_relatives(atlases: Sequence[Atlas | str | Path], kin: Sequence[Kin]) -> list[Path]:
    """Puts beside each atlas the relatives of its features, out of `kin` (`gs.relatives(...).kin`), in place of what
    was known of the same pair of SAEs; relations to further SAEs stay. Where the other SAE's atlas is given too, what
    its features stand for is kept with them. Returns the files; an atlas that was opened before is to be opened again.

    Raises NotFound for an atlas whose SAE none of them is of, Mismatch for another model's, FileError, StorageFull.
    """
    opened = [one if isinstance(one, Atlas) else Atlas(one) for one in atlases]
    try:
        by_digest = {one.manifest.sae_digest: one for one in opened}
        found = [(one, _of(one, kin)) for one in opened]  # what is wrong with any is told before anything is written
        return [_kept(atlas, own, by_digest) for atlas, own in found]
    finally:
        for one, given in zip(opened, atlases, strict=True):
            if one is not given:
                one.close()


def _of(atlas: Atlas, kin: Sequence[Kin]) -> Kin:
    for one in kin:
        if one.own.digest == atlas.manifest.sae_digest:
            require_of(one, atlas.manifest, atlas.folder / RELATIVES)
            return one
    names = ", ".join(one.own.name for one in kin)
    raise NotFound(f"no relatives of {atlas.manifest.sae}, which {atlas.folder} is of, among those of {names}")


def _kept(atlas: Atlas, own: Kin, atlases: Mapping[str, Atlas]) -> Path:
    named = replace(own, relations=tuple(_named(one, atlases.get(one.other.digest)) for one in own.relations))
    before = Relatives(atlas.folder, atlas.manifest).kin
    path = (named if before is None else named.with_others(before)).save(atlas.folder / RELATIVES)
    path.chmod((atlas.folder / corpus.NAME).stat().st_mode)  # safetensors lets nobody else read it
    return path


def _named(relation: Relation, atlas: Atlas | None) -> Relation:
    """With what its features stand for."""
    if atlas is None:
        return relation
    manifest = atlas.manifest
    labels = atlas.meanings(set(relation.ids.tolist()))
    about = replace(relation.about, source=f"{manifest.model_id}/{manifest.source_id}")
    return replace(relation, about=about, labels=labels)
