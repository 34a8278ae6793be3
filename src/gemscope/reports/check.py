"""Is this the right model, site, scale and token mask for this SAE? With the evidence, and what fits better if not.

Sites are compared on the same tokens by what no single token decides: the median token's error, and on how many tokens
one site does better. Explained variance is shown beside them; one token may make it up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemscope.activations.capture import Captured
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import KINDS, Site, locate
from gemscope.errors import InputError, SiteNotFound
from gemscope.features.fit import answered_for, require_fit
from gemscope.features.metrics import explained_variance
from gemscope.features.sae import SAE
from gemscope.pages.plain import plain
from gemscope.progress import Advance, Progress, silent
from gemscope.text.corpus import Corpus, Passed, passed_over
from gemscope.text.tokens import Tokens

if TYPE_CHECKING:
    from rich.console import RenderableType

LEAST_EXPLAINED = 0.3
"""Published SAEs explain more than this of the median token of their own site, of a wrong one less than nothing as a
rule."""
L0_FACTOR = 2.0
"""Other text than the training text moves L0 by a third at most; a wrong site or scale by several times."""
_FEW = 48
"""Tokens that a site is judged by before it is worth a full trial."""
_HELD = 1 << 29
"""Bytes of activations held at a time."""
CLEARLY_BETTER = 0.85
"""Another site must leave less than this share of the median error to be called the better one: between neighbouring
layers of a residual stream the figures lie closer than between any others. It must also be better on most tokens, by
more than chance (95 %)."""
_FEW_FOR_A_VERDICT = 200


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How the SAE does on one reading of the model."""

    site: str
    scale: float
    """What the activations were multiplied by before the SAE read them."""
    explained_variance: float
    l0: float
    error: float
    """Median over the tokens of ‖x − x̂‖² / ‖x − m‖², where m is the site's median by coordinate."""
    typical_l0: float
    """L0 without the twentieth of the tokens at either end."""
    better_on: float | None = None
    """Share of the tokens on which the error is smaller than at the given site and scale; None for that itself."""
    clearly: bool = False
    """Whether that share is above one half by more than chance (Wilson's interval, 95 %)."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What `check` found. `ok` when the figures are plausible and nothing else fits clearly better."""

    ok: bool
    model: str
    sae: str
    site: str
    tokens: int
    """Counted tokens that all figures are over."""
    explained_variance: float
    """1 − Σ‖x − x̂‖² / Σ‖x − μ‖², one ratio over the counted tokens."""
    error: float
    """Median over the tokens of ‖x − x̂‖² / ‖x − m‖²: the figure that sites are compared by."""
    l0: float
    declared_l0: float | None
    masked_tokens: int
    sinks: int
    """How many of the masked are attention sinks."""
    masked_l0: float | None
    """L0 on the tokens that do not count: thousands mean that they are rightly left out."""
    explained_variance_with_masked: float | None
    """What explained variance would seem to be with them."""
    suggestion: str | None
    """What to do, one sentence, or None."""
    notes: tuple[str, ...]
    trials: tuple[Trial, ...]
    """Everything tried, the given site first, the others best first."""

    def to_dict(self) -> dict[str, object]:
        """For JSON; a figure that does not exist is None."""
        known = {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in asdict(self).items()}
        return {**known, "fvu": 1 - self.explained_variance}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        verdict = Text("✓ fits  " if self.ok else "✗ does not fit  ", style="bold green" if self.ok else "bold red")
        few = f", judged on {self.tokens} tokens alone" if self.tokens < _FEW_FOR_A_VERDICT else ""
        verdict.append(f"{self.sae} at {self.site} of {self.model}{few}", style="default")
        facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
        declared = "not declared" if self.declared_l0 is None else f"declared {self.declared_l0:g}"
        facts.add_row(
            "explained variance",
            f"{self.explained_variance:.4f}",
            f"FVU {1 - self.explained_variance:.4f}, global mean",
        )
        facts.add_row("median error", f"{self.error:.4f}", "of a token, ‖x − x̂‖² / ‖x − m‖²")
        facts.add_row("L0", f"{self.l0:.1f}", declared)
        facts.add_row(
            "tokens",
            f"{self.tokens:,}",
            f"{self.masked_tokens:,} masked: special, first of a row, {self.sinks:,} attention sinks",
        )
        if self.masked_l0 is not None:
            facts.add_row("L0 on masked tokens", f"{self.masked_l0:,.0f}", "SAEs are not trained on them")
        parts: list[RenderableType] = [verdict, Text(), facts]
        if len(self.trials) > 1:
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), header_style="dim")
            for name in ("tried", "median error", "better on", "explained variance", "L0"):
                table.add_column(name, justify="left" if name == "tried" else "right")
            for trial in self.trials[:6]:
                name = trial.site if trial.scale == 1 else f"{trial.site} × {trial.scale:.4g}"
                share = "" if trial.better_on is None else f"{trial.better_on:.0%} of tokens"
                table.add_row(name, f"{trial.error:.4f}", share, f"{trial.explained_variance:.4f}", f"{trial.l0:.1f}")
            parts += [Text(), table]
        for note in self.notes:
            parts.append(Text(f"note: {note}", style="yellow"))
        if self.suggestion:
            parts += [Text(), Text(self.suggestion, style="bold")]
        return Group(*parts)

    def __str__(self) -> str:
        return plain(self)


