"""One full training step of a JumpReLU SAE (forward, loss, backward, clipping, Adam): gemscope beside SAELens's trainer
and a dense step tuned by hand, measured in turns in one process. README.md says what the rows mean. Wrong gradients
end it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import measure
import realistic
import torch
from encode import kernel_of, using
from torch import Tensor

SIZES = ((2304, 16_384, 2048), (576, 4608, 4096))
SWEPT = (576, 4608, 4096)
L0S = (35, 70, 140, 280, 560, 1100, 2300)
SMOKE = {"sizes": ((256, 2048, 256),), "rounds": 3, "swept": (128, 1024, 256), "l0s": (20, 400)}
PEERS = ("saelens",)

L0 = 70.0
BANDWIDTH = 0.05
"""Of the straight-through estimator, SAELens's default; thresholds are about 1."""
LR = 1e-6
"""So small that all stay at the weights that they start from, and L0 with them; a step costs the same at any rate."""
SPARSITY = 1e-3
CLIP = 1.0
Weights = Mapping[str, Tensor]
_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


@dataclass(frozen=True)
class Trainer:
    """One way to train. Gradients are by name, W_enc's [d_model, d_sae], before clipping."""

    step: Callable[[Tensor], Any]
    gradients: Callable[[Tensor], Weights]
    l0: Callable[[Tensor], float]


