"""Processes at one command: `--workers N` starts them here; elsewhere the environment says which one this is."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TypeVar

from gemscope.errors import Awaited, InputError
from gemscope.progress import Progress
from gemscope.world import ALONE, World

Made = TypeVar("Made")

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
_PATIENCE = 10.0
"""Seconds for one that was told to end."""


def add_workers(command: argparse.ArgumentParser, *, default: int | None = 1) -> None:
    """`--workers`; without a default the command chooses."""
    told = "1" if default else "as many as cores, memory and what is left allow"
    command.add_argument(
        "--workers",
        type=int,
        default=default,
        metavar="N",
        help=f"processes that share the work here (default {told}; under torchrun, Slurm or Kubernetes: see "
        "docs/cluster.md)",
    )


class Crew:
    """Which worker this process is, and those that it has started beside itself."""

    def __init__(self, world: World, others: Sequence[subprocess.Popen[bytes]] = ()) -> None:
        self.world, self._others = world, others

    def done(self, work: Callable[[World], Made], progress: Progress) -> Made:
        """What comes of all shares, once the others have done theirs. Raises Awaited where they are elsewhere."""
        try:
            return work(self.world)
        except Awaited as told:
            if not self._others:
                raise
            self._wait(told, progress)
            alone = told.left() > 0  # one has failed: the rest is done here
        return work(ALONE if alone else self.world)

    def _wait(self, told: Awaited, progress: Progress) -> None:
        left = told.left()
        with progress("other workers", left, "pieces") as advance:
            while any(one.poll() is None for one in self._others):
                time.sleep(0.1)
                before, left = left, told.left()
                advance(before - left)


@contextmanager
def crew(args: argparse.Namespace) -> Iterator[Crew]:
    """The workers of a command; those that were started here end with the block. Raises InputError."""
    number, here = args.workers, World.here()
    if number < 1:
        raise InputError(f"--workers {number}: expected how many processes, 1 or more")
    if number == 1:
        yield Crew(here)
        return
    if here.size > 1:
        raise InputError(
            f"--workers {number} within worker {here.rank} of {here.size}: leave it out, the environment says who works"
        )
    others = [_started(args.argv, World(rank, number)) for rank in range(1, number)]
    try:
        take_threads(number)
        yield Crew(World(0, number), others)
    finally:
        for one in others:
            one.terminate()
        for one in others:
            try:
                one.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()


@contextmanager
def shared(args: argparse.Namespace) -> Iterator[None]:
    """A folder for the pieces of several workers, where none is named and all of them are started here."""
    if args.workers < 2 or args.pieces is not None:
        yield
        return
    with TemporaryDirectory(prefix="gemscope-") as folder:
        args.pieces = folder
        args.argv = _with(args.argv, "--pieces", folder)
        yield


def _with(argv: Sequence[str], *words: str) -> list[str]:
    """The same command with another option."""
    end = argv.index("--") if "--" in argv else len(argv)
    return [*argv[:end], *words, *argv[end:]]


def _started(argv: Sequence[str], world: World) -> subprocess.Popen[bytes]:
    """The same command as another worker, which says nothing but what went wrong."""
    command = [sys.executable, "-m", "gemscope", *_with(argv, "--workers", "1")]
    environment = dict(os.environ) | {
        "GEMSCOPE_SHARE": f"{world.rank}/{world.size}",
        "LOCAL_RANK": str(world.rank),  # where there are several GPUs, each has its own
    }
    if threads := _threads(world.size):
        environment |= dict.fromkeys(_THREADS, str(threads))
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)


def take_threads(workers: int) -> None:
    """Those of one of so many, for this process."""
    if workers > 1 and (threads := _threads(workers)):
        import torch

        torch.set_num_threads(threads)


def _threads(workers: int) -> int | None:
    """For each of so many; None where somebody has said how many."""
    if any(name in os.environ for name in _THREADS):
        return None
    from gemscope.activations.suited import cores

    return max(1, cores() // workers)
