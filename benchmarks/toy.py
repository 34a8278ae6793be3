"""Sums of known directions, and which trainers find them again: gemscope's architectures beside SAELens's trainers on
the same batches in the same order. README.md says what the rows mean. A bar that gemscope misses ends it with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import measure
import torch
from torch import Tensor

from gemscope.activations.site import Site
from gemscope.features.metrics import Variance
from gemscope.training.config import TrainConfig
from gemscope.training.shuffle import Shuffle
from gemscope.training.train import train

D, FEATURES, L0 = 64, 256, 5.0
POOL, HELD_OUT = 393_216, 20_000
STEPS, BATCH = 3000, 512
SPREAD = 0.25
"""Standard deviation of the magnitudes, whose mean is 1."""
VARIANTS = ("uniform", "zipf")
SITE = Site(0, "res")

BARS = {
    "uniform": {"mmcs": 0.94, "mcc": 0.92, "fvu": 0.21, "l0": 0.5, "dead": 12},
    "zipf": {"mmcs": 0.90},
}
"""Least of MMCS and MCC, most of FVU, of |L0 - 5| and of the dead. They are the default's."""
SMOKE = {"steps": 1200, "bars": {"uniform": {"mmcs": 0.90, "mcc": 0.85, "fvu": 0.26, "l0": 0.5, "dead": 20}}}

OWN: dict[str, dict[str, Any]] = {
    "jumprelu": {},
    "jumprelu quadratic": {"penalty": "quadratic", "sparsity": 0.05, "anneal": 0.0},
    "jumprelu tanh": {"penalty": "tanh", "sparsity": 0.04, "lr": 3e-3},
    "topk": {"architecture": "topk", "lr": 6e-3},
    "batchtopk": {"architecture": "batchtopk", "lr": 6e-3},
    "matryoshka": {"architecture": "batchtopk", "matryoshka": [0.25, 0.5], "lr": 6e-3, "anneal": 0.0},
    "gated": {"architecture": "gated", "sparsity": 0.45, "lr": 2e-3},
    "standard": {"architecture": "standard", "sparsity": 0.3, "sparsity_warmup": 0.6, "lr": 3e-3},
}
"""What differs from `TrainConfig`'s own defaults, besides the toy's size."""


@dataclass(frozen=True)
class Task:
    """Rows, the first `POOL` of them to train on, and what they were made of: unit rows of `truth`, and which of them
    are in each of the others (`on`)."""

    rows: Tensor
    truth: Tensor
    on: Tensor
    seed: int
    steps: int

    def batch(self, step: int) -> Tensor:
        """The same for every trainer."""
        return self.rows[_order(self.seed)[step]]


@dataclass(frozen=True)
class Found:
    """What a trainer ended with: directions [F, D], and the function from rows to activations and reconstructions."""

    directions: Tensor
    read: Callable[[Tensor], tuple[Tensor, Tensor]]


def main() -> int:
    """Trains, measures, prints; 1 where a bar is missed."""
    args = _arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    result = measure.surroundings(("torch", "sae-lens", "gemscope", "scipy"))
    result |= {"d": D, "features": FEATURES, "l0": L0, "steps": args.steps, "batch": BATCH, "pool": POOL}
    result |= {"spread": SPREAD, "settings": {"gemscope": OWN, "saelens": PEERS}}
    result["rows"] = rows = []
    for seed in args.seeds:
        for variant in args.variants:
            task = planted(variant, seed, args.steps)
            for impl in args.impls:
                for arch in args.archs:
                    if arch in (OWN if impl == "gemscope" else PEERS):
                        rows.append(_row(impl, arch, variant, task, args.settings))
    result["missed"] = missed = [line for row in rows for line in (*below_bars(row, args.bars), *below_peer(row, rows))]
    if args.save:
        measure.progress(f"wrote {measure.save('toy', result)}")
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        _print(result)
    for line in missed:
        measure.progress(f"toy: {line}")
    return 1 if missed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--impls", nargs="+", choices=("gemscope", "saelens"), default=["gemscope", "saelens"])
    parser.add_argument("--archs", nargs="+", choices=list(OWN), default=list(OWN))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of gemscope's settings")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--smoke", action="store_true", help="under a minute, gemscope's default alone, lower bars")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/toy.json too")
    args = parser.parse_args()
    args.steps, args.bars = STEPS, BARS
    args.settings = {key: json.loads(value) for key, value in (one.split("=", 1) for one in args.set)}
    if args.smoke:
        args.__dict__.update(SMOKE, seeds=[0], variants=["uniform"], impls=["gemscope"], archs=["jumprelu"])
    return args


