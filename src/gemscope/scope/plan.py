"""How a scope is made: how often the model reads the text, for which sites each time, and what that takes of disk,
memory, time and money. Plain arithmetic on sizes; `rates.py` measures how fast this machine is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from rich.filesize import decimal

from gemscope.activations.site import Site
from gemscope.activations.writer import bytes_per_row
from gemscope.errors import InputError
from gemscope.pages.numbers import figure, many, short
from gemscope.pages.plain import Shown
from gemscope.pages.tables import Table
from gemscope.scope.budget import Budget
from gemscope.scope.recipe import Aim, ScopeRecipe

if TYPE_CHECKING:
    from rich.console import RenderableType

WEIGHT = 4
"""Bytes of a number of an SAE, in its file."""
LEARNED = 16
"""Bytes of one in training: itself, its gradient, Adam's two moments."""
REMEMBERED = 12
"""Bytes of one in a checkpoint: without its gradient. The new one is there before the old one goes."""
BESIDE = 2
"""Bytes of one of the encoder in the copy that is searched."""
ROWS = 65_536
"""Rows that scales are measured by, and thresholds set by at the end: in float32, as they are and scaled."""
DENSE = 1 << 28
"""Pre-activations of the first batch, at most, that thresholds begin by; in float32, and once more while they are
sorted."""
GATHERED = 1 << 28
"""Bytes of rows, about, that a harvest gathers before it writes them; copied once on the way."""
FEATURE = 10_000
"""Bytes of a feature while it is described: its ranges, and sixty places in the text."""
_ENDLESS = 1 << 62
"""Bytes of a disk on which there is room for everything."""
SHARED = 10
"""Scores share a reading of the held-out text that takes at most one part in so many of what each needs for itself."""


Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Pass:
    """The model reads the text once, for the rows of these sites."""

    aims: tuple[Aim, ...]
    disk: int
    """Bytes of the rows, which are there until all their SAEs are."""
    memory: int
    """Bytes, beside the model, while they are read."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """What is read, by depth."""
        return tuple(sorted({site for aim in self.aims for site in aim.sites}))


@dataclass(frozen=True)
class Layout:
    """All passes, and the most that is in use."""

    passes: tuple[Pass, ...]
    disk: int
    """Bytes: rows of a pass, runs under way, and all finished SAEs."""
    kept: int
    """Bytes of the finished SAEs among them."""
    memory: int
    """Bytes of a worker, the model among them."""


@dataclass(frozen=True)
class Rates:
    """How fast this machine is, with what a worker has of it."""

    reads: float
    """Tokens per second through the model, with what it computes at the sites of a pass."""
    predicts: float
    """The same to the logits, for the losses."""
    learns: Callable[[Aim], float]
    """Rows per second that one SAE is trained on."""


@dataclass(frozen=True)
class Hours:
    """What one worker takes, by what it does."""

    reading: float
    training: float
    scoring: float
    describing: float

    @property
    def all(self) -> float:
        """Together."""
        return self.reading + self.training + self.scoring + self.describing


@dataclass(frozen=True, kw_only=True)
class Plan(Shown):
    """What making a scope will take, said before it begins."""

    layout: Layout
    passes: tuple[Pass, ...]
    """Those with anything left to do."""
    tokens: int
    """Read in each of them."""
    hours: Hours
    """Of one worker."""
    workers: int = 1
    price: float | None = None
    """Dollars an hour of a worker."""
    larger: tuple[tuple[int, int], ...] = ()
    """Disks that would do with fewer passes: bytes, and how many."""

    @property
    def aims(self) -> tuple[Aim, ...]:
        """All SAEs of these passes."""
        return tuple(aim for one in self.passes for aim in one.aims)

    @property
    def wall(self) -> float:
        """Hours until it is there: all the work is shared by the workers."""
        return self.hours.all / self.workers

    @property
    def dollars(self) -> float | None:
        """Of all workers together."""
        return None if self.price is None else self.hours.all * self.price

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "saes": len(self.aims),
            "passes": [
                {"sites": list(map(str, one.sites)), "saes": len(one.aims), "disk": one.disk, "memory": one.memory}
                for one in self.passes
            ],
            "tokens": self.tokens,
            "disk": self.layout.disk,
            "kept": self.layout.kept,
            "memory": self.layout.memory,
            "workers": self.workers,
            "with_more_disk": [{"disk": disk, "passes": passes} for disk, passes in self.larger],
            "hours": {**vars(self.hours), "all": self.hours.all},
            "wall_hours": self.wall,
            "dollars": self.dollars,
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        sites = len({site for aim in self.aims for site in aim.sites})
        rows = [
            (
                str(number),
                _spanned(one.sites),
                str(len(one.aims)),
                decimal(one.disk),
                decimal(one.memory),
            )
            for number, one in enumerate(self.passes, 1)
        ]
        heads = ("pass", "sites", "SAEs", "rows on disk", "memory to read them")
        return Group(
            Text(
                f"{many(len(self.aims), 'SAE')} of {many(sites, 'site')} in {len(self.passes)} "
                f"pass{'es' * (len(self.passes) != 1)} of the model over {short(self.tokens)} tokens",
                style="bold",
            ),
            Table(heads, rows, left=("sites",), wraps=("sites",), bold=False, indent=2),
            Text(
                f"  disk {decimal(self.layout.disk)} at most, {decimal(self.layout.kept)} of it the SAEs that stay; "
                f"memory {decimal(self.layout.memory)} a worker"
            ),
            Text(f"  {self._time()}"),
            *([Text(f"  {self._spared()}")] if self.larger else []),
        )

    def _spared(self) -> str:
        """What more disk would save."""
        each = self.hours.reading / len(self.passes) / self.workers
        parts = [
            f"{decimal(disk)} {passes} pass{'es' * (passes != 1)}, {duration(each * (len(self.passes) - passes))} less"
            for disk, passes in self.larger
        ]
        return f"reading is {self.hours.reading / self.hours.all:.0%} of it; with a disk of {'; of '.join(parts)}"

    def _time(self) -> str:
        parts = [(name, value) for name, value in vars(self.hours).items() if value > 0]
        each = ", ".join(f"{name} {duration(value)}" for name, value in parts)
        cost = "" if self.dollars is None else f", {self.dollars:,.2f} dollars"
        shared = "" if self.workers == 1 else f" with {self.workers} workers"
        return f"about {duration(self.wall)}{shared} ({each}){cost}, by a short spell measured now"


def duration(hours: float) -> str:
    """In words: 40 s, 12 min, 3.4 h."""
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 1 else f"{figure(hours)} h"


GUESSED = Rates(1000.0, 1000.0, lambda aim: 5000.0)
"""Where nothing was measured: only how the parts of the work stand to each other is of use then."""


def _spanned(sites: Sequence[Site]) -> str:
    """Sites by kind, runs of layers as such: 0-29.res, 3,5.mlp."""
    layers: dict[str, list[int]] = defaultdict(list)
    for site in sites:
        layers[site.kind] += [] if site.layer is None else [site.layer]
    return " ".join(kind if not found else f"{_runs(sorted(found))}.{kind}" for kind, found in layers.items())


def _runs(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


# --- the arithmetic -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a plan needs to know of one."""

    bytes: int
    """Of its weights."""
    width: Callable[[Site], int]
    itemsize: int
    """Bytes of a number that it computes in."""


