"""The training loop and nothing else: batches in, checkpoints and a log along the way. Several runs may share it."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemscope.activations.harvest import versions
from gemscope.activations.suited import other_format
from gemscope.checked import checksum_of, declared
from gemscope.disk import aside_of
from gemscope.errors import CorruptFile, InputError, Mismatch
from gemscope.features.crosscoder import Crosscoder
from gemscope.features.files.crosscoder import load_crosscoder, save_crosscoder
from gemscope.features.files.saving import save_sae
from gemscope.features.load import load_sae
from gemscope.features.sae import SAE
from gemscope.progress import Progress
from gemscope.training import checkpoint
from gemscope.training.config import FAR, TrainConfig
from gemscope.training.delivery import Delivered
from gemscope.training.fold import Scale
from gemscope.training.group import ALONE, Group
from gemscope.training.log import Log, Watch, unwatched
from gemscope.training.objective import Step
from gemscope.training.outcome import figures_of, sae_of, write_figures
from gemscope.training.run import Run, Saved, require_variation
from gemscope.training.source import Source, StoreSource, StreamSource

RUN = "run"
"""What is claimed in a run's folder: who trains there writes all of it."""

_SCALE_ROWS = 65_536

_LAST_ROWS = 65_536
"""Rows that thresholds are set by at the end."""

_PROCESSOR = torch.device("cpu")

_RUNAWAY = 1.0
"""A spread (see `Run.spread`) above this is worth a warning: a single feature writes as much as there is to write."""


