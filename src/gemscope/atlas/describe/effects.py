"""What an atlas keeps of the effect of the site at which its SAE writes: the matrix beside it, and of each feature the
tokens that it promotes and suppresses by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gemscope.activations.model import LanguageModel
from gemscope.atlas.entry import AGREED, Written
from gemscope.atlas.files import corpus, schema, vocabulary, written
from gemscope.atlas.files.manifest import Measured, write_manifest
from gemscope.atlas.files.opening import opened, upgraded
from gemscope.atlas.files.whole import EFFECT
from gemscope.atlas.meaning import misfit
from gemscope.atlas.reader import Atlas
from gemscope.disk import room
from gemscope.errors import Mismatch
from gemscope.features.clause import LOOKED_AT, clause
from gemscope.features.effect import Effect
from gemscope.features.promoting import promotions
from gemscope.features.sae import SAE
from gemscope.progress import Progress, silent

UNREAD = "the mean of those of the atlases that were merged is yet to be read: gemscope atlas effect does that"


def writings(model: LanguageModel, sae: SAE, effect: Effect, *, k: int) -> Iterator[Written | None]:
    """For each feature in order, what it promotes and suppresses, `k` tokens each way; None for one that writes
    nothing.

    Raises what `promotions` raises.
    """
    for block in promotions(model, sae, effect, k=max(k, LOOKED_AT)):
        promoted, promoted_values = block.promoted.numpy(), block.promoted_values.numpy()
        suppressed, suppressed_values = block.suppressed.numpy(), block.suppressed_values.numpy()
        kinship = block.kinship.numpy()
        figures = zip(block.spread.tolist(), block.agreement.tolist(), block.this.tolist(), strict=True)
        for row, (spread, agreement, this) in enumerate(figures):
            if not (spread > 0 and not math.isnan(agreement)):  # a NaN: one of the halves says nothing
                yield None
                continue
            told = ""
            if agreement >= AGREED:
                told = clause(model.strings(promoted[row].tolist()), block.least[row].tolist(), kinship[row])
            yield Written(
                promoted=promoted[row, :k],
                promoted_values=promoted_values[row, :k],
                suppressed=suppressed[row, :k],
                suppressed_values=suppressed_values[row, :k],
                spread=spread,
                agreement=agreement,
                this=this,
                words=told,
            )


def keep(effect: Effect, folder: Path) -> None:
    """Puts it beside an atlas, for whoever may read the rest. Raises StorageFull, FileError."""
    path = effect.save(folder / EFFECT)
    path.chmod((folder / corpus.NAME).stat().st_mode)  # safetensors lets nobody else read it


def measured(effect: Effect) -> Measured:
    """What the manifest says of it."""
    of = effect.of
    return Measured(
        corpus=of.corpus,
        corpus_digest=of.corpus_digest,
        tokens=of.tokens,
        length=of.length,
        dtype=of.dtype,
        agreement=effect.agreement,
        digest=effect.digest,
    )


def add_effect(
    atlas: Atlas | str | Path,
    model: LanguageModel,
    sae: SAE,
    effect: Effect,
    *,
    k: int = 10,
    progress: Progress = silent,
) -> Atlas:
    """Puts the effect of the site at which its SAE writes into an atlas that is there: the matrix beside it, and of
    each feature the `k` tokens that it promotes and suppresses most by it, in place of those of an effect put in
    before. No text is read. Returns the atlas as it is now; one that was opened before is to be opened again.

    Raises Mismatch for another SAE, model or site than the atlas's, InputError for fewer than one token, AccessError
    where nothing can be written, StorageFull.
    """
    folder = atlas.folder if isinstance(atlas, Atlas) else Path(atlas)
    with Atlas(folder) as before:
        manifest, texts, special = before.manifest, dict(before.tokens()), set(before.special)
    if amiss := misfit(manifest, sae):
        raise Mismatch(f"the atlas at {folder} {amiss}: give that SAE")
    found = dict[int, Written]()
    used = set[int]()
    with progress("effect on the logits", sae.d_sae, "features") as advance:
        for feature, one in enumerate(writings(model, sae, effect, k=k)):
            if one is not None:
                found[feature] = one
                used.update(one.promoted.tolist(), one.suppressed.tolist())
            advance(1)
    new = sorted(used - texts.keys())
    texts |= dict(zip(new, model.token_bytes(new), strict=True))
    special |= model.special_ids.intersection(new)
    keep(effect, folder)
    database, manifest = opened(folder, manifest)
    try:
        if manifest.format < schema.LATEST:
            manifest = upgraded(folder, manifest, database)
        with room(folder / schema.NAME), database.changing() as db:
            db.execute("BEGIN IMMEDIATE")
            for table in ("written", "token_written", "token"):
                db.execute(f"DELETE FROM {table}")
            for feature, one in found.items():
                written.add(db, feature, one)
            written.index(db)
            db.executemany("INSERT INTO token VALUES (?, ?)", vocabulary.packed(texts, special))
            db.execute("COMMIT")
    finally:
        database.close()
    write_manifest(replace(manifest, effect=measured(effect), no_effect=None), folder)
    return Atlas(folder)
