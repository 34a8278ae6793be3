"""How long a first look takes, and what it weighs: gemscope beside SAELens, measured in turns in one run.

This process is the standard library alone; what is measured runs in processes of each tool's own environment, in the
scripts `startup_*.py` beside it. README.md says what the rows mean.
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
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
PYTHON, PEER_PYTHON = REPOSITORY / ".venv" / "bin" / "python", REPOSITORY / ".venv-peer" / "bin" / "python"
BUNDLED = REPOSITORY / "src" / "gemscope" / "data" / "smollm2-15-res"
RESULTS = HERE / "results" / "startup.json"
PROMPT = "Would you be able to travel through time using a wormhole?"

ROWS = (
    ("import", "s", "`import` in a fresh Python"),
    ("import_mb", "MB", "  memory then"),
    ("help", "s", "`--help`"),
    ("import_all", "s", "import of all that a look needs"),
    ("import_all_mb", "MB", "  memory then"),
    ("load", "s", "model and SAE loaded"),
    ("first_table", "s", "process start to first table"),
    ("warm", "ms", "prompt to table, once loaded"),
    ("warm_plain_hook", "ms", "  with a plain PyTorch hook for the bridge"),
    ("look_mb", "MB", "  memory then"),
    ("packages", "", "packages installed"),
    ("installed_mb", "MB", "  on disk"),
    ("installed_mb_without_torch", "MB", "  on disk, without torch and what it needs"),
)
"""What is measured: its key in the results, unit, and name in the table. The plain hook is SAELens's alone."""


@dataclass(frozen=True)
class Tool:
    """One side of the comparison and how its processes are started."""

    name: str
    """Of the distribution."""
    package: str
    python: Path
    help: tuple[str, ...]
    """Arguments that print a help page."""
    look: str
    """The script here that looks."""


@dataclass(frozen=True)
class Ran:
    """A process that ended: seconds on the wall, seconds on the processors, what it printed."""

    wall: float
    cpu: float
    out: str

    @property
    def last_line(self) -> Any:
        """The JSON that it ended with."""
        return json.loads(self.out.splitlines()[-1])


def main() -> None:
    """Measures, then prints and saves."""
    args = _arguments()
    ours = Tool("gemscope", "gemscope", args.python, ("-m", "gemscope", "--help"), "startup_gemscope.py")
    peer = Tool("sae-lens", "sae_lens", args.peer_python, ("-m", "sae_lens.evals", "--help"), "startup_saelens.py")
    for tool in (ours, peer):
        if not tool.python.exists():
            sys.exit(f"startup: no {tool.python}: install {tool.name} there first, as README.md says")
    with ExitStack() as stack:
        environment = _environment(args.threads)
        model = _run([ours.python, HERE / ours.look, "model"], environment).last_line["folder"]
        sae, is_random = args.sae or BUNDLED, False
        if not args.sae and not (BUNDLED / "cfg.json").exists():
            sae, is_random = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "random-15-res", True
            _run([ours.python, HERE / ours.look, "sae", model, sae, PROMPT], environment)
        load_before = round(os.getloadavg()[0], 2)
        looks, rounds = [], []
        for index in range(args.rounds + 1):
            print(f"round {index} of {args.rounds}{' (warming up)' if index == 0 else ''}", file=sys.stderr)
            looks, measured = _round((ours, peer), [model, sae, PROMPT, args.repeats], environment)
            rounds += [measured] if index else []
        result = {
            "date": date.today().isoformat(),
            "commit": _commit(),
            "machine": _machine(),
            "load_average": {"before": load_before, "after": round(os.getloadavg()[0], 2)},
            "threads": [look["threads"] for look in looks],
            "rounds": args.rounds,
            "repeats": args.repeats,
            "model": "HuggingFaceTB/SmolLM2-135M-Instruct in bfloat16",
            "sae": {
                "name": sae.name,
                "random": is_random,
                "d_sae": json.loads((sae / "cfg.json").read_text())["d_sae"],
            },
            "prompt": PROMPT,
            "versions": {tool.name: look["versions"] for tool, look in zip((ours, peer), looks, strict=True)},
            "agreement": _agreement(*(look["answers"] for look in looks)),
            "rows": _summarised(rounds, [_installed(tool, environment) for tool in (ours, peer)]),
        }
    if args.save:
        _save(result)
    print(json.dumps(result, indent=1) if args.json else _table(result))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, after one that warms up (default 5)")
    parser.add_argument("--repeats", type=int, default=10, help="looks at the loaded model per round (default 10)")
    parser.add_argument("--sae", type=Path, help="SAE folder (default: the bundled one; else a random one of its size)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each (default 1)")
    parser.add_argument("--python", type=Path, default=PYTHON, help="of gemscope's environment")
    parser.add_argument("--peer-python", type=Path, default=PEER_PYTHON, help="of SAELens's environment")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.relative_to(REPOSITORY)} too")
    args = parser.parse_args()
    if min(args.rounds, args.repeats, args.threads) < 1:
        parser.error("--rounds, --repeats and --threads must be at least 1")
    if args.sae and not (args.sae / "cfg.json").exists():
        parser.error(f"no SAE in {args.sae}: expected cfg.json and sae_weights.safetensors there")
    args.sae = args.sae and args.sae.resolve()
    return args


