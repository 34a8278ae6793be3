"""Scores for a scope that is there: of all its SAEs that have none."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gemscope.activations.model import LanguageModel
from gemscope.errors import InputError, Mismatch
from gemscope.features.scope_manifest import Failed, Made, read_scope
from gemscope.progress import Progress, silent
from gemscope.scope.budget import budget_of
from gemscope.scope.plan import score_groups
from gemscope.scope.recipe import ScopeRecipe
from gemscope.scope.scored import is_scored, score_some
from gemscope.scope.sharing import shared_out, singly
from gemscope.scope.table import ScopeTable, table_of
from gemscope.text.corpus import Corpus
from gemscope.world import World

_WAIT = 0.5
"""Seconds between two looks at what others are at."""


def score_scope(
    model: LanguageModel,
    scope: str | Path,
    corpus: Corpus,
    *,
    tokens: int = 50_000,
    loss_tokens: int = 10_000,
    unlike: Corpus | None = None,
    length: int = 256,
    memory: int | str | None = None,
    world: World | None = None,
    progress: Progress = silent,
) -> ScopeTable:
    """`score` of every SAE of a scope of one's own that has none, many from one reading of the text, each kept beside
    its SAE; returns the scope's table. Of the text that the scope was made from, only those documents are read that
    nothing was trained on. Of a text `unlike` it as much is read; with one, SAEs without figures on it are among those
    that have none.

    Several workers share what there is (`world`; None: what the surroundings say). One that fails stops no other and is
    among `failed`. Raises NotFound for no scope, Mismatch for one of another model, InputError, StorageFull, FileError.
    """
    scope, world = Path(scope), world or World.here()
    manifest = read_scope(scope)
    if manifest.model != model.name:
        raise Mismatch(f"{scope} is a scope of {manifest.model}, this model is {model.name}")
    if tokens < 1:
        raise InputError(f"tokens={tokens}: at least one must be read")
    if corpus.digest == manifest.corpus.digest:
        corpus = corpus.split(ScopeRecipe.of(manifest.recipe).reading.held_out)[1]
    budget, failed = budget_of(scope, None, memory, world), dict[Made, Exception]()
    room = budget.memory_each - sum(weight.nbytes for weight in model.hf.parameters())

    def missing() -> list[Made]:
        return [one for one in manifest.saes if one not in failed and not is_scored(scope / one.path, unlike)]

    def score(some: tuple[Made, ...]) -> None:
        paths = [one.path for one in some]
        how: dict[str, Any] = {"tokens": tokens, "loss_tokens": loss_tokens, "length": length, "progress": progress}
        score_some(model, scope, paths, corpus, unlike=unlike, **how)

    def size(one: Made) -> int:
        """Its weights, and half as much again of what is kept to search them."""
        return 3 * sum(path.stat().st_size for path in (scope / one.path).glob("*.safetensors")) // 2

    shared_out(
        world,
        scope.with_name(f"{scope.name}.partial") / "locks",
        missing,
        partial(score_groups, size=size, tokens=tokens, loss_tokens=loss_tokens, room=room, workers=world.size),
        lambda some: singly(some, score, failed.__setitem__),
        called=lambda one: one.path.replace("/", "-"),
        wait=partial(time.sleep, _WAIT),
    )
    table = table_of(scope)
    told = tuple(
        Failed(site=one.site, width=one.width, l0=one.l0, reason=f"not scored: {error}")
        for one, error in failed.items()
    )
    return replace(table, failed=(*table.failed, *told))
