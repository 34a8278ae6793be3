"""The relatives of an atlas's features among those of SAEs at other sites, out of a file beside it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from gemscope.atlas.dashboard import Kindred, Life, Related
from gemscope.atlas.files.manifest import Manifest
from gemscope.atlas.files.whole import RELATIVES
from gemscope.errors import Mismatch
from gemscope.features.relatives import Kin, Relation


class Relatives:
    """Of all features of one atlas. The file is opened when it is first asked for."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest

    @cached_property
    def kin(self) -> Kin | None:
        """All of it; None where there is no file. Raises CorruptFile, Mismatch for another SAE's."""
        path = self._folder / RELATIVES
        if not path.is_file():
            return None
        found = Kin.load(path)
        require_of(found, self._manifest, path)
        return found

    @cached_property
    def _nearest(self) -> list[np.ndarray]:
        """For each relation the features that go on as ours."""
        return [] if self.kin is None else [one.nearest()[0] for one in self.kin.relations]

    def of(self, feature: int) -> tuple[list[Related], Life | None]:
        """Of one feature: by SAE, in the model's order; and where it begins and ends. Raises CorruptFile, Mismatch."""
        kin = self.kin
        if kin is None:
            return [], None
        related = [
            _related(relation, feature, int(nearest[feature]))
            for relation, nearest in zip(kin.relations, self._nearest, strict=True)
        ]
        life = None
        if kin.lives is not None:
            born, gone = kin.lives.of(feature)
            life = Life(born=born.place, gone=gone.place, chain=[one.place for one in kin.lives.chain])
        return related, life


def require_of(kin: Kin, manifest: Manifest, path: Path) -> None:
    """Raises Mismatch where relatives are those of another SAE's features, or found in another model."""
    if kin.model != manifest.model or kin.revision != manifest.revision:
        raise Mismatch(f"{path} was found in {kin.model}, the atlas is of {manifest.model}: remove it")
    if kin.own.digest != manifest.sae_digest:
        raise Mismatch(f"{path} is of {kin.own.name} ({kin.own.digest[:12]}), the atlas of {manifest.sae}: remove it")


def _related(relation: Relation, feature: int, nearest: int) -> Related:
    about = relation.about
    return Related(
        sae=about.other.name,
        digest=about.other.digest,
        site=about.other.place,
        later=about.later,
        source=about.source,
        tokens=about.text.tokens,
        corpus=about.text.corpus,
        effect_tokens=None if about.effect is None else about.effect.tokens,
        why=about.why,
        features=[
            Kindred(
                feature=one.feature,
                cosine=one.cosine,
                correlation=one.correlation,
                both=one.both,
                effect=one.effect,
                nearest=one.feature == nearest,
                label=relation.labels.get(one.feature),
            )
            for one in relation.of(feature)
        ],
    )
