"""Whole training runs on a real model's activations: gemscope's default beside the best of SAELens's trainers, on the
same stored rows in the same order, scored by the same `score` on text that neither saw. README.md says what the rows
mean.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import measure
import torch
from torch import Tensor

import gemscope as gs

SITE = "15.res"
HOOK = "blocks.15.hook_resid_post"
TOKENS, HELD_OUT_TOKENS = 400_000, 30_000
SMOKE = {
    "width": 512,
    "rows": 60_000,
    "batch": 256,
    "target_l0": 40.0,
    "tokens": 6_000,
    "held_out": 2_000,
    "scored": 1_000,
}
BARS = {"ratio": 4.0}
"""How many times faster ours shall be, at a held-out FVU and delta loss no worse."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to set up a trainer."""

    name: str
    architecture: str
    lr: float
    batch: int = 1024
    options: dict[str, Any] = field(default_factory=dict)


_STRAIGHT = {"anneal": 0.0}
OWN = (
    Setting(name="jumprelu, lr 1.2e-3", architecture="jumprelu", lr=1.2e-3),
    Setting(name="jumprelu, lr 2.4e-3", architecture="jumprelu", lr=2.4e-3),
    Setting(name="jumprelu, lr 2.4e-3, not annealed", architecture="jumprelu", lr=2.4e-3, options=_STRAIGHT),
    Setting(
        name="jumprelu, lr 2.4e-3, batch 2048, not annealed",
        architecture="jumprelu",
        lr=2.4e-3,
        batch=2048,
        options=_STRAIGHT,
    ),
    Setting(name="batchtopk, lr 2.4e-3, not annealed", architecture="batchtopk", lr=2.4e-3, options=_STRAIGHT),
    Setting(name="batchtopk, lr 4.8e-3, not annealed", architecture="batchtopk", lr=4.8e-3, options=_STRAIGHT),
)
"""What the trial chooses from for gemscope: its default first, and what wins runs of less than three million rows.
Batches are of 1,024 rows unless it says otherwise."""

PEERS = (
    Setting(name="batchtopk, lr 1.2e-3", architecture="batchtopk", lr=1.2e-3),
    Setting(name="batchtopk, lr 2.4e-3", architecture="batchtopk", lr=2.4e-3),
    Setting(name="batchtopk, lr 4.8e-3", architecture="batchtopk", lr=4.8e-3),
    Setting(name="batchtopk, lr 2.4e-3, batch 2048", architecture="batchtopk", lr=2.4e-3, batch=2048),
    Setting(name="jumprelu quadratic, lr 1.2e-3", architecture="jumprelu", lr=1.2e-3),
    Setting(
        name="jumprelu quadratic, lr 2.4e-3, thresholds from 0.2",
        architecture="jumprelu",
        lr=2.4e-3,
        options={"jumprelu_bandwidth": 0.1, "jumprelu_init_threshold": 0.2},
    ),
)
"""The same for SAELens. Its default learning rate, 3e-4, is far too low for runs as short as these, its default batch,
4,096, makes for a quarter of the steps, and its default threshold, 0.01, lets half of all features through; from 0.2
L0 begins near 70."""


