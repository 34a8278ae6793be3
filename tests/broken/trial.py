"""One case: a sound folder copied, one of its files damaged, read, and judged by how that ends."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gemscope.errors import GemscopeError

from .mutations import mutate
from .readers import READERS
from .samples import SAMPLES
from .seals import SEALS, sealed

SECONDS, PATIENCE = 20, 200
"""A case that takes more of the processor, or of the clock, hangs."""
MEGABYTES = 250
"""More memory than before, at its height, than this is more than any of these files is worth."""
_ROOM = 2 << 30
_QUICK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where folders come and go without a disk; None: where temporary ones are."""
LONGEST = 1000
"""Characters of a message."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended."""

    case: str
    """Reader, file, what befell it, seed."""
    ending: str
    """`read`, the name of our error, or what was wrong."""
    fault: str = ""
    """What was wrong, at length; "" where nothing was."""


def make_samples(folder: Path) -> None:
    """All sound folders, each read once: what cannot be read whole proves nothing."""
    for name, make in SAMPLES.items():
        place = folder / name
        place.mkdir()
        make(place)
        with tempfile.TemporaryDirectory() as aside:
            copy = Path(shutil.copytree(place, Path(aside) / name, symlinks=True))
            READERS[name](copy)


def trial(samples: Path, seed: int, only: str = "") -> Outcome:
    """The case of a seed."""
    chance = random.Random(seed)
    name = only or sorted(SAMPLES)[seed % len(SAMPLES)]
    with tempfile.TemporaryDirectory(dir=_QUICK) as aside:
        folder = Path(shutil.copytree(samples / name, Path(aside) / name))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        path = chance.choice(files)
        done = mutate(path, chance, _everything(samples) if chance.random() < 0.5 else files)
        if name in SEALS and chance.random() < 0.7 and sealed(name, folder):
            done += "+sealed"
        return _judged(f"{name} {path.relative_to(folder)} {done} {seed}", name, folder)


@cache
def _everything(samples: Path) -> list[Path]:
    return sorted(path for path in samples.rglob("*") if path.is_file())


def _judged(case: str, name: str, folder: Path) -> Outcome:
    before = _highest()
    try:
        with _limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            READERS[name](folder)
        ending, fault = "read", ""
    except GemscopeError as error:
        ending, said = type(error).__name__, str(error)
        fault = "" if said.isprintable() and 0 < len(said) <= LONGEST else f"{len(said)} characters: {said[:400]!r}"
    except (Exception, _Hangs) as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "gemscope" in frame.filename] or frames
        ending = f"{type(error).__name__} in {Path(ours[-1].filename).name}:{ours[-1].lineno}"
        fault = "".join(traceback.format_exception(error))
    if not fault and (more := _highest() - before) > MEGABYTES:
        ending, fault = f"{more} MB", f"{more} MB more than before"
    return Outcome(case, ending, fault)


class _Hangs(BaseException):
    """It takes too long; nobody who catches errors catches this."""


@contextmanager
def _limited() -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise _Hangs("it goes on and on")

    limits = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, PATIENCE))
    before = [(signal.signal(number, ring), signal.setitimer(timer, limit, 1)) for number, timer, limit in limits]
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    # Addresses, mapped files among them: what would fill the machine ends in a MemoryError.
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + _ROOM, hard))
    try:
        yield
    finally:
        for (number, timer, _), (handler, setting) in zip(limits, before, strict=True):
            signal.setitimer(timer, *setting)  # whoever runs the tests has a limit of theirs
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _highest() -> int:
    """Megabytes that this process held at its height since the last call; 0 where the system does not tell."""
    try:
        found = _status("VmHWM") >> 20
        Path("/proc/self/clear_refs").write_text("5")
        return found
    except OSError:
        return 0


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))
