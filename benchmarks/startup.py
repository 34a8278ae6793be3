"""How long a first look takes, and what it weighs: gemscope beside SAELens, measured in turns in one run.

The parent is the standard library alone; what is measured runs in processes of each tool's own environment
(`startup_*.py` here). See README.md for what the rows mean.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
BUNDLED = REPOSITORY / "src" / "gemscope" / "data" / "smollm2-15-res"
RESULTS = HERE / "results" / "startup.json"
PROMPT = "Would you be able to travel through time using a wormhole?"


@dataclass(frozen=True)
class Tool:
    """One side of the comparison and how its processes are started."""

    name: str
    package: str
    python: Path
    help: tuple[str, ...]
    look: str

    @property
    def distribution(self) -> str:
        return self.name


@dataclass(frozen=True)
class Row:
    """A figure of each side: medians, with the smallest and largest of the rounds."""

    name: str
    unit: str
    gemscope: dict[str, float] | None
    saelens: dict[str, float] | None


def main() -> None:
    args = _arguments()
    ours = Tool("gemscope", "gemscope", args.python, ("-m", "gemscope", "--help"), "startup_gemscope.py")
    peer = Tool("sae-lens", "sae_lens", args.peer_python, ("-m", "sae_lens.evals", "--help"), "startup_saelens.py")
    for tool in (ours, peer):
        if not tool.python.exists():
            sys.exit(f"startup: no {tool.python}: build the environment of {tool.name} first (`make peer` for SAELens)")
    environment = _environment(args.threads)
    with ExitStack() as stack:
        model = json.loads(_run([ours.python, HERE / "startup_gemscope.py", "model"], environment).out)["folder"]
        sae, is_random = args.sae or BUNDLED, False
        if not (sae / "cfg.json").exists():
            if args.sae:
                sys.exit(f"startup: no SAE in {sae}: expected cfg.json and sae_weights.safetensors there")
            sae, is_random = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "random-15-res", True
            _run([ours.python, HERE / "startup_gemscope.py", "sae", model, sae, PROMPT], environment)
        load_before = _load()
        rounds = [_round((ours, peer), model, sae, environment, args.repeats) for _ in _bar(args.rounds + 1)][1:]
        result = {
            "date": date.today().isoformat(),
            "commit": _commit(),
            "machine": _machine(),
            "load_average": {"before": load_before, "after": _load()},
            "threads": rounds[0]["gemscope"]["look"]["threads"],
            "rounds": args.rounds,
            "repeats": args.repeats,
            "model": "HuggingFaceTB/SmolLM2-135M-Instruct (bfloat16)",
            "sae": {"name": sae.name, "random": is_random, **_sizes(sae)},
            "prompt": PROMPT,
            "versions": {tool.name: rounds[0][tool.name]["look"]["versions"] for tool in (ours, peer)},
            "agreement": _agreement(rounds[0]),
            "rows": [asdict(row) for row in _rows(rounds, _installed((ours, peer), environment))],
        }
    if args.save:
        RESULTS.parent.mkdir(exist_ok=True)
        aside = RESULTS.with_suffix(".new")
        aside.write_text(json.dumps(result, indent=1) + "\n")
        aside.replace(RESULTS)
    print(json.dumps(result, indent=1) if args.json else _table(result))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, after one that warms up (default 5)")
    parser.add_argument("--repeats", type=int, default=10, help="warm looks per process (default 10)")
    parser.add_argument("--sae", type=Path, help="SAE folder (default: the bundled one, else a random one of its size)")
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS of both (default: what each takes by itself)")
    parser.add_argument("--python", type=Path, default=REPOSITORY / ".venv" / "bin" / "python", help="gemscope's")
    parser.add_argument("--peer-python", type=Path, default=REPOSITORY / ".venv-peer" / "bin" / "python", help="SAELens's")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.relative_to(REPOSITORY)}")
    args = parser.parse_args()
    if args.rounds < 1 or args.repeats < 1:
        parser.error("--rounds and --repeats must be at least 1")
    return args


# --- measuring ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """A process that ended: seconds on the wall and on the processors, and what it printed."""

    wall: float
    cpu: float
    out: str


def _run(command: list[Any], environment: Mapping[str, str]) -> Ran:
    """Runs one process to its end; ends the benchmark if it fails."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen(list(map(str, command)), stdout=out, stderr=err, env=environment, cwd=HERE)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            sys.exit(f"startup: {' '.join(map(str, command))} failed:\n{err.read().decode()[-2000:]}")
        return Ran(wall, usage.ru_utime + usage.ru_stime, out.read().decode())


def _round(
    tools: tuple[Tool, ...], model: str, sae: Path, environment: Mapping[str, str], repeats: int
) -> dict[str, dict[str, Any]]:
    """Every measurement once, one tool after the other at each."""
    found: dict[str, dict[str, Any]] = {tool.name: {} for tool in tools}
    for tool in tools:
        ran = _run([tool.python, HERE / "startup_import.py", tool.package], environment)
        found[tool.name]["import"] = json.loads(ran.out) | {"process": ran}
    for tool in tools:
        found[tool.name]["help"] = _run([tool.python, *tool.help], environment)
    for tool in tools:
        ran = _run([tool.python, HERE / tool.look, "look", model, sae, PROMPT, repeats], environment)
        found[tool.name]["look"] = json.loads(ran.out.splitlines()[-1])
    return found


