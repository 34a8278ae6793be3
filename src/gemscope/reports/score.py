"""How good an SAE is on a corpus: sparsity, reconstruction, and what the model loses by reading the reconstruction.

docs/score.md defines every figure; `features/metrics` computes them, `losses` runs the changed models.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gemscope.activations.editing import Edit
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site, locate
from gemscope.edits.splice import Constant, Replace, Splice
from gemscope.errors import InputError
from gemscope.features.fit import answered_for, require_fit
from gemscope.features.histogram import Histogram
from gemscope.features.metrics import Firings, Variance, recovered
from gemscope.features.sae import SAE
from gemscope.pages.plain import plain
from gemscope.progress import Progress, silent
from gemscope.reports.losses import Change, Kept, Losses, losses
from gemscope.text.corpus import Corpus, Passed, passed_over

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMULAS = {
    "l0": "features with f ≠ 0 per token: mean, standard deviation, 95th percentile over tokens",
    "fvu": "Σ‖x − x̂‖² / Σ‖x − μ‖², μ the mean over all counted tokens; explained_variance = 1 − fvu",
    "cosine": "mean of cos(x, x̂)",
    "l2_ratio": "mean of ‖x̂‖ / ‖x‖",
    "relative_bias": "E‖x̂‖² / E[x·x̂] (arXiv 2404.16014, eq. 10)",
    "dead": "share of features that fired on no token",
    "dense": "share of features that fired on more than a tenth of the tokens",
    "delta_loss": "spliced_loss − loss, nats per next token of a counted token",
    "kl": "KL(clean ‖ spliced), nats per next token of a counted token",
    "zero_loss, mean_loss": "the site's counted activations replaced by 0, by their mean over `tokens`",
    "loss_recovered_*": "(ablated − spliced) / (ablated − clean)",
    "kl_score_*": "(KL ablated − KL spliced) / KL ablated",
}
"""What each figure is, in one line each; docs/score.md says more."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Figures over `tokens` counted tokens (special tokens, first positions and attention sinks apart).

    Losses are in nats per token, over the next tokens of counted tokens; in a changed model the SAE's output, zero or
    the mean stands in for the counted tokens' activations alone. Gemma Scope (arXiv 2408.05147) calls delta_loss its
    main measure. A transcoder is compared with the MLP's output, its skip connection included.
    """

    model: str
    revision: str | None
    """Commit of the model."""
    sae: str
    digest: str
    """SHA-256 of the SAE's weights."""
    site: str
    corpus: str
    every_token: bool
    """Whether special tokens, first positions and sinks were counted: such figures flatter or mislead."""
    tokens: int
    masked: int
    """Tokens read that did not count."""
    sinks: int
    """How many of these are attention sinks."""
    passed: Mapping[str, int] = field(default_factory=dict)
    """Rows of the corpus that had no text, by reason (`text.corpus.PASSED`)."""
    features: int
    """d_sae."""
    l0: float
    l0_std: float
    l0_p95: int
    """95 % of tokens have no more active features."""
    fvu: float
    """Σ‖x − x̂‖² / Σ‖x − μ‖², one ratio over all tokens."""
    explained_variance: float
    cosine: float
    l2_ratio: float
    """Mean ‖x̂‖ / ‖x‖."""
    relative_bias: float
    """E‖x̂‖² / E[x·x̂]: below 1 is shrinkage."""
    dead: float
    """Share of features that never fired on these tokens."""
    dense: float
    """Share of features that fired on more than a tenth of them."""
    densities: Histogram
    """Living features by log10 of the share of tokens they fire on."""
    l0s: Histogram
    """Tokens by L0."""
    loss: float | None = None
    spliced_loss: float | None = None
    delta_loss: float | None = None
    kl: float | None = None
    """KL(clean ‖ spliced)."""
    zero_loss: float | None = None
    """With zero in the place of what the SAE stands for."""
    zero_kl: float | None = None
    mean_loss: float | None = None
    """With its mean over the `tokens` counted tokens in its place."""
    mean_kl: float | None = None
    loss_recovered_zero: float | None = None
    """(ablated − spliced) / (ablated − clean), from zero ablation. Near 1 for anything on a residual stream."""
    loss_recovered_mean: float | None = None
    kl_score_zero: float | None = None
    """(KL ablated − KL spliced) / KL ablated."""
    kl_score_mean: float | None = None
    loss_tokens: int = 0
    """Tokens that the losses are means over."""
    no_losses: str | None = None
    """Why there are none, where they were asked for."""

    def to_dict(self) -> dict[str, object]:
        """For JSON; a figure that does not exist is None."""
        known = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in asdict(self).items()}
        return {**known, "formulas": FORMULAS}

    def to_html(self) -> str:
        """One HTML file with the figures and plots; nothing in it is fetched."""
        from gemscope.pages.scores import score_document

        return score_document(self, loss_rows(self), conditions(self))

    def _repr_html_(self) -> str:
        from gemscope.pages.standalone import frame

        return frame(self.to_html())

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        figures = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
        figures.add_row("L0", f"{self.l0:.1f}", f"± {self.l0_std:.1f} per token, 95 % of tokens ≤ {self.l0_p95:,}")
        figures.add_row(
            "explained variance", f"{self.explained_variance:.4f}", f"FVU {self.fvu:.4f}, one mean over all tokens"
        )
        figures.add_row(
            "cosine", f"{self.cosine:.4f}", f"l2 ratio {self.l2_ratio:.4f}, relative bias {self.relative_bias:.4f}"
        )
        figures.add_row("dead", f"{self.dead:.2%}", f"of {self.features:,} features; dense {self.dense:.2%}")
        parts: list[RenderableType] = [
            Text(self.sae, style="bold"),
            Text(f"  read at {self.site} of {self.model}, on {self.corpus}"),
            Text(f"  {conditions(self)}"),
            *([Text(f"  {MISLEADING}", style="bold yellow")] if self.every_token else []),
            figures,
        ]
        if self.no_losses:
            parts.append(Text(f"  no losses: {self.no_losses}"))
        elif self.loss is not None:
            parts += [Text(f"\n  nats per token, over {self.loss_tokens:,} tokens", style="dim"), self._table()]
        return Group(*parts)

    def _table(self) -> RenderableType:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), header_style="dim")
        for name in ("", "loss", "delta loss", "KL", "loss recovered", "KL score"):
            table.add_column(name, justify="right" if name else "left")
        for row in loss_rows(self):
            table.add_row(row.name, *(_cell(value, form) for value, form in zip(row.values, _FORMS, strict=True)))
        return table

    def __str__(self) -> str:
        return plain(self)


