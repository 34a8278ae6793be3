"""The numbers of a training run."""

from __future__ import annotations

import difflib
import math
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta

from gemscope.checked import EXACT, Count, Positive, read_toml, values_of
from gemscope.errors import InputError, NotFound
from gemscope.training.objective import Penalty
from gemscope.training.products import Products

Architecture = Literal["jumprelu", "topk", "batchtopk", "standard", "gated"]
Rise = Literal["linear", "cosine"]

FAR = 0.15
"""An L0 at the end that is further than this share from its target is worth a warning."""

Share = Annotated[float, Meta(ge=0, le=1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]
"""Of a running mean, which learns nothing at 1."""
NotNegative = Annotated[float, Meta(ge=0, le=sys.float_info.max)]
Above0 = Annotated[float, Meta(gt=0, le=sys.float_info.max)]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train and how. The loss is in `objective.py`; x' there is the activations centred and scaled to mean
    squared norm 1, which is folded into the weights at the end.
    """

    architecture: Architecture = "jumprelu"
    """`batchtopk` is exported as a JumpReLU SAE with one calibrated threshold, `gated` as one with a threshold each."""
    penalty: Penalty | None = None
    """What makes features rare; `target` unless said for jumprelu, `l1` for standard and gated. The gates that count
    (topk, batchtopk) need none."""
    width: Positive = 6144
    """Features."""
    target_l0: Above0 = 50.0
    """Mean features per token at the end (k of topk and batchtopk); the thresholds are rescaled after the last step to
    meet it. Penalties other than `target` and `quadratic` do not know it: λ alone decides, nothing is rescaled."""
    rows: Positive = 12_000_000
    """Rows read over the whole run, epochs together."""
    batch: Positive = 1024
    """Rows a step. On a CPU fewer rows for more steps take the same time, down to about 1,024."""
    matryoshka: tuple[Annotated[float, Meta(gt=0, lt=1)], ...] = ()
    """Shares of the features that make up the inner prefixes, such as (0.03125, 0.0625, 0.125, 0.25, 0.5)."""
    skip: bool = False
    """Whether an affine map beside the features carries x straight to y: for transcoders."""
    lr: Above0 = 1.2e-3
    """Adam's. Higher wins short runs and kills features in long ones."""
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    warmup: Share = 0.02
    """Share of the run over which the learning rate rises to `lr`."""
    warmup_shape: Rise = "linear"
    """`cosine` begins at a tenth of `lr`, as Gemma Scope's does."""
    decay: Share = 0.25
    """Share of the run, at its end, over which it falls to zero."""
    anneal: Share = 0.1
    """Share of the run over which the target falls from `anneal_from` times as much, by the same factor at each step:
    features form densely, then thin out."""
    anneal_from: Above0 = 10.0
    sparsity: NotNegative = 1.0
    """λ."""
    sparsity_warmup: Share = 0.0
    """Share of the run over which λ rises from 0."""
    frequency: NotNegative = 0.0
    """Weight of a penalty on features that fire on more than `frequency_limit` of the rows, for jumprelu: 0.2 leaves
    next to none of them, for a little FVU. 0: none."""
    frequency_limit: Share = 0.1
    """While the target is annealed, as many times more as the target is."""
    threshold_lr: NotNegative = 0.0
    """The thresholds' learning rate, in units of `lr`, until a quarter of the run is over; it is 1 from 40 % on. 0: a
    third of √d. Adam moves every weight by about `lr`, so that one step moves a pre-activation on d inputs by up to √d
    of that, and a threshold by `lr` alone: it could not keep up."""
    threshold_init: NotNegative = 0.0
    """Thresholds at the start; 0: what lets `anneal_from · target_l0` features through."""
    bandwidth: NotNegative = 0.0
    """ε; 0: half the pre-activations' spread at the start, and steered from there on."""
    to_input: bool = False
    """Whether the thresholds' pseudo-derivatives flow into the encoder too, as Anthropic has it."""
    pre_bias: bool = False
    """Whether b_dec is taken off x before it is encoded."""
    centre: bool = True
    """Whether the mean is taken off x and y; Gemma Scope only scales."""
    unit_norm: bool = False
    """Whether decoder rows keep norm 1 through the run, gradients along them taken out. They are free otherwise."""
    init_norm: Above0 = 0.1
    """Norm of the decoder rows at the start."""
    patience: Count = 0
    """Rows without firing after which a feature counts as silent; 0: a fiftieth of the run, ten batches at least. Of
    JumpReLU SAEs its threshold then sinks, by 1 % a step, and its bias rises, by `lr` a step, until it fires again: a
    threshold's gradient comes from activations close to it, a silent feature's are far below."""
    auxiliary: NotNegative | None = None
    """Weight of the silent features' own loss (AuxK). 1/32 unless said, and 0 for standard and gated."""
    resample: Count = 0
    """Rows after which, again and again in the first half of a run, silent features are begun anew from badly explained
    rows (Bricken et al. 2023); 0: never."""
    products: Literal["float32", "bfloat16"] | None = None
    """What a step multiplies; float32 unless said. With bfloat16 rows and weights are rounded for the products alone,
    which a GPU takes several times as fast: sums, weights and Adam's memory stay in float32. On a processor it is no
    faster.
    """
    clip: Above0 = 0.01
    """Largest norm of the weights' gradient; the thresholds' is left out of it, being far larger. Nearly every step's
    is longer, so that all weigh the same in Adam's memory: the first ones, several times as long, would hold back the
    next thousand steps."""
    seed: Annotated[int, Meta(ge=-EXACT, le=EXACT)] = 0
    """Of the weights and of the order of the rows."""
    checkpoint_every: Positive = 500
    """Steps."""
    keep: Positive = 1
    """Checkpoints that stay on disk."""
    log_every: Positive = 50
    """Steps."""
    held_out_rows: Positive = 16_384
    """Held-out rows, at most, that are looked at on the way."""

    def __post_init__(self) -> None:
        vars(self).update(values_of(type(self), vars(self), where="the settings"))
        self._require_sense()

    def _require_sense(self) -> None:
        """Refuses what cannot go together, naming both."""
        if self.target_l0 >= self.width:
            raise InputError(f"target_l0={self.target_l0} and width={self.width}: fewer must fire than there are")
        if self.architecture == "topk" and self.target_l0 != round(self.target_l0):
            raise InputError(f"target_l0={self.target_l0} and architecture='topk': k is a whole number")
        if self.rows < self.batch:
            raise InputError(f"rows={self.rows} and batch={self.batch}: not one step")
        if self.warmup + self.decay > 1:
            raise InputError(f"warmup={self.warmup} and decay={self.decay} are shares of one run: together at most 1")
        fitting = _PENALTIES[self.architecture]
        if self.penalty is not None and self.penalty not in fitting:
            raise InputError(
                f"penalty={self.penalty!r} and architecture={self.architecture!r}: expected {' or '.join(fitting)}"
            )
        for name in ("to_input", "threshold_init", "bandwidth", "frequency"):
            if getattr(self, name) and self.architecture != "jumprelu":
                raise InputError(
                    f"{name}={_plain(getattr(self, name))} and architecture={self.architecture!r}: it has no "
                    "thresholds to learn"
                )
        if self.resample and self.architecture != "standard":
            raise InputError(
                f"resample={self.resample} and architecture={self.architecture!r}: only standard SAEs are; silent "
                "features of others are brought back by patience and auxiliary"
            )
        if list(self.prefixes) != sorted({0, *self.prefixes} - {0}):
            raise InputError(
                f"matryoshka={list(self.matryoshka)} with width={self.width}: expected ascending shares below 1, "
                "each of at least one feature more"
            )
        for name in ("matryoshka", "pre_bias", "auxiliary"):
            if self.architecture == "gated" and getattr(self, name):
                raise InputError(
                    f"{name}={_plain(getattr(self, name))} and architecture='gated': it goes without; take jumprelu "
                    "or batchtopk"
                )
        if self.architecture == "gated" and self.products == "bfloat16":
            raise InputError("products='bfloat16' and architecture='gated': it is trained in float32; take jumprelu")

    @property
    def penalised(self) -> Penalty:
        """The penalty in force."""
        return self.penalty or _PENALTIES[self.architecture][0]

    @property
    def revival(self) -> float:
        """The weight of the silent features' own loss in force."""
        if self.auxiliary is None:
            return 1 / 32 if self.architecture in ("jumprelu", "topk", "batchtopk") else 0.0
        return self.auxiliary

    @property
    def multiplied(self) -> Products:
        """The products in force."""
        return Products(torch.bfloat16 if self.products == "bfloat16" else torch.float32)

    @property
    def meets_target(self) -> bool:
        """Whether `target_l0` is aimed at, so that the end can be measured by it."""
        return self.architecture in ("topk", "batchtopk") or self.penalised in ("target", "quadratic")

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Ends of the Matryoshka prefixes, all features last; empty for none."""
        return (*(round(share * self.width) for share in self.matryoshka), self.width) if self.matryoshka else ()

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
        table = read_toml(path, dict[str, Any]).get("train")
        if not isinstance(table, dict):
            raise InputError(f"{path} has no [train] table: expected one with the numbers of a run")
        return cls.of(table, where=str(path))

    @classmethod
    def of(cls, table: dict[str, object], *, where: str = "the settings") -> TrainConfig:
        """From plain values. Raises InputError for an unknown name, with the nearest known one, and for a value of
        another kind.
        """
        known = [field.name for field in fields(cls)]
        for name in table:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
                raise InputError(f"{where} has no meaning for {name!r}: {hint}")
        if isinstance(share := table.get("matryoshka"), float):  # one of a sweep's
            table = {**table, "matryoshka": [share]}
        return cls(**values_of(cls, table, where=where))

    def changed(self, table: dict[str, object], *, where: str = "the settings") -> TrainConfig:
        """With some values in the place of its own. Raises what `of` raises."""
        return type(self).of({**self.to_dict(), **table}, where=where)

    def to_dict(self) -> dict[str, object]:
        """As a recipe has it: what is None is left out."""
        plain = {**asdict(self), "matryoshka": list(self.matryoshka)}
        return {name: value for name, value in plain.items() if value is not None}

    def lr_at(self, step: int) -> float:
        """Learning rate: rise, flat, linear fall to zero."""
        done = step / self.steps
        rise = min(1.0, (done + 1 / self.steps) / self.warmup) if self.warmup else 1.0
        if self.warmup_shape == "cosine" and rise < 1:
            rise = 1 - 0.9 * (1 + math.cos(math.pi * rise)) / 2
        fall = min(1.0, (1 - done) / self.decay) if self.decay else 1.0
        return self.lr * min(rise, fall)

    def threshold_lr_at(self, step: int, d: int) -> float:
        """The thresholds' own, where rows have d numbers: `threshold_lr` times as much at first, the same as the
        weights' from 40 % on.
        """
        done = step / self.steps
        weight = min(1.0, max(0.0, (0.4 - done) / 0.15))
        first = self.threshold_lr or max(1.0, math.sqrt(d) / 3)
        return self.lr_at(step) * (1 + (first - 1) * weight)

    def target_at(self, step: int) -> float:
        """L0 aimed at."""
        done = step / self.steps
        left = max(0.0, 1 - done / self.anneal) if self.anneal else 0.0
        return max(self.target_l0, min(self.target_l0 * math.pow(self.anneal_from, left), self.width / 2))

    def frequency_limit_at(self, step: int) -> float:
        """Share of rows that a feature may fire on for nothing: as many times the last one as the target is then, or
        the hinge would work against the annealing.
        """
        return min(1.0, self.frequency_limit * self.target_at(step) / self.target_l0)

    def sparsity_at(self, step: int) -> float:
        """λ."""
        done = (step + 1) / self.steps
        return self.sparsity * (min(1.0, done / self.sparsity_warmup) if self.sparsity_warmup else 1.0)


_PENALTIES: dict[str, tuple[Penalty, ...]] = {
    "jumprelu": ("target", "l0", "quadratic", "tanh"),
    "topk": ("none",),
    "batchtopk": ("none",),
    "standard": ("l1", "tanh"),
    "gated": ("l1",),
}
"""What goes with each architecture, its own first."""


def _plain(value: object) -> str:
    """As a recipe has it."""
    return str(list(value) if isinstance(value, tuple) else value).lower()
