"""Encoding on a CUDA device: gemscope's Triton kernels beside the bfloat16 matrix product alone and dense encoding in
float32 and TF32, in turns in one process. README.md says what the rows mean. A wrong result ends it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import measure
import torch
import torch.nn.functional as F
from torch import Tensor

from gemscope.features.kernels import Packed, Rows, tie_bound, triton_gpu

SIZES = ((2304, 16_384, 65_536), (2304, 1_048_576, 4_096))
"""d_model, d_sae, tokens."""
OURS, SEARCH, DOTS, BF16, FLOAT32, TF32 = (
    "gemscope",
    "gemscope: search",
    "gemscope: dots",
    "bf16 matmul",
    "float32",
    "tf32",
)
RATIOS = {
    "of the bf16 product's rate": (BF16, 0.6),
    "times the float32 dense encoding's speed": (FLOAT32, 5.0),
    "times the TF32 dense encoding's speed": (TF32, None),
}
"""What the ratio of ours is called, to whom, and what is asked for at 2304 x 16,384 and 65,536 tokens."""
PARTS_TOKENS = 8192
"""What the parts of ours are timed on."""
_TILE = 16_384
"""Features made or checked at a time."""


@dataclass(frozen=True)
class Planted:
    """An encoder, one feature a row, and what it reads."""

    W: Tensor
    b: Tensor
    threshold: Tensor
    x: Tensor


def main() -> None:
    """Measures, checks, prints."""
    args = _arguments()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: this benchmark measures GPUs; benchmarks/encode.py measures processors")
    device = torch.device("cuda", torch.cuda.current_device())
    if not triton_gpu.usable(device):
        sys.exit(
            f"Triton does not run on {torch.cuda.get_device_name(device)}: expected a GPU from Ampere on, and triton"
        )
    torch.set_grad_enabled(False)
    result = measure.surroundings(("torch", "triton", "gemscope")) | {"gpu": _gpu(device), "rounds": args.rounds}
    result["rows"], result["ratios"] = [], []
    for size in args.sizes:
        rows, ratios = _measured(device, *size, l0=args.l0, rounds=args.rounds)
        result["rows"] += [measure.rounded(row) for row in rows]
        result["ratios"] += [measure.rounded(row) for row in ratios]
    if args.save:
        measure.progress(f"wrote {measure.save('encode_gpu', result)}")
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        _print(result)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=_size, nargs="+", default=SIZES, metavar="D_MODELxD_SAExTOKENS")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count, after two that warm up (default 9)")
    parser.add_argument("--l0", type=float, default=70.0)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/encode_gpu.json as well")
    args = parser.parse_args()
    if args.rounds < 7:
        parser.error(f"{args.rounds} rounds: a median needs at least 7")
    return args


def _size(text: str) -> tuple[int, int, int]:
    d_model, d_sae, tokens = map(int, text.split("x"))
    return d_model, d_sae, tokens


# --- measuring --------------------------------------------------------------------------------------------------------


def _measured(
    device: torch.device, d_model: int, d_sae: int, tokens: int, *, l0: float, rounds: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    name = f"{d_model} x {d_sae:,}, {tokens:,} tokens"
    measure.progress(f"{name}: making weights and activations")
    data, kernels = planted(d_model, d_sae, tokens, l0=l0, device=device), triton_gpu.Triton()
    packed = kernels.pack(data.W, data.b, data.threshold)
    found = kernels.above(packed, data.x)
    _check(data, found)
    tasks = _tasks(data, kernels, packed)
    seconds, peaks = _in_turns(tasks, rounds, name)
    shape = {"op": "encode", "d_model": d_model, "d_sae": d_sae, "tokens": tokens}
    candidates = len(kernels._candidates(packed, data.x[:PARTS_TOKENS], None)[1]) / min(PARTS_TOKENS, tokens)
    facts = {"l0": len(found.ids) / tokens, "candidates_per_token": candidates}
    rows = []
    for impl, took in seconds.items():
        row = shape | {"impl": impl, "tokens": min(tokens, PARTS_TOKENS) if impl in (SEARCH, DOTS) else tokens}
        if took:
            row |= {"median_s": statistics.median(took), "min_s": min(took), "max_s": max(took), "peak_mb": peaks[impl]}
            row["tflops"] = None if impl == DOTS else 2e-12 * d_model * d_sae * row["tokens"] / row["median_s"]
        else:
            row |= {"median_s": None, "peak_mb": None, "why": "out of memory"}
        rows.append(row | (facts if impl == OURS else {}))
    ours = statistics.median(seconds[OURS])
    ratios = [
        shape
        | {"what": what, "ratio": statistics.median(seconds[impl]) / ours if seconds[impl] else None, "asked": asked}
        for what, (impl, asked) in RATIOS.items()
    ]
    return rows, ratios


def _tasks(data: Planted, kernels: triton_gpu.Triton, packed: Packed) -> dict[str, Callable[[], object]]:
    x, W = data.x, data.W
    W_low = packed.low.rows[:, : W.shape[1]]
    x_low = x.to(W_low.dtype)
    part = x[:PARTS_TOKENS]
    offsets, ids = kernels._candidates(packed, part, None)

    def dense(precision: str) -> Tensor:
        torch.set_float32_matmul_precision(precision)
        z = torch.addmm(data.b, x, W.T)
        return z.mul_(z > data.threshold)

    def product() -> Tensor:
        return x_low @ W_low.T

    return {
        OURS: lambda: kernels.above(packed, x),
        # Its parts: where the time goes.
        SEARCH: lambda: kernels._search(packed, part, None),
        DOTS: lambda: kernels.dots(offsets, ids, part, W),
        BF16: product,
        FLOAT32: lambda: dense("highest"),
        TF32: lambda: dense("high"),
    }


def _in_turns(
    tasks: dict[str, Callable[[], object]], rounds: int, say: str
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds by CUDA events, without the first two rounds, and the most memory above what lay there before, in MB. A
    task that runs out of memory has no seconds."""
    seconds: dict[str, list[float]] = {impl: [] for impl in tasks}
    peaks: dict[str, float] = {}
    failed = set()
    for number in range(-1, rounds + 1):
        measure.progress(f"{say}: {f'round {number} of {rounds}' if number > 0 else 'warming up'}")
        for impl, work in tasks.items():
            if impl in failed:
                continue
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            try:
                start.record()
                result = work()
                end.record()
                torch.cuda.synchronize()
            except torch.OutOfMemoryError:
                failed.add(impl)
                torch.cuda.empty_cache()
                continue
            peaks[impl] = (torch.cuda.max_memory_allocated() - before) / 1e6
            del result
            if number > 0:
                seconds[impl].append(start.elapsed_time(end) / 1e3)
    return {impl: [] if impl in failed else took for impl, took in seconds.items()}, peaks


