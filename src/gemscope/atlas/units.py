"""What strengths are measured against, from an atlas: its features' largest activations, and the median norm of what
they are written into.
"""

from __future__ import annotations

import torch

from gemscope.activations.model import LanguageModel
from gemscope.atlas.reader import Atlas
from gemscope.edits.units import Units
from gemscope.errors import Mismatch
from gemscope.features.sae import SAE

_TOKENS = 2048
"""Tokens over which the median norm is taken: it varies by about a hundredth from text to text."""


def units_of(atlas: Atlas, model: LanguageModel, sae: SAE) -> Units:
    """Maxima over all of the atlas's tokens, the median norm over its first 2,048. One short pass of the model.

    Raises Mismatch where the atlas is another SAE's.
    """
    manifest = atlas.manifest
    if sae.digest != manifest.sae_digest:
        raise Mismatch(
            f"the atlas at {atlas.folder} was made with {manifest.sae} ({manifest.sae_digest[:12] or 'no digest'}), "
            f"not with {sae.info.name} ({sae.digest[:12]}): its activations are no measure for it"
        )
    features, _, maxima = atlas.scatter()
    return Units(
        sae,
        maxima=dict(zip(features.tolist(), maxima.tolist(), strict=True)),
        median_norm=_median_norm(atlas, model, sae),
        source=", ".join(part.name for part in manifest.parts),
        tokens=manifest.tokens,
    )


def _median_norm(atlas: Atlas, model: LanguageModel, sae: SAE) -> float | None:
    site, norms, position = sae.site_out or sae.site, [], 0
    length, end = atlas.manifest.length, atlas.manifest.rows * atlas.manifest.length
    if site is None:
        return None
    while position < min(end, _TOKENS):
        ids = [id_ for id_ in atlas.row(position) if id_ >= 0]
        acts = model.capture(ids, [site])[site]
        norms.append(torch.linalg.vector_norm(acts.rows, dim=-1, dtype=torch.float32).cpu())
        position += length
    every = torch.cat(norms) if norms else torch.zeros(0)
    return every.median().item() if len(every) else None