def check(
    model: LanguageModel,
    sae: SAE,
    corpus: Corpus | None = None,
    *,
    site: Site | str | None = None,
    tokens: int = 512,
    every_token: bool = False,
    progress: Progress = silent,
) -> Check:
    """Runs the SAE on about `tokens` tokens where it says it reads (or at `site`) and where else it might belong.

    The other kinds of site in its layer (raw and post-norm MLP output, with and without the norm's gain) and the same
    kind in all layers are always tried; when one of them does better, every site of the same width (roughly at first);
    when none does and the figures are off, the usual input scales. Raises Mismatch where the widths rule it out from
    the start.
    """
    if site is not None:
        sae = _at(sae, Site.parse(site))
    declared = require_fit(model, sae)
    corpus = Corpus.sample() if corpus is None else corpus
    passed: Passed = Counter()
    rows = _read(model, corpus, tokens, every_token, passed)
    everywhere = _of_same_width(model, sae)
    with progress("check", None, "sites") as advance:
        bench = _Bench(model, sae, rows, every_token, advance)
        given, best = _searched(bench, declared, everywhere)
        masked_l0, with_masked = bench.masked(declared)
    plausible = _plausible(given, sae)
    ok = plausible and best is None
    return Check(
        ok=ok,
        model=model.name,
        sae=sae.info.name,
        site=str(declared),
        tokens=bench.count,
        explained_variance=given.explained_variance,
        error=given.error,
        l0=given.l0,
        declared_l0=sae.info.declared_l0,
        masked_tokens=int(rows.real.sum()) - bench.count,
        sinks=bench.sinks,
        masked_l0=masked_l0,
        explained_variance_with_masked=with_masked,
        suggestion=None if ok else _suggestion(given, best, sae, model),
        notes=tuple(_notes(model, sae, bench.count, passed)),
        trials=(given, *sorted(bench.trials[1:], key=lambda trial: trial.error)),
    )


def _searched(bench: _Bench, declared: Site, everywhere: list[Site]) -> tuple[Trial, Trial | None]:
    """The trial of the given site, and the best of the others if it is clearly better."""
    bench.try_around(declared, everywhere)
    given = bench.trials[0]
    bench.try_sites(bench.promising(site for site in everywhere if site.kind == declared.kind))
    plausible = _plausible(given, bench.sae)
    if plausible and bench.best() is given:
        return given, None
    # Something is better, if only a little: as the next layer is where the given one is several off. The verdict asks
    # for a clear difference, the search does not.
    bench.try_sites(bench.promising(everywhere))
    while (lead := bench.best()) is not None and bench.try_around(Site.parse(lead.site), everywhere):
        pass
    best = _better(given, bench.trials[1:], bench.sae)
    if best is None and not plausible:
        bench.try_scales(declared)
        best = _better(given, bench.trials[1:], bench.sae)
    return given, best


def _at(sae: SAE, site: Site) -> SAE:
    """The same weights, said to read at another site."""
    out = SAE(
        sae.d_in,
        sae.d_sae,
        sae.d_out,
        gate=sae.gate,
        k=sae.k,
        skip=sae.W_skip is not None,
        centred=sae.centred,
        site=site,
        device="meta",
        info=sae.info,
    )
    out.load_state_dict(sae.state_dict(), assign=True)
    if sae.is_transcoder:
        out.site_out = sae.site_out
    return out


def _read(model: LanguageModel, corpus: Corpus, tokens: int, every_token: bool, passed: Passed) -> Tokens:
    length = min(256, model.context)
    batch = max(1, math.ceil(tokens / length))
    first = next(model.rows(corpus.documents(passed), length=length, batch=batch, every_token=every_token), None)
    if first is None or not first.counted.any():
        raise InputError(f"{corpus.name} gave no token that counts: nothing to check with")
    return first


def _confusable(site: Site, declared: Site) -> bool:
    """The other kinds of the same layer (raw or post-norm, with or without gain), the same kind one layer off, and the
    residual stream half a layer off."""
    if site.layer is None or declared.layer is None:
        return site == declared
    alike = site.kind == declared.kind or {site.kind, declared.kind} <= {"res", "mid"}
    return site.layer == declared.layer or (alike and abs(site.layer - declared.layer) == 1)


def _of_same_width(model: LanguageModel, sae: SAE) -> list[Site]:
    """Every site of the model that the SAE could read, going by its width."""
    sites = [
        Site(None, "embed"),
        *(Site(layer, kind) for layer in range(model.n_layers) for kind in KINDS if kind != "embed"),
    ]
    out = []
    for site in sites:
        try:
            locate(model.hf, site)
        except SiteNotFound:
            continue
        if model.width(site) == sae.d_in:
            out.append(site)
    return out


