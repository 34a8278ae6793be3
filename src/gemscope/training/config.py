"""The numbers of a training run."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gemscope.errors import CorruptFile, InputError, NotFound


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A JumpReLU SAE trained towards a target L0.

    The loss, with x' the activations centred and scaled to mean squared norm 1:

        mean ‖x' − x̂'‖² + sparsity · (L0 / L0* − 1)²

    where L0 is the mean over the batch (Rajamanoharan et al. 2024, appendix on target sparsity) and L0* glides from
    `anneal_from · target_l0` to `target_l0` over the first `anneal` of the run: features form densely, then thin out.
    """

    width: int = 6144
    """Features."""
    target_l0: float = 50.0
    """Mean features per token at the end; the thresholds are rescaled after the last step to meet it."""
    rows: int = 12_000_000
    """Rows read over the whole run, epochs together."""
    batch: int = 2048
    lr: float = 1.2e-3
    """Adam's. Higher wins short runs and kills features in long ones."""
    warmup: float = 0.02
    """Share of the run over which the learning rate rises to `lr`."""
    decay: float = 0.25
    """Share of the run, at its end, over which it falls to zero."""
    anneal: float = 0.15
    anneal_from: float = 10.0
    sparsity: float = 1.0
    threshold_lr: float = 8.0
    """The thresholds' learning rate, in units of `lr`, until a quarter of the run is over; it is 1 from 40 % on.
    Pre-activations grow by many weights at once, a threshold by one step at a time: it could not keep up."""
    patience: int = 256_000
    """Rows without firing after which a feature's threshold sinks, by 1 % a step until it fires again. Nothing else
    would bring it back: a threshold's gradient comes from activations close to it, a silent feature's are far below."""
    clip: float = 1.0
    """Largest norm of the weights' gradient; the thresholds' is left out of it, being far larger."""
    init_norm: float = 0.1
    """Norm of the decoder rows at the start. They are free afterwards and folded into the encoder at the end."""
    seed: int = 0
    checkpoint_every: int = 500
    """Steps."""

    def __post_init__(self) -> None:
        for name in ("width", "target_l0", "rows", "batch", "lr", "patience", "checkpoint_every", "init_norm",
                     "anneal_from", "threshold_lr", "clip"):  # fmt: skip
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)}: must be above 0")
        if not 0 <= self.sparsity < math.inf:
            raise InputError(f"sparsity={self.sparsity}: must be 0 or more")
        for name in ("warmup", "decay", "anneal"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)}: must be a share of the run, 0 to 1")
        if self.target_l0 >= self.width:
            raise InputError(f"target_l0={self.target_l0} and width={self.width}: fewer must fire than there are")
        if self.rows < self.batch:
            raise InputError(f"rows={self.rows} and batch={self.batch}: not one step")
        if self.warmup + self.decay > 1:
            raise InputError(f"warmup={self.warmup} and decay={self.decay} are shares of one run: together at most 1")

    @property
    def steps(self) -> int:
        """Batches in the run."""
        return self.rows // self.batch

    @classmethod
    def read(cls, path: str | Path) -> TrainConfig:
        """A recipe from a TOML file's [train] table. Raises NotFound, CorruptFile, InputError."""
        path = Path(path)
        if not path.exists():
            raise NotFound(f"no recipe {path}: expected a TOML file with a [train] table")
        try:
            table = tomllib.loads(path.read_text()).get("train")
        except ValueError as error:
            raise CorruptFile(f"{path} is not TOML: {error}") from error
        if not isinstance(table, dict):
            raise InputError(f"{path} has no [train] table: expected one with the numbers of a run")
        return cls.of(table, where=str(path))

    @classmethod
    def of(cls, table: dict[str, object], *, where: str = "the settings") -> TrainConfig:
        """From plain values. Raises InputError for an unknown name and for what is not a number."""
        known = {field.name: field.type for field in fields(cls)}
        numbers: dict[str, Any] = {}
        for name, value in table.items():
            if name not in known:
                raise InputError(f"{where} has no meaning for {name!r}: known are {', '.join(sorted(known))}")
            whole = known[name] == "int"
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise InputError(f"{name}={value!r} in {where}: expected a {'whole ' if whole else ''}number")
            numbers[name] = value if whole else float(value)
        return cls(**numbers)

    def lr_at(self, step: int) -> float:
        """Learning rate: linear rise, flat, linear fall to zero."""
        done = step / self.steps
        rise = min(1.0, (done + 1 / self.steps) / self.warmup) if self.warmup else 1.0
        fall = min(1.0, (1 - done) / self.decay) if self.decay else 1.0
        return self.lr * min(rise, fall)

    def threshold_lr_at(self, step: int) -> float:
        """The thresholds' own: `threshold_lr` times as much at first, the same as the weights' from 40 % on."""
        done = step / self.steps
        weight = min(1.0, max(0.0, (0.4 - done) / 0.15))
        return self.lr_at(step) * (1 + (self.threshold_lr - 1) * weight)

    def target_at(self, step: int) -> float:
        """L0 aimed at."""
        done = step / self.steps
        left = max(0.0, 1 - done / self.anneal) if self.anneal else 0.0
        return self.target_l0 * (1 + (self.anneal_from - 1) * left)
