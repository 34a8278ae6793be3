"""A scope of one's own: SAEs at many sites of a model, at several widths and L0s, each trained, scored and described,
by one process or by many who share the work and never talk. What a worker does, `worker.py` knows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from gemscope.activations.model import LanguageModel
from gemscope.activations.suited import cores
from gemscope.features.kernels.choice import place_for
from gemscope.progress import Progress, silent
from gemscope.scope.budget import budget_of
from gemscope.scope.plan import Plan
from gemscope.scope.recipe import ScopeRecipe
from gemscope.scope.table import ScopeTable, table_of
from gemscope.scope.worker import Worker
from gemscope.text.corpus import Corpus
from gemscope.world import ALONE, World


def make_scope(
    model: LanguageModel,
    corpus: Corpus,
    recipe: ScopeRecipe | str | Path,
    *,
    to: str | Path,
    unlike: Corpus | None = None,
    disk: int | str | None = None,
    memory: int | str | None = None,
    price: float | None = None,
    retry: bool = False,
    world: World | None = None,
    device: torch.device | str | None = None,
    told: Callable[[Plan], None] | None = None,
    progress: Progress = silent,
) -> ScopeTable:
    """Makes all SAEs that a recipe names, scores them, describes them where it says so, and returns their table. They
    lie in `to` as Gemma Scope's do, `res/layer_20/width_16k/average_l0_71`; `scope.json` there is written last. Scores
    are of documents that nothing was trained on, and of a text `unlike` the corpus where one is given.

    `disk` and `memory` are budgets in bytes, or such as "50GB": how much is read in one pass of the model is planned by
    them. Without one it is four fifths of what is free. `told` is given the plan before anything is made, with hours
    from a short spell that is measured then, and dollars where the `price` of a worker's hour is given. `world` says
    which of how many workers this is (None: what its surroundings say).

    Killed at any moment it goes on when it is called again with the same recipe, model and text, and ends with the same
    bytes for any number of workers. Other budgets give the same bytes by other passes; those that it was begun with
    stay until it is made. What fails at one site stops no other; the manifest lists it,
    and `retry` tries it again.

    Raises InputError for a recipe or budgets that do not go with the model, or with what is being made, Mismatch where
    `to` is another scope, AccessError, StorageFull, FileError, CorruptFile.
    """
    to, world = Path(to), world or World.here()
    worker = Worker(model, corpus, _read(recipe), to, unlike=unlike, world=world, device=device)
    if not worker.begun(retry=retry):
        return table_of(to)
    given = [name for name, one in (("disk", disk), ("memory", memory)) if one is not None]
    budget = worker.agreed(budget_of(to, disk, memory, world), given)
    plan = worker.plan(budget, price, measuring=told is not None and world.first)
    if told is not None and world.first:
        told(plan)
    worker.make(progress if world.first else silent)
    return table_of(to)


def plan_scope(
    model: LanguageModel,
    corpus: Corpus,
    recipe: ScopeRecipe | str | Path,
    *,
    to: str | Path = "scope",
    unlike: Corpus | None = None,
    disk: int | str | None = None,
    memory: int | str | None = None,
    price: float | None = None,
    workers: int = 1,
    device: torch.device | str | None = None,
    progress: Progress = silent,
) -> Plan:
    """What `make_scope` would take for what is not in `to` yet: passes, disk, memory, hours, dollars. Makes nothing.
    Raises InputError for a recipe or budgets that do not go with the model.
    """
    world = World(0, workers)
    worker = Worker(model, corpus, _read(recipe), Path(to), unlike=unlike, world=world, device=device)
    return worker.plan(budget_of(Path(to), disk, memory, world), price, measuring=True, progress=progress)


def workers_for(
    model: LanguageModel,
    corpus: Corpus,
    recipe: ScopeRecipe | str | Path,
    *,
    to: str | Path = "scope",
    disk: int | str | None = None,
    memory: int | str | None = None,
    device: torch.device | str | None = None,
) -> tuple[int, str]:
    """How many workers of this machine are best for what is not in `to` yet, and why not more: as many as there are
    GPUs or cores, SAEs to train, or room in memory. Raises what `plan_scope` raises.
    """
    place = place_for(device)
    most = torch.cuda.device_count() if place.type == "cuda" else cores()
    worker = Worker(model, corpus, _read(recipe), Path(to), unlike=None, world=ALONE, device=device)
    number = worker.hands(budget_of(Path(to), disk, memory, ALONE), most)
    if number == most:
        return number, "one for each GPU" if place.type == "cuda" else "one for each core"
    return number, "one for each SAE" if number == len(worker.aims) else "as many as memory has room for"


def _read(recipe: ScopeRecipe | str | Path) -> ScopeRecipe:
    return recipe if isinstance(recipe, ScopeRecipe) else ScopeRecipe.read(recipe)
