"""Which of how many workers this process is, and its share of work that is cut into numbered pieces.

Workers never talk: whoever starts them (torchrun, a Slurm array, a Kubernetes indexed job, a shell) gives each a number
and their count, and what is done lies in files. Ranks count from 0.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from gemscope.errors import InputError

Piece = TypeVar("Piece")

_WHOLE = re.compile(r"\d{1,9}", re.ASCII)


@dataclass(frozen=True)
class World:
    """Worker `rank` of `size`."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """Which it is of those on the same machine, where that is known: its GPU."""

    def __post_init__(self) -> None:
        """Raises InputError for a rank beyond the size."""
        if not 0 <= self.rank < self.size:
            raise InputError(f"worker {self.rank} of {self.size}: ranks count from 0, the last is {self.size - 1}")

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> World:
        """What the environment says. The first of these that is set counts: GEMSCOPE_SHARE, "2/8" being the third of
        eight; RANK and WORLD_SIZE, as torchrun sets them; SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT, of a job
        array; SLURM_PROCID and SLURM_NTASKS, of tasks that srun started; JOB_COMPLETION_INDEX of a Kubernetes indexed
        job, with GEMSCOPE_WORKERS, which no cluster sets: how many there are. Without any it is the only worker.

        Raises InputError for what makes no rank and size.
        """
        if share := environment.get("GEMSCOPE_SHARE"):
            rank, slash, size = share.partition("/")
            if not (slash and _WHOLE.fullmatch(rank) and _WHOLE.fullmatch(size) and int(rank) < int(size)):
                raise InputError(f"GEMSCOPE_SHARE={share}: expected RANK/COUNT, from 0/8 to 7/8 for eight workers")
            return cls(int(rank), int(size))
        for rank, size, first, step in _SOURCES:
            if environment.get(rank):
                return _told(environment, rank, size, first, step)
        return cls()

    @classmethod
    def together(cls, environment: Mapping[str, str] = os.environ) -> World:
        """Which of the processes it is that torchrun has started to work as one, and told where they find each other;
        without that it is alone, whatever else numbers it: tasks of an array are told nothing of the kind.

        Raises InputError for what makes no rank and size.
        """
        if not (environment.get("MASTER_ADDR") and environment.get("RANK") and environment.get("WORLD_SIZE")):
            return cls()
        found = _told(environment, "RANK", "WORLD_SIZE", None, None)
        return cls(found.rank, found.size, _number(environment, "LOCAL_RANK", else_=0))

    @property
    def first(self) -> bool:
        """Whether it is the one that says how far all are."""
        return self.rank == 0

    def share(self, missing: Iterable[Piece]) -> list[Piece]:
        """Of the pieces that are missing those that this worker does: the rank-th, the (rank + size)-th, ..."""
        return list(missing)[self.rank :: self.size]

    def does(self, number: int) -> bool:
        """Whether this worker does the piece of a number, whatever is missing: so nothing is left out where some
        workers begin when others have done a part already.
        """
        return number % self.size == self.rank


ALONE = World()
"""The only worker there is."""


_SOURCES = (
    ("RANK", "WORLD_SIZE", None, None),
    # An array may be numbered from any number on, in steps: --array=1-15:2
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"),
    ("SLURM_PROCID", "SLURM_NTASKS", None, None),
    ("JOB_COMPLETION_INDEX", "GEMSCOPE_WORKERS", None, None),
)
"""Variables of the rank and the size; of the number that ranks begin with, and of the step between two."""


def _told(environment: Mapping[str, str], rank: str, size: str, first: str | None, step: str | None) -> World:
    count = _number(environment, size, because=rank)
    start = _number(environment, first, else_=0) if first else 0
    apart = _number(environment, step, else_=1) if step else 1
    number, beyond = divmod(_number(environment, rank) - start, max(1, apart))
    if beyond or not 0 <= number < count:
        said = ", ".join(
            f"{name}={environment[name]}" for name in (rank, first, step, size) if name and name in environment
        )
        raise InputError(
            f"{said} make no rank from 0 to {count - 1}: set GEMSCOPE_SHARE=RANK/COUNT, such as 0/{max(1, count)}"
        )
    return World(number, count)


def _number(environment: Mapping[str, str], name: str, *, because: str = "", else_: int | None = None) -> int:
    text = environment.get(name, "").strip()
    if not text and else_ is not None:
        return else_
    if not text:
        raise InputError(f"{because} is set and {name} is not: set it to how many workers there are")
    if not _WHOLE.fullmatch(text):
        raise InputError(f"{name}={text}: expected a whole number")
    return int(text)
