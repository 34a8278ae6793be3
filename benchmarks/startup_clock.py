"""Clocks and scales for the processes that `startup.py` starts. The standard library alone: it must weigh nothing."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any


def rss_mb() -> float:
    """Memory of this process now, in MB; its peak where the system does not tell."""
    if (statm := Path("/proc/self/statm")).exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


class Stopwatch:
    """Seconds on the wall and on the processors since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


def since(started: str) -> tuple[float, float]:
    """Seconds since the parent's clock said `started`, the interpreter's own start included, and processor seconds."""
    return time.time() - float(started), time.process_time()


def warm(look: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Medians over repeated looks, in milliseconds: wall, processors."""
    found = []
    for _ in range(repeats):
        watch = Stopwatch()
        look()
        found.append(watch.read())
    return median(wall for wall, _ in found) * 1e3, median(cpu for _, cpu in found) * 1e3