def main() -> None:
    """Harvests what is missing, trains, scores, prints. What lies in the folder of work already is not done again."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore", UserWarning)  # a short run of a peer's may miss its target: its row says so
    data = _data(args)
    result = measure.surroundings(("torch", "sae-lens", "gemscope", "gemscope-native"))
    result |= {"site": SITE, "rows_harvested": len(data.train[SITE]), "config": _conditions(args)}
    with torch.no_grad():
        if args.smoke:
            trials, runs = [], [_own(args, data, OWN[0], args.rows)]
        else:
            found = [_best(args, data, one, settings) for one, settings in ((_own, OWN), (_peer, PEERS))]
            trials, runs = [row for tried, _ in found for row in tried], [run for _, run in found]
        scores = _scored(args, data, [args.work / row["folder"] for row in runs])
    result["trials"] = [measure.rounded(row) for row in trials]
    result["rows"] = [measure.rounded(row | score) for row, score in zip(runs, scores, strict=True)]
    if len(runs) == 2:
        own, theirs = result["rows"]
        result["compared"] = measure.rounded(
            {
                "wall_ratio": theirs["wall_s"] / own["wall_s"],
                "cpu_ratio": theirs["cpu_s"] / own["cpu_s"],
                "fvu_difference": own["fvu"] - theirs["fvu"],
                "delta_loss_difference": own["delta_loss"] - theirs["delta_loss"],
            }
        )
    if args.smoke:
        _require_sense(result["rows"][0])
    if args.save:
        measure.progress(f"wrote {measure.save('train_real', result)}")
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        _print(result)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=measure.REPOSITORY / "runs" / "real", help="rows and finished runs"
    )
    parser.add_argument("--width", type=int, default=3072)
    parser.add_argument("--rows", type=int, default=400_000, help="rows that each trains on, epochs together")
    parser.add_argument("--target-l0", type=float, default=50.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="to harvest, where there is no store yet")
    parser.add_argument("--scored", type=int, default=20_000, help="tokens of other documents to score on")
    parser.add_argument("--trial-share", type=int, default=4, help="settings are tried on rows / this")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for both")
    parser.add_argument("--smoke", action="store_true", help="small, without SAELens, on the bundled text")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/train_real.json too")
    args = parser.parse_args()
    args.held_out, args.batch = HELD_OUT_TOKENS, None
    if args.smoke:
        args.__dict__.update(SMOKE)
        args.work = args.work / "smoke"
    args.loss_tokens = min(5_000, args.scored)
    return args


def _conditions(args: argparse.Namespace) -> dict[str, Any]:
    names = ("width", "rows", "target_l0", "seed", "scored", "loss_tokens")
    return {name: getattr(args, name) for name in names}


# --- the rows -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Stored activations, others of other documents, and these documents as text."""

    train: gs.Store
    held_out: gs.Store
    corpus: gs.Corpus

    def tested(self) -> Tensor:
        """All held-out rows."""
        return self.held_out[SITE][:]


def _data(args: argparse.Namespace) -> Data:
    train, held_out = _corpora(args)
    stores = []
    for corpus, name, tokens in ((train, "train", args.tokens), (held_out, "held-out", args.held_out)):
        if not (args.work / name / "manifest.json").exists():
            measure.progress(f"harvesting {tokens:,} tokens to {args.work / name}")
            gs.harvest(gs.load_model("smollm2"), corpus, [SITE], to=args.work / name, tokens=tokens)
        stores.append(gs.Store(args.work / name))
    return Data(*stores, held_out)


def _corpora(args: argparse.Namespace) -> tuple[gs.Corpus, gs.Corpus]:
    """Documents to train on and others: the bundled SAE's own mix; of the bundled text for the smallest run."""
    if args.smoke:
        return gs.Corpus.sample().split(0.2)
    sys.path.insert(0, str(measure.REPOSITORY / "tools"))
    import default_sae

    mix = args.work / "mix.jsonl.gz"
    if not mix.exists():
        texts = [measure.REPOSITORY / "corpora" / f"{name}.jsonl.gz" for name in ("english-permissive", "own-words")]
        if missing := [str(path) for path in texts if not path.exists()]:
            sys.exit(f"train_real: no {' and no '.join(missing)}: run `make corpus own-words` first")
        args.work.mkdir(parents=True, exist_ok=True)
        default_sae.mixed(gs.Corpus.read(texts), mix, 0)
    return gs.Corpus.read(mix).split(default_sae.HELD_OUT)


# --- one run --------------------------------------------------------------------------------------------------------


def _once(
    args: argparse.Namespace, data: Data, made: Callable[[Path], gs.SAE], *, impl: str, setting: str, rows: int
) -> dict[str, Any]:
    """What one run cost and came to; from its folder where it is finished. One that was cut off begins anew, for the
    clock cannot be taken up again.
    """
    plain = "".join(letter if letter.isalnum() else "-" for letter in f"{impl} {setting}")
    folder = f"{plain}-{args.width}-{args.target_l0:g}-{rows}-{args.seed}"
    to = args.work / folder
    note = to / "row.json"
    if note.exists():
        return dict(json.loads(note.read_text()))
    measure.progress(f"training {impl} ({setting}) on {rows:,} rows")
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    wall, cpu = time.perf_counter(), time.process_time()
    sae = made(to)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    trained_l0 = _figures(sae, data.tested())["l0"]
    stored = data.train[SITE]
    _meet(sae, stored[torch.linspace(0, len(stored) - 1, min(len(stored), 1 << 14)).long()], args.target_l0)
    gs.save_sae(sae, to / "scored")
    row = {
        "impl": impl,
        "setting": setting,
        "rows": rows,
        "wall_s": wall,
        "cpu_s": cpu,
        "rows_per_s": rows / wall,
        "l0_as_trained": trained_l0,
        **{f"held_out_{key}": value for key, value in _figures(sae, data.tested()).items()},
        "folder": f"{folder}/scored",
    }
    note.write_text(json.dumps(row, indent=1) + "\n")
    return row


