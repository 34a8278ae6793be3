"""The output scores of an atlas's features, in a file beside it: as many as anybody has measured. Those of another
effect than the atlas has now are none.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemscope.atlas.files import corpus
from gemscope.atlas.files.manifest import Manifest
from gemscope.atlas.files.whole import OUTPUTS
from gemscope.atlas.output import Outcome, OutputScore
from gemscope.checked import Form, require_forms, shown
from gemscope.disk import claimed, room, synced
from gemscope.edits.strength import Strength
from gemscope.errors import CorruptFile
from gemscope.features.sealed import seal, unsealed

Array = np.ndarray[Any, np.dtype[Any]]

_SETS = ("promoted", "measured", "examples")
"""Of tokens."""
_FIGURES = ("score", "rank", "probability", "mass", "unedited", "control")
_STRENGTH = ("raw", "of_max", "of_norm")
_NAME, _REMEDY = "gemscope_outputs", "remove it, and the scores are measured again"


@dataclass(frozen=True, kw_only=True)
class Of:
    """What the scores are of."""

    model: str
    revision: str | None
    sae_digest: str
    effect: str | None
    """Digest of the effect by which tokens are promoted."""
    prompts: tuple[str, ...]


class Outputs:
    """Of one atlas. The file is read when one is first asked for, and again when it is another."""

    def __init__(self, folder: Path, manifest: Callable[[], Manifest], alone: Callable[[int], str]) -> None:
        """`manifest` gives that of the atlas as it is now, `alone` a token's text by its id."""
        self._path, self._manifest, self._alone = folder / OUTPUTS, manifest, alone
        self._read: tuple[object, _Kept | None] = (None, None)

    def of(self, feature: int) -> OutputScore | None:
        """None where nobody has measured it. Raises CorruptFile."""
        kept = self._now()
        return None if kept is None else kept.score(feature, self._alone)

    @property
    def features(self) -> list[int]:
        """Those that have one."""
        kept = self._now()
        return [] if kept is None else kept.features.tolist()

    def keep(self, scores: Iterable[OutputScore]) -> None:
        """Beside those that are there, and in place of what they say of the same features. Raises CorruptFile,
        StorageFull, FileError.
        """
        from safetensors.numpy import save_file

        added = {one.feature: one for one in scores}
        if not added:
            return
        of = self._of(next(iter(added.values())).prompts)
        with claimed(self._path, wait=True) as place, room(self._path, place):
            kept = self._now()
            before = [] if kept is None or kept.of != of else kept.all(self._alone)
            tensors = _packed(sorted([*(one for one in before if one.feature not in added), *added.values()], key=_by))
            aside = place / OUTPUTS
            save_file(tensors, aside, seal(_NAME, tensors, asdict(of)))
            aside.chmod((self._path.parent / corpus.NAME).stat().st_mode)  # safetensors lets nobody else read it
            synced(aside)
            os.replace(aside, self._path)

    def _of(self, prompts: tuple[str, ...]) -> Of:
        manifest = self._manifest()
        effect = None if manifest.effect is None else manifest.effect.digest
        return Of(
            model=manifest.model,
            revision=manifest.revision,
            sae_digest=manifest.sae_digest,
            effect=effect,
            prompts=prompts,
        )

    def _now(self) -> _Kept | None:
        """Two processes may serve one atlas: what either measures is on the disk."""
        try:
            there = os.stat(self._path)
        except OSError:
            return None
        key = there.st_ino, there.st_mtime_ns, there.st_size
        if self._read[0] != key:
            kept = _load(self._path, self._manifest().d_sae)
            self._read = key, kept if kept.of == self._of(kept.of.prompts) else None
        return self._read[1]


@dataclass(frozen=True, eq=False)
class _Kept:
    """As arrays."""

    of: Of
    features: Array
    """int32 [n], ascending."""
    strengths: Array
    """float64 [n, 3], NaN where one is not known."""
    figures: Array
    """float64 [n, sets, figures]."""
    tokens: Array
    """int32 [n, sets, most]: -1 behind the last."""

    def score(self, feature: int, alone: Callable[[int], str]) -> OutputScore | None:
        place = int(np.searchsorted(self.features, feature))
        if place == len(self.features) or self.features[place] != feature:
            return None
        return self._at(place, alone)

    def all(self, alone: Callable[[int], str]) -> list[OutputScore]:
        return [self._at(place, alone) for place in range(len(self.features))]

    def _at(self, place: int, alone: Callable[[int], str]) -> OutputScore:
        told: dict[str, dict[str, Any]] = {}
        for index, name in enumerate(_SETS):
            ids = tuple(id_ for id_ in self.tokens[place, index].tolist() if id_ >= 0)
            if ids:
                figures = dict(zip(_FIGURES, self.figures[place, index].tolist(), strict=True))
                told[name] = {"ids": ids, "tokens": tuple(map(alone, ids)), **figures}
        strength = [None if math.isnan(value) else value for value in self.strengths[place].tolist()]
        beside = {name: Outcome(**told[name]) if name in told else None for name in _SETS[1:]}
        return OutputScore(
            feature=int(self.features[place]),
            strength=Strength(strength[0] or 0.0, *strength[1:]),
            prompts=self.of.prompts,
            measured=beside["measured"],
            examples=beside["examples"],
            **told["promoted"],
        )


def _by(one: OutputScore) -> int:
    return one.feature


def _packed(scores: list[OutputScore]) -> dict[str, Array]:
    sets = [(one, one.measured, one.examples) for one in scores]
    most = max(len(one.ids) for some in sets for one in some if one is not None)
    figures = np.zeros((len(scores), len(_SETS), len(_FIGURES)))
    tokens = np.full((len(scores), len(_SETS), most), -1, np.int32)
    for place, some in enumerate(sets):
        for index, one in enumerate(some):
            if one is not None:
                figures[place, index] = [getattr(one, name) for name in _FIGURES]
                tokens[place, index, : len(one.ids)] = one.ids
    strengths = [[getattr(one.strength, name) for name in _STRENGTH] for one in scores]
    return {
        "features": np.array([one.feature for one in scores], np.int32),
        "strengths": np.array(strengths, np.float64),
        "figures": figures,
        "tokens": tokens,
    }


def _load(path: Path, d_sae: int) -> _Kept:
    of, tensors = unsealed(_NAME, path, Of, lacking="holds no output scores", remedy=_REMEDY, framework="np")
    _require_sound(tensors, d_sae, shown(path))
    return _Kept(of, **tensors)


def _require_sound(tensors: Mapping[str, Array], d_sae: int, name: str) -> None:
    features = tensors.get("features")
    n = len(features) if features is not None and features.ndim == 1 else 0
    strengths = tensors.get("strengths")
    known = {**tensors}
    if strengths is not None and strengths.dtype == np.float64:
        known["strengths"] = np.where(np.isnan(strengths), 0.0, strengths)  # one that is not known
    forms = {
        "features": Form((n,), "int32", 0, d_sae - 1),
        "strengths": Form((n, len(_STRENGTH)), "float64"),
        "figures": Form((n, len(_SETS), len(_FIGURES)), "float64"),
        "tokens": Form((n, len(_SETS), None), "int32", -1, (1 << 31) - 1),
    }
    require_forms(known, forms, where=name)
    if (np.diff(tensors["features"]) <= 0).any() or (tensors["tokens"][:, 0] < 0).all(-1).any():
        raise CorruptFile(f"{name}: its features are not in order, or have no tokens: {_REMEDY}")
