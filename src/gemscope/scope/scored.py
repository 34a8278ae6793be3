"""What the SAEs of a scope are worth: several from one reading of the text, the figures of each beside its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gemscope.activations.model import LanguageModel
from gemscope.disk import written_aside
from gemscope.features.load import load_sae
from gemscope.features.sae import SAE
from gemscope.features.scope_manifest import SCORE
from gemscope.progress import Progress, silent
from gemscope.reports.scoring import scores
from gemscope.text.corpus import Corpus


def score_some(
    model: LanguageModel,
    scope: Path,
    paths: Sequence[str],
    corpus: Corpus,
    *,
    tokens: int | None,
    loss_tokens: int,
    length: int = 256,
    device: str | None = None,
    progress: Progress = silent,
) -> None:
    """Scores SAEs of a scope, by their folders in it, from one reading. Raises what `score` raises."""
    saes = [opened(scope, path, device=device) for path in paths]
    found = scores(
        model,
        saes,
        corpus,
        tokens=tokens,
        loss_tokens=loss_tokens,
        length=length,
        together=False,
        progress=progress,
    )
    for path, score in zip(paths, found.scores, strict=True):
        with written_aside(scope / path / SCORE) as file:
            file.write_text(json.dumps(score.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def opened(scope: Path, path: str, *, device: str | None = None) -> SAE:
    """An SAE of a scope, which is called by its folder in it, wherever the scope lies."""
    sae = load_sae(scope / path, device=device)
    sae.info = replace(sae.info, name=path)
    return sae