MISLEADING = "every token counted: BOS, special tokens and attention sinks are in these figures, which mislead"

_FORMS = (".4f", "+.4f", ".4f", ".4f", ".4f")


@dataclass(frozen=True)
class LossRow:
    """One reading of the model: its loss, the difference to the clean one's, KL, and what the SAE recovers of it."""

    name: str
    values: tuple[float | None, ...]
    """Loss, delta loss, KL, loss recovered, KL score."""


def loss_rows(score: Score) -> list[LossRow]:
    """The losses as a table; none where they were left out."""
    if score.loss is None:
        return []
    rows = [
        LossRow("clean", (score.loss, None, None, None, None)),
        LossRow("SAE spliced in", (score.spliced_loss, score.delta_loss, score.kl, None, None)),
    ]
    for name, loss, kl, loss_recovered, kl_score in (
        ("mean ablation", score.mean_loss, score.mean_kl, score.loss_recovered_mean, score.kl_score_mean),
        ("zero ablation", score.zero_loss, score.zero_kl, score.loss_recovered_zero, score.kl_score_zero),
    ):
        delta = None if loss is None else loss - score.loss
        rows.append(LossRow(name, (loss, delta, kl, loss_recovered, kl_score)))
    return rows


def conditions(score: Score) -> str:
    """What was counted, in one line."""
    what = "padding" if score.every_token else f"special, first of a row, {score.sinks:,} attention sinks"
    counted = f"{score.tokens:,} tokens counted, {score.masked:,} masked ({what})"
    return "; ".join(filter(None, (counted, passed_over(score.passed))))


