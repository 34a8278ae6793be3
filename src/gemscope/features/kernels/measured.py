"""Whether this machine multiplies bfloat16 much faster than float32: measured once, and remembered in the cache. A
wrong answer costs time and changes no result, so whatever is wrong with what was remembered, it is measured anew.
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

_FORMATS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@cache
def fastest() -> torch.dtype:
    """bfloat16 where its products take well below the time of float32's, else float32."""
    place = None
    with suppress(OSError, RuntimeError):  # no place that can be written, or no home at all
        place = cache_dir() / "kernels" / f"search-{_machine()}"
    if (found := _remembered(place)) is None:
        found = _measured()
        _remember(place, found)
    return found


def _measured() -> torch.dtype:
    # Without instructions for bfloat16 its products take 30 times as long as float32's: three small ones say so.
    if _ratio(64, 512, 128, rounds=3) > 4:
        return torch.float32
    return torch.bfloat16 if _ratio(128, 1024, 512, rounds=20) < 0.7 else torch.float32


def _ratio(rows: int, depth: int, columns: int, *, rounds: int) -> float:
    """bfloat16's time over float32's, each the best of some rounds."""
    operands = {
        dtype: (torch.ones(rows, depth, dtype=dtype), torch.ones(depth, columns, dtype=dtype))
        for dtype in _FORMATS.values()
    }
    took = dict.fromkeys(operands, float("inf"))
    for a, b in operands.values():
        a @ b  # the first product of a kind also prepares those that follow
    # In turns, each well below a millisecond: on a busy machine some of them still run undisturbed.
    for _ in range(rounds):
        for dtype, (a, b) in operands.items():
            start = time.perf_counter()
            a @ b
            took[dtype] = min(took[dtype], time.perf_counter() - start)
    return took[torch.bfloat16] / took[torch.float32]


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


def _remembered(place: Path | None) -> torch.dtype | None:
    with suppress(OSError, ValueError):
        if place is not None and place.is_file():
            with place.open("rb") as file:
                return _FORMATS.get(file.read(16).decode("ascii"))
    return None


def _remember(place: Path | None, found: torch.dtype) -> None:
    """Written in place: what a full disk or a kill leaves of one word is no answer, and is written again."""
    with suppress(OSError):
        if place is not None and (place.is_file() or not place.exists()):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(str(found).removeprefix("torch."), encoding="ascii")