def planned(aims: Iterable[Aim], recipe: ScopeRecipe, model: Model, tokens: int, budget: Budget) -> Layout:
    """Which sites the model is read for at a time.

    Sites go into a pass by depth, as long as their rows fit on the disk and what is captured fits into memory; a
    transcoder's two stay together. Raises InputError where one alone does not fit, with what it takes.
    """
    aims = tuple(aims)
    kept = sum(WEIGHT * weights(aim, model) for aim in aims)
    memory = budget.memory_each
    largest = max((lesson_memory([aim], model) for aim in aims), default=0)
    if largest + model.bytes > memory:
        aim = max(aims, key=lambda one: lesson_memory([one], model))
        raise InputError(
            f"{decimal(memory)} of memory for a worker: training {aim} takes {decimal(largest)}, the model "
            f"{decimal(model.bytes)}; give more memory, fewer workers, or a smaller width or batch"
        )
    runs = {aim.key: 2 * REMEMBERED * weights(aim, model) for aim in aims}
    passes: list[Pass] = []
    for together in _together(aims):
        joined = (*passes[-1].aims, *together) if passes else together
        for candidate in (joined, together) if passes else (together,):
            one = _pass(candidate, recipe, model, tokens)
            under_way = sum(runs[aim.key] for aim in candidate)
            fits = one.disk + under_way + kept <= budget.disk and one.memory + model.bytes <= memory
            if fits:
                break
        else:
            raise InputError(
                f"{', '.join(map(str, one.sites))} alone takes {decimal(one.disk + under_way)} on disk beside "
                f"{decimal(kept)} of finished SAEs, and {decimal(one.memory + model.bytes)} of memory; there are "
                f"{decimal(budget.disk)} and {decimal(memory)}: give more, or read fewer tokens"
            )
        if passes and candidate is joined:
            passes[-1] = one
        else:
            passes.append(one)
    disk = kept + max((one.disk + sum(runs[aim.key] for aim in one.aims) for one in passes), default=0)
    learned = [lesson_memory(some, model) for one in passes for some in lessons(one.aims, model, memory)]
    return Layout(tuple(passes), disk, kept, model.bytes + max([0, *(one.memory for one in passes), *learned]))