def _cell(value: float | None, form: str) -> str:
    return "" if value is None or not math.isfinite(value) else format(value, form)


def score(
    model: LanguageModel,
    sae: SAE,
    corpus: Corpus,
    *,
    tokens: int | None = None,
    loss_tokens: int = 20_000,
    length: int = 256,
    batch: int = 8,
    every_token: bool = False,
    progress: Progress = silent,
) -> Score:
    """Reads up to `tokens` tokens of the corpus (None: all) up to the SAE's site, then the first `loss_tokens` of them
    again: as they are, with the SAE's output in place, and with zero and with the mean of the first reading in place.

    `loss_tokens=0` leaves the losses out. Memory does not grow with the corpus, but for some thirty bytes per loss
    token. `every_token` counts special tokens, first positions and attention sinks too, for comparison alone.
    Raises Mismatch when model and SAE do not fit, InputError for a corpus of which nothing counts.
    """
    return scores(
        model,
        [sae],
        corpus,
        tokens=tokens,
        loss_tokens=loss_tokens,
        length=length,
        batch=batch,
        every_token=every_token,
        progress=progress,
    )[0]


def scores(
    model: LanguageModel,
    saes: Sequence[SAE],
    corpus: Corpus,
    *,
    tokens: int | None = None,
    loss_tokens: int = 20_000,
    length: int = 256,
    batch: int = 8,
    every_token: bool = False,
    progress: Progress = silent,
) -> tuple[Score, ...]:
    """`score` of several SAEs in one reading of the text: they share the model's pass up to the deepest site, and the
    clean loss; those of one site share the losses of its ablations too.
    """
    if tokens is not None and tokens < 1:
        raise InputError(f"tokens={tokens}: at least one must be read (None: all)")
    if loss_tokens < 0:
        raise InputError(f"loss_tokens={loss_tokens}: expected how many tokens to read again, 0 for no losses")
    batch = batch if tokens is None else min(batch, math.ceil(tokens / length))
    readings = [_Reading(model, sae) for sae in saes]
    sites = {site for reading in readings for site in (reading.site, reading.site_out)}
    kept: list[Kept] = []
    read = kept_tokens = sinks = 0
    passed: Passed = Counter()
    with progress("score", tokens, "tokens") as advance:
        for rows in model.rows(corpus.documents(passed), length=length, batch=batch, every_token=every_token):
            captured = model.capture(rows, sites, every_token=every_token)
            for reading in readings:
                acts = captured[reading.site]
                reading.add(acts.rows, captured[reading.site_out].values[acts.counted])
            sinks += captured[readings[0].site].dropped["sink"]  # the same at all sites
            step = int(rows.real.sum())
            if kept_tokens < loss_tokens:
                kept.append(Kept(rows, {site: captured[site].counted.cpu() for site in sites}))
                kept_tokens += int(rows.counted.sum())
            read += step
            advance(step)
            if tokens is not None and read >= tokens:
                break
    if any(reading.variance.n == 0 for reading in readings):
        raise InputError(f"{corpus.name} gave no token that counts: nothing to score")
    found = _losses(model, readings, kept, progress)
    return tuple(
        Score(
            model=model.name,
            revision=model.revision,
            corpus=corpus.name,
            every_token=every_token,
            masked=read - reading.variance.n,
            passed=dict(passed),
            sinks=sinks,
            **reading.figures(),
            **(losses if loss_tokens else {}),
        )
        for reading, losses in zip(readings, found, strict=True)
    )