# --- the task -------------------------------------------------------------------------------------------------------


def planted(variant: str, seed: int, steps: int = STEPS) -> Task:
    """Rows that are sums of random directions, each there or not independently of the others: five at a time, all
    equally often or the i-th as often as 1/sqrt(i).
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + 17)
    truth = torch.randn(FEATURES, D, generator=generator)
    truth /= truth.norm(dim=-1, keepdim=True)
    p = torch.ones(FEATURES) if variant == "uniform" else 1 / torch.arange(1, FEATURES + 1) ** 0.5
    p *= L0 / p.sum()
    rows, there = torch.empty(POOL + HELD_OUT, D), torch.empty(POOL + HELD_OUT, FEATURES, dtype=torch.bool)
    for part, on in zip(rows.split(1 << 14), there.split(1 << 14), strict=True):
        torch.lt(torch.rand(on.shape, generator=generator), p, out=on)
        size = (1 + SPREAD * torch.randn(on.shape, generator=generator)).clamp(min=0.1)
        part.copy_((on * size) @ truth)
    return Task(rows, truth, there[POOL:], seed, steps)


@cache
def _order(seed: int) -> Shuffle:
    return Shuffle(POOL, BATCH, seed)


def _row(impl: str, arch: str, variant: str, task: Task, settings: Mapping[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    found = _gemscope(arch, task, settings) if impl == "gemscope" else _saelens(arch, task)
    seconds = time.perf_counter() - start
    row = {"impl": impl, "arch": arch, "variant": variant, "seed": task.seed, **scores(found, task), "seconds": seconds}
    measure.progress(" ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    return measure.rounded(row)


# --- the trainers ---------------------------------------------------------------------------------------------------


class Source:
    """The task's rows as gemscope's trainer reads them, in the order that the others read them in."""

    reads = writes = (SITE,)
    widths = ((D,), (D,))

    def __init__(self, task: Task) -> None:
        self.task = task
        self.identity = self.facts = {"model": "planted"}

    def batches(self, batch: int, seed: int) -> Source:
        """Already cut."""
        return self

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        x = self.task.batch(step)
        return x, x

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Rows are in no order."""
        x = self.task.rows[: min(count, POOL)]
        return x, x


def _gemscope(arch: str, task: Task, settings: Mapping[str, Any]) -> Found:
    size = {"width": FEATURES, "target_l0": L0, "rows": task.steps * BATCH, "batch": BATCH, "seed": task.seed}
    config = TrainConfig.of({**size, "checkpoint_every": task.steps, **OWN[arch], **settings})
    with tempfile.TemporaryDirectory() as folder:
        sae = train(Source(task), config, to=folder)

    def read(x: Tensor) -> tuple[Tensor, Tensor]:
        features = sae.encode(x)
        return features.to_dense(), sae.decode(features)

    return Found(sae.W_dec.detach(), read)


PEERS: dict[str, dict[str, Any]] = {
    "jumprelu": {"kind": "JumpReLU", "l0_coefficient": 0.1, "lr": 3e-3},
    "jumprelu quadratic": {"kind": "JumpReLU", "jumprelu_sparsity_loss_mode": "quadratic", "target_l0": L0},
    "jumprelu tanh": {"kind": "JumpReLU", "jumprelu_sparsity_loss_mode": "tanh", "l0_coefficient": 0.1},
    "topk": {"kind": "TopK", "k": int(L0), "lr": 6e-3},
    "batchtopk": {"kind": "BatchTopK", "k": L0, "lr": 6e-3},
    "matryoshka": {"kind": "MatryoshkaBatchTopK", "k": L0, "matryoshka_widths": [64, 128, 256], "lr": 6e-3},
    "gated": {"kind": "Gated", "l1_coefficient": 1.0},
    "standard": {"kind": "Standard", "l1_coefficient": 0.7, "lr": 3e-3},
}
"""Learning rates are 1e-3 where they are not named. README.md says how all of these were chosen."""