class Lesson:
    """Runs that share one reading of the rows. Of several ranks each reads all rows, from what the first one to ask has
    left in the memory of its machine, or computes its share of a stream and is given the others'; the first rank alone
    writes, but for checkpoints, and speaks.
    """

    def __init__(
        self,
        source: Source,
        configs: Mapping[str, TrainConfig],
        to: Path,
        held_out: Source | None = None,
        log: Sequence[str] = (),
        *,
        watch: Watch = unwatched,
        device: torch.device = _PROCESSOR,
        group: Group = ALONE,
    ) -> None:
        self.source, self.watch, self.device, self.group = source, watch, device, group
        self.config = next(iter(configs.values()))
        self._last = math.ceil(min(self.config.rows, _LAST_ROWS) / self.config.batch)
        if group.size > 1:
            group.require_same(self._named(configs), _difference)
            self.source = source = source.among(group) if isinstance(source, StreamSource) else source
        batches = source.batches(self.config.batch, self.config.seed)
        self.batches = Delivered(batches, device, self.config.steps + self._last)
        self.x, self.y, self.variance = self._scales()
        self._there = self.x.to(device), self.y.to(device)
        self.test = self._held_out(held_out)
        same = source.reads == source.writes
        for config in configs.values():
            _require_fit(config, same)
            if group.size > 1:
                _require_shared(config, group.size, source)
        self.runs: dict[str, Run] = {}
        self.folders = {name: to / name for name in configs}
        for name, config in configs.items():
            self.runs[name] = self._started(name, Run(config, self.x, self.y, same=same, device=device, group=group))
        self.logs = {
            name: Log(self.folders[name], run.done, rows=run.done * self.config.batch, also=log, writes=group.first)
            for name, run in self.runs.items()
        }
        self._ran_away: set[str] = set()

    # --- the start --------------------------------------------------------------------------------------------

    def _scales(self) -> tuple[Scale, Scale, float]:
        """Of either side, and the mean squared distance of scaled y from its mean (1 where it is centred)."""
        x, y = self.batches.sample(_SCALE_ROWS)
        reads, writes = self.source.widths
        where = ", ".join(map(str, self.source.reads))
        if len(x) < 2:
            raise InputError(f"the {len(x)} rows of {where} do not vary: nothing to learn")
        inward = Scale.of(x, reads, centre=self.config.centre)
        outward = inward if y is x else Scale.of(y, writes, centre=self.config.centre)
        for scale in (inward, outward):
            require_variation(scale, where)
        return inward, outward, max(1e-12, 1 - outward(y).double().mean(0).pow(2).sum().item())

    def _held_out(self, source: Source | None) -> tuple[Tensor, Tensor] | None:
        self.held_out_facts: Mapping[str, Any] = {} if source is None else source.facts
        if source is None:
            return None
        if not isinstance(source, StoreSource):
            raise InputError("held-out rows must lie in a store: harvest some text that is not trained on")
        x, y = source.rows(slice(0, self.config.held_out_rows))
        there = x.to(self.device).float()
        return self._scaled(there, there if y is x else y.to(self.device).float())

    def _started(self, name: str, run: Run) -> Run:
        found = checkpoint.newest(self.folders[name], run.deal)
        if found is None:
            run.begin(self._scaled(*self.batches[0])[0])
            return run
        tensors, said = found
        try:
            state = declared(said, Saved, where="state.json")
        except CorruptFile as error:
            raise checkpoint.damaged(self.folders[name], error) from error
        if state.identity != self._identity(run.config):
            raise Mismatch(
                f"{self.folders[name]} holds a run with other settings or data "
                f"({_difference(state.identity, self._identity(run.config))}): name another folder, or remove it"
            )
        try:
            run.restore(state, tensors)
        except CorruptFile as error:
            raise checkpoint.damaged(self.folders[name], error) from error
        self.group.barrier()  # all have read it
        if self.group.first:
            checkpoint.rotate(self.folders[name], run.config.keep)
        return run

    def _named(self, configs: Mapping[str, TrainConfig]) -> dict[str, Any]:
        """What ranks must have alike, in one table."""
        first, *others = (config.to_dict() for config in configs.values())
        source = self.source
        shards = source.store.manifest.shards if isinstance(source, StoreSource) else {}
        files = checksum_of({}, {site: [shard.sha256 for shard in found] for site, found in shards.items()})
        return {"config": first, **source.identity, **versions(), "files": files, "beside": list(configs), "of": others}

    def _identity(self, config: TrainConfig) -> dict[str, Any]:
        return {"config": config.to_dict(), **self.source.identity}

    # --- the way ----------------------------------------------------------------------------------------------

    def _scaled(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        inward, outward = self._there
        scaled = inward(x)
        return scaled, (scaled if y is x else outward(y))

    def steps(self, progress: Progress) -> Iterator[dict[str, Step]]:
        """Runs what is left of the runs."""
        config = self.config
        begun = min(run.done for run in self.runs.values())
        sites = ", ".join(map(str, self.source.reads))
        with progress(f"train {sites}", config.rows, "rows") as advance:
            advance(begun * config.batch)
            for number in range(begun, config.steps):
                x, y = self._scaled(*self.batches[number])
                # After a crash one run may be a checkpoint ahead of another.
                told = {name: run.advance(x, y) for name, run in self.runs.items() if run.done == number}
                advance(config.batch)
                for name, one in told.items():
                    self._note(name, one, x)
                yield told

    def _note(self, name: str, told: Step, x: Tensor) -> None:
        run = self.runs[name]
        last = run.done == run.config.steps
        if run.done % run.config.log_every == 0 or last:
            self._log(name, run, told, x, last)
        # After the log, so that the log has every line up to the checkpoint that a run goes on from.
        if run.done % run.config.checkpoint_every == 0 or last:
            tensors, state = run.state()
            state |= {"identity": self._identity(run.config), "versions": versions()}
            checkpoint.save(self.folders[name], run.done, tensors, state, keep=run.config.keep, group=self.group)

    def _log(self, name: str, run: Run, told: Step, x: Tensor, last: bool) -> None:
        config, spread = run.config, run.spread(x)
        line: dict[str, float | int] = {
            "step": run.done,
            "rows": run.done * config.batch,
            "loss": told.loss,
            "error": told.error,
            "penalty": told.penalty,
            "auxiliary": told.auxiliary,
            "fvu": told.error / self.variance,
            "l0": told.l0,
            "target_l0": config.target_at(run.done),
            "sparsity": config.sparsity_at(run.done - 1),
            "lr": config.lr_at(run.done - 1),
            "grad_norm": run.grad_norm,
            "clipped": run.clipped / run.done,
            "silent": run.deal.whole(run.silent).double().mean().item(),
            "dense": (run.deal.whole(told.firings) > len(x) / 10).double().mean().item(),
            "spread": spread,
        }
        if config.architecture in ("jumprelu", "batchtopk"):
            line["median_threshold"] = run.deal.whole(run.weights.threshold).median().item()
        if config.architecture == "jumprelu":
            line |= {"window": told.window, "bandwidth": run.bandwidth}
        if self.test is not None and (run.done % (10 * config.log_every) == 0 or last):
            fvu, firings = run.measured(*self.test)
            line |= {"held_out_fvu": fvu, "held_out_l0": firings.l0}
            line |= {"held_out_dead": firings.dead, "held_out_dense": firings.dense}
        if self.group.size > 1:
            line |= {"world": self.group.size, "held": run.deal.most}
        speed = self.logs[name].write(line)
        if not self.group.first:
            return
        self.watch(name, {**line, "rows_per_second": speed})
        if spread > _RUNAWAY and name not in self._ran_away:
            self._ran_away.add(name)
            warnings.warn(
                f"{self.folders[name]}: pre-activations run away (spread {spread:.2g} at step {run.done}, 1 is as much "
                "as there is to explain): try a lower lr" + (", or to_input=false" if config.to_input else ""),
                stacklevel=6,
            )

    # --- the end ----------------------------------------------------------------------------------------------

    def saes(self) -> dict[str, SAE | Crosscoder]:
        """The SAEs in the units of the site: unit decoder rows, scaling and centring folded in, L0 on target."""
        out: dict[str, SAE | Crosscoder] = {}
        x, y = self._rows_for_the_end()
        for name, run in self.runs.items():
            before = run.l0(x)
            l0 = run.meet_target(x)
            target = run.config.target_l0
            if self.group.first and run.config.meets_target and abs(l0 / target - 1) > FAR:
                warnings.warn(
                    f"{self.folders[name]}: L0 {l0:.1f} at the end, {target:g} was aimed at; train longer, or look at "
                    "the thresholds in its log",
                    stacklevel=4,
                )
            parts, folder = aside_of(self.folders[name] / RUN) / "parts", self.folders[name] / "sae"
            sae = sae_of(run, self.source, str(self.folders[name]), l0, parts)
            figures = {"l0_as_trained": before, "training": figures_of(run, x, y)}
            if self.test is not None:
                figures["held_out"] = figures_of(run, *self.test)
            alone = len(self.source.reads) == 1
            if sae is not None:
                if alone:
                    out[name] = sae
                    save_sae(sae, folder)
                else:
                    out[name] = several = Crosscoder(sae, self.source.reads, self.x.widths, self.x.lengths)
                    save_crosscoder(several, folder)
                shutil.rmtree(parts, ignore_errors=True)
                write_figures(self.folders[name], run, self.source, self.held_out_facts, figures)
            self.group.barrier()
            self.logs[name].close()
            run.adam.state.clear()  # as much as two SAEs: it is over
            if self.group.size > 1:  # mapped from the disk: it may be too wide for a device, and for memory
                out[name] = load_sae(folder, device="cpu") if alone else load_crosscoder(folder, device="cpu")
            elif sae is not None:
                sae.to(self.device)
        return out

    def _rows_for_the_end(self) -> tuple[Tensor, Tensor]:
        """Rows that thresholds are set by, scaled: those that would come next, for a stream does not run backwards."""
        steps = self.config.steps
        pairs = [self._scaled(*self.batches[number]) for number in range(steps, steps + self._last)]
        x = torch.cat([x for x, _ in pairs])
        return x, (x if self.source.reads == self.source.writes else torch.cat([y for _, y in pairs]))


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What changed, in few words."""
    flat = []
    for one in (before, now):
        config = one.get("config")
        flat.append({**one, **(config if isinstance(config, Mapping) else {})})
        flat[-1].pop("config", None)
    keys = [key for key in flat[1] | flat[0] if flat[0].get(key) != flat[1].get(key)]
    return ", ".join(
        f"another {other_format(flat[0].get(key), flat[1].get(key))}"
        if key == "model_dtype"
        else f"{key} was {flat[0].get(key)} and is {flat[1].get(key)}"
        for key in keys[:3]
    )


def _require_shared(config: TrainConfig, ranks: int, source: Source) -> None:
    """Raises InputError for what several ranks do not train."""
    if config.width < ranks:
        raise InputError(f"width={config.width} on {ranks} ranks: at least a feature each is needed")
    if not isinstance(source, StoreSource | StreamSource):
        raise InputError(f"a {type(source).__name__} on {ranks} ranks: they share the rows of a store or of a model")


def _require_fit(config: TrainConfig, same: bool) -> None:
    """Raises InputError for settings that do not go with what is read and written; `same`: it writes what it reads."""
    if same and config.skip:
        raise InputError(
            "skip=true with an SAE that writes what it reads: x itself would pass; give writes=, or leave it"
        )
    if not same and config.pre_bias:
        raise InputError("pre_bias=true with a transcoder: its decoder's bias is of what it writes, not of x")
    if not same and config.architecture == "topk":
        raise InputError("architecture='topk' with a transcoder: no file format has that; take batchtopk")