class _Reading:
    """One SAE, where it belongs in a model, and its running sums."""

    def __init__(self, model: LanguageModel, sae: SAE) -> None:
        self.site = require_fit(model, sae)
        self.site_out = sae.site_out or self.site
        self.sae = sae
        self.variance = Variance()
        self.firings = Firings(sae.d_sae)
        # Read on the side, not by the model: there is nothing to put in its place.
        editable = locate(model.hf, self.site_out).transform == "plain"
        self.no_losses = None if editable else f"the model does not read {self.site_out} itself"

    def add(self, x: Tensor, target: Tensor) -> None:
        """Counted activations where it reads, and where it writes."""
        features, out = self.sae.read(x.to(self.sae.W_enc.device, torch.float32))
        self.variance.add(*answered_for(self.sae, target.to(out.device), out))
        self.firings.add(features)

    def spliced(self, counted: Tensor) -> Edit:
        """What puts its output in place."""
        return Replace(self.sae, at=counted) if self.sae.is_transcoder else Splice(self.sae, error=False, at=counted)

    def figures(self) -> dict[str, Any]:
        """All that is known without running a changed model."""
        variance, firings = self.variance, self.firings
        return {
            "sae": self.sae.info.name,
            "digest": self.sae.digest,
            "site": f"{self.site} → {self.site_out}" if self.sae.is_transcoder else str(self.site),
            "tokens": variance.n,
            "features": self.sae.d_sae,
            "l0": firings.l0,
            "l0_std": firings.l0_std,
            "l0_p95": firings.l0_quantile(0.95),
            "fvu": variance.fvu,
            "explained_variance": variance.explained_variance,
            "cosine": variance.cosine,
            "l2_ratio": variance.l2_ratio,
            "relative_bias": variance.relative_bias,
            "dead": firings.dead,
            "dense": firings.dense,
            "densities": _histogram(firings.densities()),
            "l0s": _histogram(firings.l0s()),
        }


def _histogram(parts: tuple[float, float, tuple[int, ...]]) -> Histogram:
    low, step, counts = parts
    return Histogram(low, step, list(counts))


def _losses(
    model: LanguageModel, readings: Sequence[_Reading], kept: Sequence[Kept], progress: Progress
) -> list[dict[str, Any]]:
    """The fields of each score that come from changed models."""
    changes: list[Change] = []
    places: dict[int, dict[str, int]] = defaultdict(dict)
    ablations: dict[tuple[Site, Site], dict[str, int]] = {}
    for index, reading in enumerate(readings):
        if reading.no_losses or not kept:
            continue
        pair = (reading.site, reading.site_out)
        if pair not in ablations:
            ablations[pair] = {}
            mean = reading.variance.mean
            for name, vector in (("zero", torch.zeros_like(mean)), ("mean", mean)):
                ablations[pair][name] = len(changes)
                changes.append(Change(reading.site, partial(_ablated, reading.site_out, vector.float(), name)))
        places[index] = {**ablations[pair], "spliced": len(changes)}
        changes.append(Change(reading.site, reading.spliced))
    if not changes:
        return [{"no_losses": reading.no_losses} for reading in readings]
    clean, changed = losses(model, kept, changes, progress=progress)
    return [
        _figures(clean[reading.site], {name: changed[place] for name, place in places[index].items()})
        if index in places
        else {"no_losses": reading.no_losses}
        for index, reading in enumerate(readings)
    ]


def _ablated(site: Site, vector: Tensor, name: str, counted: Tensor) -> Edit:
    return Constant(site, vector, name=name, at=counted)


def _figures(clean: Losses, changed: dict[str, Losses]) -> dict[str, Any]:
    if not clean.n:
        return {"no_losses": "no counted token has a next one"}
    spliced = changed["spliced"]
    out: dict[str, Any] = {
        "loss": clean.loss,
        "spliced_loss": spliced.loss,
        "delta_loss": spliced.loss - clean.loss,
        "kl": spliced.kl,
        "loss_tokens": clean.n,
    }
    for name in ("zero", "mean"):
        ablated = changed[name]
        out[f"{name}_loss"], out[f"{name}_kl"] = ablated.loss, ablated.kl
        out[f"loss_recovered_{name}"] = recovered(clean.loss, spliced.loss, ablated.loss)
        out[f"kl_score_{name}"] = recovered(0.0, spliced.kl, ablated.kl)
    return out
