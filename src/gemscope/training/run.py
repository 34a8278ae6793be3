"""One SAE in training: its weights, its optimiser, what it remembers from step to step. Who feeds it batches, when it
is saved and what is written down, `train.py` knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor

from gemscope.checked import Count, Form, Positive, require_forms
from gemscope.errors import CorruptFile, InputError, NotFinite
from gemscope.features.kernels.choice import choose
from gemscope.features.metrics import Firings
from gemscope.training.config import TrainConfig
from gemscope.training.deal import Deal
from gemscope.training.fold import Scale
from gemscope.training.gated import GatedWeights, gated_step
from gemscope.training.group import ALONE, Group
from gemscope.training.objective import Gate, Step, Terms, step
from gemscope.training.weights import Weights, active, alike, cut, lengths, reconstruct

_GATES: Mapping[str, Gate] = {"jumprelu": "jumprelu", "topk": "topk", "batchtopk": "batchtopk", "standard": "relu"}
_ROWS = 2048
"""Rows that are measured at a time."""
_FIRST = 1 << 28
"""Entries of the first batch, at most, that thresholds begin by: a gigabyte."""
_PROCESSOR = torch.device("cpu")
_BLOCK = 4096
"""Features whose first directions are thrown at a time: no rank holds those of all."""
_COUNTED = 1 << 24
"""Steps that Adam counts, in float32."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a checkpoint says of a run, tensors apart."""

    step: Positive
    bandwidth: Annotated[float, Meta(ge=0, le=1e30)]
    clipped: Count
    identity: Mapping[str, Any]
    """Settings and rows: a run goes on with the same alone."""