def main() -> None:
    """Measures, checks, prints."""
    args = _arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.weigh:
        name, *size = args.weigh
        print(json.dumps(_weighed(name, *map(int, size), l0=args.l0)))
        return
    packages = ("torch", "sae-lens", "gemscope", "gemscope-native", "numpy")
    result = measure.surroundings(packages) | {"rounds": args.rounds}
    rows = [row for size in args.sizes for row in _measured(args, size, args.only, args.l0, weigh=True)]
    if not args.no_sweep:
        own = [name for name in args.only if name not in PEERS]
        rows += [row | {"op": "sweep"} for l0 in args.l0s for row in _measured(args, args.swept, own, l0, weigh=False)]
    result["rows"] = [measure.rounded(row) for row in rows]
    if args.save:
        measure.progress(f"wrote {measure.save('train', result)}")
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        _print(result)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count, after one that warms up (default 7)")
    parser.add_argument("--sizes", type=_size, nargs="+", default=SIZES, metavar="D_MODELxD_SAExBATCH")
    parser.add_argument("--l0", type=float, default=L0)
    parser.add_argument("--swept", type=_size, default=SWEPT, metavar="D_MODELxD_SAExBATCH", help="size of the sweep")
    parser.add_argument("--l0s", type=float, nargs="+", default=L0S, help="of the sweep")
    parser.add_argument("--no-sweep", action="store_true", help="leave out the sweep over L0")
    parser.add_argument("--only", nargs="+", choices=MADE, default=list(MADE), help="trainers (default: all)")
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--smoke", action="store_true", help="small, without SAELens: are the gradients right?")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/train.json too")
    parser.add_argument("--weigh", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.smoke:
        args.__dict__.update(SMOKE)
        args.only = [name for name in args.only if name not in PEERS]
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    return args


def _size(text: str) -> tuple[int, int, int]:
    d_model, d_sae, batch = map(int, text.split("x"))
    return d_model, d_sae, batch


# --- the trainers ---------------------------------------------------------------------------------------------------


class Dense:
    """What somebody who knows torch would write without sparsity: five products and as few passes as they allow, in
    buffers that are made once, without autograd, and torch's fused Adam. The same loss as gemscope's."""

    def __init__(self, weights: Weights, batch: int, target: float) -> None:
        self.weights, self.target = {name: weights[name].clone() for name in _NAMES}, target
        d_sae = len(weights["b_enc"])
        self.z, self.f, self.df, self.on, self.window = (torch.empty(batch, d_sae) for _ in range(5))
        self.grads = {name: torch.empty_like(part) for name, part in self.weights.items()}
        self.adam = torch.optim.Adam(self.weights.values(), lr=LR, betas=(0.9, 0.999), fused=True)

    def gradients(self, x: Tensor) -> Weights:
        """Of the loss on one batch, in the same buffers every time."""
        w, grads, count = self.weights, self.grads, len(x)
        theta = w["threshold"]
        z = torch.addmm(w["b_enc"], x, w["W_enc"], out=self.z)
        # Masks are of floats: torch multiplies and sums those many times as fast as booleans.
        on = torch.gt(z, theta, out=self.on)  # thresholds are not negative
        f = torch.mul(z, on, out=self.f)
        window = torch.gt(z, (theta - BANDWIDTH / 2).clamp_(min=0), out=self.window)
        window.mul_(torch.lt(z, theta + BANDWIDTH / 2, out=z))
        residual = torch.addmm(w["b_dec"], f, w["W_dec"]).sub_(x)
        self.error = residual.pow(2).sum().item() / count
        self.l0 = on.sum().item() / count
        g = residual.mul_(2 / count)
        df = torch.mm(g, w["W_dec"].T, out=self.df)
        torch.mm(f.T, g, out=grads["W_dec"])
        torch.sum(g, 0, out=grads["b_dec"])
        pull = SPARSITY * 2 * (self.l0 / self.target - 1) / (self.target * count)
        through = torch.mul(df, window, out=z).sum(0).mul_(theta).add_(window.sum(0), alpha=pull)
        torch.mul(through, -1 / BANDWIDTH, out=grads["threshold"])
        dz = df.mul_(on)
        torch.mm(x.T, dz, out=grads["W_enc"])
        torch.sum(dz, 0, out=grads["b_enc"])
        return grads

    def step(self, x: Tensor) -> None:
        """Weights after one batch."""
        for name, grad in self.gradients(x).items():
            self.weights[name].grad = grad
        torch.nn.utils.clip_grad_norm_([self.weights[name] for name in _NAMES if name != "threshold"], CLIP)
        self.adam.step()
        self.weights["threshold"].clamp_(min=0)


def _dense(weights: Weights, batch: int, target: float) -> Trainer:
    one = Dense(weights, batch, target)

    def l0(x: Tensor) -> float:
        one.gradients(x)
        return one.l0

    return Trainer(one.step, one.gradients, l0)


def _saelens(weights: Weights, batch: int, target: float) -> Trainer:
    import os

    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", WANDB_MODE="disabled")
    from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, SAETrainer
    from sae_lens.config import SAETrainerConfig

    d_model, d_sae = weights["W_enc"].shape
    config = JumpReLUTrainingSAEConfig(
        d_in=d_model,
        d_sae=d_sae,
        dtype="float32",
        device=str(weights["W_enc"].device),
        apply_b_dec_to_input=False,
        jumprelu_bandwidth=BANDWIDTH,
        jumprelu_sparsity_loss_mode="quadratic",
        target_l0=target,
        l0_coefficient=SPARSITY / target,
    )
    sae = JumpReLUTrainingSAE(config)
    sae.load_state_dict({name: weights[name] for name in _NAMES})
    settings = SAETrainerConfig(
        total_training_samples=1 << 40, train_batch_size_samples=batch, lr=LR, lr_end=LR, device=config.device
    )
    trainer = SAETrainer(settings, sae, data_provider=iter(()))

    def step(x: Tensor) -> None:
        with torch.enable_grad():
            trainer.step(x)
        trainer.n_training_steps += 1  # its loop does

    def gradients(x: Tensor) -> Weights:
        from sae_lens.saes.sae import TrainStepInput

        given = TrainStepInput(x, trainer.get_coefficients(), trainer.dead_neurons, 0, False)
        with torch.enable_grad():
            sae.training_forward_pass(given).loss.backward()
        found = {name: part.grad.clone() for name, part in sae.named_parameters()}
        trainer.optimizer.zero_grad()
        return found

    def l0(x: Tensor) -> float:
        return sae.encode(x).count_nonzero().item() / len(x)

    return Trainer(step, gradients, l0)


def _gemscope(weights: Weights, target: float, kernel: str | None) -> Trainer:
    from gemscope.training import objective

    own = objective.Weights(
        **{name: (weights[name].T.contiguous() if name == "W_enc" else weights[name].clone()) for name in _NAMES}
    )
    adam = torch.optim.Adam(own.tensors().values(), lr=LR, betas=(0.9, 0.999), fused=True)

    def told(x: Tensor) -> tuple[objective.Step, objective.Weights]:
        with using(kernel):
            terms = objective.Terms(bandwidth=BANDWIDTH, target=target, sparsity=SPARSITY)
            return objective.step(own, x, x, terms)

    def step(x: Tensor) -> None:
        grads = told(x)[1].tensors()
        for name, part in own.tensors().items():
            part.grad = grads[name]
        torch.nn.utils.clip_grad_norm_([own.W_enc, own.b_enc, own.W_dec, own.b_dec], CLIP)
        adam.step()
        adam.zero_grad()
        own.threshold.clamp_(min=0)

    def gradients(x: Tensor) -> Weights:
        found = told(x)[1].tensors()
        return found | {"W_enc": found["W_enc"].T}

    return Trainer(step, gradients, lambda x: told(x)[0].l0)


MADE: dict[str, Callable[[Weights, int, float], Trainer]] = {
    "saelens": _saelens,
    "dense": _dense,
    "gemscope-torch": lambda weights, _, target: _gemscope(weights, target, "torch"),
    "gemscope": lambda weights, _, target: _gemscope(weights, target, None),
}


# --- measuring ------------------------------------------------------------------------------------------------------


def _measured(
    args: argparse.Namespace, size: tuple[int, int, int], names: list[str], l0: float, *, weigh: bool
) -> list[dict[str, Any]]:
    d_model, d_sae, batch = size
    weights, x = _start(d_model, d_sae, batch, l0)
    what = f"{d_model} x {d_sae}, batch {batch}, L0 {l0:g}"
    with torch.no_grad():
        made = {name: MADE[name](weights, batch, l0) for name in names}
        measure.progress(f"{what}: checking")
        _check(made, x)
        tasks = {name: partial(one.step, x) for name, one in made.items()}
        readings = measure.in_turns(tasks, args.rounds, what)
        ended = {name: one.l0(x) for name, one in made.items()}
    del tasks, made
    rows = []
    for name in names:
        row = {"op": "step", "d_model": d_model, "d_sae": d_sae, "tokens": batch, "impl": name}
        row |= {"kernel": kernel_of(name), "l0": l0, "l0_at_the_end": ended[name]}
        row |= measure.summary(readings[name])
        row["tokens_per_s"] = batch / row["median_s"]
        for reference in ("saelens", "dense"):
            both = measure.ratios(readings[name], readings[reference]) if reference in readings else (None, None)
            row[f"ratio_vs_{reference}"], row[f"paired_vs_{reference}"] = both
        row["transient_mb"] = None
        if weigh and measure.can_weigh():
            measure.progress(f"{what}: weighing {name}")
            words = ["--l0", l0, *(["--threads", args.threads] if args.threads else [])]
            row["transient_mb"] = measure.child("train.py", *words, "--weigh", name, d_model, d_sae, batch)
        rows.append(row | {"isa": measure.isa(), "isa_limited": measure.isa_limited()})
    return rows


def _start(d_model: int, d_sae: int, batch: int, l0: float) -> tuple[dict[str, Tensor], Tensor]:
    """Weights whose L0 on the batch is the one wanted, and the batch."""
    weights = {name: part.clone() for name, part in realistic.mapped(realistic.sae_folder(d_model, d_sae)).items()}
    x = realistic.activations(weights["W_dec"], batch)
    weights["threshold"] = realistic.thresholds(weights["W_enc"], weights["b_enc"], x, l0)
    return weights, x


def _weighed(name: str, d_model: int, d_sae: int, batch: int, *, l0: float) -> float:
    """The most that a step takes above weights and Adam's two moments, in MB, gradients and buffers included."""
    weights, x = _start(d_model, d_sae, batch, l0)
    with torch.no_grad():
        small, small_x = _start(64, 256, 64, 10.0)
        MADE[name](small, 64, 10.0).step(small_x)  # libraries make their threads and buffers
        before_any = measure.resident_mb()
        size = sum(part.numel() * part.element_size() for part in weights.values()) / 1e6
        one = MADE[name](weights, batch, l0)
        weights.clear()
        one.step(x)
        # The copy that the trainer made stands in for the weights that were there before.
        return measure.peak_mb(lambda: one.step(x)) - before_any - 2 * size


# --- are the results right? -----------------------------------------------------------------------------------------


def _check(made: Mapping[str, Trainer], x: Tensor) -> None:
    """The gradients of all are those of the first but for rounding; ends the benchmark else.

    An entry so near its threshold that the order of a float32 sum decides may be active for one and not for another:
    1 in 100,000 of the entries, which is 0.3 % of a gradient's length. SAELens's sparsity loss is of every token, not
    of the batch's mean, so its thresholds have another gradient.
    """
    names = list(made)
    reference = {key: part.clone() for key, part in made[names[-1]].gradients(x).items()}
    for name in names[:-1]:
        found = made[name].gradients(x)
        for key, part in found.items():
            if name in PEERS and key == "threshold":
                continue
            error = ((part - reference[key]).norm() / reference[key].norm()).item()
            if not error < 0.01:
                sys.exit(f"train: {key}'s gradient differs by {error:.1e} between {name} and {names[-1]}")


# --- printing -------------------------------------------------------------------------------------------------------


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    tables: dict[str, Table] = {}
    for row in result["rows"]:
        title = f"{row['d_model']} × {row['d_sae']:,}, batch {row['tokens']:,}"
        title += ": one step" if row["op"] == "step" else ": one step against L0"
        if title not in tables:
            names = (Column("L0", no_wrap=True), Column("", no_wrap=True))
            tables[title] = Table(*names, title=title, title_justify="left")
            for heading in (
                "ms",
                "least–most",
                "cpu/wall",
                "tokens/s",
                "× saelens",
                "paired",
                "× dense",
                "paired",
                "MB",
            ):
                tables[title].add_column(heading, justify="right")
        cells = (
            f"{row['median_s'] * 1e3:.1f}",
            f"{row['min_s'] * 1e3:.0f}–{row['max_s'] * 1e3:.0f}",
            f"{row['cpu_per_wall']:.2f}",
            f"{row['tokens_per_s']:,.0f}",
            *(
                "–" if row[key] is None else f"{row[key]:.2f}"
                for key in ("ratio_vs_saelens", "paired_vs_saelens", "ratio_vs_dense", "paired_vs_dense")
            ),
            "–" if row["transient_mb"] is None else f"{row['transient_mb']:.0f}",
        )
        own = row["impl"] == "gemscope"
        l0 = f"{row['l0']:g} → {row['l0_at_the_end']:.1f}"
        tables[title].add_row(l0, row["impl"], *cells, style="bold" if own else None, end_section=own)
    for table in tables.values():
        console.print(table)
    for line in measure.remarks(result, measure.how(result)):
        console.print(line, style="dim", highlight=False)


if __name__ == "__main__":
    main()