def _saelens(arch: str, task: Task) -> Found:
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", WANDB_MODE="disabled")
    import sae_lens
    from sae_lens.config import SAETrainerConfig

    settings = dict(PEERS[arch])
    kind, lr = settings.pop("kind"), settings.pop("lr", 1e-3)
    config = getattr(sae_lens, f"{kind}TrainingSAEConfig")(
        d_in=D, d_sae=FEATURES, dtype="float32", device="cpu", apply_b_dec_to_input=False, **settings
    )
    torch.manual_seed(task.seed)
    sae = getattr(sae_lens, f"{kind}TrainingSAE")(config)
    trainer = sae_lens.SAETrainer(
        SAETrainerConfig(
            total_training_samples=task.steps * BATCH,
            train_batch_size_samples=BATCH,
            lr=lr,
            lr_end=lr / 10,
            lr_decay_steps=task.steps // 5,
            dead_feature_window=200,
            device="cpu",
        ),
        sae,
        data_provider=map(task.batch, range(task.steps)),
    )
    with contextlib.redirect_stdout(sys.stderr), torch.enable_grad():
        trainer.fit()
    sae.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        sae.fold_W_dec_norm()
        sae.save_inference_model(folder)
        saved = sae_lens.SAE.load_from_disk(folder)

    def read(x: Tensor) -> tuple[Tensor, Tensor]:
        features = saved.encode(x)
        return features, saved.decode(features)

    return Found(saved.W_dec.detach(), read)


# --- what they are worth --------------------------------------------------------------------------------------------


@torch.no_grad()
def scores(found: Found, task: Task) -> dict[str, float]:
    """Of the held-out rows and of the directions, by the SAE as it would be saved."""
    x = task.rows[POOL:]
    variance = Variance()
    both = torch.zeros(FEATURES, len(found.directions))
    fired = torch.zeros(len(found.directions))
    for rows, on in zip(x.split(2000), task.on.split(2000), strict=True):
        activations, out = found.read(rows)
        variance.add(rows, out)
        active = (activations > 0).float()
        fired += active.sum(0)
        both += on.float().T @ active
    directions = found.directions / found.directions.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    cosines = task.truth @ directions.T
    f1 = 2 * both / (fired + task.on.sum(0)[:, None]).clamp(min=1)
    return {
        "mmcs": cosines.max(dim=-1).values.mean().item(),
        "mcc": _assigned(cosines.abs()),
        "fvu": variance.fvu,
        "l0": fired.sum().item() / len(x),
        "dead": int((fired == 0).sum()),
        "f1": f1.max(dim=-1).values.mean().item(),
    }


def _assigned(similar: Tensor) -> float:
    """Mean similarity under the best one-to-one assignment."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(similar.numpy(), maximize=True)
    return similar[torch.as_tensor(rows), torch.as_tensor(columns)].mean().item()


def below_bars(row: Mapping[str, Any], bars: Mapping[str, Mapping[str, float]] = BARS) -> list[str]:
    """A line for each bar that the default misses."""
    if (row["impl"], row["arch"]) != ("gemscope", "jumprelu"):
        return []
    out = []
    for name, bar in bars.get(row["variant"], {}).items():
        value = abs(row[name] - L0) if name == "l0" else row[name]
        if not (value >= bar if name in ("mmcs", "mcc") else value <= bar):
            out.append(f"{row['variant']}, seed {row['seed']}: {name} {row[name]:.4g}, bar {bar}")
    return out


def below_peer(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line where SAELens's trainer of the same architecture finds more of the directions."""
    same = ("arch", "variant", "seed")
    return [
        f"{row['variant']}, seed {row['seed']}: {row['arch']} has MMCS {row['mmcs']:.4g}, SAELens's {peer['mmcs']:.4g}"
        for peer in rows
        if row["impl"] == "gemscope" and peer["impl"] == "saelens" and peer["mmcs"] > row["mmcs"]
        if all(row[key] == peer[key] for key in same)
    ]


# --- printing -------------------------------------------------------------------------------------------------------


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    for variant in VARIANTS:
        rows = [row for row in result["rows"] if row["variant"] == variant]
        if not rows:
            continue
        table = Table("", "", title=variant, title_justify="left")
        for heading in ("seed", "MMCS", "MCC", "FVU", "L0", "dead", "F1", "s"):
            table.add_column(heading, justify="right")
        for row in sorted(rows, key=lambda row: (-row["mmcs"], row["seed"])):
            cells = (*(f"{row[key]:.3f}" for key in ("mmcs", "mcc", "fvu")), f"{row['l0']:.2f}", str(row["dead"]))
            cells += (f"{row['f1']:.3f}", f"{row['seconds']:.0f}")
            table.add_row(row["impl"], row["arch"], str(row["seed"]), *cells)
        console.print(table)
    for line in measure.remarks(result, f"{result['steps']:,} steps of {result['batch']} rows"):
        console.print(line, style="dim", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
