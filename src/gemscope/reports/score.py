"""How good an SAE is on a corpus: sparsity, reconstruction, and what the model loses by reading the reconstruction."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gemscope.activations.model import LanguageModel
from gemscope.edits.splice import Splice
from gemscope.errors import InputError
from gemscope.features.metrics import Variance, kl_divergence, next_token_loss
from gemscope.features.sae import SAE
from gemscope.progress import Progress, silent
from gemscope.reports.fit import require_fit
from gemscope.text.corpus import Corpus


@dataclass(frozen=True, kw_only=True)
class Score:
    """Figures over `tokens` counted tokens (special tokens, first positions and attention sinks apart).

    Losses are in nats per token, over the next tokens of counted tokens; in the spliced model the SAE's output stands
    in for the counted tokens' activations alone. Gemma Scope (arXiv 2408.05147) calls delta_loss its main measure.
    """

    model: str
    sae: str
    site: str
    corpus: str
    tokens: int
    masked: int
    """Tokens read that did not count."""
    l0: float
    l0_std: float
    fvu: float
    """Σ‖x − x̂‖² / Σ‖x − μ‖², one ratio over all tokens."""
    explained_variance: float
    cosine: float
    dead: float
    """Share of features that never fired on these tokens."""
    dense: float
    """Share of features that fired on more than a tenth of them."""
    loss: float | None = None
    spliced_loss: float | None = None
    delta_loss: float | None = None
    kl: float | None = None
    """KL(clean ‖ spliced)."""
    loss_tokens: int = 0
    """Tokens that the four losses are means over."""

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.sae}",
            f"  read at {self.site} of {self.model}, on {self.corpus}",
            f"  {self.tokens:,} tokens counted, {self.masked:,} masked (special, first of a row, attention sinks)",
            f"  L0                  {self.l0:.1f} ± {self.l0_std:.1f} per token",
            f"  explained variance  {self.explained_variance:.4f}   (FVU {self.fvu:.4f}, cosine {self.cosine:.4f})",
            f"  dead / dense        {self.dead:.2%} / {self.dense:.2%} of features",
        ]
        if self.delta_loss is not None:
            lines.append(
                f"  delta loss          {self.delta_loss:+.4f} nats   ({self.loss:.4f} → {self.spliced_loss:.4f}, "
                f"KL {self.kl:.4f}, {self.loss_tokens:,} tokens)"
            )
        return "\n".join(lines)


def score(
    model: LanguageModel,
    sae: SAE,
    corpus: Corpus,
    *,
    tokens: int | None = None,
    loss_tokens: int = 20_000,
    length: int = 256,
    batch: int = 8,
    progress: Progress = silent,
) -> Score:
    """Reads up to `tokens` tokens of the corpus (None: all); the first `loss_tokens` of them a second time, spliced.

    `loss_tokens=0` leaves the losses out. Raises Mismatch when model and SAE do not fit.
    """
    site = require_fit(model, sae)
    variance, firings, squares, losses = Variance(), torch.zeros(sae.d_sae, dtype=torch.int64), 0.0, _Losses()
    read = 0
    with progress("score", tokens, "tokens") as advance:
        for rows in model.rows(corpus, length=length, batch=batch):
            spliced = losses.n < loss_tokens and not sae.is_transcoder
            sites = {site, sae.site_out or site}
            captured = model.capture(rows, sites, logits=spliced)
            acts = captured[site]
            x = acts.rows.to(sae.W_enc.device, torch.float32)
            features, out = sae.read(x)
            variance.add(captured[sae.site_out or site].values[acts.counted].to(x.device), out)
            firings += torch.bincount(features.features.long(), minlength=sae.d_sae).cpu()
            squares += features.l0.double().pow(2).sum().item()
            if spliced and captured.logits is not None:
                with model.edited(Splice(sae, acts.counted)):
                    followed = acts.counted & _has_next(rows.real).to(acts.counted.device)
                    losses.add(rows.ids, followed, captured.logits, model.logits(rows))
            step = int(rows.real.sum())
            read += step
            advance(step)
            if tokens is not None and read >= tokens:
                break
    if variance.n == 0:
        raise InputError(f"{corpus.name} gave no token that counts: nothing to score")
    l0 = firings.sum().item() / variance.n
    return Score(
        model=model.name,
        sae=sae.info.name,
        site=str(site) if not sae.is_transcoder else f"{site} → {sae.site_out}",
        corpus=corpus.name,
        tokens=variance.n,
        masked=read - variance.n,
        l0=l0,
        l0_std=math.sqrt(max(0.0, squares / variance.n - l0**2)),
        fvu=variance.fvu,
        explained_variance=variance.explained_variance,
        cosine=variance.cosine,
        dead=(firings == 0).double().mean().item(),
        dense=(firings > variance.n / 10).double().mean().item(),
        **losses.means(),
    )


def _has_next(real: Tensor) -> Tensor:
    """Where a real token follows."""
    following = torch.zeros_like(real)
    following[:, :-1] = real[:, 1:]
    return following


@dataclass
class _Losses:
    n: int = 0
    clean: float = 0.0
    spliced: float = 0.0
    kl: float = 0.0

    def add(self, ids: Tensor, counted: Tensor, clean: Tensor, spliced: Tensor) -> None:
        keep = counted[:, :-1].to(clean.device)
        ids = ids.to(clean.device)
        self.n += int(keep.sum())
        self.clean += next_token_loss(clean, ids)[keep].double().sum().item()
        self.spliced += next_token_loss(spliced, ids)[keep].double().sum().item()
        self.kl += kl_divergence(clean[:, :-1], spliced[:, :-1])[keep].double().sum().item()

    def means(self) -> dict[str, Any]:
        if not self.n:
            return {}
        clean, spliced = self.clean / self.n, self.spliced / self.n
        return {
            "loss": clean,
            "spliced_loss": spliced,
            "delta_loss": spliced - clean,
            "kl": self.kl / self.n,
            "loss_tokens": self.n,
        }
