"""From rows and settings to an SAE, or to several of one reading. The loop is `lesson.py`'s."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import overload

import torch
from rich.filesize import decimal

from gemscope.activations.memory import elsewhere, free_on, room
from gemscope.activations.site import Site
from gemscope.activations.store import Store
from gemscope.disk import aside_of, claimed
from gemscope.errors import InputError, Mismatch
from gemscope.features.crosscoder import Crosscoder
from gemscope.features.kernels.choice import place_for
from gemscope.features.sae import SAE
from gemscope.progress import Progress, silent
from gemscope.training.config import TrainConfig
from gemscope.training.group import ALONE, Group
from gemscope.training.lesson import RUN, Lesson
from gemscope.training.log import Watch, unwatched
from gemscope.training.source import Source, StoreSource, StreamSource

_BYTES = 16
"""Of each weight: itself, its gradient, and Adam's two moments."""
_USABLE = 0.8
"""The share of free memory that those may take: a batch and what is computed of it need some."""


@overload
def train(
    store: Store | str | Path,
    config: TrainConfig | None = None,
    *,
    to: str | Path,
    site: Site | str | None = None,
    writes: Site | str | None = None,
    held_out: Source | Store | str | Path | None = None,
    device: torch.device | str | None = None,
    log: Sequence[str] = (),
    watch: Watch = unwatched,
    progress: Progress = silent,
    group: Group = ALONE,
) -> SAE: ...


@overload
def train(
    store: Source | Store | str | Path,
    config: TrainConfig | None = None,
    *,
    to: str | Path,
    site: Site | str | Sequence[Site | str] | None = None,
    writes: Site | str | None = None,
    held_out: Source | Store | str | Path | None = None,
    device: torch.device | str | None = None,
    log: Sequence[str] = (),
    watch: Watch = unwatched,
    progress: Progress = silent,
    group: Group = ALONE,
) -> SAE | Crosscoder: ...


def train(
    store: Source | Store | str | Path,
    config: TrainConfig | None = None,
    *,
    to: str | Path,
    site: Site | str | Sequence[Site | str] | None = None,
    writes: Site | str | None = None,
    held_out: Source | Store | str | Path | None = None,
    device: torch.device | str | None = None,
    log: Sequence[str] = (),
    watch: Watch = unwatched,
    progress: Progress = silent,
    group: Group = ALONE,
) -> SAE | Crosscoder:
    """Trains an SAE on a harvest and saves it in `to`/sae, a folder that SAELens reads too.

    A run that was cut off goes on from its last checkpoint when started again with the same rows and settings, and
    ends with the same weights, log and checkpoints as one that was not. `log.jsonl` in `to` holds the loss, L0 and
    thresholds over time, and FVU, L0, dead and dense features on the first rows of `held_out` where one is given;
    `watch` is told each line, and `log` may name "tensorboard" and "wandb" beside it. `figures.json` holds what the SAE
    is worth in the end: `training_report` makes a page and a card of both. `site` may be left out where the store holds
    only one; with `writes` it makes a transcoder; several sites make a crosscoder, which `load_crosscoder` reads.
    `device` is where weights and Adam's memory lie and all of a step is computed, and where the SAE is left: "auto" or
    None is CUDA where there is one, beside the model of a `StreamSource`, else the processor. The ranks of a `group`
    (`gemscope.training.group.joined`) train one SAE together, a share of the features each; `to` is a folder that all
    of them see, and all get the whole SAE, mapped from its file.
    Raises InputError, Mismatch, NotFinite, OutOfMemory, StorageFull, FileError, AccessError where another process is at
    the run.
    """
    config = config or TrainConfig()
    where = {"to": to, "site": site, "writes": writes, "held_out": held_out, "device": device}
    return sweep(store, {"": config}, **where, log=log, watch=watch, progress=progress, group=group)[""]  # type: ignore[arg-type]


