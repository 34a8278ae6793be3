"""The training loop and nothing else: batches in, checkpoints and a log along the way, an SAE out."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemscope.activations.harvest import versions
from gemscope.activations.site import Site
from gemscope.activations.store import Store
from gemscope.errors import CorruptFile, InputError, Mismatch, NotFinite
from gemscope.features.files.saelens import save_sae
from gemscope.features.sae import SAE, SAEInfo
from gemscope.progress import Progress, silent
from gemscope.training import checkpoint
from gemscope.training.config import TrainConfig
from gemscope.training.objective import Step, Weights, reconstruct, step
from gemscope.training.shuffle import Shuffle

_SCALE_ROWS = 65_536
_HELD_OUT_ROWS = 16_384
_LOG_EVERY = 50


def train(
    store: Store | str | Path,
    config: TrainConfig | None = None,
    *,
    to: str | Path,
    site: Site | str | None = None,
    held_out: Store | str | Path | None = None,
    progress: Progress = silent,
) -> SAE:
    """Trains a JumpReLU SAE on a harvest and saves it in `to`/sae, a folder that SAELens reads too.

    A run that was cut off goes on from its last checkpoint when started again with the same store and settings, and
    ends with the same weights as one that was not. `log.jsonl` in `to` holds the loss, L0 and thresholds over time,
    and FVU and L0 on the first rows of `held_out` where one is given. `site` may be left out where the store holds
    only one. Raises InputError, Mismatch, NotFinite, StorageFull.
    """
    config = config or TrainConfig()
    store = store if isinstance(store, Store) else Store(store)
    run = _Run(store, config, Path(to), _only(store, site), held_out)
    for _ in run.steps(progress):
        pass
    sae = run.export()
    save_sae(sae, Path(to) / "sae")
    return sae


def _only(store: Store, site: Site | str | None) -> Site:
    if site is not None:
        return Site.parse(site)
    if len(store.sites) != 1:
        raise InputError(f"{store.folder} holds {', '.join(map(str, store.sites))}: say which with site=...")
    return store.sites[0]


@dataclass
class _Scale:
    """x' = (x − mean) · factor, so that x' has mean 0 and mean squared norm 1."""

    mean: Tensor
    factor: float

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean).mul_(self.factor)


class _Run:
    """One run: its data, its weights, its optimiser."""

    def __init__(
        self, store: Store, config: TrainConfig, to: Path, site: Site, held_out: Store | str | Path | None
    ) -> None:
        self.config, self.to, self.site, self.store = config, to, site, store
        self.rows = store[site]
        self.shuffle = Shuffle(len(self.rows), config.batch, config.seed)
        self.scale = self._measured_scale()
        self.test = self._held_out(held_out)
        self.identity = {
            "config": asdict(config),
            "site": str(site),
            "model": store.manifest.model,
            "corpus_digest": store.manifest.corpus_digest,
            "rows": len(self.rows),
        }
        if len(self.rows) < 2 or not math.isfinite(self.scale.factor):
            raise InputError(f"the {len(self.rows)} rows of {site} in {store.folder} do not vary: nothing to learn")
        self.done = 0
        self.fired_at = torch.zeros(config.width, dtype=torch.int64)
        found = checkpoint.newest(to)
        if found is None:
            self.weights, self.bandwidth = self._fresh()
            self.adam = self._optimizer()
        else:
            try:
                self._resume(*found)
            except KeyError as error:
                raise CorruptFile(f"the checkpoint in {to} lacks {error}: remove it to start over") from error
        self._forget_later_lines()

    # --- the start --------------------------------------------------------------------------------------------

    def _measured_scale(self) -> _Scale:
        generator = torch.Generator().manual_seed(self.config.seed)
        chosen = torch.randperm(len(self.rows), generator=generator)[:_SCALE_ROWS]
        x = self.rows[chosen].double()
        mean = x.mean(0)
        return _Scale(mean.float(), (x - mean).pow(2).sum(-1).mean().rsqrt().item())

    def _held_out(self, store: Store | str | Path | None) -> Tensor | None:
        if store is None:
            return None
        rows = (store if isinstance(store, Store) else Store(store))[self.site]
        if rows.d != self.rows.d:
            raise Mismatch(f"held-out rows of width {rows.d} for a store of width {self.rows.d}")
        return self.scale(rows[slice(0, _HELD_OUT_ROWS)])

    def _fresh(self) -> tuple[Weights, float]:
        """Small tied directions, and one threshold for all that lets `anneal_from · target_l0` features through."""
        config = self.config
        generator = torch.Generator().manual_seed(config.seed)
        W_dec = torch.randn(config.width, self.rows.d, generator=generator)
        W_dec *= config.init_norm / W_dec.norm(dim=-1, keepdim=True)
        z = self.batch(0) @ W_dec.T
        share = min(0.5, config.target_at(0) / config.width)
        threshold = z.flatten()[: 1 << 23].kthvalue(int((1 - share) * min(z.numel(), 1 << 23))).values.clamp(min=1e-6)
        weights = Weights(
            W_enc=W_dec.clone(),
            b_enc=torch.zeros(config.width),
            W_dec=W_dec,
            b_dec=torch.zeros(self.rows.d),
            threshold=threshold.repeat(config.width),
        )
        return weights, 0.5 * z.std().item()

    def _optimizer(self) -> torch.optim.Adam:
        tensors = self.weights.tensors()
        threshold = tensors.pop("threshold")
        groups = [{"params": list(tensors.values())}, {"params": [threshold]}]
        return torch.optim.Adam(groups, lr=self.config.lr, betas=(0.9, 0.999), fused=True)

    def _resume(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        if state.get("identity") != self.identity:
            raise Mismatch(f"{self.to} holds a run with other settings or data: name another folder, or remove it")
        self.weights = Weights(**{name: tensors[name] for name in Weights.__dataclass_fields__})
        self.bandwidth, self.done, self.fired_at = state["bandwidth"], state["step"], tensors["fired_at"]
        self.adam = self._optimizer()
        for name, tensor in self.weights.tensors().items():
            self.adam.state[tensor] = {
                "step": tensors[f"adam.{name}.step"],
                "exp_avg": tensors[f"adam.{name}.exp_avg"],
                "exp_avg_sq": tensors[f"adam.{name}.exp_avg_sq"],
            }

    # --- the way ----------------------------------------------------------------------------------------------

    def batch(self, number: int) -> Tensor:
        """The scaled rows of one step."""
        return self.scale(self.rows[self.shuffle[number]])

    def steps(self, progress: Progress) -> Iterator[Step]:
        """Runs what is left of the run."""
        config = self.config
        with progress(f"train {self.site}", config.rows, "rows") as advance:
            advance(self.done * config.batch)
            while self.done < config.steps:
                told = self._step()
                advance(config.batch)
                self.done += 1
                if self.done % _LOG_EVERY == 0 or self.done == config.steps:
                    self._log(told)
                # After the log, so that the log has every line up to the checkpoint that a run goes on from.
                if self.done % config.checkpoint_every == 0 or self.done == config.steps:
                    self._save()
                yield told

    def _step(self) -> Step:
        config, weights, now = self.config, self.weights, self.done
        told, grads = step(
            weights,
            self.batch(now),
            bandwidth=self.bandwidth,
            target=config.target_at(now),
            sparsity=config.sparsity,
        )
        if not math.isfinite(told.loss):
            raise NotFinite(f"the loss is {told.loss} at step {now} of {config.steps}: try a lower lr than {config.lr}")
        for name, tensor in weights.tensors().items():
            tensor.grad = grads.tensors()[name]
        torch.nn.utils.clip_grad_norm_([weights.W_enc, weights.b_enc, weights.W_dec, weights.b_dec], config.clip)
        self.adam.param_groups[0]["lr"] = config.lr_at(now)
        self.adam.param_groups[1]["lr"] = config.threshold_lr_at(now)
        self.adam.step()
        self.adam.zero_grad()  # or the old gradients would lie beside the new ones
        weights.threshold.clamp_(min=0)
        self.fired_at[told.firings > 0] = now
        weights.threshold[self.silent] *= 0.99
        if now % 25 == 24:
            self._steer_bandwidth(told)
        return told

    @property
    def silent(self) -> Tensor:
        """Features [F] that have not fired for `patience` rows."""
        return self.done - self.fired_at > self.config.patience / self.config.batch

    def _steer_bandwidth(self, told: Step) -> None:
        """Keeps enough entries within ε/2 of their thresholds for the estimate, few enough for it to stay local.

        A fixed ε would not do: the weights grow tenfold during a run and the thresholds fall meanwhile.
        """
        wanted = max(self.config.target_l0, told.l0 / 2)
        self.bandwidth *= 1.15 if told.window < wanted else 1 / 1.15
        # A median of 0 would make ε 0 for good.
        self.bandwidth = min(self.bandwidth, max(1.8 * self.weights.threshold.median().item(), 1e-6))

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {**self.weights.tensors(), "fired_at": self.fired_at}
        for name, tensor in self.weights.tensors().items():
            tensors |= {f"adam.{name}.{part}": value for part, value in self.adam.state[tensor].items()}
        state = {"bandwidth": self.bandwidth, "identity": self.identity, "versions": versions()}
        checkpoint.save(self.to, self.done, tensors, state)

    def _log(self, told: Step) -> None:
        line: dict[str, float | int | str] = {
            "step": self.done,
            "rows": self.done * self.config.batch,
            "time": round(time.time(), 1),
            "loss": told.loss,
            "fvu": told.error,
            "l0": told.l0,
            "target_l0": self.config.target_at(self.done),
            "window": told.window,
            "bandwidth": self.bandwidth,
            "median_threshold": self.weights.threshold.median().item(),
            "silent": int(self.silent.sum()),
        }
        if self.test is not None and (self.done % (10 * _LOG_EVERY) == 0 or self.done == self.config.steps):
            l0, fvu = self._measure(self.test)
            line |= {"held_out_fvu": fvu, "held_out_l0": l0}
        self.to.mkdir(parents=True, exist_ok=True)
        with (self.to / "log.jsonl").open("a") as log:
            log.write(json.dumps({key: round(v, 6) if isinstance(v, float) else v for key, v in line.items()}) + "\n")

    def _forget_later_lines(self) -> None:
        """Drops the log's lines from after the checkpoint: those steps are about to be taken again."""
        path = self.to / "log.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines(keepends=True):
            try:
                if json.loads(line)["step"] > self.done:
                    break
            except (ValueError, KeyError, TypeError):  # cut off in the middle
                break
            kept.append(line)
        aside = path.with_name(".log.jsonl")
        aside.write_text("".join(kept))
        os.replace(aside, path)

    def _measure(self, x: Tensor) -> tuple[float, float]:
        """Mean L0 and FVU on scaled rows."""
        error = fired = 0.0
        for piece in torch.split(x, self.config.batch):
            out, counts = reconstruct(self.weights, piece)
            error += (out - piece).double().pow(2).sum().item()
            fired += counts.sum().item()
        return fired / len(x), error / (x - x.mean(0)).double().pow(2).sum().item()

    # --- the end ----------------------------------------------------------------------------------------------

    def export(self) -> SAE:
        """The SAE in the units of the site: unit decoder rows, scaling and centring folded in, L0 on target."""
        l0 = self._meet_target()
        w, mean, c = self.weights, self.scale.mean.double(), self.scale.factor
        norm = w.W_dec.double().norm(dim=-1).clamp(min=1e-12)
        # x̂ = mean + 1/c (Σ f W_dec + b_dec) with f from z = c (x − mean) W_enc + b_enc; f is counted in units of
        # norm / c from here on.
        sae = SAE(self.rows.d, self.config.width, site=self.site, info=self._info(l0))
        folded = {
            "W_enc": (w.W_enc.double() * norm[:, None]).T,
            "b_enc": (w.b_enc.double() - c * (w.W_enc.double() @ mean)) * norm / c,
            "W_dec": w.W_dec.double() / norm[:, None],
            "b_dec": mean + w.b_dec.double() / c,
            "threshold": w.threshold.double() * norm / c,
        }
        sae.load_state_dict({name: tensor.float().contiguous() for name, tensor in folded.items()})
        return sae

    def _meet_target(self) -> float:
        """Rescales all thresholds by one factor so that L0 on the last rows read is the target; returns that L0.

        No factor does it where most thresholds are 0: then it stays as near as it came.
        """
        target = self.config.target_l0
        count = min(len(self.rows), 1 << 16)
        last = range(max(0, self.config.steps - math.ceil(count / self.config.batch)), self.config.steps)
        x = torch.cat([self.batch(number) for number in last])
        raw = self.weights.threshold.clone()

        def l0_at(factor: float) -> float:
            self.weights.threshold = raw * factor
            return self._l0(x)

        l0, factor = l0_at(1.0), 1.0
        stride = 1.25 if l0 > target else 1 / 1.25
        while (l0 > target) == (stride > 1) and 1 / 64 < factor < 64:
            factor *= stride
            l0 = l0_at(factor)
        low, high = sorted((factor, factor / stride))
        for _ in range(20):
            if abs(l0 - target) < 1e-3 * target:
                break
            middle = math.sqrt(low * high)
            l0 = l0_at(middle)
            low, high = (middle, high) if l0 > target else (low, middle)
        return l0

    def _l0(self, x: Tensor) -> float:
        return sum(
            reconstruct(self.weights, piece)[1].sum().item() for piece in torch.split(x, self.config.batch)
        ) / len(x)

    def _info(self, l0: float) -> SAEInfo:
        manifest = self.store.manifest
        return SAEInfo(
            name=str(self.to),
            model=manifest.model,
            revision=manifest.revision,
            declared_l0=round(l0, 2),
            prepend_bos=False,
            context_size=manifest.length,
            metadata={
                "corpus": manifest.corpus,
                "corpus_digest": manifest.corpus_digest,
                "rows_harvested": len(self.rows),
                "training": asdict(self.config),
                "versions": versions(),
            },
        )
