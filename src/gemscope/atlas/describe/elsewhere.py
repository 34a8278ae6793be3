"""Another text than the atlas's own, read whole: where labels can be tried that the same books would flatter."""

from __future__ import annotations

import numpy as np

from gemscope.activations.model import LanguageModel
from gemscope.atlas.describe.reading import live
from gemscope.atlas.reader import Atlas
from gemscope.errors import InputError, Mismatch
from gemscope.features.examples import Firings
from gemscope.features.held_out import HeldOut
from gemscope.features.pool import Pool
from gemscope.features.sae import SAE
from gemscope.progress import Progress, silent
from gemscope.text.corpus import Corpus

_MANY = 1 << 40


def read_elsewhere(
    atlas: Atlas,
    model: LanguageModel,
    sae: SAE,
    corpus: Corpus,
    *,
    tokens: int = 1 << 16,
    batch: int = 16,
    progress: Progress = silent,
) -> Pool:
    """Reads about as many `tokens` of a corpus through model and SAE, in rows as long as the atlas's, and keeps all
    that fires: a pool for `score_labels`.

    Raises Mismatch for another SAE than the atlas's, InputError for a text that the atlas was made of.
    """
    manifest = atlas.manifest
    if sae.digest != manifest.sae_digest:
        raise Mismatch(f"{atlas.folder} was made with {manifest.sae}, not with {sae.info.name}: give that SAE")
    if corpus.digest in {part.digest for part in manifest.parts}:
        raise InputError(f"{atlas.folder} was made of {corpus.name}: its examples are from there; give another text")
    held = HeldOut(sae.d_sae, manifest.length, _MANY)
    read = 0
    with progress("read", tokens, "tokens") as advance:
        for rows in live(model, [sae], corpus.documents(), length=manifest.length, batch=batch):
            found, features = rows.found[0], rows.found[0].features
            entries = features.tokens.numpy()
            firings = Firings(
                features=features.features.numpy().astype(np.int64),
                values=features.values.numpy(),
                tokens=found.tokens[entries],
                key=np.zeros(len(entries), np.int64),
                first=read // manifest.length * manifest.length,
                rows=len(rows.ids),
                length=manifest.length,
                d_sae=sae.d_sae,
            )
            counted = np.zeros(rows.ids.size, np.bool_)
            counted[found.tokens] = True
            held.add(rows.ids, counted.reshape(rows.ids.shape), firings, every=True)
            read += rows.read
            advance(rows.read)
            if read >= tokens:
                break
    return held.pool()
