"""What the SAEs of a scope are worth: several from one reading of the text, the figures of each beside its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemscope.activations.model import LanguageModel
from gemscope.features.load import load_sae
from gemscope.features.sae import SAE
from gemscope.features.scope_manifest import SCORE
from gemscope.features.scored import figures_of
from gemscope.progress import Progress, silent
from gemscope.reports.keeping import keep
from gemscope.reports.scoring import scores
from gemscope.scope.placing import MEASURING
from gemscope.text.corpus import Corpus


def score_some(
    model: LanguageModel,
    scope: Path,
    paths: Sequence[str],
    corpus: Corpus,
    *,
    tokens: int | None,
    loss_tokens: int,
    unlike: Corpus | None = None,
    length: int = 256,
    device: str | None = None,
    progress: Progress = silent,
) -> None:
    """Scores SAEs of a scope, by their folders in it, from one reading of each text; the figures stay beside them, and
    in their cards. Raises what `score` raises.
    """
    saes = [opened(scope, path, device=device) for path in paths]
    how: dict[str, Any] = {"tokens": tokens, "loss_tokens": loss_tokens, "length": length, "progress": progress}
    found = scores(model, saes, corpus, unlike=unlike, together=False, **how)
    for path, score in zip(paths, found.scores, strict=True):
        keep(score, scope / path, way=MEASURING)


def is_scored(folder: Path, unlike: Corpus | None) -> bool:
    """Whether an SAE has its figures, those on this unlike text among them. Raises CorruptFile."""
    if not (folder / SCORE).exists():
        return False
    there = None if unlike is None else figures_of(folder / SCORE).unlike
    return unlike is None or (there is not None and there.corpus == unlike.name)


def opened(scope: Path, path: str, *, device: str | None = None) -> SAE:
    """An SAE of a scope, which is called by its folder in it, wherever the scope lies."""
    sae = load_sae(scope / path, device=device)
    sae.info = replace(sae.info, name=path)
    return sae