def _rows(rounds: list[dict[str, dict[str, Any]]], installed: dict[str, dict[str, float]]) -> list[Row]:
    def timed(name: str, unit: str, get: Callable[[dict[str, Any]], Any]) -> Row:
        """`get` gives (wall, cpu), or one number, of one tool in one round; None where a tool has no such thing."""
        return Row(name, unit, *(_summary([get(one[tool]) for one in rounds]) for tool in ("gemscope", "sae-lens")))

    def fixed(name: str, key: str) -> Row:
        return Row(name, "MB" if "mb" in key else "", *({"median": installed[t][key]} for t in ("gemscope", "sae-lens")))

    look = lambda key: lambda one: one["look"].get(key)  # noqa: E731
    return [
        timed("import of the package", "s", lambda one: one["import"]["seconds"]),
        timed("memory after it", "MB", lambda one: one["import"]["rss_mb"]),
        timed("--help", "s", lambda one: (one["help"].wall, one["help"].cpu)),
        timed("import of all that a look needs", "s", look("import")),
        timed("memory after that", "MB", look("import_rss_mb")),
        timed("model and SAE loaded", "s", look("load")),
        timed("memory after that and the looks", "MB", look("rss_mb")),
        timed("process start to first table", "s", look("first_table")),
        timed("prompt to table, loaded", "ms", look("warm")),
        timed("  the same, a PyTorch hook in the bridge's place", "ms", look("warm_plain_hook")),
        fixed("packages", "packages"),
        fixed("installed", "mb"),
        fixed("installed, torch and what it needs left out", "mb_without_torch"),
    ]


def _summary(values: list[Any]) -> dict[str, float] | None:
    if any(value is None for value in values):
        return None
    pairs = [value if isinstance(value, (tuple, list)) else (value, None) for value in values]
    walls = [wall for wall, _ in pairs]
    found = {"median": statistics.median(walls), "min": min(walls), "max": max(walls)}
    if all(cpu is not None for _, cpu in pairs):
        found["cpu"] = statistics.median(cpu for _, cpu in pairs)
    return found


def _installed(tools: tuple[Tool, ...], environment: Mapping[str, str]) -> dict[str, dict[str, float]]:
    return {
        tool.name: json.loads(_run([tool.python, HERE / "startup_installed.py", tool.distribution], environment).out)
        for tool in tools
    }


def _agreement(first: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Whether both did the same work: SAELens's features beside ours, token by token."""
    ours = first["gemscope"]["look"]["answer"]
    found: dict[str, Any] = {"tokens": len(ours["features"]), "explained_variance": {"gemscope": ours["ev"]}}
    for key in ("bridge", "plain_hook"):
        theirs = first["sae-lens"]["look"]["answers"][key]
        same = sum(a == b for a, b in zip(ours["features"], theirs["features"], strict=True))
        shared = sum(len(set(a) & set(b)) for a, b in zip(ours["features"], theirs["features"], strict=True))
        found[key] = {"tokens_with_the_same_five_in_order": same, "features_shared": shared}
        found["explained_variance"][key] = theirs["ev"]
    found["features_shown"] = sum(map(len, ours["features"]))
    return found


# --- surroundings ---------------------------------------------------------------------------------------------------


def _environment(threads: int | None) -> dict[str, str]:
    """What both run in: offline, quiet, the caller's otherwise."""
    set_here = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_MODE": "disabled", "PYTHONWARNINGS": "ignore"}
    if threads is not None:
        set_here["OMP_NUM_THREADS"] = str(threads)
    return {**os.environ, **set_here}


def _machine() -> dict[str, Any]:
    """The machine in words that name no one."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gb": round(memory / 2**30), "os": platform.system()}


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def _commit() -> str | None:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" and changes" if git("status", "--porcelain", "src", "benchmarks/*.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _sizes(sae: Path) -> dict[str, int]:
    config = json.loads((sae / "cfg.json").read_text())
    return {key: config[key] for key in ("d_in", "d_sae")}


def _bar(rounds: int) -> Any:
    for index in range(rounds):
        print(f"round {index} of {rounds - 1}{' (warming up)' if index == 0 else ''}", file=sys.stderr)
        yield index


# --- printing -------------------------------------------------------------------------------------------------------


def _table(result: dict[str, Any]) -> str:
    versions = result["versions"]
    head = ("", f"gemscope {versions['gemscope']['gemscope']}", f"SAELens {versions['sae-lens']['sae-lens']}", "times")
    lines = [head]
    for row in result["rows"]:
        ours, theirs = row["gemscope"], row["saelens"]
        ratio = f"{theirs['median'] / ours['median']:.1f}" if ours and theirs else ""
        lines.append((row["name"], _cell(ours, row["unit"]), _cell(theirs, row["unit"]), ratio))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    table = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    table.insert(1, "-" * len(table[0]))
    machine, sae, same = result["machine"], result["sae"], result["agreement"]
    shared = f"{same['plain_hook']['features_shared']} and {same['bridge']['features_shared']}"
    return "\n".join(
        [
            *table,
            "",
            f"medians of {result['rounds']} rounds (seconds of processor time in brackets), tools in turns, one warm-up round",
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['os']}; {result['threads']} threads; "
            f"load average {result['load_average']['before']} before, {result['load_average']['after']} after",
            f"{result['model']}, SAE {sae['name']} of {sae['d_sae']} features{' (random)' if sae['random'] else ''}",
            f"same work: of {same['features_shown']} features shown SAELens shows {shared} too (plain hook, bridge)",
            *(", ".join(f"{name} {version}" for name, version in one.items()) for one in versions.values()),
            f"commit {result['commit']}, {result['date']}",
        ]
    )


def _cell(found: dict[str, float] | None, unit: str) -> str:
    if found is None:
        return "–"
    if not unit or unit == "MB":
        return f"{found['median']:,.0f} {unit}".strip()
    digits = 0 if found["median"] >= 100 else 1 if unit == "ms" else 2
    cpu = f" ({found['cpu']:.{digits}f})" if "cpu" in found else ""
    return f"{found['median']:.{digits}f} {unit}{cpu}"


if __name__ == "__main__":
    main()