def _best(
    args: argparse.Namespace, data: Data, run: Callable[..., dict[str, Any]], settings: Sequence[Setting]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Short runs of all, and a whole one of the best."""
    trials = [run(args, data, setting, args.rows // args.trial_share) for setting in settings]
    best = min(range(len(trials)), key=lambda place: trials[place]["held_out_fvu"])
    return trials, run(args, data, settings[best], args.rows)


def _own(args: argparse.Namespace, data: Data, setting: Setting, rows: int) -> dict[str, Any]:
    config = gs.TrainConfig.of(
        {
            "architecture": setting.architecture,
            "lr": setting.lr,
            "width": args.width,
            "rows": rows,
            "batch": args.batch or setting.batch,
            "target_l0": args.target_l0,
            "seed": args.seed,
            **setting.options,
        }
    )

    def made(to: Path) -> gs.SAE:
        return gs.train(data.train, config, to=to / "run", site=SITE)

    return _once(args, data, made, impl="gemscope", setting=setting.name, rows=rows)


def _peer(args: argparse.Namespace, data: Data, peer: Setting, rows: int) -> dict[str, Any]:
    def made(to: Path) -> gs.SAE:
        return _saelens(args, data, peer, rows, to)

    return _once(args, data, made, impl="saelens", setting=peer.name, rows=rows)


def _saelens(args: argparse.Namespace, data: Data, peer: Setting, rows: int, to: Path) -> gs.SAE:
    """SAELens's `SAETrainer.fit`, its inference export, and that as an SAE of the activations as they are.

    It is given rows with the mean taken off, in its own scale (mean squared norm d): it has no centring but whitening,
    and would learn this site's mean, as long as all the rest, for most of so short a run.
    """
    import os

    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", WANDB_MODE="disabled")
    from sae_lens import SAETrainer
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    from gemscope.training.fold import Scale
    from gemscope.training.source import StoreSource

    d, batch = data.train[SITE].d, peer.batch
    steps = rows // batch
    batches = StoreSource(data.train, SITE).batches(batch, args.seed)
    unit = Scale.of(batches.sample(1 << 16)[0], (d,))
    scale = replace(unit, factor=unit.factor * math.sqrt(d))

    def provided() -> Iterator[Tensor]:
        for number in range(steps):
            yield scale(batches[number][0])

    torch.manual_seed(args.seed)
    sae = _fresh(args, peer, d)
    settings = SAETrainerConfig(
        total_training_samples=steps * batch,
        train_batch_size_samples=batch,
        lr=peer.lr,
        lr_end=0.0,
        lr_warm_up_steps=max(1, steps // 50),
        lr_decay_steps=steps // 4,
        device="cpu",
        dead_feature_window=max(1, 256_000 // batch),
        logger=LoggingConfig(log_to_wandb=False),
    )
    with torch.enable_grad():
        SAETrainer(settings, sae, data_provider=provided()).fit()
    sae.cfg.metadata.hook_name = HOOK
    (to / "exported").mkdir()
    sae.save_inference_model(to / "exported")
    return _in_units_of_the_site(gs.load_sae(to / "exported"), scale)


def _fresh(args: argparse.Namespace, peer: Setting, d: int) -> Any:
    """SAELens's untrained SAE."""
    import sae_lens

    plain = {
        "d_in": d,
        "d_sae": args.width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        **peer.options,
    }
    if peer.architecture == "batchtopk":
        return sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(**plain, k=args.target_l0))
    config = sae_lens.JumpReLUTrainingSAEConfig(
        **plain, jumprelu_sparsity_loss_mode="quadratic", target_l0=args.target_l0
    )
    return sae_lens.JumpReLUTrainingSAE(config)


def _in_units_of_the_site(sae: gs.SAE, scale: Any) -> gs.SAE:
    """With the scale of the rows that it was trained on folded in."""
    from gemscope.training.fold import folded
    from gemscope.training.weights import Weights

    found = {name: tensor.detach() for name, tensor in sae.state_dict().items()}
    weights = Weights(**{**found, "W_enc": found["W_enc"].T.contiguous()})
    sae.load_state_dict(folded(weights, scale, scale))
    return sae


