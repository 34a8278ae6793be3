"""Encode, decode and forward of one JumpReLU SAE: gemscope beside the Gemma Scope tutorial's class, SAELens and a
careful float32 baseline, measured in turns in one process. README.md says what the rows mean. Wrong results end it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import measure
import numpy as np
import realistic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

OPS = ("encode", "decode", "forward")
PEERS = ("saelens",)
SMOKE = {"sizes": ((320, 8192),), "tokens": 256, "rounds": 3, "weighed": ("forward",)}
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Implementation:
    """One way to do the three operations. What encode returns is what its decode takes."""

    encode: Callable[[Tensor], Any]
    decode: Callable[[Any], Tensor]
    forward: Callable[[Tensor], Tensor]


def main() -> None:
    """Measures, checks, prints."""
    args = _arguments()
    torch.set_grad_enabled(False)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.weigh:
        name, op, d_model, d_sae = args.weigh
        print(json.dumps(_weighed(name, op, *_loaded(args, int(d_model), int(d_sae)))))
        return
    result = measure.surroundings(("torch", "sae-lens", "gemscope", "gemscope-native", "numpy")) | {
        "rounds": args.rounds
    }
    rows, sae = [], []
    for d_model, d_sae in args.sizes:
        found, facts = _measured(args, d_model, d_sae)
        rows += found
        sae.append({"d_model": d_model, "d_sae": d_sae} | facts)
    result |= {"saes": sae, "rows": [measure.rounded(row) for row in rows]}
    if args.save:
        measure.progress(f"wrote {measure.save('encode', result)}")
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        _print(result)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count, after one that warms up (default 7)")
    parser.add_argument(
        "--sizes", type=_size, nargs="+", default=((2304, 16_384), (2304, 65_536)), metavar="D_MODELxD_SAE"
    )
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--l0", type=float, default=70.0)
    parser.add_argument("--only", nargs="+", choices=MADE, default=list(MADE), help="implementations (default: all)")
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument(
        "--weighed", nargs="*", choices=OPS, default=OPS, help="operations whose memory is measured (default: all)"
    )
    parser.add_argument("--smoke", action="store_true", help="small, without SAELens: are the results right?")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/encode.json too")
    parser.add_argument("--weigh", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.smoke:
        args.__dict__.update(SMOKE)
        args.only = [name for name in args.only if name not in PEERS]
    if args.rounds < 1 or args.tokens < 1:
        parser.error("--rounds and --tokens must be at least 1")
    return args


def _size(text: str) -> tuple[int, int]:
    d_model, _, d_sae = text.partition("x")
    return int(d_model), int(d_sae)


# --- the implementations --------------------------------------------------------------------------------------------


class TutorialSAE(nn.Module):
    """The class of the Gemma Scope tutorial: the same operations on the same weights, in its order."""

    def __init__(self, d_model: int, d_sae: int) -> None:
        super().__init__()
        self.W_enc = nn.Parameter(torch.zeros(d_model, d_sae))
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_model))
        self.threshold = nn.Parameter(torch.zeros(d_sae))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_model))

    def encode(self, x: Tensor) -> Tensor:
        pre = x @ self.W_enc + self.b_enc
        mask = pre > self.threshold
        return mask * F.relu(pre)

    def decode(self, acts: Tensor) -> Tensor:
        return acts @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class Float32Torch:
    """What somebody who knows torch would write without low precision or a kernel: one reused buffer in place of
    temporaries, a comparison, and embedding_bag over what passed it."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        d_sae = weights["W_enc"].shape[1]
        self.buffer = torch.empty(max(1, (1 << 24) // d_sae), d_sae)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row offsets, feature ids and values of the active features."""
        w, d_sae = self.weights, self.buffer.shape[1]
        counts, ids, values = [], [], []
        for tile in x.split(len(self.buffer)):
            pre = torch.addmm(w["b_enc"], tile, w["W_enc"], out=self.buffer[: len(tile)])
            on = pre > w["threshold"]  # thresholds are not negative, so what is above them is above 0
            found = np.flatnonzero(on.numpy())
            ends = np.searchsorted(found, np.arange(len(tile) + 1) * d_sae)  # they ascend: no need to count rows
            counts.append(torch.from_numpy(np.diff(ends)))
            flat = torch.from_numpy(found)
            ids.append(flat % d_sae)
            values.append(pre.flatten()[flat])
        offsets = F.pad(torch.cat(counts).cumsum(0), (1, 0))
        return offsets, torch.cat(ids), torch.cat(values)

    def decode(self, features: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        offsets, ids, values = features
        out = F.embedding_bag(
            ids, self.weights["W_dec"], offsets, mode="sum", per_sample_weights=values, include_last_offset=True
        )
        return out.add_(self.weights["b_dec"])

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def _tutorial(weights: Weights) -> Implementation:
    with torch.device("meta"):
        sae = TutorialSAE(*weights["W_enc"].shape)
    sae.load_state_dict(dict(weights), assign=True)
    return Implementation(sae.encode, sae.decode, sae)


def _saelens(weights: Weights) -> Implementation:
    _quiet()
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    d_model, d_sae = weights["W_enc"].shape
    # Gemma Scope's conventions: nothing folded, nothing normalised, b_dec not taken from the input.
    config = JumpReLUSAEConfig(d_in=d_model, d_sae=d_sae, dtype="float32", device="cpu", apply_b_dec_to_input=False)
    sae = JumpReLUSAE(config)
    sae.load_state_dict(dict(weights), assign=True)
    sae.eval()
    return Implementation(sae.encode, sae.decode, sae)


def _float32_torch(weights: Weights) -> Implementation:
    sae = Float32Torch(dict(weights))
    return Implementation(sae.encode, sae.decode, sae.forward)


def _gemscope(weights: Weights, kernel: str | None) -> Implementation:
    import gemscope as gs

    sae = gs.SAE(*weights["W_enc"].shape)
    sae.load_state_dict(dict(weights))

    def under(work: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(given: Any) -> Any:
            with using(kernel):
                return work(given)

        return run

    return Implementation(under(sae.encode), under(sae.decode), under(sae))


def using(kernel: str | None) -> AbstractContextManager[Any]:
    """gemscope held to one implementation of its kernels; None leaves it the choice."""
    from gemscope.features.kernels import choice

    return nullcontext() if kernel is None else choice.using(kernel)


def kernel_of(name: str) -> str | None:
    """Which of gemscope's kernels does an implementation's work here; None for what is not gemscope."""
    if not name.startswith("gemscope"):
        return None
    from gemscope.features.kernels import choice

    with using(_KERNEL[name]):
        return choice.choose(torch.device("cpu")).name


_KERNEL = {"gemscope-torch": "torch", "gemscope": None}
MADE: dict[str, Callable[[Weights], Implementation]] = {
    "tutorial": _tutorial,
    "saelens": _saelens,
    "float32-torch": _float32_torch,
    "gemscope-torch": lambda weights: _gemscope(weights, _KERNEL["gemscope-torch"]),
    "gemscope": lambda weights: _gemscope(weights, _KERNEL["gemscope"]),
}


def _quiet() -> None:
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", WANDB_MODE="disabled")


# --- measuring ------------------------------------------------------------------------------------------------------


def _measured(args: argparse.Namespace, d_model: int, d_sae: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    weights, x = _loaded(args, d_model, d_sae)
    facts = realistic.near(weights, x[:1024])
    made = {name: MADE[name](weights) for name in args.only}
    dense = _tutorial(weights).encode(x)
    l0 = dense.count_nonzero().item() / len(x)
    encoded = {name: dense if name in ("tutorial", "saelens") else one.encode(x) for name, one in made.items()}
    for name, one in made.items():
        measure.progress(f"{d_model} x {d_sae}: checking {name}")
        check(name, one, weights, x, dense=dense, encoded=encoded[name])
    tasks = {
        (name, op): partial(getattr(one, op), encoded[name] if op == "decode" else x)
        for op in OPS
        for name, one in made.items()
    }
    readings = measure.in_turns(tasks, args.rounds, f"{d_model} x {d_sae}")
    del tasks, made, dense, encoded
    rows = []
    for name, op in readings:
        row = {"op": op, "d_model": d_model, "d_sae": d_sae, "tokens": args.tokens, "impl": name}
        row |= {"kernel": kernel_of(name), "l0": l0}
        row |= measure.summary(readings[name, op])
        row["tokens_per_s"] = args.tokens / row["median_s"]
        for reference in ("saelens", "tutorial", "float32-torch"):
            both = measure.ratios(readings[name, op], readings[reference, op]) if (reference, op) in readings else None
            key = reference.replace("-", "_")
            row[f"ratio_vs_{key}"], row[f"paired_vs_{key}"] = both or (None, None)
        row |= {"peak_mb": None, "first_mb": None, "kept_mb": None}
        if measure.can_weigh() and op in args.weighed:
            measure.progress(f"{d_model} x {d_sae}: weighing {op} of {name}")
            row |= measure.child("encode.py", *_same(args), "--weigh", name, op, d_model, d_sae)
        rows.append(row | {"isa": measure.isa(), "isa_limited": measure.isa_limited()})
    theirs = {row["op"]: row["peak_mb"] for row in rows if row["impl"] == "saelens"}
    for row in rows:
        both = row["peak_mb"] and theirs.get(row["op"])
        row["memory_ratio_vs_saelens"] = both / row["peak_mb"] if both else None
    return rows, facts


def _loaded(args: argparse.Namespace, d_model: int, d_sae: int) -> tuple[dict[str, Tensor], Tensor]:
    """Weights in memory, and activations."""
    folder = realistic.sae_folder(d_model, d_sae, l0=args.l0)
    weights = {name: part.clone() for name, part in realistic.mapped(folder).items()}
    return weights, realistic.activations(weights["W_dec"], args.tokens, l0=args.l0)


def _same(args: argparse.Namespace) -> list[object]:
    """What a process of its own must be told to do the same."""
    threads = ["--threads", args.threads] if args.threads else []
    return [*threads, "--tokens", args.tokens, "--l0", args.l0]


def _weighed(name: str, op: str, weights: dict[str, Tensor], x: Tensor) -> dict[str, float]:
    """Memory of one operation above the weights, in MB: what its first call took at most, what it then kept, and what a
    later call took on top of that."""
    part = {"W_enc": (64, 256), "W_dec": (256, 64), "b_enc": (256,), "threshold": (256,), "b_dec": (64,)}
    small = MADE[name]({key: torch.ones(shape) for key, shape in part.items()})
    small.decode(small.encode(torch.ones(8, 64)))  # libraries make their threads and buffers
    one = MADE[name](weights)
    weights.clear()  # but for what `one` holds
    given = one.encode(x) if op == "decode" else x
    work = getattr(one, op)
    before = measure.resident_mb()
    first = measure.peak_mb(lambda: work(given))
    kept = measure.resident_mb()
    return {
        "peak_mb": measure.peak_mb(lambda: work(given)) - kept,
        "first_mb": first - before,
        "kept_mb": kept - before,
    }


# --- are the results right? -----------------------------------------------------------------------------------------


def check(name: str, one: Implementation, weights: Weights, x: Tensor, *, dense: Tensor, encoded: Any) -> None:
    """Ends the benchmark unless `encoded`, and what decode and forward give, are what the tutorial's activations
    `dense` make them, but for rounding.

    Two float32 sums of D products in different orders lie within about 2 √D 2^-24 ‖x‖ ‖w‖ of each other, rounding
    errors being of either sign (with D for √D it is what they cannot exceed, and more than bfloat16 is off by). A
    feature whose pre-activation in float64 is so near its threshold may be active for one and not for the other;
    tokens that have one are left out where reconstructions are compared.
    """
    norms, b_enc, theta = weights["W_enc"].norm(dim=0), weights["b_enc"], weights["threshold"]
    off = 2 * x.shape[1] ** 0.5 * 2.0**-24 * x.norm(dim=1)
    same = torch.ones(len(x), dtype=torch.bool)
    for start in range(0, len(x), 256):
        part = slice(start, start + 256)
        expected, given = dense[part], _dense_rows(encoded, part, dense.shape[1])
        bound = torch.outer(off[part], norms) + 2.0**-23 * (b_enc.abs() + torch.maximum(expected, theta))
        differ = (expected > 0) != (given > 0)
        if wrong := int((((expected - given).abs() > bound) & ~differ).sum()):
            sys.exit(f"{name}: {wrong} values are beyond float32 rounding")
        for token, feature in differ.nonzero().tolist():
            z = x[start + token].double() @ weights["W_enc"][:, feature].double() + b_enc[feature]
            if abs(z - theta[feature]) > bound[token, feature]:
                how = "missing" if expected[token, feature] > 0 else "active and should not be"
                sys.exit(f"{name}: feature {feature} of token {start + token} is {how}")
            same[start + token] = False
    reference = dense @ weights["W_dec"] + weights["b_dec"]
    for op, out in (("decode", one.decode(encoded)), ("forward", one.forward(x))):
        error = ((out - reference).norm(dim=1) / reference.norm(dim=1))[same].max().item()
        if not error < 1e-5:
            sys.exit(f"{name}: {op} is off by {error:.1e} of the reconstruction")


def _dense_rows(encoded: Any, part: slice, d_sae: int) -> Tensor:
    """Some tokens' activations with their zeros, of what any implementation's encode returned."""
    if isinstance(encoded, Tensor):
        return encoded[part]
    offsets, ids, values = (
        encoded if isinstance(encoded, tuple) else (encoded.offsets, encoded.features, encoded.values)
    )
    bounds = offsets[part.start : part.stop + 1].long()
    inside = slice(int(bounds[0]), int(bounds[-1]))
    rows = torch.arange(len(bounds) - 1).repeat_interleave(bounds.diff())
    found = torch.zeros(len(bounds) - 1, d_sae)
    found[rows, ids[inside].long()] = values[inside]
    return found


# --- printing -------------------------------------------------------------------------------------------------------


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    rows = result["rows"]
    reference = "saelens" if rows[0]["ratio_vs_saelens"] else "tutorial"
    for sae in result["saes"]:
        table = Table(
            title=f"{sae['d_model']} × {sae['d_sae']:,}, {rows[0]['tokens']:,} tokens, L0 {sae['l0']:.1f}, "
            f"{sae['within_0.01']:.1f} entries a token within 0.01 of their thresholds, "
            f"{sae['bf16_candidates']:.0f} bf16 candidates",
            title_justify="left",
        )
        table.add_column("")
        for title in (
            "ms",
            "least–most",
            "cpu/wall",
            f"× {reference}",
            "paired",
            "× float32-torch",
            "MB",
            "first",
            "kept",
        ):
            table.add_column(title, justify="right")
        for op in OPS:
            for row in (
                one for one in rows if (one["op"], one["d_sae"], one["d_model"]) == (op, sae["d_sae"], sae["d_model"])
            ):
                cells = (
                    f"{row['median_s'] * 1e3:.1f}",
                    f"{row['min_s'] * 1e3:.1f}–{row['max_s'] * 1e3:.1f}",
                    f"{row['cpu_per_wall']:.2f}",
                    _times(row[f"ratio_vs_{reference}"]),
                    _times(row[f"paired_vs_{reference}"]),
                    _times(row["ratio_vs_float32_torch"]),
                    *("–" if row[key] is None else f"{row[key]:.0f}" for key in ("peak_mb", "first_mb", "kept_mb")),
                )
                table.add_row(f"{op}  {row['impl']}", *cells, style="bold" if row["impl"] == "gemscope" else None)
            table.add_section()
        console.print(table)
    for line in measure.remarks(result, measure.how(result)):
        console.print(line, style="dim", highlight=False)


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"


if __name__ == "__main__":
    main()