class Run:
    """Fresh weights, or those of a checkpoint; one `advance` a batch. Of several ranks each has its share of the
    features (`deal`), and all of them take each step, and ask each question, together.
    """

    def __init__(
        self,
        config: TrainConfig,
        x: Scale,
        y: Scale,
        *,
        same: bool,
        device: torch.device = _PROCESSOR,
        group: Group = ALONE,
    ) -> None:
        """`same`: what it writes is what it reads, so that encoder and decoder begin as one. Weights, and all that is
        remembered of them, lie on `device`, as the rows do that `advance` is given.
        """
        self.config, self.x, self.y, self.same, self.device = config, x, y, same, device
        self.deal, self.group = Deal(config.width, group), group
        self.done = 0
        self.bandwidth = config.bandwidth
        self.clipped = 0
        """Steps whose gradient was longer than `clip`."""
        self.grad_norm = 0.0
        """Of the last step's gradient, before that."""
        self.fired_at = torch.zeros(self.deal.held, dtype=torch.int64, device=device)
        self.weights: Weights
        self.adam: torch.optim.Adam

    # --- the start --------------------------------------------------------------------------------------------

    def begin(self, x: Tensor) -> None:
        """Small random directions, and one threshold for all that lets `anneal_from · target_l0` features through, by
        the scaled rows of the first batch.
        """
        config = self.config
        generator = torch.Generator().manual_seed(config.seed)
        W_enc = self._thrown(x.shape[1], generator)
        W_enc *= (1.0 if config.unit_norm else config.init_norm) / W_enc.norm(dim=-1, keepdim=True)
        # The dice are a processor's, wherever the weights go: every device begins alike.
        W_enc = W_enc.to(self.device)
        z = x[: max(1, _FIRST // config.width)] @ W_enc.T
        writes = len(self.y.mean)
        self.weights = Weights(
            W_enc=W_enc,
            b_enc=torch.zeros(self.deal.held, device=self.device),
            W_dec=W_enc.clone() if self.same else self._first_decoder(generator).to(self.device),
            b_dec=torch.zeros(writes, device=self.device),
            threshold=self._first_threshold(z).repeat(self.deal.held),
            W_skip=torch.zeros(writes, x.shape[1], device=self.device) if config.skip else None,
        )
        if config.architecture == "gated":
            self.weights = GatedWeights.of(self.weights)
        self.bandwidth = config.bandwidth or 0.5 * self._deviation(z)
        self.adam = self._optimizer()

    def _thrown(self, width: int, generator: torch.Generator) -> Tensor:
        """Normal numbers [F, width], of which each rank keeps its features': the same dice for any number of ranks."""
        parts, start, count = [], 0, self.config.width
        while start < count:
            # None is so short that torch would throw it in another way than a long one.
            size = _BLOCK if count - start >= 2 * _BLOCK else count - start
            block = torch.randn(size, width, generator=generator)
            parts.append(block if self.group.size == 1 else self.deal.mine(block, start).clone())
            start += size
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _deviation(self, z: Tensor) -> float:
        """The standard deviation of all ranks' entries."""
        mine = z.new_tensor([len(z) * z.shape[1], z.mean().item(), z.std().item()], dtype=torch.float64)
        n, mean, std = torch.stack(self.group.gather(mine, even=True)).T if self.group.size > 1 else mine[:, None]
        share = n / n.sum()
        return float((share * (std**2 + (mean - (share * mean).sum()) ** 2)).sum().sqrt())

    def _first_decoder(self, generator: torch.Generator) -> Tensor:
        """Of a transcoder: nothing to begin with, unless rows must have norm 1."""
        if not self.config.unit_norm:
            return torch.zeros(self.deal.held, len(self.y.mean))
        rows = self._thrown(len(self.y.mean), generator)
        rows /= rows.norm(dim=-1, keepdim=True)
        return rows

    def _first_threshold(self, z: Tensor) -> Tensor:
        config = self.config
        if config.architecture in ("standard", "gated", "topk"):
            return torch.zeros(1, device=self.device)
        if config.threshold_init:
            return torch.full((1,), config.threshold_init, device=self.device)
        share = min(0.5, config.target_at(0) / config.width)
        count = min(len(z) * config.width, 1 << 23)
        rows, rest = divmod(count, config.width)
        mine = z.flatten()[: rows * self.deal.held + self.deal.of_first(rest)]
        found = self.group.largest(mine, count - int((1 - share) * count) + 1)
        assert found is not None
        return torch.full((1,), found, device=self.device).clamp(min=1e-6)

    def _optimizer(self) -> torch.optim.Adam:
        tensors = self.weights.tensors()
        threshold = tensors.pop("threshold")
        groups = [{"params": list(tensors.values())}, {"params": [threshold]}]
        betas = (self.config.beta1, self.config.beta2)
        return torch.optim.Adam(groups, lr=self.config.lr, betas=betas, fused=True)

    # --- a step -----------------------------------------------------------------------------------------------

    def advance(self, x: Tensor, y: Tensor) -> Step:
        """One step on scaled rows. Raises NotFinite."""
        config, weights, now = self.config, self.weights, self.done
        told, grads = self._gradients(x, y)
        if not math.isfinite(told.loss):
            raise NotFinite(f"the loss is {told.loss} at step {now} of {config.steps}: try a lower lr than {config.lr}")
        if config.unit_norm:
            along = (grads.W_dec * weights.W_dec).sum(-1, keepdim=True)
            grads.W_dec.sub_(along * weights.W_dec)
        learned = weights.tensors()
        for name, gradient in grads.tensors().items():
            learned[name].grad = gradient
        self.grad_norm = self._clip({name: one for name, one in grads.tensors().items() if name != "threshold"})
        if not math.isfinite(self.grad_norm):  # the loss may be finite yet, and weights of NaN let nothing fire
            raise NotFinite(
                f"the gradient is {self.grad_norm} at step {now} of {config.steps}: try a lower lr than {config.lr}"
            )
        self.clipped += self.grad_norm > config.clip
        learns = config.architecture == "jumprelu"
        if not learns:
            weights.threshold.grad = None
        self.adam.param_groups[0]["lr"] = config.lr_at(now)
        self.adam.param_groups[1]["lr"] = config.threshold_lr_at(now, x.shape[1])
        self.adam.step()
        self.adam.zero_grad()  # or the old gradients would lie beside the new ones
        if config.unit_norm:
            weights.W_dec.div_(weights.W_dec.norm(dim=-1, keepdim=True).clamp(min=1e-12))
        self.fired_at.masked_fill_(told.firings > 0, now)
        if learns:
            weights.threshold.clamp_(min=0)
            # Long runs push z below 0 on every row, where no threshold lets it pass. By masks: a GPU is waited for to
            # learn how many a list of them has.
            silent = self.silent
            weights.threshold.copy_(torch.where(silent, weights.threshold * 0.99, weights.threshold))
            weights.b_enc.copy_(torch.where(silent, weights.b_enc + config.lr, weights.b_enc))
            if now % 25 == 24 and not config.bandwidth:
                self._steer_bandwidth(told)
        elif config.architecture == "batchtopk":
            self._cut_at(told.tau)
        self.done += 1
        if config.resample and self._resamples():
            self._begin_anew(x, y)
        return told

    def _clip(self, grads: Mapping[str, Tensor]) -> float:
        """Shortens a gradient that is longer than `clip`; how long it was. Every rank finds the same."""
        norms = torch.stack([torch.linalg.vector_norm(one) for one in grads.values()])
        every = torch.stack(self.group.gather(norms, even=True))
        every[1:, [place for place, name in enumerate(grads) if alike(name)]] = 0  # all have it: it counts once
        whole = torch.linalg.vector_norm(every.flatten())
        factor = (self.config.clip / (whole + 1e-6)).clamp(max=1.0)
        for one in grads.values():
            one.mul_(factor)
        return float(whole)

    def _gradients(self, x: Tensor, y: Tensor) -> tuple[Step, Weights]:
        config, weights, now = self.config, self.weights, self.done
        terms = self._terms(now)
        if not config.pre_bias:
            return self._stepped(weights, x, y, terms)
        # z = (x − b_dec) W_enc + b_enc is a bias of b_enc − b_dec W_enc; what that gets goes to all three.
        bias = weights.b_enc
        weights.b_enc = bias - weights.W_enc @ weights.b_dec
        told, grads = self._stepped(weights, x, y, terms)
        weights.b_enc = bias
        grads.W_enc.addr_(grads.b_enc, weights.b_dec, alpha=-1)
        grads.b_dec.sub_(self.group.sum_(grads.b_enc @ weights.W_enc))
        return told, grads

    def _stepped(self, weights: Weights, x: Tensor, y: Tensor, terms: Terms) -> tuple[Step, Weights]:
        if isinstance(weights, GatedWeights):
            return gated_step(weights, x, y, terms, deal=self.deal)
        return step(weights, x, y, terms, silent=self.silent if terms.auxiliary else None, deal=self.deal)

    def _terms(self, now: int) -> Terms:
        config = self.config
        return Terms(
            gate=_GATES.get(config.architecture, "relu"),
            penalty=config.penalised,
            sparsity=config.sparsity_at(now),
            target=config.target_at(now),
            bandwidth=self.bandwidth if config.architecture == "jumprelu" else 0.0,
            prefixes=config.prefixes,
            parts=self.y.widths,
            to_input=config.to_input,
            auxiliary=config.revival,
            frequency=config.frequency,
            frequency_limit=config.frequency_limit_at(now),
            products=config.multiplied,
        )

    @property
    def silent(self) -> Tensor:
        """Features at hand that have not fired for as long as `patience` says."""
        config = self.config
        patience = config.patience / config.batch or max(10, config.steps / 50)
        return self.done - self.fired_at > patience

    def _steer_bandwidth(self, told: Step) -> None:
        """Keeps enough entries within ε/2 of their thresholds for the estimate, few enough for it to stay local.

        A fixed ε would not do: the weights grow tenfold during a run and the thresholds fall meanwhile.
        """
        wanted = max(self.config.target_l0, told.l0 / 2)
        self.bandwidth *= 1.15 if told.window < wanted else 1 / 1.15
        # Thresholds of 0, as a run has them that begins with half of its features on, must not make ε 0: nothing would
        # lie within it, and none of them could rise again. x has squared norm 1, spread over its D numbers.
        norms, thresholds = map(self.deal.whole, (self.weights.W_enc.norm(dim=-1), self.weights.threshold))
        spread = norms.median().item() / math.sqrt(self.weights.W_enc.shape[1])
        self.bandwidth = min(self.bandwidth, max(1.8 * thresholds.median().item(), 0.5 * spread))

    def _resamples(self) -> bool:
        every = max(1, self.config.resample // self.config.batch)
        return self.done % every == 0 and self.done <= self.config.steps // 2

    def _begin_anew(self, x: Tensor, y: Tensor) -> None:
        """Silent features from badly explained rows of this batch, with the memory of Adam that belongs to them."""
        every = self.deal.whole(self.silent)
        count = int(every.sum())
        if count in (0, self.config.width):
            return
        weights, silent = self.weights, self.silent.nonzero()[:, 0]
        encoded, decoded = (
            self.deal.whole(rows.norm(dim=-1))[~every].mean() for rows in (weights.W_enc, weights.W_dec)
        )
        error = (y - self.reconstructed(x)[0]).pow(2).sum(-1).cpu()
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.done)
        chosen = torch.multinomial(error.double().pow(2), count, replacement=True, generator=generator)
        # One for each silent feature in their order; this rank has its own of them.
        chosen = chosen.to(self.device)[self.deal.mine(every.cumsum(0) - 1)[silent]]
        inward, outward = (rows[chosen] / rows[chosen].norm(dim=-1, keepdim=True).clamp(min=1e-12) for rows in (x, y))
        weights.W_enc[silent] = 0.2 * encoded * inward
        weights.W_dec[silent] = decoded * outward
        weights.b_enc.index_fill_(0, silent, 0)
        for name in ("W_enc", "W_dec", "b_enc"):
            memory = self.adam.state[weights.tensors()[name]]
            memory["exp_avg"].index_fill_(0, silent, 0)
            memory["exp_avg_sq"].index_fill_(0, silent, 0)
        self.fired_at.index_fill_(0, silent, self.done)

    # --- what it is worth -------------------------------------------------------------------------------------

    @property
    def ungated(self) -> Weights:
        """Its weights as they are exported, but for what `folded` does."""
        weights = self.weights
        return weights.as_jumprelu() if isinstance(weights, GatedWeights) else weights

    @property
    def plain(self) -> Weights:
        """Its weights as a gate of the ordinary kind reads scaled rows, the pre-encoder bias folded in."""
        weights = self.ungated
        if not self.config.pre_bias:
            return weights
        bias = weights.b_enc - weights.W_enc @ weights.b_dec
        return Weights(**{**weights.tensors(), "b_enc": bias})

    def reconstructed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What it makes of scaled rows, and how often each feature at hand fired."""
        return reconstruct(self.plain, x, k=self._k, deal=self.deal)

    @property
    def _k(self) -> int | None:
        return round(self.config.target_at(self.done)) if self.config.architecture == "topk" else None

    def spread(self, x: Tensor) -> float:
        """Root mean square, over features, of the standard deviation of z‖d‖ over a few of these scaled rows: how much
        a feature would write by itself, were there no gate. Rows have norm 1 (root mean square); above that the encoder
        runs away.
        """
        weights = self.ungated
        few = x[:: max(1, len(x) // 64)]
        written = (few @ weights.W_enc.T) * weights.W_dec.norm(dim=-1)
        return float(self.deal.whole(written.var(0, correction=0)).mean().sqrt())

    def measured(self, x: Tensor, y: Tensor) -> tuple[float, Firings]:
        """FVU on scaled rows, and how often each feature fires on them."""
        error, fired_in_all = 0.0, torch.zeros(self.deal.held, dtype=torch.int64)
        for rows, wanted in zip(*(torch.split(both, _ROWS) for both in (x, y)), strict=True):
            out, fired = self.reconstructed(rows)
            error += (out - wanted).double().pow(2).sum().item()
            fired_in_all += fired.cpu()
        firings = Firings(self.config.width)
        firings.of_feature, firings.n = self.deal.whole(fired_in_all), len(x)
        return error / (y - y.mean(0)).double().pow(2).sum().item(), firings

    def meet_target(self, x: Tensor) -> float:
        """Sets the thresholds so that L0 on these scaled rows is the target, where there is one; returns that L0.

        JumpReLU's are rescaled by one factor, BatchTopK's one is the value that just lets k in n through. No factor
        does it where most thresholds are 0: then it stays as near as it came.
        """
        architecture, target = self.config.architecture, self.config.target_l0
        if architecture == "batchtopk":
            self._calibrate(x)
        elif architecture == "jumprelu" and self.config.meets_target:
            return self._rescale(x, target)
        return self.l0(x)

    def _calibrate(self, x: Tensor) -> None:
        """Between the (k · n)-th largest z‖d‖ on n rows and the next."""
        weights, kernels = self.plain, choose(x.device)
        wanted = round(self.config.target_l0 * len(x))
        norms = lengths(weights)
        floor = cut(weights, 0.8)
        while True:
            packed = kernels.pack(weights.W_enc, weights.b_enc, floor)
            parts = [kernels.above(packed, rows) for rows in torch.split(x, _ROWS)]
            found = torch.cat([part.values * norms[part.ids] for part in parts])
            high, low = (self.group.largest(found, wanted + more) for more in (0, 1))
            if low is not None or not self.group.total(int(floor.any())):
                break
            floor = torch.zeros_like(floor)
        # Where fewer are positive than may fire, all of them do.
        self._cut_at(0.0 if high is None or low is None else (low + high) / 2)

    def _cut_at(self, tau: float) -> None:
        """Lets through what writes more than tau, z‖d‖: one threshold once decoder rows are brought to norm 1."""
        weights = self.weights
        weights.threshold.copy_(tau / lengths(weights))

    def _rescale(self, x: Tensor, target: float) -> float:
        raw = self.weights.threshold.clone()

        def l0_at(factor: float) -> float:
            self.weights.threshold = raw * factor
            return self.l0(x)

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

    def l0(self, x: Tensor) -> float:
        """Mean L0 on scaled rows."""
        plain = self.plain
        found = (len(active(plain, rows, k=self._k, deal=self.deal).ids) for rows in torch.split(x, _ROWS))
        return self.group.total(sum(found)) / len(x)

    # --- on disk ----------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, on the processor, and plain values from which `restore` makes the same run. Of several ranks each
        has its own features'; what all have alike is the first one's from here on, should another processor have
        rounded otherwise. Raises NotFinite: no run could go on.
        """
        tensors: dict[str, Tensor] = {**self.weights.tensors(), "fired_at": self.fired_at}
        for name, tensor in self.weights.tensors().items():
            tensors |= {f"adam.{name}.{part}": value for part, value in self.adam.state[tensor].items()}
        if self.group.size > 1:
            for name in sorted(name for name, tensor in tensors.items() if alike(name) and tensor.dim()):
                tensors[name].copy_(self.group.gather(tensors[name], even=True)[0])
        tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
        if lost := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise NotFinite(f"{lost[0]} holds NaN or Inf after step {self.done}: try a lower lr than {self.config.lr}")
        return tensors, {"bandwidth": self.bandwidth, "clipped": self.clipped}

    def restore(self, saved: Saved, tensors: Mapping[str, Tensor]) -> None:
        """Raises CorruptFile for what no run with these settings has written."""
        if saved.step > self.config.steps or saved.clipped > saved.step:
            raise CorruptFile(f"it is at step {saved.step} of {self.config.steps}, {saved.clipped} of them clipped")
        require_forms(tensors, self._forms(saved.step), where="tensors.safetensors")
        tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        kind = GatedWeights if self.config.architecture == "gated" else Weights
        self.weights = kind(**{name: tensors[name] for name in self._shapes})
        self.bandwidth, self.done, self.fired_at = saved.bandwidth, saved.step, tensors["fired_at"]
        self.clipped = saved.clipped
        self.adam = self._optimizer()
        for name, tensor in self.weights.tensors().items():
            if name in self._learned:
                self.adam.state[tensor] = {
                    part: tensors[f"adam.{name}.{part}"] for part in ("step", "exp_avg", "exp_avg_sq")
                }

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the weights at hand, by name."""
        config, reads, writes = self.config, len(self.x.mean), len(self.y.mean)
        each = (self.deal.held,)
        shapes = {"W_enc": (*each, reads), "b_enc": each, "W_dec": (*each, writes), "b_dec": (writes,)}
        shapes["threshold"] = each
        if config.skip:
            shapes["W_skip"] = (writes, reads)
        if config.architecture == "gated":
            shapes |= {"r_mag": each, "b_mag": each}
        return shapes

    @property
    def _learned(self) -> list[str]:
        """Weights that the optimiser remembers something of; thresholds are learned by one gate alone."""
        return [name for name in self._shapes if name != "threshold" or self.config.architecture == "jumprelu"]

    def _forms(self, step: int) -> dict[str, Form]:
        """All that a checkpoint holds after a step."""
        forms = {name: Form(shape) for name, shape in self._shapes.items()}
        forms["threshold"] = Form((self.deal.held,), low=0)
        forms["fired_at"] = Form((self.deal.held,), "int64", 0, step)
        counted = min(step, _COUNTED)
        for name in self._learned:
            shape = self._shapes[name]
            forms[f"adam.{name}.step"] = Form((), low=counted, high=counted)
            forms[f"adam.{name}.exp_avg"] = Form(shape)
            forms[f"adam.{name}.exp_avg_sq"] = Form(shape, low=0)
        return forms


def require_variation(x: Scale, where: str) -> None:
    """Raises InputError for rows of which nothing can be learned."""
    if not x.factor.isfinite().all():
        raise InputError(f"the rows of {where} do not vary: nothing to learn")