def _meet(sae: gs.SAE, x: Tensor, target: float) -> None:
    """Multiplies the thresholds so that L0 on these rows is the target's: figures are compared at equal L0."""
    raw = sae.threshold.clone()
    low, high = 1 / 8, 8.0
    for _ in range(20):
        factor = math.sqrt(low * high)
        sae.threshold.copy_(raw * factor)
        l0 = sum(sae.encode(rows).values.numel() for rows in x.split(2048)) / len(x)
        if abs(l0 / target - 1) < 2e-3:
            return
        low, high = (factor, high) if l0 > target else (low, factor)


def _figures(sae: gs.SAE, x: Tensor) -> dict[str, float]:
    """L0, FVU and the shares of dead and dense features on rows as they are."""
    error, counts = 0.0, torch.zeros(sae.d_sae, dtype=torch.int64)
    for rows in x.split(2048):
        features = sae.encode(rows)
        error += (sae.decode(features) - rows).double().pow(2).sum().item()
        counts += torch.bincount(features.features.long(), minlength=sae.d_sae)
    return {
        "l0": counts.sum().item() / len(x),
        "fvu": error / (x - x.mean(0)).double().pow(2).sum().item(),
        "dead": (counts == 0).double().mean().item(),
        "dense": (counts > len(x) / 10).double().mean().item(),
    }


def _scored(args: argparse.Namespace, data: Data, folders: list[Path]) -> list[dict[str, float]]:
    """`score` of all of them, in one reading of the held-out documents."""
    measure.progress(f"scoring on {args.scored:,} tokens")
    model = gs.load_model("smollm2")
    saes = [gs.load_sae(folder, site=SITE) for folder in folders]
    found = gs.compare(model, saes, data.corpus, tokens=args.scored, loss_tokens=args.loss_tokens).scores
    names = ("tokens", "loss_tokens", "l0", "fvu", "delta_loss", "kl", "dead", "dense")
    return [{name: getattr(one, name) for name in names} for one in found]


def _require_sense(row: dict[str, Any]) -> None:
    """Ends the benchmark if training did not do what it is for."""
    if not (row["held_out_fvu"] < 0.6 and abs(row["l0"] / SMOKE["target_l0"] - 1) < 0.25):
        sys.exit(f"train_real: FVU {row['held_out_fvu']} at L0 {row['l0']} after {row['rows']:,} rows")


# --- printing -------------------------------------------------------------------------------------------------------


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    config = result["config"]
    title = f"width {config['width']:,}, {config['rows']:,} rows of {result['rows_harvested']:,} at {SITE}"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("setting", "wall s", "cpu s", "rows/s", "L0", "FVU", "delta loss", "KL", "dead", "dense"):
        table.add_column(heading, justify="left" if heading == "setting" else "right")
    for row in result["rows"]:
        table.add_row(
            row["impl"],
            row["setting"],
            f"{row['wall_s']:.0f}",
            f"{row['cpu_s']:.0f}",
            f"{row['rows_per_s']:,.0f}",
            f"{row['l0']:.1f}",
            f"{row['fvu']:.4f}",
            f"{row['delta_loss']:+.4f}",
            f"{row['kl']:.4f}",
            f"{row['dead']:.2%}",
            f"{row['dense']:.2%}",
        )
    console.print(table)
    for row in result["trials"]:
        console.print(
            f"tried on {row['rows']:,} rows: {row['impl']}, {row['setting']}: FVU {row['held_out_fvu']:.4f} at L0 "
            f"{row['held_out_l0']:.1f} (trained to {row['l0_as_trained']:.1f})",
            highlight=False,
        )
    if compared := result.get("compared"):
        met = (
            compared["wall_ratio"] >= BARS["ratio"]
            and compared["fvu_difference"] <= 0
            and compared["delta_loss_difference"] <= 0
        )
        console.print(f"{compared['wall_ratio']:.1f} times as fast; the bar is {'met' if met else 'missed'}")
    what = f"scored on {config['scored']:,} tokens, {config['loss_tokens']:,} for the losses, of other documents"
    for line in measure.remarks(result, what):
        console.print(line, style="dim", highlight=False)


if __name__ == "__main__":
    main()