def _check(data: Planted, found: Rows, tokens: int = 128) -> None:
    """The first tokens against float64: the same features, but where float32 cannot tell which side of a threshold."""
    end = int(found.offsets[min(tokens, len(data.x))])
    x, ids = data.x[:tokens], found.ids[:end].long()
    rows = found.rows[:end]
    for start in range(0, len(data.W), _TILE):
        tile = slice(start, start + _TILE)
        W, b, threshold = data.W[tile], data.b[tile], data.threshold[tile]
        exact = x.double() @ W.double().T + b.double()
        bound = tie_bound(x, W, b)
        here = (ids >= start) & (ids < start + _TILE)
        got = torch.full_like(exact, -torch.inf)
        got[rows[here], ids[here] - start] = found.values[:end][here].double()
        wrong = ((got > -torch.inf) != (exact > threshold)) & ((exact - threshold).abs() > bound)
        wrong |= (got > -torch.inf) & ((got - exact).abs() > bound)
        if wrong.any():
            sys.exit(f"{int(wrong.sum())} wrong entries in {len(x)} tokens, features {start} to {start + len(W)}")


# --- what is read -----------------------------------------------------------------------------------------------------


def planted(d_model: int, d_sae: int, tokens: int, *, l0: float, device: torch.device, seed: int = 0) -> Planted:
    """By the recipe of realistic.py in short, made on the device: a correlated dictionary, rates after Zipf, log-normal
    strengths, a mean with rogue dimensions that b takes out again, noise; one threshold, calibrated to `l0`."""
    draw = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, device=device)

    mean = normal(d_model) * (torch.arange(d_model, device=device) < 6) * 4 + normal(d_model) * 0.1
    W_dec, W = (torch.empty(d_sae, d_model, device=device) for _ in range(2))
    for start in range(0, d_sae, _TILE):
        count = min(_TILE, d_sae - start)
        family = F.normalize(normal(-(-count // 32), d_model)).repeat_interleave(32, dim=0)[:count]
        W_dec[start : start + count] = F.normalize(F.normalize(normal(count, d_model)) + 0.35 * family)
        noise = F.normalize(normal(count, d_model))
        W[start : start + count] = F.normalize(W_dec[start : start + count] + 0.3 * noise)
    b = -(W @ mean)
    rates = 1 / (torch.arange(d_sae, device=device) + 1 + d_sae / 500)
    rates = rates[torch.randperm(d_sae, generator=draw, device=device)]
    x = normal(tokens, d_model).mul_(6 / d_model**0.5).add_(mean)
    for start in range(0, tokens, 4096):
        piece = x[start : start + 4096]
        ids = torch.multinomial(rates, len(piece) * int(1.45 * l0), replacement=True, generator=draw).view(
            len(piece), -1
        )
        strength = torch.exp(normal(*ids.shape) * 0.55).mul_(0.92)
        piece += F.embedding_bag(ids, W_dec, mode="sum", per_sample_weights=strength)
    some = x[:512]
    strongest = x.new_empty(0)
    for start in range(0, d_sae, _TILE):
        z = torch.addmm(b[start : start + _TILE], some, W[start : start + _TILE].T).flatten()
        strongest = torch.cat([strongest, z.topk(min(int(l0 * len(some)), len(z))).values])
    threshold = strongest.topk(int(l0 * len(some))).values[-1].clamp(min=0)
    return Planted(W, b, threshold.expand(d_sae).contiguous(), x)


def _gpu(device: torch.device) -> dict[str, Any]:
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory_gb": round(found.total_memory / 2**30),
        "cuda": torch.version.cuda,
    }


def _print(result: dict[str, Any]) -> None:
    gpu = result["gpu"]
    print(f"{gpu['name']}, {gpu['memory_gb']} GB, CUDA {gpu['cuda']}; medians of {result['rounds']} rounds")
    for row in result["rows"]:
        of = f"{row['d_model']} x {row['d_sae']:>9,} {row['tokens']:>7,} tokens  {row['impl']:<17}"
        took = f"{row['median_s'] * 1e3:9.2f} ms {row['peak_mb']:9.0f} MB" if row["median_s"] else row["why"]
        print(f"{of} {took}")
    for row in result["ratios"]:
        ratio = "nothing to compare with" if row["ratio"] is None else f"{row['ratio']:.2f}"
        asked = f" (asked for: {row['asked']:g})" if row["asked"] else ""
        print(f"{row['d_model']} x {row['d_sae']:>9,}: {ratio} {row['what']}{asked}")
    print("\n".join(measure.remarks(result, f"the parts of gemscope are timed on {PARTS_TOKENS:,} tokens")))


if __name__ == "__main__":
    main()
