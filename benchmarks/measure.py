"""What the benchmarks that run in one process share: rounds in turns, peak memory, and the machine in words that name
nobody's. What is measured, and what it means, is each benchmark's own.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"

_ISAS = {"amx": "amx_bf16", "avx512_bf16": "avx512_bf16", "avx512": "avx512f", "avx2": "avx2"}
"""The best first: our name, and the flag that the processor shows."""


# --- time -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """One run: seconds on the wall, and seconds on all processors together."""

    wall: float
    cpu: float


def timed(work: Callable[[], Any]) -> Reading:
    """Runs it once. What it returns is dropped after the clock has stopped."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    reading = Reading(time.perf_counter() - wall, time.process_time() - cpu)
    del result
    return reading


def in_turns(tasks: Mapping[Hashable, Callable[[], Any]], rounds: int, say: str) -> dict[Hashable, list[Reading]]:
    """Every task once a round, so that a busy minute falls on all of them; the first round warms up and is dropped.

    Each round starts one task further on, so that none always runs in another one's wake.
    """
    found: dict[Hashable, list[Reading]] = {key: [] for key in tasks}
    keys = list(tasks)
    for number in range(rounds + 1):
        progress(f"{say}: {f'round {number} of {rounds}' if number else 'warming up'}")
        start = number % len(keys)
        for key in keys[start:] + keys[:start]:
            reading = timed(tasks[key])
            if number:
                found[key].append(reading)
    return found


def summary(readings: Sequence[Reading]) -> dict[str, float]:
    """Median, least and most of the wall time; processor seconds per second of wall."""
    walls = [one.wall for one in readings]
    return {
        "median_s": statistics.median(walls),
        "min_s": min(walls),
        "max_s": max(walls),
        "cpu_per_wall": statistics.median(one.cpu / one.wall for one in readings),
    }


def ratios(readings: Sequence[Reading], reference: Sequence[Reading]) -> tuple[float, float]:
    """How many times faster than the reference: by medians, and the median over rounds of the same round's ratio."""
    by_median = statistics.median(one.wall for one in reference) / statistics.median(one.wall for one in readings)
    paired = statistics.median(theirs.wall / own.wall for own, theirs in zip(readings, reference, strict=True))
    return by_median, paired


# --- memory ---------------------------------------------------------------------------------------------------------


def resident_mb() -> float:
    """This process's resident memory, once what is free has been handed back to the system."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def peak_mb(work: Callable[[], Any]) -> float:
    """The most that was resident at any moment while it ran, in MB. Linux keeps the mark; writing 5 resets it."""
    Path("/proc/self/clear_refs").write_text("5")
    result = work()
    found = _status("VmHWM")
    del result
    return found


def anonymous_mb() -> float:
    """What is resident and not mapped from a file."""
    gc.collect()
    return _status("RssAnon")


def can_weigh() -> bool:
    """Whether this system tells a process its peak and lets it start afresh."""
    return os.access("/proc/self/clear_refs", os.W_OK)


def child(script: str, *words: object) -> Any:
    """What a script of this folder prints as JSON, in a clean process of this interpreter. Ends the benchmark if it
    fails."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[1:])} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(key)


# --- surroundings ---------------------------------------------------------------------------------------------------


def surroundings(packages: Sequence[str]) -> dict[str, Any]:
    """What every result says of where it comes from."""
    import torch

    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": machine() | {"threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "load_average": round(os.getloadavg()[0], 2),
    }


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system, and the instructions that it offers."""
    info = _cpuinfo()
    cpu = info.get("model name") or platform.processor() or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 2**30),
        "os": platform.system(),
        "isa": isa(),
        "isa_limited": isa_limited(),
    }


def isa() -> str:
    """The best of amx, avx512_bf16, avx512, avx2 that the processor offers; whatever torch says elsewhere."""
    flags = _cpuinfo().get("flags", "").split()
    for name, flag in _ISAS.items():
        if flag in flags:
            return name
    import torch

    return torch.backends.cpu.get_cpu_capability().lower()


def isa_limited() -> str | None:
    """What oneDNN has been told not to go beyond."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA")


def commit() -> str | None:
    """What was measured: the commit, and whether the code differs from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changes = git("status", "--porcelain", "--", "src", "native", "benchmarks/*.py")
        return git("rev-parse", "HEAD") + (" with changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines; empty where the system has no such file."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().partition("\n\n")[0] if path.exists() else ""
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


# --- what comes out -------------------------------------------------------------------------------------------------


def progress(line: str) -> None:
    """To stderr: stdout is the result's alone."""
    print(line, file=sys.stderr, flush=True)


def save(name: str, result: Mapping[str, Any]) -> Path:
    """Writes results/NAME.json, or NAME-avx512_core.json and the like for a run held to fewer instructions."""
    limited = isa_limited()
    path = RESULTS / f"{name}{f'-{limited.lower()}' if limited else ''}.json"
    path.parent.mkdir(exist_ok=True)
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(result, indent=1) + "\n")
    aside.replace(path)
    return path


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Four significant digits: what a clock can tell."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


def how(result: Mapping[str, Any]) -> str:
    """How many rounds, and which of gemscope's kernels `gemscope` was."""
    kernels = {row["kernel"] for row in result["rows"] if row["impl"] == "gemscope"}
    used = f"; gemscope's kernels: {', '.join(kernels)}" if kernels else ""
    return f"medians of {result['rounds']} rounds in turns after a warm-up{used}"


def remarks(result: Mapping[str, Any], what: str) -> list[str]:
    """The lines under every table."""
    one = result["machine"]
    limited = f", held to {one['isa_limited']}" if one["isa_limited"] else ""
    return [
        what,
        f"{one['cpu']}, {one['cores']} cores, {one['memory_gb']} GB, {one['os']}, {one['isa']}{limited}, "
        f"{one['threads']} threads; load average {result['load_average']} at the start",
        ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version),
        f"commit {result['commit']}, {result['date']}",
    ]
