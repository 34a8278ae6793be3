"""How quick this processor is in a half-width number format: measured once, and remembered in the cache. A wrong answer
costs time and makes no result less exact, so whatever is wrong with what was remembered, it is measured anew.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from gemscope.activations.bundled import cache_dir

_LIKELY = (1e-3, 1e3)
"""No processor's answer lies outside."""


@cache
def relative_time(dtype: torch.dtype) -> float:
    """How long a product of matrices takes in `dtype`, over the time in float32: 0.3 where a processor has instructions
    for it, 4 where it has none.
    """
    place = None
    with suppress(OSError, RuntimeError):  # no place that can be written, or no home at all
        place = cache_dir() / "measured" / f"{str(dtype).removeprefix('torch.')}-{_machine()}"
    if (found := _remembered(place)) is None:
        found = _measured(dtype)
        _remember(place, found)
    return found


def _measured(dtype: torch.dtype) -> float:
    # Small products settle it where the format is emulated: large ones would take a while there. On one thread, as
    # several at once run undisturbed too seldom on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        small = _ratio(dtype, 64, 512, 128, rounds=10)
        return small if small > 3 else _ratio(dtype, 128, 1024, 512, rounds=10)
    finally:
        torch.set_num_threads(threads)


def _ratio(dtype: torch.dtype, rows: int, depth: int, columns: int, *, rounds: int) -> float:
    """Its time over float32's, each the best of some rounds."""
    operands = [
        (one, torch.ones(rows, depth, dtype=one), torch.ones(columns, depth, dtype=one).T)  # as layers multiply
        for one in (dtype, torch.float32)
    ]
    took = dict.fromkeys((one for one, _, _ in operands), float("inf"))
    for _, a, b in operands:
        a @ b  # the first product of a kind also prepares those that follow
    # In turns, each a few milliseconds at most: on a busy machine some of them still run undisturbed.
    for _ in range(rounds):
        for one, a, b in operands:
            start = time.perf_counter()
            a @ b
            took[one] = min(took[one], time.perf_counter() - start)
    return took[dtype] / took[torch.float32]


# --- what was remembered ----------------------------------------------------------------------------------------------


def _machine() -> str:
    """Short, and another one wherever the answer may differ: processor, its limits, torch, threads."""
    limits = [f"{name}={os.environ.get(name)}" for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")]
    facts = [
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        str(torch.get_num_threads()),
        *limits,
        platform.machine(),
        *_processor(),
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _processor() -> list[str]:
    """The name and the instructions of the first processor, where the system says."""
    told = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")
    except OSError:
        return [platform.processor()]
    return [line for line in first.splitlines() if line.startswith(told)]


def _remembered(place: Path | None) -> float | None:
    with suppress(OSError, ValueError):
        if place is not None and place.is_file():
            with place.open("rb") as file:
                text = file.read(16).decode("ascii")
            # Its end of line says that the number is whole.
            return found if text.endswith("\n") and _LIKELY[0] < (found := float(text)) < _LIKELY[1] else None
    return None


def _remember(place: Path | None, found: float) -> None:
    """Written in place: what a full disk or a kill leaves of a line is no answer, and is written again."""
    with suppress(OSError):
        if place is not None and (place.is_file() or not place.exists()):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(f"{found:.6f}\n", encoding="ascii")
