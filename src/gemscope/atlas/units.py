"""What strengths are measured against, from an atlas: its features' largest activations, and the median norm of what
they are written into.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import Tensor

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


def units_of(atlas: Atlas, model: LanguageModel, sae: SAE, *, read: MutableMapping[int, Tensor] | None = None) -> Units:
    """Maxima and the median norm over all of the atlas's tokens.

    One that does not say the norm (of an older version, or made of a harvest without that site) has it measured over
    its first 2,048 tokens, by a short pass of the model for each of its rows. `read` holds the norms of rows that were
    read before, and gets those that are read now.

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
    norm = manifest.median_norm
    if norm is None:
        norm = _median_norm(atlas, model, sae, {} if read is None else read)
    features, _, maxima = atlas.scatter()
    return Units(
        sae,
        maxima=dict(zip(features.tolist(), maxima.tolist(), strict=True)),
        median_norm=norm,
        source=", ".join(part.name for part in manifest.parts),
        tokens=manifest.tokens,
    )


def _median_norm(atlas: Atlas, model: LanguageModel, sae: SAE, read: MutableMapping[int, Tensor]) -> float | None:
    site, length = sae.site_out or sae.site, atlas.manifest.length
    if site is None:
        return None
    starts = range(0, min(atlas.manifest.rows * length, _TOKENS), length)
    for position in starts:
        if position not in read:
            ids = [id_ for id_ in atlas.row(position) if id_ >= 0]
            read[position] = torch.linalg.vector_norm(model.capture(ids, [site])[site].rows.float(), dim=-1).cpu()
    every = torch.cat([read[position] for position in starts]) if starts else torch.zeros(0)
    return every.median().item() if len(every) else None
