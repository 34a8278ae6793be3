"""What strengths are measured against, from an atlas: its features' largest activations, and the median norm of what
they are written into.
"""

from __future__ import annotations

import torch

from gemscope.activations.model import LanguageModel
from gemscope.atlas.files.manifest import IMPORTED, Manifest
from gemscope.atlas.reader import Atlas
from gemscope.edits.units import Units
from gemscope.errors import Mismatch
from gemscope.features.sae import SAE

_TOKENS = 2048
"""Tokens over which the median norm is taken: it varies by about a hundredth from text to text."""


def measures(manifest: Manifest, sae: SAE) -> bool:
    """Whether an atlas was made with this SAE, on text in its model's tokens. One that was made of another tool's files
    has activations in that tool's units, and token ids of its own.
    """
    return IMPORTED not in manifest.options and manifest.sae_digest == sae.digest


def units_of(atlas: Atlas, model: LanguageModel, sae: SAE) -> Units:
    """Maxima over all of the atlas's tokens, the median norm over its first 2,048. One short pass of the model.

    Raises Mismatch where the atlas is no measure for the SAE (`measures`).
    """
    manifest = atlas.manifest
    if not measures(manifest, sae):
        made = f"was made with {manifest.sae} ({manifest.sae_digest[:12] or 'no digest'})"
        made = "was made of another tool's files" if IMPORTED in manifest.options else made
        raise Mismatch(
            f"the atlas at {atlas.folder} {made}, not with {sae.info.name} ({sae.digest[:12]}): "
            "its activations are no measure for it"
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
        norms.append(torch.linalg.vector_norm(acts.rows.float(), dim=-1).cpu())
        position += length
    every = torch.cat(norms) if norms else torch.zeros(0)
    return every.median().item() if len(every) else None
