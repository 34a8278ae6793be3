"""Time and memory of gemscope's encode, decode and forward against the SAE's width and the number of tokens, the
weights mapped from the disk. README.md says what the rows mean. Wrong results end it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import encode as checks
import measure
import numpy as np
import realistic
import torch
from torch import Tensor

OPS = ("encode", "decode", "forward")
WIDTHS = (16_384, 32_768, 65_536, 131_072, 262_144)
TOKENS = (1, 16, 256, 2048, 16_384)
BASE = {"tokens": 1024, "width": 16_384}
"""What stays the same while the other changes."""
SMOKE = {"d_model": 64, "widths": (1024, 4096), "tokens": (1, 64), "base_tokens": 64, "rounds": 3, "weighed": (4096,)}
RISE = 1.1
"""How many times the narrowest SAE's cost per token and feature another's may be before it is said to rise."""
LIMIT_MB = 1500
"""For encode and decode of the last of `WIDTHS`: mapped weights included, above an interpreter with all imported."""


def main() -> None:
    """Measures, checks, prints, draws."""
    args = _arguments()
    torch.set_grad_enabled(False)
    if args.weigh:
        folder, op, given = args.weigh
        print(json.dumps(_weighed(Path(folder), op, Path(given))))
        return
    packages = ("torch", "gemscope", "gemscope-native", "numpy")
    result = measure.surroundings(packages) | {"rounds": args.rounds}
    rows = _against_width(args) + _against_tokens(args)
    result |= {"rises": _rises(rows), "rows": [measure.rounded(row) for row in rows]}
    if args.save:
        path = measure.save("scaling", result)
        _draw(result, path.with_suffix(".svg"))
        measure.progress(f"wrote {path} and {path.with_suffix('.svg').name}")
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        _print(result)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count, after one that warms up (default 7)")
    parser.add_argument("--d-model", type=int, default=2304)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--tokens", type=int, nargs="*", default=TOKENS, help="at the narrowest width")
    parser.add_argument("--base-tokens", type=int, default=BASE["tokens"], help="at every width (default 1024)")
    parser.add_argument("--weighed", type=int, nargs="*", help="widths whose memory is measured (default: all)")
    parser.add_argument("--smoke", action="store_true", help="small: are the results right?")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/scaling.json and .svg too")
    parser.add_argument("--weigh", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.smoke:
        args.__dict__.update(SMOKE)
    args.weighed = args.widths if args.weighed is None else args.weighed
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    return args


# --- measuring ------------------------------------------------------------------------------------------------------


def _against_width(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All widths in turns in this process, then the memory of each in processes of their own."""
    tasks, features, folders = {}, {}, {}
    for width in args.widths:
        sae, x, folders[width] = _loaded(args.d_model, width, args.base_tokens)
        measure.progress(f"{args.d_model} x {width}: checking")
        _check(sae, folders[width], x[:16])
        features[width] = sae.encode(x)
        tasks |= {(op, width): _task(sae, op, x, features[width]) for op in OPS}
    readings = measure.in_turns(tasks, args.rounds, "against width")
    del tasks, sae
    rows = []
    for op, width in readings:
        row = _row(args, "width", op, (width, args.base_tokens), readings[op, width])
        row |= {"l0": features[width].mean_l0, "load_mb": None, "peak_mb": None, "anonymous_mb": None}
        if width in args.weighed and measure.can_weigh():
            measure.progress(f"{args.d_model} x {width}: weighing {op}")
            _, x, folder = _loaded(args.d_model, width, args.base_tokens)
            row |= _weighed_apart(folder, op, x, features[width])
        rows.append(row)
    return rows


def _against_tokens(args: argparse.Namespace) -> list[dict[str, Any]]:
    tasks, width = {}, min(args.widths)
    for tokens in args.tokens:
        sae, x, _ = _loaded(args.d_model, width, tokens)
        tasks |= {(op, tokens): _task(sae, op, x, sae.encode(x)) for op in OPS}
    readings = measure.in_turns(tasks, args.rounds, "against tokens") if tasks else {}
    return [_row(args, "tokens", op, (width, tokens), found) for (op, tokens), found in readings.items()]


def _row(
    args: argparse.Namespace, against: str, op: str, size: tuple[int, int], readings: list[measure.Reading]
) -> dict[str, Any]:
    width, tokens = size
    row = {"against": against, "op": op, "d_model": args.d_model, "d_sae": width, "tokens": tokens, "impl": "gemscope"}
    row["kernel"] = checks.kernel_of("gemscope")
    row |= measure.summary(readings)
    row["ns_per_token_feature"] = row["median_s"] / tokens / width * 1e9
    return row | {"isa": measure.isa(), "isa_limited": measure.isa_limited()}


def _loaded(d_model: int, width: int, tokens: int) -> tuple[Any, Tensor, Path]:
    import gemscope as gs

    folder = realistic.sae_folder(d_model, width)
    x = realistic.activations(realistic.mapped(folder)["W_dec"], tokens)
    return gs.load_sae(folder), x, folder


def _task(sae: Any, op: str, x: Tensor, features: Any) -> Any:
    return {"encode": lambda: sae.encode(x), "decode": lambda: sae.decode(features), "forward": lambda: sae(x)}[op]


def _check(sae: Any, folder: Path, x: Tensor) -> None:
    """On a few tokens: what the tutorial's class makes of the same weights."""
    weights = realistic.mapped(folder)
    dense = checks.MADE["tutorial"](weights).encode(x)
    one = checks.Implementation(sae.encode, sae.decode, sae)
    checks.check(f"{sae.d_in} x {sae.d_sae}", one, weights, x, dense=dense, encoded=sae.encode(x))


