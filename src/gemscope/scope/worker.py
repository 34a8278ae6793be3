"""One worker at a scope: it does what is missing, and nothing twice. For each pass of the plan the rows of its sites
are harvested once; every site's SAEs are trained from one reading of them; then the rows go. Scores and atlases follow.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from rich.filesize import decimal

from gemscope.activations.harvest import expected_tokens, harvest, versions
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.activations.store import Store
from gemscope.checked import declared, read_json
from gemscope.errors import Awaited, InputError, Mismatch, NotFound
from gemscope.features.scope_manifest import (
    ATLAS,
    NAME,
    SCORE,
    Made,
    Manifest,
    Text,
    read_scope,
    write_scope,
)
from gemscope.progress import Progress, silent
from gemscope.scope.budget import Budget
from gemscope.scope.described import describe_some
from gemscope.scope.ledger import Ledger
from gemscope.scope.placing import RUN, place_site
from gemscope.scope.plan import (
    GUESSED,
    ROWS,
    Costs,
    Model,
    Pass,
    Plan,
    hands,
    larger_disks,
    lessons,
    planned,
)
from gemscope.scope.rates import measured
from gemscope.scope.recipe import Aim, ScopeRecipe
from gemscope.scope.scored import is_scored, score_some
from gemscope.scope.sharing import failure, shared_out, singly
from gemscope.scope.whole import Whole, whole
from gemscope.text.corpus import Corpus
from gemscope.training.config import TrainConfig
from gemscope.training.source import StoreSource
from gemscope.training.train import sweep
from gemscope.world import World

_WAIT = 0.5
"""Seconds between two looks at what others are at."""


class Worker:
    """Of `world`, at the scope in `to`."""

    costs: Costs
    passes: tuple[Pass, ...]
    over: Whole

    def __init__(
        self,
        model: LanguageModel,
        corpus: Corpus,
        recipe: ScopeRecipe,
        to: Path,
        *,
        unlike: Corpus | None,
        world: World,
        device: torch.device | str | None,
    ) -> None:
        """Raises what `recipe.aims` raises."""
        self.model, self.corpus, self.recipe, self.to, self.world, self.device = (
            model,
            corpus,
            recipe,
            to,
            world,
            device,
        )
        self.unlike = unlike
        self.trained_on, self.held_out = corpus.split(recipe.reading.held_out)
        self.aims = recipe.aims(model)
        self.ledger = Ledger(to)
        size = sum(weight.nbytes for weight in model.hf.parameters())
        self.sized = Model(bytes=size, width=cache(model.width), itemsize=model.dtype.itemsize)

    # --- before it begins -----------------------------------------------------------------------------------------

    def begun(self, *, retry: bool) -> bool:
        """Whether there is anything to do; begins or goes on then. Raises InputError, Mismatch where something else is
        there, AccessError, FileError, StorageFull.
        """
        whole = (self.to / NAME).exists()
        if not whole and self.to.exists() and not self.ledger.going_on and any(self.to.iterdir()):
            raise InputError(f"{self.to} exists and is no scope: name another folder, or remove it")
        if whole:
            there = read_scope(self.to)
            mine = {"model": self.model.name, "corpus": self.corpus.digest, "recipe": self.recipe.text}
            found = {"model": there.model, "corpus": there.corpus.digest, "recipe": there.recipe}
            if others := [name for name in mine if mine[name] != found[name]]:
                raise Mismatch(f"{self.to} is a scope of another {', '.join(others)}: name another folder")
            if not self.ledger.going_on and not (retry and there.failed):
                self.ledger.end()
                return False
        self.ledger.begin(self._identity)
        for made in read_scope(self.to).saes if whole else ():
            self._adopt(made)
        return True

    @property
    def _identity(self) -> dict[str, Any]:
        """What makes it this scope."""
        return {
            "model": self.model.name,
            "revision": self.model.revision,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "corpus": self.corpus.digest,
            "recipe": self.recipe.text,
            "versions": versions(),
        } | ({} if self.unlike is None else {"unlike text": self.unlike.digest})

    def _adopt(self, made: Made) -> None:
        """An SAE that is there already needs not be made again."""
        path = self.to / made.path / RUN
        site, site_out = Site.parse(made.site), Site.parse(made.site_out)
        key = Aim(site, site_out, TrainConfig.of(dict(read_json(path, _Ran).config), where=str(path))).key
        self.ledger.place(site, {**self.ledger.placed(site), key: made.path})

    def agreed(self, budget: Budget, given: Collection[str] = ()) -> Budget:
        """What the first worker was given, or found free, is what all plan by. The number of workers may change.

        Raises InputError where one of the budgets that were `given` is another.
        """
        asked = {"disk": budget.disk, "memory": budget.memory}
        said = declared(self.ledger.agreed("budget", asked), dict[str, int], where="budget.json")
        for name in given:
            if said[name] != asked[name]:
                raise InputError(
                    f"{name} of {decimal(asked[name])} for a scope that is being made with {decimal(said[name])}, by "
                    "which its passes are cut: leave it out to go on, or, to plan anew, end all workers and remove "
                    f"{self.ledger.aside / 'budget.json'} and {self.ledger.rows_folder}"
                )
        return Budget(**said, workers=budget.workers)

    def plan(self, budget: Budget, price: float | None, *, measuring: bool, progress: Progress = silent) -> Plan:
        """What is ahead. Raises InputError where the budgets do not do."""
        tokens = self._tokens()
        layout = planned(self.aims, self.recipe, self.sized, tokens, budget)
        self.passes = layout.passes
        left = [one for one in self.passes if self._ahead(one.aims)]
        rates = GUESSED
        if measuring and left:
            rates = measured(self.model, self.trained_on, self.recipe, left, device=self.device, progress=progress)
        texts = 1 if self.unlike is None else 2
        self.costs = Costs(self.recipe, self.sized, tokens, budget, rates, texts)
        whole = len(left) == len(layout.passes)  # of what is under way the passes stay as they are
        return Plan(
            layout=layout,
            passes=tuple(left),
            tokens=tokens,
            hours=self.costs.hours(left),
            workers=budget.workers,
            price=price,
            larger=larger_disks(self.aims, self.recipe, self.sized, tokens, budget) if whole else (),
        )

    def hands(self, budget: Budget, most: int) -> int:
        """How many workers are best for what is ahead. Raises InputError where the budgets do not do."""
        left = self._ahead(self.aims)
        if self.ledger.going_on:
            budget = self.agreed(budget)
        return hands(left, self.recipe, self.sized, self._tokens(), budget, most=most) if left else 1

    def _ahead(self, aims: Sequence[Aim]) -> Sequence[Aim]:
        """Those that are to be made, whether that has begun or not."""
        if self.ledger.going_on:
            return self.ledger.left(aims)
        return () if (self.to / NAME).exists() else aims

    def _tokens(self) -> int:
        """That a pass reads: as many as are trained on, or all there are."""
        reading, wanted = self.recipe.reading, max(aim.config.rows for aim in self.aims) + ROWS
        if reading.tokens is not None:
            wanted = reading.tokens
        expected = expected_tokens(self.model, self.trained_on)
        return max(reading.length, wanted if expected is None else min(wanted, expected))

    # --- the whole ------------------------------------------------------------------------------------------------

    def make(self, progress: Progress) -> None:
        """Everything that is missing; then the manifest."""
        with whole(progress, f"make {self.to.name}", 3600 * self.costs.hours(self.passes).all, self._done) as self.over:
            for one in self.passes:
                self._pass(one.aims)
            if self.recipe.scoring.tokens:
                self._score()
            if self.recipe.describing is not None:
                self._describe()
            self._finish()

    def _done(self) -> float:
        """Seconds of all that is over, whoever did it."""
        costs, placed = self.costs, self.ledger.places(self.aims)
        left = set(self.ledger.left(self.aims))
        seconds = sum(costs.training(aim) for aim in self.aims if aim not in left or self.ledger.trained(aim))
        for one in self.passes:
            if left.isdisjoint(one.aims) or self.ledger.rows(one.sites).exists():
                seconds += costs.reading
        for beside, cost in ((SCORE, costs.scoring(self.aims)), (ATLAS, costs.describing(self.aims))):
            there = sum((self.to / path / beside).exists() for path in placed.values()) if cost else 0
            seconds += cost * there / len(self.aims)
        return seconds

    def _wait(self) -> None:
        self.over.look()
        time.sleep(_WAIT)

    def _shared(
        self,
        missing: Callable[[], Sequence[Aim]],
        parts: Callable[[Sequence[Aim]], Sequence[tuple[Aim, ...]]],
        work: Callable[[tuple[Aim, ...]], None],
    ) -> None:
        locks = self.ledger.locks
        shared_out(self.world, locks, missing, parts, work, called=lambda aim: aim.key, wait=self._wait)

    # --- rows and runs --------------------------------------------------------------------------------------------

    def _pass(self, aims: tuple[Aim, ...]) -> None:
        """Rows of some sites, and all that is learned from them. Where they cannot be had together, as one of the sites
        has numbers that the format of the rows does not hold, it is tried with half of them each.
        """
        sites = _sites(aims)
        store = self._store(aims, sites)
        if store is not None:
            self._shared(lambda: self._untrained(aims), self._lessons, partial(self._learn, store))
        for half in _halves(aims) if self.ledger.refused(sites) else ():
            self._pass(half)
        for site in dict.fromkeys(aim.site for aim in aims):
            self._place(site)
        if not self.ledger.left(aims):
            for rows in (self.ledger.rows(sites), _partial(self.ledger.rows(sites))):
                shutil.rmtree(rows, ignore_errors=True)

    def _store(self, aims: Sequence[Aim], sites: Sequence[Site]) -> Store | None:
        """Rows for what is missing; None where nothing is, or these sites cannot be read together. Each worker reads
        its pieces of the text, and then those of workers who are not at it.
        """
        folder, size = self.ledger.rows(sites), self.world.size
        tried: set[int] = set()

        def missing() -> list[int]:
            over = folder.exists() or self.ledger.refused(sites) or not self._untrained(aims)
            return [] if over else [rank for rank in range(size) if rank not in tried]

        def read(ranks: tuple[int, ...]) -> None:
            for rank in ranks:
                self._harvest(aims, sites, folder, World(rank, size))
                tried.add(rank)

        while self._untrained(aims) and not self.ledger.refused(sites):
            if folder.exists():
                with suppress(NotFound):  # somebody else has just made the last SAE of it
                    return Store(folder)
            tried.clear()
            shared_out(
                self.world,
                self.ledger.locks,
                missing,
                lambda ranks: [(rank,) for rank in ranks],
                read,
                called=lambda rank: f"{folder.name}-{rank}",
                wait=self._wait,
            )
        return None

    def _harvest(self, aims: Sequence[Aim], sites: Sequence[Site], folder: Path, share: World) -> None:
        reading = self.recipe.reading

        def read() -> None:
            with suppress(Awaited):  # others do the rest
                harvest(
                    self.model,
                    self.trained_on,
                    sites,
                    to=folder,
                    tokens=self.costs.tokens,
                    length=reading.length,
                    batch=reading.batch,
                    dtype=reading.stored,
                    world=share,
                    progress=self.over.part(self.costs.reading),
                )

        error = failure(read)
        if error is None:
            return
        if len({aim.sites for aim in aims}) > 1:
            self.ledger.refuse(sites)
        for aim in aims if not self.ledger.refused(sites) else ():
            self.ledger.fail(aim, error)
        if self.world.size == 1:  # else others may be writing there
            shutil.rmtree(_partial(folder), ignore_errors=True)

    def _untrained(self, aims: Sequence[Aim]) -> list[Aim]:
        return [aim for aim in self.ledger.left(aims) if not self.ledger.trained(aim)]

    def _lessons(self, aims: Sequence[Aim]) -> list[tuple[Aim, ...]]:
        """What is trained together: all settings of a site, unless there are more workers than sites."""
        found = lessons(aims, self.sized, self.costs.budget.memory_each)
        return [(aim,) for aim in aims] if len(found) < self.world.size else found

    def _learn(self, store: Store, aims: tuple[Aim, ...]) -> None:
        """Trains SAEs of one site from one reading."""
        site, site_out = aims[0].site, aims[0].site_out

        def train(some: tuple[Aim, ...]) -> None:
            sweep(
                StoreSource(store, site, None if site == site_out else site_out),
                {aim.key: aim.config for aim in some},
                to=self.ledger.runs,
                device=self.device,
                progress=self.over.part(sum(map(self.costs.training, some))),
            )

        singly(aims, train, self.ledger.fail)
        self._place(site)

    def _place(self, site: Site) -> None:
        place_site(self.ledger, site, [aim for aim in self.aims if aim.site == site])

    # --- what is made of them -------------------------------------------------------------------------------------

    def _score(self) -> None:
        wanted = self.recipe.scoring

        def score(aims: tuple[Aim, ...]) -> None:
            placed = self.ledger.places(aims)
            score_some(
                self.model,
                self.to,
                [placed[aim] for aim in aims],
                self.held_out,
                tokens=wanted.tokens,
                loss_tokens=wanted.loss_tokens,
                unlike=self.unlike,
                length=self.recipe.reading.length,
                device=self._sae_device,
                progress=self.over.part(self.costs.scoring(aims), bars=2 * self.costs.texts),
            )

        self._shared(
            lambda: self._without(partial(is_scored, unlike=self.unlike)),
            self.costs.score_groups,
            lambda aims: singly(aims, score, self.ledger.fail),
        )

    def _describe(self) -> None:
        groups = self.costs.describe_groups(list(self.ledger.places(self.aims)))

        def parts(aims: Sequence[Aim]) -> list[tuple[Aim, ...]]:
            """Cut from all of them, whatever is there: a pass that was stopped is gone on from with the same SAEs."""
            return [group for group in groups if not set(group).isdisjoint(aims)]

        def describe(aims: tuple[Aim, ...]) -> None:
            placed = self.ledger.places(aims)
            paths = [placed[aim] for aim in aims]
            assert self.recipe.describing is not None
            describe_some(
                self.model,
                self.to,
                paths,
                self.trained_on,
                aside=self.ledger.atlases(paths),
                wanted=self.recipe.describing,
                device=self._sae_device,
                progress=self.over.part(self.costs.describing(aims)),
            )

        def work(aims: tuple[Aim, ...]) -> None:
            for group in parts(aims):
                singly(group, describe, self.ledger.fail)

        self._shared(lambda: self._without(lambda place: (place / ATLAS).exists()), parts, work)

    def _without(self, there: Callable[[Path], bool]) -> list[Aim]:
        """SAEs that are there, without what shall be made of them, where nothing failed."""
        placed = self.ledger.places(self.aims)
        found = [aim for aim, path in placed.items() if not there(self.to / path) and self.ledger.failed(aim) is None]
        return found if self.ledger.going_on else []

    @property
    def _sae_device(self) -> str:
        return "auto" if self.device is None else str(self.device)

    # --- the end --------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Whoever comes first writes the manifest, and takes away what was beside the scope."""
        with self.ledger.turn("finishing"):
            if not self.ledger.going_on:
                return
            places = self.ledger.places(self.aims)
            failed = [self.ledger.failed(aim) for aim in self.aims]
            write_scope(
                Manifest(
                    model=self.model.name,
                    revision=self.model.revision,
                    corpus=Text(name=self.corpus.name, digest=self.corpus.digest),
                    versions=versions(),
                    recipe=self.recipe.text,
                    saes=tuple(self._made(aim, path) for aim, path in places.items()),
                    failed=tuple(one for one in failed if one is not None),
                ),
                self.to,
            )
            self.ledger.end()

    def _made(self, aim: Aim, path: str) -> Made:
        l0 = read_json(self.to / path / RUN, _Ran).training.l0
        width = aim.config.width
        return Made(path=path, site=str(aim.site), site_out=str(aim.site_out), width=width, l0=round(l0, 2))


@dataclass(frozen=True, kw_only=True)
class _Worth:
    l0: float


@dataclass(frozen=True, kw_only=True)
class _Ran:
    """Of what a run was worth, that which is asked here."""

    config: Mapping[str, Any]
    training: _Worth


def _partial(folder: Path) -> Path:
    """Where a harvest is on its way."""
    return folder.with_name(f"{folder.name}.partial")


def _sites(aims: Sequence[Aim]) -> tuple[Site, ...]:
    return tuple(sorted({site for aim in aims for site in aim.sites}))


def _halves(aims: tuple[Aim, ...]) -> Iterator[tuple[Aim, ...]]:
    """By places, which are whole in either; none of a single one."""
    places = list(dict.fromkeys(aim.sites for aim in aims))
    middle = len(places) // 2
    for half in (places[:middle], places[middle:]) if middle else ():
        yield tuple(aim for aim in aims if aim.sites in half)
