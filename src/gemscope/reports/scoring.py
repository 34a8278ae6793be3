"""How good an SAE is on a corpus: sparsity, reconstruction, and what the model loses by reading the reconstruction.

docs/score.md defines every figure; `features/metrics` computes them, `losses` runs the changed models.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gemscope.activations import memory
from gemscope.activations.ahead import ahead, enough
from gemscope.activations.capture import Captured
from gemscope.activations.editing import Edit
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site, locate
from gemscope.edits.splice import Constant, Replace, Splice
from gemscope.errors import InputError
from gemscope.features.activations import FeatureActivations
from gemscope.features.cross_layer import CrossLayerTranscoder
from gemscope.features.fit import answered_for, computed_by, require_fit, require_layers
from gemscope.features.histogram import Histogram
from gemscope.features.metrics import Firings, Variance, recovered
from gemscope.features.sae import SAE
from gemscope.progress import Progress, silent
from gemscope.reports.losses import Change, Kept, Losses, losses
from gemscope.reports.score import Score
from gemscope.text.corpus import Corpus
from gemscope.text.rows import Passed


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
    saes: Sequence[SAE | CrossLayerTranscoder],
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
    clean loss; those of one site share the losses of its ablations too. A cross-layer transcoder has a score for each
    of its layers, without losses: how much of what is written there its features from all layers up to it explain.
    """
    if tokens is not None and tokens < 1:
        raise InputError(f"tokens={tokens}: at least one must be read (None: all)")
    if loss_tokens < 0:
        raise InputError(f"loss_tokens={loss_tokens}: expected how many tokens to read again, 0 for no losses")
    batch = batch if tokens is None else min(batch, math.ceil(tokens / length))
    readers = [_Layers(model, one) if isinstance(one, CrossLayerTranscoder) else _Reading(model, one) for one in saes]
    readings = [reading for reader in readers for reading in reader.readings]
    sites = {site for reading in readings for site in (reading.site, reading.site_out)}
    kept: list[Kept] = []
    read = kept_tokens = sinks = 0
    passed: Passed = Counter()
    with memory.fewer("score", batch, model.device), progress("score", tokens, "tokens") as advance:
        packed = model.rows(corpus.documents(passed), length=length, batch=batch, every_token=every_token)
        short = (rows.trimmed for rows in enough(packed, tokens))
        for rows, captured in ahead(
            short, lambda rows: model.capture(rows, sites, every_token=every_token), model.device
        ):
            for reader in readers:
                reader.read(captured)
            sinks += captured[readings[0].site].dropped["sink"]  # the same at all sites
            step = int(rows.real.sum())
            if kept_tokens < loss_tokens:
                kept.append(Kept(rows, {site: captured[site].kept for site in sites}))
                kept_tokens += int(rows.counted.sum())
            read += step
            advance(step)
    if any(reading.variance.n == 0 for reading in readings):
        raise InputError(f"{corpus.name} gave no token that counts: nothing to score")
    with memory.fewer("losses", batch, model.device):
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
            computed=computed_by(model, reading.sae),
            declared_l0=reading.sae.info.declared_l0,
            **reading.figures(),
            **(losses if loss_tokens else {}),
        )
        for reading, losses in zip(readings, found, strict=True)
    )


class _Sums:
    """One SAE, or one layer of a cross-layer transcoder, and its running sums."""

    def __init__(self, sae: SAE, sites: tuple[Site, Site], name: str, no_losses: str | None) -> None:
        self.sae, self.name, self.no_losses = sae, name, no_losses
        self.site, self.site_out = sites
        self.variance = Variance()
        self.firings = Firings(sae.d_sae)

    def add(self, features: FeatureActivations, target: Tensor, out: Tensor) -> None:
        """The features of counted tokens, what is there where it writes, and what it writes."""
        self.variance.add(*answered_for(self.sae, target.to(out.device), out))
        self.firings.add(features)

    def spliced(self, counted: Tensor) -> Edit:
        """What puts its output in place."""
        return Replace(self.sae, at=counted) if self.sae.is_transcoder else Splice(self.sae, error=False, at=counted)

    def figures(self) -> dict[str, Any]:
        """All that is known without running a changed model."""
        variance, firings = self.variance, self.firings
        return {
            "sae": self.name,
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


class _Reading:
    """An SAE where it belongs in a model."""

    def __init__(self, model: LanguageModel, sae: SAE) -> None:
        site = require_fit(model, sae)
        site_out = sae.site_out or site
        # Read on the side, not by the model: there is nothing to put in its place.
        editable = locate(model.hf, site_out).transform == "plain"
        no_losses = None if editable else f"the model does not read {site_out} itself"
        self.sums = _Sums(sae, (site, site_out), sae.info.name, no_losses)
        self.readings = [self.sums]

    def read(self, captured: Captured) -> None:
        """One batch of rows."""
        sums = self.sums
        acts = captured[sums.site]
        features, out = sums.sae.read(acts.rows.to(sums.sae.W_enc.device, torch.float32))
        sums.add(features, captured[sums.site_out].values[acts.kept], out)


class _Layers:
    """A cross-layer transcoder: what is written at a layer comes of the features of all layers up to it."""

    def __init__(self, model: LanguageModel, clt: CrossLayerTranscoder) -> None:
        require_layers(model, clt)
        self.clt = clt
        why = "what a cross-layer transcoder writes at a layer comes of features of earlier ones too"
        self.readings = [
            _Sums(encoder, sites, f"{clt.info.name}/layer_{sites[0].layer}", why)
            for encoder, sites in zip(clt.encoders, zip(clt.sites, clt.sites_out, strict=True), strict=True)
        ]

    def read(self, captured: Captured) -> None:
        """One batch of rows."""
        features, out = self.clt.read({site: captured[site].rows for site in self.clt.sites})
        for sums in self.readings:
            kept = captured[sums.site].kept
            sums.add(features[sums.site], captured[sums.site_out].values[kept], out[sums.site_out])


def _histogram(parts: tuple[float, float, tuple[int, ...]]) -> Histogram:
    low, step, counts = parts
    return Histogram(low, step, list(counts))


def _losses(
    model: LanguageModel, readings: Sequence[_Sums], kept: Sequence[Kept], progress: Progress
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