def sweep(
    store: Source | Store | str | Path,
    configs: Mapping[str, TrainConfig],
    *,
    to: str | Path,
    site: Site | str | Sequence[Site | str] | None = None,
    writes: Site | str | None = None,
    held_out: Source | Store | str | Path | None = None,
    device: torch.device | str | None = None,
    log: Sequence[str] = (),
    watch: Watch = unwatched,
    progress: Progress = silent,
    group: Group = ALONE,
) -> dict[str, SAE | Crosscoder]:
    """`train` of several SAEs from one reading of the rows, each in the folder of its name in `to`.

    They must agree in what the order of the rows hangs on: rows, batch, seed, and whether they are centred.
    """
    if not configs:
        raise InputError("no settings given: expected at least one SAE to train")
    source, test = _source(store, site, writes), None
    first = next(iter(configs.values()))
    for name, config in configs.items():
        for field in ("rows", "batch", "seed", "centre"):
            if getattr(config, field) != getattr(first, field):
                raise InputError(
                    f"{field} differs ({getattr(first, field)}, and {getattr(config, field)} of {name!r}): SAEs that "
                    "are trained from one reading share it; train them apart"
                )
    if held_out is not None:
        test = _source(held_out, source.reads, None if source.writes == source.reads else source.writes[0])
        if test.widths != source.widths:
            raise Mismatch(f"held-out rows of widths {test.widths} for rows of widths {source.widths}")
    with ExitStack() as held:
        for name in configs:
            if group.first:
                held.enter_context(claimed(Path(to) / name / RUN))
        group.barrier()
        for name in configs:
            if not aside_of(Path(to) / name / RUN).exists():
                raise InputError(
                    f"{Path(to) / name} is not there for all ranks: name a folder on a disk that they share"
                )
        place = place_of(device, source, group)
        with _room(source, configs, place, group):
            return _taken(
                lambda: Lesson(source, configs, Path(to), test, log, watch=watch, device=place, group=group),
                progress if group.first else silent,
            )


def _taken(begun: Callable[[], Lesson], progress: Progress) -> dict[str, SAE | Crosscoder]:
    """A lesson from its start to its end. All that it holds is held here alone, and let go of where it fails."""
    lesson = begun()
    try:
        for _ in lesson.steps(progress):
            pass
        return lesson.saes()
    finally:
        lesson.batches.close()


def _room(
    source: Source, configs: Mapping[str, TrainConfig], device: torch.device, group: Group
) -> AbstractContextManager[None]:
    """Says what would fit where a device has no room."""
    widths, batch = [config.width for config in configs.values()], next(iter(configs.values())).batch
    each = _BYTES * sum(sum(side) for side in source.widths) / group.size

    def remedy() -> str:
        free = free_on(device)
        fitting = None if free is None else int(_USABLE * free / each)
        if len(widths) > 1:
            said = "train fewer SAEs from one reading"
        elif fitting is not None and fitting < widths[0]:
            said = f"about {fitting:,} features fit (width={fitting})"
        else:
            said = f"take fewer rows a step (batch={max(1, batch // 2)}) or fewer features (width={widths[0] // 2})"
        return f"{said}; or {elsewhere(device)}"

    of = " and ".join(f"{width:,}" for width in widths)
    what = f"training {of} features with batch={batch}, of which weights, gradients and Adam's memory take"
    return room(f"{what} {decimal(int(each * sum(widths)))}", device, remedy)


def place_of(asked: torch.device | str | None, source: Source, group: Group = ALONE) -> torch.device:
    """Where to train: where it is asked for; by "auto" or None beside the model that computes the rows, or where a
    model would go. Of several ranks each takes a GPU of its own. Raises InputError for a device that is not there, or
    that nothing is trained on.
    """
    found = place_for(asked, source.model.device if isinstance(source, StreamSource) else None)
    if found.type == "mps":
        raise InputError("device 'mps' has no sparse products: SAEs are trained on cuda and cpu; take --device cpu")
    if found.type == "cuda" and group.size > 1:
        if group.local >= torch.cuda.device_count():
            raise InputError(
                f"a GPU for each rank, and this machine has {torch.cuda.device_count()}: start as many, or --device cpu"
            )
        found = torch.device("cuda", group.local)
        torch.cuda.set_device(found)
    return found


def _source(
    given: Source | Store | str | Path, site: Site | str | Sequence[Site | str] | None, writes: Site | str | None
) -> Source:
    if not isinstance(given, Store | str | Path):
        return given
    store = given if isinstance(given, Store) else Store(given)
    if site is None:
        if len(store.sites) != 1:
            raise InputError(f"{store.folder} holds {', '.join(map(str, store.sites))}: say which with site=...")
        site = store.sites[0]
    return StoreSource(store, site, writes)
