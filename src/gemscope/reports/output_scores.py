"""Output scores of many features, kept with their atlas: measured once, so that no page and no search has to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gemscope.activations.model import LanguageModel
from gemscope.atlas.meaning import misfit
from gemscope.atlas.reader import Atlas
from gemscope.atlas.units import units_of
from gemscope.errors import InputError, Mismatch
from gemscope.features.fit import require_fit
from gemscope.features.sae import SAE
from gemscope.progress import Progress, silent
from gemscope.reports.output_score import output_score_of

_AT_ONCE = 32
"""Features between two times that what was measured is kept: stopped, it goes on from there."""


def add_output_scores(
    atlas: Atlas | str | Path,
    model: LanguageModel,
    sae: SAE,
    *,
    features: Iterable[int] | None = None,
    progress: Progress = silent,
) -> int:
    """Measures the output scores of features at their largest activations, and keeps them with the atlas, whose pages
    then have them as `output`. Without `features`, of those of which the atlas tells in words what they promote. Those
    that are known already stay as they are. Returns how many were measured.

    Each takes a pass of the model over some 150 tokens. Stopped, it goes on when called again.

    Raises Mismatch for another SAE or model than the atlas's, NotFound for a feature that there is not, InputError for
    one that fired nowhere or that no tokens are known for, AccessError where nothing can be written, StorageFull.
    """
    opened = atlas if isinstance(atlas, Atlas) else Atlas(atlas)
    try:
        if amiss := misfit(opened.manifest, sae):
            raise Mismatch(f"the atlas at {opened.folder} {amiss}: give that SAE")
        require_fit(model, sae)
        units, known = units_of(opened, model, sae), opened.outputs().keys()
        if features is None:
            told = opened.summaries(dead=False, limit=len(opened))
            wanted = [one.feature for one in told if one.promotes is not None]
        else:
            wanted = list(dict.fromkeys(map(int, features)))
        wanted = [one for one in wanted if one not in known]
        with progress("output scores", len(wanted), "features") as advance:
            for start in range(0, len(wanted), _AT_ONCE):
                found = []
                for feature in wanted[start : start + _AT_ONCE]:
                    page = opened.dashboard(feature, ranges=False)
                    if page.dead:
                        raise InputError(f"feature {feature} fired nowhere: its strength has no measure")
                    found.append(output_score_of(model, sae, page, strength=units.max(feature)))
                    advance(1)
                opened.keep_outputs(found)
        return len(wanted)
    finally:
        if opened is not atlas:
            opened.close()