def larger_disks(
    aims: Sequence[Aim], recipe: ScopeRecipe, model: Model, tokens: int, budget: Budget
) -> tuple[tuple[int, int], ...]:
    """Disks with which the model reads the text less often: twice as large a one, and one for everything that memory
    allows to be read at a time. Bytes, and passes.
    """
    fewest, found = len(planned(aims, recipe, model, tokens, budget).passes), dict[int, int]()
    for disk in (2 * budget.disk, _ENDLESS):
        layout = planned(aims, recipe, model, tokens, replace(budget, disk=disk))
        if len(layout.passes) < fewest:
            fewest = len(layout.passes)
            found[layout.disk] = fewest
    return tuple(found.items())


def hands(aims: Sequence[Aim], recipe: ScopeRecipe, model: Model, tokens: int, budget: Budget, *, most: int) -> int:
    """How many workers are best, up to `most`: the more the better, as a thread each does more than many threads of
    one, but no more than there are SAEs to train, and than memory has room for without more passes of the model.
    """
    passes = len(planned(aims, recipe, model, tokens, replace(budget, workers=1)).passes)
    for number in range(min(most, len(aims)), 1, -1):
        try:
            layout = planned(aims, recipe, model, tokens, replace(budget, workers=number))
        except InputError:
            continue
        if len(layout.passes) <= passes:
            return number
    return 1


def weights(aim: Aim, model: Model) -> int:
    """Numbers of an SAE."""
    inward, outward = model.width(aim.site), model.width(aim.site_out)
    skip = inward * outward if aim.config.skip else 0
    return aim.config.width * (inward + outward + 2) + outward + skip


def lesson_memory(aims: Sequence[Aim], model: Model) -> int:
    """Bytes that training some from one reading takes."""
    first = aims[0]
    inward, outward = model.width(first.site), model.width(first.site_out)
    rows = 2 * WEIGHT * ROWS * (inward + (outward if first.site != first.site_out else 0))
    dense = max(2 * WEIGHT * min(aim.config.width * aim.config.batch, DENSE) for aim in aims)
    learned = sum(LEARNED * weights(aim, model) + BESIDE * aim.config.width * inward for aim in aims)
    return rows + dense + learned


def lessons(aims: Sequence[Aim], model: Model, memory: int) -> list[tuple[Aim, ...]]:
    """Those that are trained from one reading of their rows: as many settings of a site as memory allows."""
    found: dict[tuple[object, ...], list[list[Aim]]] = {}
    for aim in aims:
        groups = found.setdefault(aim.reading, [[]])
        if groups[-1] and lesson_memory([*groups[-1], aim], model) + model.bytes > memory:
            groups.append([])
        groups[-1].append(aim)
    return [tuple(group) for groups in found.values() for group in groups]


def _together(aims: Sequence[Aim]) -> list[tuple[Aim, ...]]:
    """Those of one place, which need the same rows, in the order of the aims."""
    found: dict[tuple[Site, ...], list[Aim]] = {}
    for aim in aims:
        found.setdefault(aim.sites, []).append(aim)
    return [tuple(group) for group in found.values()]


