"""Atlases of the SAEs of a scope: several from one pass over the text, each beside its SAE."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from gemscope.activations.model import LanguageModel
from gemscope.atlas.describe.run import describe
from gemscope.atlas.reader import Atlas
from gemscope.features.scope_manifest import ATLAS
from gemscope.progress import Progress, silent
from gemscope.scope.recipe import Describing
from gemscope.scope.scored import opened
from gemscope.text.corpus import Corpus


def describe_some(
    model: LanguageModel,
    scope: Path,
    paths: Sequence[str],
    corpus: Corpus,
    *,
    aside: Path,
    wanted: Describing,
    device: str | None = None,
    progress: Progress = silent,
) -> None:
    """Describes SAEs of a scope, by their folders in it, from one pass. What is on its way lies `aside`, and is gone on
    from. Raises what `describe` raises.
    """
    saes = [opened(scope, path, device=device) for path in paths]
    places = {sae.digest: scope / path / ATLAS for sae, path in zip(saes, paths, strict=True)}
    if len(_composed(aside)) + sum(place.exists() for place in places.values()) < len(paths):
        describe(
            model,
            saes,
            corpus,
            to=aside,
            tokens=wanted.tokens,
            config=wanted.config,
            map=wanted.map,
            progress=progress,
        )
    for folder in _composed(aside):
        os.rename(folder, places[Atlas(folder).manifest.sae_digest])
    for left in (aside, aside.with_name(aside.name + ".partial")):
        shutil.rmtree(left, ignore_errors=True)


def _composed(aside: Path) -> list[Path]:
    """Atlases that wait to be put beside their SAEs: each is there as a whole or not at all."""
    return sorted(path for path in aside.iterdir() if not path.name.startswith(".")) if aside.exists() else []
