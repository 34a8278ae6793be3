"""A command done by several processes here: this one is the first, the others are the same command once more, told
which of how many they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from gemscope.errors import InputError
from gemscope.world import World

_END = 10
"""Seconds that the others have to put away what is half done."""


@contextmanager
def workers(count: int | None, words: Sequence[str]) -> Iterator[World]:
    """While the block runs `count` processes are at it: this one, whose number is given, and others that run
    `gemscope` with the same words. None: as its surroundings say. When the block ends they are waited for; when it
    fails, ended. The processor's threads are shared among them. Raises InputError.
    """
    if count is None or os.environ.get("GEMSCOPE_SHARE"):  # or it is one of those that were started here
        yield World.here()
        return
    if count < 1:
        raise InputError(f"--workers {count}: at least one does the work")
    if World.here().size > 1:
        raise InputError(f"--workers {count}, and this is one of {World.here().size} already: leave --workers")
    threads = max(1, (os.cpu_count() or 1) // count)
    if count > 1:
        _use(threads)
    surroundings = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    others = [
        subprocess.Popen(
            [sys.executable, "-m", "gemscope", *words],
            env=surroundings | {"GEMSCOPE_SHARE": f"{rank}/{count}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        for rank in range(1, count)
    ]
    try:
        yield World(0, count)
    except BaseException:
        for one in others:
            one.terminate()
        for one in others:
            with suppress(subprocess.TimeoutExpired):
                one.wait(_END)
        raise
    for one in others:
        one.wait()


def _use(threads: int) -> None:
    """So many of the processor's, unless the surroundings say how many."""
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(threads)
