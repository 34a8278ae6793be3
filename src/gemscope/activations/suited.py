"""The device and the number format that a model runs in where nobody names them: by what this machine has, and by what
its processor is quick at. docs/models.md has the rule and its figures.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from rich.filesize import decimal
from torch import Tensor

from gemscope.activations import measured
from gemscope.errors import InputError
from gemscope.text.files import first_line

SLOW = 2.0
"""From here on a processor counts as slow in a half-width format: float32 then reads text more than twice as fast.
Where one or two rows are written at a time, memory is the bound, and half the bytes make up for at most that.
"""
_HALVES = (torch.bfloat16, torch.float16)
_WEIGHTS = 0.8
"""The share of free memory that weights may take; the rest is for what is computed with them."""


class Suited(NamedTuple):
    """What was chosen, and in words why, where it is not what the weights are stored in or is the slower one."""

    dtype: torch.dtype
    why: str = ""


def device_of(asked: str | torch.device | None) -> torch.device:
    """The one that is asked for, tried before anything is loaded; of "auto" or None the first there is of CUDA, Apple's
    MPS and the processor. Raises InputError for one that is not there.
    """
    if asked is None or str(asked) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", _own_gpu())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.zeros(1, device=asked).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device {str(asked)!r} cannot be used: {first_line(error)}; here there is {', '.join(devices())}"
        ) from error


def _own_gpu() -> int:
    """Of several workers on one host each has its own, as far as there are enough; torchrun says which one this is."""
    local = os.environ.get("LOCAL_RANK", "")
    return int(local) % torch.cuda.device_count() if local.isdecimal() else torch.cuda.current_device()


def devices() -> list[str]:
    """All that a model can run on here, the first choice first."""
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*found, *["mps"] * torch.backends.mps.is_available(), "cpu"]


def dtype_for(stored: torch.dtype, device: torch.device, numbers: int | None) -> Suited:
    """The format for weights that are stored in one: that itself, but float32, which holds every number of it exactly,
    for the halves on a processor that is slow in them. `numbers` is how many weights there are (None: not known): what
    would not fit into memory stays as it is.
    """
    if device.type != "cpu" or stored not in _HALVES or measured.relative_time(stored) <= SLOW:
        return Suited(stored)
    name = str(stored).removeprefix("torch.")
    needed, free = None if numbers is None else 4 * numbers, free_memory()
    if needed is not None and free is not None and needed > _WEIGHTS * free:
        return Suited(
            stored, f"slow here, but in float32 its weights would take {decimal(needed)} of {decimal(free)} free"
        )
    return Suited(torch.float32, f"stored in {name}, which is slow here")


def other_format(before: object, now: object) -> str:
    """What is another about work that was begun in one format and shall go on in another, and how it goes on."""
    before, now = (str(one).removeprefix("torch.") for one in (before, now))
    return f"number format, {before} where this is {now} (load the model with --dtype {before}, dtype={before!r})"


def with_float64(values: Tensor) -> Tensor:
    """The values where float64 can be computed with: Apple's MPS has none, so what is there goes to the processor."""
    return values.cpu() if values.device.type == "mps" else values


def cores() -> int:
    """Of the processor, as many as this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int | None:
    """Bytes that can be had; None where the system does not say."""
    limits: list[int] = []
    with suppress(OSError, ValueError):  # a container's share
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                limits.append(1024 * int(value.split()[0]))
    if not limits:
        with suppress(AttributeError, OSError, ValueError):  # macOS says how much there is: half of it may be free
            limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return min(limits, default=None)