def _plausible(trial: Trial, sae: SAE) -> bool:
    declared = sae.info.declared_l0
    fits = declared is None or declared / L0_FACTOR <= trial.typical_l0 <= declared * L0_FACTOR
    return fits and 1 - trial.error >= LEAST_EXPLAINED


def _best(trials: Iterable[Trial], sae: SAE) -> Trial | None:
    return min((trial for trial in trials if _plausible(trial, sae)), key=lambda trial: trial.error, default=None)


def _better(given: Trial, others: Iterable[Trial], sae: SAE) -> Trial | None:
    """The best of the others, if it is clearly better than the given one."""
    best = _best(others, sae)
    if best is None or not best.clearly or (_plausible(given, sae) and best.error > CLEARLY_BETTER * given.error):
        return None
    return best


def _suggestion(given: Trial, best: Trial | None, sae: SAE, model: LanguageModel) -> str:
    if best is None and 1 - given.error >= LEAST_EXPLAINED:
        return (
            f"the reconstruction is plausible, but L0 is {given.l0:.0f} where {sae.info.declared_l0:g} is declared: "
            f"is the text very unlike its training text, or is this another SAE than its card says?"
        )
    if best is None:
        made = f"it was made for {sae.info.model}" if sae.info.model else "its file names no model"
        return (
            f"no site of {model.name} of this width fits, at any usual scale: "
            f"is it the model that it was trained on ({made})?"
        )
    figures = (
        f"median error {best.error:.3f} instead of {given.error:.3f}, smaller on {best.better_on:.0%} of the tokens, "
        f"L0 {best.l0:.0f} instead of {given.l0:.0f}"
    )
    if best.site != given.site:
        return f"it fits {best.site}, not {given.site}: {figures}; set sae.site, or pass --site {best.site}"
    return f"it fits {best.site} scaled by {best.scale:.4g}: {figures}; fold that factor into its weights"


def _notes(model: LanguageModel, sae: SAE, count: int, passed: Mapping[str, int]) -> Iterable[str]:
    made = sae.info.model
    if made is not None and made.split("/")[-1].lower() != model.name.rstrip("/").split("/")[-1].lower():
        yield f"it was made for {made}, this is {model.name}"
    if sae.info.prepend_bos and model.bos is None:
        yield "it was trained on text that begins with BOS, this tokenizer adds none"
    if count < _FEW_FOR_A_VERDICT:
        yield f"{count} tokens are few: figures can be off by several percent; 500 are a good check"
    if told := passed_over(passed):
        yield told


class _Bench:
    """One piece of text, read once per set of sites, and the SAE's figures on each."""

    def __init__(self, model: LanguageModel, sae: SAE, rows: Tokens, every_token: bool, advance: Advance) -> None:
        self.model, self.sae, self.rows, self.every_token, self.advance = model, sae, rows, every_token, advance
        self.trials: list[Trial] = []
        self.count = self.sinks = 0
        self._given: Tensor | None = None
        self._captured: dict[Site, Captured] = {}

    def best(self) -> Trial | None:
        """The plausible one that leaves least unexplained."""
        return _best(self.trials, self.sae)

    def try_around(self, site: Site, everywhere: Iterable[Site]) -> bool:
        """A trial of a site and of those easily taken for it; False when all have been tried before."""
        return self.try_sites([site, *(other for other in everywhere if _confusable(other, site))])

    def promising(self, sites: Iterable[Site]) -> list[Site]:
        """The few sites that do best on a few tokens: hundreds of them on all tokens would take minutes."""
        rough = _Bench(self.model, self.sae, self.rows.first(1, _FEW), self.every_token, self.advance)
        rough.try_sites(sites)
        best = sorted(rough.trials, key=lambda trial: (not _plausible(trial, self.sae), trial.error))
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
        x = x.to(self.sae.W_enc.device, torch.float32) * scale
        # The scaled SAE reconstructs scaled activations; a transcoder's target is scaled the same way.
        target = target.to(x.device, torch.float32) * scale
        features, out = self.sae.read(x)
        target, out = answered_for(self.sae, target, out)
        spread = (target - target.median(0).values).square().sum(-1)
        errors = (target - out).square().sum(-1) / spread.clamp(min=torch.finfo(spread.dtype).tiny)
        return features.l0.double(), errors, explained_variance(target, out)


def _majority(won: Tensor) -> tuple[float, bool]:
    """The share of True [N], and whether Wilson's interval at 95 % (1927) lies above one half."""
    n, share, z = len(won), won.double().mean().item(), 1.96
    centre, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return share, (centre - half) / (1 + z**2 / n) > 0.5


def _trimmed(values: Tensor) -> float:
    """The mean [N] without the twentieth at either end, at least one token each where three are there."""
    cut = min(math.ceil(len(values) / 20), (len(values) - 1) // 2)
    return values.sort().values[cut : len(values) - cut].mean().item()
