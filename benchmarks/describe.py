"""Making an atlas: gemscope's `describe` beside sae-dashboard's Neuronpedia runner on the same model, SAE and tokens;
how memory grows with the number of tokens; what the statistics cost beside the model's own pass. README.md says what
the rows mean. Counts that differ end it.

What is measured runs in processes of each tool's own environment, in the scripts `describe_*.py` beside this one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import measure
from describe_gemscope import World, load_model, text, world_at
from realistic import CACHE

PEER_PYTHON = measure.REPOSITORY / ".venv-peer-dashboard" / "bin" / "python"
LIKE_GPT2 = World()
SMALL = World(layers=2, d_model=128, vocabulary=5000, layer=0, d_sae=2048)
"""For memory: its passes are quick, so many tokens can be read, and all that is bounded has grown to its bound."""
TINY = World(layers=2, d_model=64, vocabulary=500, layer=1, d_sae=256, l0=8)
GROWTH = (1 << 19, 1 << 21)
"""Tokens that gemscope reads for memory."""
PEER_GROWTH = (1 << 13, 1 << 15)
"""Tokens that sae-dashboard reads for memory: it would take hours for as many as gemscope."""
_PEER_BATCH = 128
"""Features that its runner takes at a time."""
_OFF = 0.02
"""Share of features whose counts may differ: two float32 passes do not agree on what lies at a threshold."""


def main() -> None:
    """Measures, checks, prints."""
    args = _arguments()
    if args.smoke:
        _smoke()
        return
    packages = ("torch", "transformers", "gemscope", "gemscope-native", "numpy")
    result = measure.surroundings(packages) | {"rounds": args.rounds}
    if args.peer_python.exists() and not args.no_peer:
        result |= _side_by_side(args)
    if not args.no_growth:
        result |= _growth(args)
    if args.bundled != "none":
        measure.progress(f"the bundled default, {args.bundled} tokens")
        result["bundled"] = measure.rounded(
            _run(sys.executable, "describe_gemscope.py", ["bundled", args.bundled], args)
        )
    if args.held_out:
        measure.progress(f"rows held out and not, in turns, {args.held_out} tokens")
        arguments = ["held_out", args.held_out, max(3, args.rounds)]
        result["held_out"] = measure.rounded(_run(sys.executable, "describe_gemscope.py", arguments, args))
    if args.save:
        measure.progress(f"wrote {measure.save('describe', result)}")
    print(json.dumps(result, indent=1)) if args.json else _print(result)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of both tools in turns (default 3)")
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--d-sae", type=int, default=LIKE_GPT2.d_sae)
    parser.add_argument(
        "--batches", type=int, default=3, help="of 128 features that sae-dashboard does; 0: all (hours)"
    )
    parser.add_argument("--bundled", default="all", help="tokens of the bundled sample, 'all' (default) or 'none'")
    parser.add_argument("--held-out", type=int, default=65_536, help="tokens for what rows held out cost; 0: not")
    parser.add_argument("--no-peer", action="store_true", help="without sae-dashboard")
    parser.add_argument("--no-growth", action="store_true", help="without memory at two numbers of tokens")
    parser.add_argument("--peer-python", type=Path, default=PEER_PYTHON, help="of sae-dashboard's environment")
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--smoke", action="store_true", help="small, without sae-dashboard: are the counts right?")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/describe.json too")
    args = parser.parse_args()
    if args.rounds < 1 or args.tokens < 32 * LIKE_GPT2.length:
        parser.error(f"--rounds must be at least 1, --tokens at least {32 * LIKE_GPT2.length}")
    if args.batches == 1:
        parser.error("--batches: the first one pays for the model's pass, so at least two are needed")
    return args


# --- side by side ---------------------------------------------------------------------------------------------------


def _side_by_side(args: argparse.Namespace) -> dict[str, Any]:
    """Both tools in turns, each in a fresh process; the clock stands while model and SAE are loaded."""
    world = World(d_sae=args.d_sae)
    folder = world_at(world, args.tokens, CACHE)
    ours, theirs = [], []
    for number in range(args.rounds):
        measure.progress(f"round {number + 1} of {args.rounds}: gemscope, {world.d_sae:,} features")
        ours.append(_run(sys.executable, "describe_gemscope.py", ["one_pass", folder, args.tokens], args))
        measure.progress(f"round {number + 1} of {args.rounds}: sae-dashboard, {args.batches} batches of features")
        theirs.append(_peer(folder, args.tokens, args.batches, args))
    _check(ours[0], theirs[0])
    rows = [_ours(ours), _theirs(theirs)]
    ratios = {
        f"{name}_ratio": rows[1][key] / rows[0][key]
        for name, key in (("whole", "whole_ns"), ("marginal", "marginal_ns"), ("memory", "peak_mb"))
        if rows[0][key] and rows[1][key]
    }
    sizes = {"d_model": world.d_model, "layers_run": world.layer + 1, "d_sae": world.d_sae, "tokens": args.tokens}
    return {
        "sizes": sizes | {"vocabulary": world.vocabulary, "l0": sum(ours[0]["counts"]) / args.tokens},
        "rows": [measure.rounded(row) for row in rows],
        "ratios": measure.rounded(ratios),
        "peer_versions": theirs[0]["versions"],
    }


def _ours(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    cells = runs[0]["tokens"] * runs[0]["features"]
    return {
        "impl": "gemscope",
        "features": runs[0]["features"],
        "walls": [run["wall"] for run in runs],
        "cpus": [run["cpu"] for run in runs],
        "whole_s": median(run["wall"] for run in runs),
        "forward_s": median(run["forward"] for run in runs),
        "whole_ns": median(run["wall"] for run in runs) / cells * 1e9,
        "marginal_ns": median(run["wall"] - run["forward"] for run in runs) / cells * 1e9,
        "peak_mb": _median(run["peak_mb"] for run in runs),
        "written_mb": runs[0]["atlas_mb"],
    }


def _theirs(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All features' time, from those that were done: the first batch pays for the model's pass, all are alike else."""
    batches = -(-runs[0]["d_sae"] // _PEER_BATCH)
    later = median(one for run in runs for one in run["batch_s"])
    first = median(run["wall"] - sum(run["batch_s"]) for run in runs)
    cells = runs[0]["tokens"] * runs[0]["d_sae"]
    whole = first + (batches - 1) * later
    return {
        "impl": "sae-dashboard",
        "features": runs[0]["features"],
        "walls": [run["wall"] for run in runs],
        "cpus": [run["cpu"] for run in runs],
        "whole_s": whole,
        "forward_s": first - later,
        "batch_s": later,
        "whole_ns": whole / cells * 1e9,
        "marginal_ns": later / (runs[0]["tokens"] * _PEER_BATCH) * 1e9,
        "peak_mb": _median(run["peak_mb"] for run in runs),
        "written_mb": runs[0]["written_mb"] * runs[0]["d_sae"] / runs[0]["features"],
    }


def _check(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Ends the benchmark unless both counted the same firings and found the same maxima, but for ties."""
    tokens, off = theirs["tokens"], []
    for key, density in theirs["density"].items():
        count, high = ours["counts"][int(key)], ours["max"][int(key)]
        # Its densities are rounded to 1e-5, its activations to 1e-3.
        near = abs(density * tokens - count) <= 0.5 + 5e-6 * tokens
        same = abs(theirs["max"][key] - high) <= 1e-3 + 1e-4 * high
        if not near or not same:
            off.append(key)
        if abs(density * tokens - count) > 3 + 5e-6 * tokens:
            sys.exit(f"feature {key}: gemscope counts {count} firings, sae-dashboard {density * tokens:.1f}")
    if len(off) > max(2, _OFF * len(theirs["density"])):
        sys.exit(f"{len(off)} of {len(theirs['density'])} features differ: {', '.join(off[:10])} ...")


# --- memory ---------------------------------------------------------------------------------------------------------


def _growth(args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory above what was loaded, at two numbers of tokens."""
    rows = []
    for tokens in GROWTH:
        measure.progress(f"memory: gemscope, {tokens:,} tokens")
        folder = world_at(SMALL, tokens, CACHE)
        run = _run(sys.executable, "describe_gemscope.py", ["one_pass", folder, tokens], args)
        rows.append({"impl": "gemscope", "tokens": tokens, "features": run["features"], "peak_mb": run["peak_mb"]})
    if args.peer_python.exists() and not args.no_peer:
        for tokens in PEER_GROWTH:
            measure.progress(f"memory: sae-dashboard, {tokens:,} tokens")
            run = _peer(world_at(SMALL, tokens, CACHE), tokens, 1, args)
            rows.append(
                {"impl": "sae-dashboard", "tokens": tokens, "features": run["features"], "peak_mb": run["peak_mb"]}
            )
    return {"growth": [measure.rounded(row) for row in rows]}


# --- the processes --------------------------------------------------------------------------------------------------


def _peer(folder: Path, tokens: int, batches: int, args: argparse.Namespace) -> dict[str, Any]:
    return _run(str(args.peer_python), "describe_sae_dashboard.py", [folder, tokens, batches], args)


def _run(python: str, script: str, words: Sequence[object], args: argparse.Namespace) -> dict[str, Any]:
    """What a script prints as JSON. Ends the benchmark if it fails."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_MODE": "disabled"}
    threads = {"OMP_NUM_THREADS": str(args.threads)} if args.threads else {}
    command = [python, str(Path(__file__).with_name(script)), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **quiet, **threads})
    if done.returncode:
        sys.exit(f"{script} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _median(figures: Any) -> float | None:
    known = [one for one in figures if one is not None]
    return median(known) if known else None


# --- are the counts right? ------------------------------------------------------------------------------------------


def _smoke() -> None:
    """One small pass against a dense count of the same rows."""
    import numpy as np
    import torch

    import gemscope as gs

    tokens = 8192
    folder = world_at(TINY, tokens, CACHE)
    args = argparse.Namespace(threads=None)
    run = _run(sys.executable, "describe_gemscope.py", ["one_pass", folder, tokens], args)
    model, sae = load_model(TINY, folder), gs.load_sae(folder / "sae")
    rows = torch.from_numpy(np.load(folder / f"rows-{tokens}.npy"))
    site = f"{TINY.layer}.res"
    found = torch.cat([sae.encode_dense(model.capture(some, [site])[site].rows) for some in torch.split(rows, 32)])
    counts, highest = (found > 0).sum(0), found.amax(0)
    off = (counts - torch.tensor(run["counts"])).abs()
    if int(off.max()) > 2 or int((off > 0).sum()) > _OFF * TINY.d_sae:
        sys.exit(f"describe counts other firings than a dense pass: {int((off > 0).sum())} features differ")
    if not torch.allclose(highest, torch.tensor(run["max"]), rtol=1e-4, atol=1e-4):
        sys.exit("describe finds other maxima than a dense pass")
    assert run["tokens"] == tokens == rows.numel()
    assert text(TINY, 100).digest == text(TINY, 100).digest
    print(f"{run['features']} features, {tokens:,} tokens: counts and maxima are those of a dense pass")


# --- printing -------------------------------------------------------------------------------------------------------


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    if "rows" in result:
        sizes = result["sizes"]
        table = Table(
            title=f"{sizes['tokens']:,} tokens, {sizes['d_model']} × {sizes['d_sae']:,}, L0 {sizes['l0']:.1f}, "
            f"{sizes['layers_run']} layers run, {sizes['vocabulary']:,} words",
            title_justify="left",
        )
        for title in ("", "features done", "all features, s", "model's pass, s", "ns per token and feature"):
            table.add_column(title, justify="left" if not title else "right")
        for title in ("without the pass", "peak MB", "written MB"):
            table.add_column(title, justify="right")
        for row in result["rows"]:
            figures = ("whole_s", "forward_s", "whole_ns", "marginal_ns", "peak_mb", "written_mb")
            cells = ["–" if row[key] is None else f"{row[key]:,.4g}" for key in figures]
            table.add_row(row["impl"], f"{row['features']:,}", *cells)
        console.print(table)
        console.print(
            ", ".join(f"{key.removesuffix('_ratio')} {value:.1f} ×" for key, value in result["ratios"].items())
        )
    if "growth" in result:
        table = Table(title="peak memory above what was loaded", title_justify="left")
        for title in ("", "tokens", "features", "MB"):
            table.add_column(title, justify="left" if not title else "right")
        for row in result["growth"]:
            table.add_row(row["impl"], f"{row['tokens']:,}", f"{row['features']:,}", f"{row['peak_mb'] or 0:,.0f}")
        console.print(table)
    if one := result.get("bundled"):
        console.print(
            f"bundled default, {one['tokens']:,} tokens: {one['wall']:.1f} s, of which the model's pass to the site "
            f"{one['forward']:.1f} s; all else {one['statistics']:.1f} s, {one['statistics'] / one['forward']:.2f} of "
            f"that: encoding {one['encode']:.1f} s, composing the pages {one['compose']:.1f} s; "
            f"the model's whole pass would take {one['whole_forward']:.1f} s"
        )
    if one := result.get("held_out"):
        console.print(f"with rows held out: {one['ratio']:.3f} times the processor time, {one['tokens']:,} tokens")
    machine = measure.remarks(result, f"medians of {result['rounds']} rounds in turns, each in a process of its own")
    for line in machine:
        console.print(line, style="dim", highlight=False)


if __name__ == "__main__":
    main()