def _pass(aims: tuple[Aim, ...], recipe: ScopeRecipe, model: Model, tokens: int) -> Pass:
    reading = recipe.reading
    widths = [model.width(site) for site in dict.fromkeys(site for aim in aims for site in aim.sites)]
    row = sum(bytes_per_row(width, reading.stored) for width in widths)
    # What was computed, the counted rows of it, these as they are stored; and shards on their way.
    numbers = sum(widths) * reading.batch * reading.length
    memory = numbers * (2 * model.itemsize + bytes_per_number(reading.stored)) + 2 * GATHERED
    return Pass(aims, tokens * row, memory)


def bytes_per_number(stored: str) -> int:
    """Of a number format that rows are kept in."""
    return bytes_per_row(1, stored) - bytes_per_row(0, stored)


def score_groups(
    things: Sequence[Thing], size: Callable[[Thing], int], *, tokens: int, loss_tokens: int, room: int, workers: int
) -> list[tuple[Thing, ...]]:
    """What shares a reading of the held-out text: as many SAEs that it is a small part of the work, and that fit into
    `room` bytes, in which each has its `size`.
    """
    own = 3 * loss_tokens
    most = -(-SHARED * tokens // own) if own else len(things)
    return grouped(things, size, room, max(1, min(most, -(-len(things) // workers))))


def grouped(
    things: Sequence[Thing], size: Callable[[Thing], int], room: int, most: int | None = None
) -> list[tuple[Thing, ...]]:
    """In order, as many at a time as fit."""
    groups: list[list[Thing]] = []
    left = 0
    for thing in things:
        if not groups or len(groups[-1]) == most or size(thing) > left:
            groups.append([])
            left = room
        groups[-1].append(thing)
        left -= size(thing)
    return [tuple(group) for group in groups]


@dataclass(frozen=True)
class Costs:
    """Seconds of one worker, by what there is to do."""

    recipe: ScopeRecipe
    model: Model
    tokens: int
    budget: Budget
    rates: Rates
    texts: int = 1
    """That scores are of: held-out, and unlike text."""

    @property
    def reading(self) -> float:
        """Of one pass."""
        return self.tokens / self.rates.reads

    def training(self, aim: Aim) -> float:
        """Of one SAE."""
        return aim.config.rows / self.rates.learns(aim)

    def score_groups(self, aims: Sequence[Aim]) -> list[tuple[Aim, ...]]:
        """Those that share a reading of the held-out text; none where nothing is scored."""
        wanted = self.recipe.scoring
        if not wanted.tokens:
            return []
        return score_groups(
            aims,
            lambda aim: (WEIGHT + BESIDE) * weights(aim, self.model),
            tokens=wanted.tokens,
            loss_tokens=wanted.loss_tokens,
            room=self._room,
            workers=self.budget.workers,
        )

    def describe_groups(self, aims: Sequence[Aim]) -> list[tuple[Aim, ...]]:
        """Those whose atlases come out of one pass over the text: as many as fit."""
        if self.recipe.describing is None:
            return []
        size = lambda aim: (WEIGHT + BESIDE) * weights(aim, self.model) + FEATURE * aim.config.width  # noqa: E731
        return grouped(aims, size, self._room)

    @property
    def _room(self) -> int:
        return self.budget.memory_each - self.model.bytes

    def scoring(self, aims: Sequence[Aim]) -> float:
        """Of some: a reading for each group, and the losses of each, on each text."""
        wanted, seconds = self.recipe.scoring, 0.0
        for group in self.score_groups(aims):
            places = len({aim.sites for aim in group})
            again = wanted.loss_tokens * (1 + 2 * places + len(group))
            seconds += wanted.tokens / self.rates.reads + again / self.rates.predicts
        return self.texts * seconds

    def describing(self, aims: Sequence[Aim]) -> float:
        """Of the passes over text that atlases take; what weights alone say comes on top of that."""
        described = 0 if self.recipe.describing is None else self.recipe.describing.tokens
        return len(self.describe_groups(aims)) * described / self.rates.reads

    def hours(self, passes: Sequence[Pass]) -> Hours:
        """Of all that is in some passes."""
        aims = [aim for one in passes for aim in one.aims]
        training = sum(map(self.training, aims))
        seconds = (len(passes) * self.reading, training, self.scoring(aims), self.describing(aims))
        return Hours(*(value / 3600 for value in seconds))
