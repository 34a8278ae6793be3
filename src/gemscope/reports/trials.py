"""An SAE tried on one piece of text at several sites and scales: its figures there, and which of them are plausible.

Sites are compared on the same tokens by what no single token decides: the median token's error, and on how many tokens
one site does better. Explained variance is shown beside them; one token may make it up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from gemscope.activations.capture import Captured
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.features.fit import answered_for
from gemscope.features.intervals import wilson
from gemscope.features.metrics import explained_variance
from gemscope.features.sae import SAE
from gemscope.progress import Advance
from gemscope.reports.check import Trial
from gemscope.text.tokens import Tokens

LEAST_EXPLAINED = 0.3
"""Published SAEs explain more than this of the median token of their own site, of a wrong one less than nothing as a
rule."""

L0_FACTOR = 2.0
"""Other text than the training text moves L0 by a third at most; a wrong site or scale by several times."""

_FEW = 48
"""Tokens that a site is judged by before it is worth a full trial."""

_HELD = 1 << 29
"""Bytes of activations held at a time."""


def _confusable(site: Site, declared: Site) -> bool:
    """The other kinds of the same layer (raw or post-norm, with or without gain), the same kind one layer off, and the
    residual stream half a layer off."""
    if site.layer is None or declared.layer is None:
        return site == declared
    alike = site.kind == declared.kind or {site.kind, declared.kind} <= {"res", "mid"}
    return site.layer == declared.layer or (alike and abs(site.layer - declared.layer) == 1)


def is_plausible(trial: Trial, sae: SAE) -> bool:
    declared = sae.info.declared_l0
    fits = declared is None or declared / L0_FACTOR <= trial.typical_l0 <= declared * L0_FACTOR
    return fits and 1 - trial.error >= LEAST_EXPLAINED


def best_of(trials: Iterable[Trial], sae: SAE) -> Trial | None:
    return min((trial for trial in trials if is_plausible(trial, sae)), key=lambda trial: trial.error, default=None)


class Bench:
    """One piece of text, read once per set of sites, and the SAE's figures on each."""

    def __init__(self, model: LanguageModel, sae: SAE, rows: Tokens, every_token: bool, advance: Advance) -> None:
        self.model, self.sae, self.rows, self.every_token, self.advance = model, sae, rows, every_token, advance
        self.trials: list[Trial] = []
        self.count = self.sinks = 0
        self._given: Tensor | None = None
        self._captured: dict[Site, Captured] = {}

    def best(self) -> Trial | None:
        """The plausible one that leaves least unexplained."""
        return best_of(self.trials, self.sae)

    def try_around(self, site: Site, everywhere: Iterable[Site]) -> bool:
        """A trial of a site and of those easily taken for it; False when all have been tried before."""
        return self.try_sites([site, *(other for other in everywhere if _confusable(other, site))])

    def promising(self, sites: Iterable[Site]) -> list[Site]:
        """The few sites that do best on a few tokens: hundreds of them on all tokens would take minutes."""
        rough = Bench(self.model, self.sae, self.rows.first(1, _FEW), self.every_token, self.advance)
        rough.try_sites(sites)
        best = sorted(rough.trials, key=lambda trial: (not is_plausible(trial, self.sae), trial.error))
        return [Site.parse(trial.site) for trial in best[:5]]

    def try_sites(self, sites: Iterable[Site]) -> bool:
        """A trial of every site not tried yet; False when there is none."""
        tried = {trial.site for trial in self.trials}
        fresh = [site for site in dict.fromkeys(sites) if str(site) not in tried]
        # A transcoder writes to a place of its own in each layer; an autoencoder to where it reads.
        pairs = {site: self._written(site) for site in fresh}
        # A big model has hundreds of sites: as many in one pass as memory may hold.
        each = max(1, _HELD // (self.rows.ids.numel() * max(self.sae.d_in, self.sae.d_out) * 8))
        for start in range(0, len(fresh), each):
            group = fresh[start : start + each]
            captured = self.model.capture(
                self.rows, {*group, *(pairs[site] for site in group)}, every_token=self.every_token
            )
            for site in group:
                acts, target = captured[site], captured[pairs[site]]
                self.trials.append(self._trial(site, acts.rows, target.values[acts.counted], 1.0))
                if len(self.trials) == 1:
                    self.count, self.sinks = int(acts.counted.sum()), acts.dropped["sink"]
                    self._captured[site] = captured
        return bool(fresh)

    def try_scales(self, site: Site) -> None:
        """The factors that training pipelines use: mean norm √d, mean squared norm 1, embeddings times or over √d."""
        acts, target = self._captured[site][site], self._captured[site][self._written(site)]
        x = acts.rows.float()
        norms = x.norm(dim=-1)
        root = math.sqrt(x.shape[-1])
        scales = (root / norms.mean().item(), 1 / norms.pow(2).mean().sqrt().item(), root, 1 / root)
        for scale in scales:
            self.trials.append(self._trial(site, acts.rows, target.values[acts.counted], scale))

    def masked(self, site: Site) -> tuple[float | None, float | None]:
        """L0 on the tokens that do not count, and explained variance over all tokens."""
        acts, target = self._captured[site][site], self._captured[site][self._written(site)]
        real = self.rows.real.to(acts.values.device)
        out = real & ~acts.counted
        if not out.any():
            return None, None
        l0 = self.sae.encode(acts.values[out]).mean_l0
        _, _, explained = self._run(acts.values[real], target.values[real], 1.0)
        return l0, explained

    def _written(self, site: Site) -> Site:
        out = self.sae.site_out
        if not self.sae.is_transcoder or out is None:
            return site
        return out if out.layer is None or site.layer is None else out.at(site.layer)

    def _trial(self, site: Site, x: Tensor, target: Tensor, scale: float) -> Trial:
        l0, errors, explained = self._run(x, target, scale)
        share, clearly = (None, False) if self._given is None else _majority(errors < self._given)
        if self._given is None:
            self._given = errors
        self.advance(1)
        return Trial(
            site=str(site),
            scale=scale,
            explained_variance=explained,
            l0=l0.mean().item(),
            error=errors.median().item(),
            typical_l0=_trimmed(l0),
            better_on=share,
            clearly=clearly,
        )

    @torch.no_grad()
    def _run(self, x: Tensor, target: Tensor, scale: float) -> tuple[Tensor, Tensor, float]:
        """L0 and error of each token, and explained variance."""
        x = x.to(self.sae.device, torch.float32) * scale
        # The scaled SAE reconstructs scaled activations; a transcoder's target is scaled the same way.
        target = target.to(x.device, torch.float32) * scale
        features, out = self.sae.read(x)
        target, out = answered_for(self.sae, target, out)
        spread = (target - target.median(0).values).square().sum(-1)
        errors = (target - out).square().sum(-1) / spread.clamp(min=torch.finfo(spread.dtype).tiny)
        return features.l0.double(), errors, explained_variance(target, out)


def _majority(won: Tensor) -> tuple[float, bool]:
    """The share of True [N], and whether it is above one half by more than chance (95 %)."""
    low, _ = wilson(int(won.sum()), len(won))
    return won.double().mean().item(), low > 0.5


def _trimmed(values: Tensor) -> float:
    """The mean [N] without the twentieth at either end, at least one token each where three are there."""
    cut = min(math.ceil(len(values) / 20), (len(values) - 1) // 2)
    return values.sort().values[cut : len(values) - cut].mean().item()