def _rises(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """For each operation: whether a token costs more per feature in a wider SAE than in the narrowest."""
    found = {}
    for op in OPS:
        costs = [row["ns_per_token_feature"] for row in rows if (row["against"], row["op"]) == ("width", op)]
        found[op] = max(costs) > RISE * costs[0]
    return found


def _weighed_apart(folder: Path, op: str, x: Tensor, features: Any) -> dict[str, float]:
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        parts = {"offsets": features.offsets, "features": features.features, "values": features.values}
        np.savez(file, x=x.numpy(), **{name: part.numpy() for name, part in parts.items()})
        file.flush()
        found: dict[str, float] = measure.child("scaling.py", "--weigh", folder, op, file.name)
        return found


def _weighed(folder: Path, op: str, given: Path) -> dict[str, float]:
    """Peak resident memory in MB, mapped pages included, above this process with everything imported: of loading alone,
    and of loading and the operation; and what of the memory at the end is not mapped from a file."""
    import gemscope as gs

    load, FeatureActivations = gs.load_sae, gs.FeatureActivations  # imports what they need
    before, anonymous_before = measure.resident_mb(), measure.anonymous_mb()
    sae: Any = None

    def loading() -> None:
        nonlocal sae
        sae = load(folder)

    loaded = measure.peak_mb(loading)

    def working() -> Any:
        with np.load(given) as parts:
            x = torch.from_numpy(parts["x"])
            sparse = [torch.from_numpy(parts[name]) for name in ("offsets", "features", "values")]
        return _task(sae, op, x, FeatureActivations(*sparse, sae.d_sae, (len(x),)))()

    worked = measure.peak_mb(working)
    return {
        "load_mb": loaded - before,
        "peak_mb": max(loaded, worked) - before,
        "anonymous_mb": measure.anonymous_mb() - anonymous_before,
    }


# --- printing and drawing -------------------------------------------------------------------------------------------


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    for against in ("width", "tokens"):
        table = Table(title=f"against {against}", title_justify="left")
        table.add_column("")
        for heading in ("features", "tokens", "ms", "least–most", "cpu/wall", "ns/(token·feature)"):
            table.add_column(heading, justify="right")
        if against == "width":
            for heading in ("peak MB", "of loading", "anonymous"):
                table.add_column(heading, justify="right")
        for op in OPS:
            for row in result["rows"]:
                if (row["against"], row["op"]) != (against, op):
                    continue
                memory = [row.get(key) for key in ("peak_mb", "load_mb", "anonymous_mb")]
                table.add_row(
                    op,
                    f"{row['d_sae']:,}",
                    f"{row['tokens']:,}",
                    f"{row['median_s'] * 1e3:.1f}",
                    f"{row['min_s'] * 1e3:.1f}–{row['max_s'] * 1e3:.1f}",
                    f"{row['cpu_per_wall']:.2f}",
                    f"{row['ns_per_token_feature']:.3g}",
                    *("–" if one is None else f"{one:.0f}" for one in (memory if against == "width" else ())),
                )
            table.add_section()
        console.print(table)
    for op, rises in result["rises"].items():
        console.print(f"{op}: cost per token and feature {'RISES' if rises else 'does not rise'} with width")
    for row in result["rows"]:
        if row["d_sae"] == WIDTHS[-1] and row["op"] != "forward" and row.get("peak_mb") is not None:
            within = "within" if row["peak_mb"] <= LIMIT_MB else "BEYOND"
            console.print(f"{row['op']} of {WIDTHS[-1]:,} features: {row['peak_mb']:.0f} MB, {within} {LIMIT_MB:,} MB")
    for line in measure.remarks(result, measure.how(result)):
        console.print(line, style="dim", highlight=False)


def _draw(result: dict[str, Any], path: Path) -> None:
    """Three panels: cost and memory against width, throughput against tokens."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    mpl.rcParams["svg.hashsalt"] = "gemscope"  # the same picture is the same file
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    cost, memory, tokens = figure.subplots(1, 3)
    style = {"encode": ("#1f6feb", "o"), "decode": ("#d29922", "s"), "forward": ("#238636", "^")}
    for op, (colour, marker) in style.items():
        wide = [row for row in result["rows"] if (row["against"], row["op"]) == ("width", op)]
        many = [row for row in result["rows"] if (row["against"], row["op"]) == ("tokens", op)]
        line = {"color": colour, "marker": marker, "label": op}
        cost.plot([row["d_sae"] for row in wide], [row["ns_per_token_feature"] for row in wide], **line)
        weighed = [row for row in wide if row["peak_mb"] is not None]
        memory.plot([row["d_sae"] for row in weighed], [row["peak_mb"] for row in weighed], **line)
        tokens.plot([row["tokens"] for row in many], [row["tokens"] / row["median_s"] for row in many], **line)
    d_model = result["rows"][0]["d_model"]
    widths = sorted({row["d_sae"] for row in result["rows"] if row["against"] == "width"})
    size = [2 * 4 * d_model * width / 1e6 for width in widths]
    memory.plot(widths, size, color="#8b949e", linestyle="--", label="the weights themselves")
    for axes, title, x_label in (
        (cost, "nanoseconds per token and feature", "features"),
        (memory, "peak resident memory, MB", "features"),
        (tokens, f"tokens per second at {widths[0] // 1024}k features", "tokens at a time"),
    ):
        axes.set(title=title, xlabel=x_label, xscale="log", yscale="log")
        axes.grid(color="#d0d7de", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (cost, memory):
        axes.set_xticks(widths)
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(FuncFormatter(lambda width, _: f"{width / 1024:.0f}k"))
    memory.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