# --- measuring ------------------------------------------------------------------------------------------------------


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
    tools: tuple[Tool, ...], look: list[Any], environment: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Everything measured once, at each measurement one tool after the other: what the looks said, the figures."""
    imports = [_run([tool.python, HERE / "startup_import.py", tool.package], environment) for tool in tools]
    helps = [_run([tool.python, *tool.help], environment) for tool in tools]
    looks = [_run([tool.python, HERE / tool.look, "look", *look, time.time()], environment).last_line for tool in tools]
    figures = [
        {
            "import": (imported.wall, imported.cpu),
            "import_mb": imported.last_line["mb"],
            "help": (helped.wall, helped.cpu),
            **looked["figures"],
        }
        for imported, helped, looked in zip(imports, helps, looks, strict=True)
    ]
    return looks, figures


def _installed(tool: Tool, environment: Mapping[str, str]) -> dict[str, float]:
    found: dict[str, float] = _run([tool.python, HERE / "startup_installed.py", tool.name], environment).last_line
    return found


def _summarised(rounds: list[list[dict[str, Any]]], installed: list[dict[str, float]]) -> list[dict[str, Any]]:
    rows = []
    for key, unit, name in ROWS:
        sides = [
            {"median": installed[side][key]}
            if key in installed[side]
            else _summary([one[side].get(key) for one in rounds])
            for side in (0, 1)
        ]
        rows.append({"key": key, "name": name.strip(), "unit": unit, "gemscope": sides[0], "saelens": sides[1]})
    return rows


def _summary(values: list[Any]) -> dict[str, float] | None:
    """Median, least and most over the rounds, of wall time with the median of processor time beside it."""
    if None in values:
        return None
    walls = [value[0] if isinstance(value, (tuple, list)) else value for value in values]
    found = {"median": statistics.median(walls), "min": min(walls), "max": max(walls)}
    if walls != values:
        found["cpu"] = statistics.median(value[1] for value in values)
    return found


def _agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Whether both did the same work: how many of the features that gemscope shows SAELens shows on the same token."""
    mine = ours["look"]["features"]
    found: dict[str, Any] = {
        "tokens": len(mine),
        "features_shown": sum(map(len, mine)),
        "explained_variance": {"gemscope": ours["look"]["explained_variance"]},
    }
    for way, answer in theirs.items():
        shared = sum(len(set(a) & set(b)) for a, b in zip(mine, answer["features"], strict=True))
        found["explained_variance"][way] = answer["explained_variance"]
        found[f"shared_with_{way}"] = shared
    return found


# --- surroundings ---------------------------------------------------------------------------------------------------


def _environment(threads: int) -> dict[str, str]:
    """What both run in: offline, quiet, the caller's otherwise."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_MODE": "disabled"}
    return {**os.environ, **quiet, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": str(threads)}


def _machine() -> dict[str, Any]:
    """The machine in words that name nobody's."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gb": round(memory / 2**30), "os": platform.system()}


def _commit() -> str | None:
    """What was measured: the commit, and whether the code differs from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changes = git("status", "--porcelain", "--", "src", "benchmarks/*.py")
        return git("rev-parse", "HEAD") + (" with changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _save(result: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    aside = RESULTS.with_suffix(".new")
    aside.write_text(json.dumps(result, indent=1) + "\n")
    aside.replace(RESULTS)


# --- printing -------------------------------------------------------------------------------------------------------


def _table(result: dict[str, Any]) -> str:
    versions = result["versions"]
    lines = [
        ("", f"gemscope {versions['gemscope']['gemscope']}", f"SAELens {versions['sae-lens']['sae-lens']}", "ratio")
    ]
    for (_, unit, name), row in zip(ROWS, result["rows"], strict=True):
        ours, theirs = row["gemscope"], row["saelens"]
        ratio = f"{theirs['median'] / ours['median']:.1f}" if ours and theirs else ""
        lines.append((name, _cell(ours, unit), _cell(theirs, unit), ratio))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = []
    for name, *cells in lines:
        right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        table.append("  ".join([name.ljust(widths[0]), *right]))
    return "\n".join([table[0], "-" * len(table[0]), *table[1:], "", *_remarks(result)])


def _remarks(result: dict[str, Any]) -> list[str]:
    machine, sae, same, load = result["machine"], result["sae"], result["agreement"], result["load_average"]
    return [
        f"wall time (processor time), medians of {result['rounds']} rounds in turns after a warm-up; ratio of walls",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['os']}, "
        f"{result['threads'][0]} and {result['threads'][1]} threads; load average {load['before']} → {load['after']}",
        f"{result['model']}; SAE {sae['name']}, {sae['d_sae']} features{' (random)' if sae['random'] else ''}",
        f"same work: of {same['features_shown']} features shown, SAELens shows {same['shared_with_plain_hook']} "
        f"(plain hook) and {same['shared_with_bridge']} (bridge) on the same token",
        *(", ".join(f"{name} {version}" for name, version in one.items()) for one in result["versions"].values()),
        f"commit {result['commit']}, {result['date']}",
    ]


def _cell(found: dict[str, float] | None, unit: str) -> str:
    if found is None:
        return "–"
    if "cpu" not in found:
        return f"{found['median']:,.0f} {unit}".strip()
    digits = 2 if unit == "s" else 0
    return f"{found['median']:.{digits}f} {unit} ({found['cpu']:.{digits}f})"


if __name__ == "__main__":
    main()
