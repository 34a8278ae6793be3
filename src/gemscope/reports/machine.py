"""What this machine has to run models and SAEs on, how quick it is at that, what is chosen where nobody says, and what
would make it faster. Everything is measured when it is asked for, within a second or two.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.filesize import decimal

from gemscope.activations import measured, suited
from gemscope.features.kernels import choice, native
from gemscope.pages.numbers import figure
from gemscope.pages.plain import Shown
from gemscope.pages.tables import Table

if TYPE_CHECKING:
    from rich.console import RenderableType

_FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_D, _FEATURES, _TOKENS = 576, 8192, 256
"""The SAE that kernels are tried on, and how much it reads: as large as the bundled one, 256 tokens."""
_ACTIVE = 2.5
"""Floors in standard deviations of z: about 50 of the features are above."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """Something to run on."""

    name: str
    what: str
    memory: int | None
    """Bytes that are free; None where nobody says."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A number format on the device that is chosen."""

    name: str
    gflops: float
    """Billions of additions and multiplications a second, in products of matrices."""
    taken: str
    """What weights that are stored in it are computed with, and why where that is another."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """An implementation of what SAEs compute, on the device that is chosen for them."""

    name: str
    tokens: float | None
    """Tokens encoded a second; None where it does not run."""
    obstacle: str | None
    """Why it does not."""


@dataclass(frozen=True, kw_only=True)
class Machine(Shown):
    """What `machine` found. `str` gives tables, `to_dict` what `--json` prints."""

    processor: str
    instructions: str
    """The widest that torch uses: AVX2, AVX512, ..."""
    threads: int
    """That torch uses."""
    cores: int
    devices: tuple[Device, ...]
    """The one that is chosen first."""
    sae_device: str
    formats: tuple[Format, ...]
    kernels: tuple[Kernel, ...]
    """The fastest first: the first that runs is taken."""
    advice: tuple[str, ...] = ()
    """What would make it faster, one line each."""

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        threads = f"{self.threads} thread{'s' * (self.threads != 1)} on {self.cores} core{'s' * (self.cores != 1)}"
        device = self.devices[0].name
        encoding = [
            (one.name, "" if one.tokens is None else figure(one.tokens), self._state(one)) for one in self.kernels
        ]
        parts: list[RenderableType] = [
            Text(f"{self.processor}, {self.instructions}, {threads}", style="bold"),
            Text(),
            Table(
                ("device", "", "free memory"),
                [(one.name, one.what, "" if one.memory is None else decimal(one.memory)) for one in self.devices],
                left=("device", ""),
                bold=False,
            ),
            Text(f"chosen: models on {device}, SAEs on {self.sae_device}"),
            Text(),
            Table(
                (f"format on {device}", "GFLOP/s", "weights stored in it run in"),
                [(one.name, figure(one.gflops), one.taken) for one in self.formats],
                left=(f"format on {device}", "weights stored in it run in"),
                wraps=("weights stored in it run in",),
                bold=False,
            ),
            Text(),
            Table(
                (f"kernels on {self.sae_device}", "tokens/s", ""),
                encoding,
                left=(f"kernels on {self.sae_device}", ""),
                wraps=("",),
                bold=False,
            ),
            Text(
                f"Tokens/s: encoded by an SAE of {_FEATURES:,} features, {_D} wide. All rates as of now: other work on "
                "this machine lowers them.",
                style="dim",
            ),
        ]
        if self.advice:
            parts += [Text(), Text("What would make it faster", style="bold"), *map(Text, self.advice)]
        return Group(*parts)

    def _state(self, kernel: Kernel) -> str:
        if kernel.obstacle is not None:
            return kernel.obstacle
        return "taken" if kernel.name == next(one.name for one in self.kernels if one.tokens is not None) else ""


def machine() -> Machine:
    """Looks at this machine and measures it."""
    names = suited.devices()
    chosen = suited.device_of("auto")
    beside = choice.place_for("auto", chosen)
    names = [str(chosen), *(name for name in names if name != str(chosen))]
    kernels = tuple(
        Kernel(name=name, tokens=None if why else _encoded(name, beside), obstacle=why)
        for name, why in choice.known(beside).items()
    )
    formats = tuple(
        Format(name=name, gflops=_rate(dtype, chosen), taken=_taken(dtype, chosen)) for name, dtype in _FORMATS.items()
    )
    return Machine(
        processor=_processor(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        cores=_cores(),
        devices=tuple(map(_device, names)),
        sae_device=str(beside),
        formats=formats,
        kernels=kernels,
        advice=tuple(_advice(chosen, kernels)),
    )


def _taken(stored: torch.dtype, device: torch.device) -> str:
    dtype = suited.dtype_for(stored, device, None).dtype
    name = str(dtype).removeprefix("torch.")
    if dtype == stored:
        return name
    return f"{name}: products take {measured.relative_time(stored):.1f} × the time"


def _advice(device: torch.device, kernels: tuple[Kernel, ...]) -> Iterator[str]:
    if device.type == "cpu" and Path("/dev/nvidia0").exists():
        yield "there is an NVIDIA GPU, but this torch cannot use it: install torch with CUDA"
    running = {one.name for one in kernels if one.tokens is not None}
    if device.type == "cpu" and "native" not in running and native.obstacle() == native.NOT_INSTALLED:
        yield "install gemscope-native: SAEs encode and train several times as fast on this processor"
    if device.type == "cuda" and "triton" not in running:
        yield "install triton: SAEs encode and train several times as fast on this GPU"
    if torch.get_num_threads() < _cores():
        yield f"torch uses {torch.get_num_threads()} of {_cores()} cores: is OMP_NUM_THREADS set?"
    if device.type == "cpu" and measured.relative_time(torch.bfloat16) > suited.SLOW:
        yield "no quick bfloat16 here, so models run in float32: AVX512-BF16, AMX or a GPU would read faster"


def _rate(dtype: torch.dtype, device: torch.device) -> float:
    """Of products as layers make them: 256 tokens, or 4,096 where there are processors for them."""
    size = 1024 if device.type == "cpu" else 4096
    a, b = (torch.ones(rows, size, dtype=dtype, device=device) for rows in (size // 4, size))

    def product() -> float:
        return (a @ b.T)[0, 0].item()  # which waits for a GPU

    return 2e-9 * len(a) * len(b) * size / _best(product)


def _encoded(name: str, device: torch.device) -> float:
    """Tokens encoded a second by one implementation."""
    with choice.using(name):
        kernels = choice.choose(device)
    dice = torch.Generator().manual_seed(0)
    W, x = (torch.randn(rows, _D, generator=dice).to(device) for rows in (_FEATURES, _TOKENS))
    W /= _D**0.5
    floor = torch.full((_FEATURES,), _ACTIVE, device=device)
    packed = kernels.pack(W, torch.zeros(_FEATURES, device=device), floor)

    def search() -> float:
        return kernels.above(packed, x).offsets[-1].item()

    return _TOKENS / _best(search)


def _best(work: Callable[[], object]) -> float:
    """Seconds that work takes, undisturbed: the best of a few times."""
    work()
    took = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        work()
        took = min(took, time.perf_counter() - start)
    return took


def _device(name: str) -> Device:
    device = torch.device(name)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return Device(name=name, what=torch.cuda.get_device_name(device), memory=free)
    what = "Apple's GPU" if device.type == "mps" else "the processor"
    return Device(name=name, what=what, memory=suited.free_memory())


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(named), "") or platform.processor() or platform.machine()
