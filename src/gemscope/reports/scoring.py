"""How good an SAE is on a corpus: sparsity, reconstruction, and what the model loses by reading the reconstruction.

docs/score.md defines every figure; `features/metrics` computes them, `losses` runs the changed models.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemscope.activations import memory
from gemscope.activations.ahead import ahead, enough
from gemscope.activations.capture import Captured
from gemscope.activations.editing import Edit
from gemscope.activations.harvest import versions
from gemscope.activations.model import LanguageModel
from gemscope.activations.place import place_of
from gemscope.activations.site import Site, locate
from gemscope.activations.work import Work, counted, device_kind
from gemscope.checked import Count, Form, require_forms
from gemscope.edits.splice import Constant, replacement
from gemscope.errors import Awaited, CorruptFile, InputError
from gemscope.features.activations import FeatureActivations
from gemscope.features.cross_layer import CrossLayerTranscoder
from gemscope.features.fit import answered_for, computed_by, require_fit, require_layers
from gemscope.features.histogram import Histogram
from gemscope.features.metrics import Firings, Variance, recovered
from gemscope.features.sae import SAE
from gemscope.progress import Advance, Progress, silent
from gemscope.reports.losses import Change, Kept, Losses, losses
from gemscope.reports.replaced import Replaced
from gemscope.reports.score import Score
from gemscope.text.corpus import Corpus, Passage
from gemscope.text.rows import Passed
from gemscope.text.tokens import Tokens
from gemscope.world import ALONE, World

PIECE = 1 << 16
"""Bytes of text, at least, that are read as one piece where nobody says how many: some 15,000 tokens."""
UNLIKE = "unlike"
"""Where those of another text lie, in the folder of pieces."""
_LONGEST = 64
"""Bytes of text to a token, at most, as far as pieces keep rows for the losses."""


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
    unlike: Corpus | None = None,
    piece: int = PIECE,
    pieces: str | Path | None = None,
    world: World = ALONE,
    progress: Progress = silent,
) -> Score:
    """Reads up to `tokens` tokens of the corpus (None: all) up to the SAE's site, then the first `loss_tokens` of them
    again: as they are, with the SAE's output in place, and with zero and with the mean of the first reading in place.

    `loss_tokens=0` leaves the losses out. Memory does not grow with the corpus, but for some thirty bytes per loss
    token. `every_token` counts special tokens, first positions and attention sinks too, for comparison alone. Of a text
    `unlike` what the SAE learned from, as much is read in the same way: the score's `unlike`.

    The text is read in pieces, whole documents of at least `piece` bytes together, each packed by itself. They are kept
    in the folder `pieces`, where one is named: what was stopped goes on there, and the workers of a `world` of several
    share them; the figures are the same, to the last digit, for any number of workers.

    Raises Mismatch when model and SAE do not fit, or the pieces are of something else, InputError for a corpus of which
    nothing counts, Awaited where other workers still have pieces to read, CorruptFile, StorageFull.
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
        unlike=unlike,
        piece=piece,
        pieces=pieces,
        world=world,
        progress=progress,
    ).scores[0]


@dataclass(frozen=True)
class Scored:
    """Of several SAEs each, and of those that make a stack all at once."""

    scores: tuple[Score, ...]
    replaced: tuple[Replaced, ...]


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
    together: bool = True,
    unlike: Corpus | None = None,
    piece: int = PIECE,
    pieces: str | Path | None = None,
    world: World = ALONE,
    progress: Progress = silent,
) -> Scored:
    """`score` of several SAEs in one reading of the text: they share the model's pass up to the deepest site, and the
    clean loss; those of one site share the losses of its ablations too. A cross-layer transcoder has a score for each
    of its layers, without losses: how much of what is written there its features from all layers up to it explain.

    With `together`, where the SAEs are one for each of several sites of a kind, the model is run with all of them in
    place, too; and so with all layers of each cross-layer transcoder.
    """
    if tokens is not None and tokens < 1:
        raise InputError(f"tokens={tokens}: at least one must be read (None: all)")
    if loss_tokens < 0:
        raise InputError(f"loss_tokens={loss_tokens}: expected how many tokens to read again, 0 for no losses")
    batch = batch if tokens is None else min(batch, math.ceil(tokens / length))
    if world.size > 1 and pieces is None:
        raise InputError(f"worker {world.rank} of {world.size} without `pieces`: name the folder that all share")
    how = {"tokens": tokens, "loss_tokens": loss_tokens, "length": length, "batch": batch, "every_token": every_token}
    found, waiting = list[Scored](), list[Awaited]()
    for text in (corpus, *([] if unlike is None else [unlike])):
        its = how | {"together": together and text is corpus}
        folder = pieces if pieces is None or text is corpus else f"{pieces}/{UNLIKE}"
        try:
            found.append(_scored(model, saes, text, its, piece=piece, pieces=folder, world=world, progress=progress))
        except Awaited as told:  # what this worker has to do of the other text it does all the same
            waiting.append(told)
    if waiting:
        raise Awaited(waiting[0], lambda: sum(one.left() for one in waiting))
    own, *others = found
    for other in others:
        pairs = zip(own.scores, other.scores, strict=True)
        own = replace(own, scores=tuple(replace(one, unlike=elsewhere) for one, elsewhere in pairs))
    return own


def _scored(
    model: LanguageModel,
    saes: Sequence[SAE | CrossLayerTranscoder],
    corpus: Corpus,
    how: Mapping[str, Any],
    *,
    piece: int,
    pieces: str | Path | None,
    world: World,
    progress: Progress,
) -> Scored:
    """On one text."""
    tokens, loss_tokens, length, batch, every_token, together = how.values()
    readers = [_Layers(model, one) if isinstance(one, CrossLayerTranscoder) else _Reading(model, one) for one in saes]
    readings = [reading for reader in readers for reading in reader.readings]
    stacks = _stacks(readers, model.name) if together else []
    identity = {
        "model": [model.name, model.revision],
        "dtype": str(model.dtype).removeprefix("torch."),
        "sae": [[reading.digest, str(reading.site), str(reading.site_out)] for reading in readings],
        "corpus": [corpus.name, corpus.digest],
        **how,
        "piece": piece,
        "versions": versions(),
        "device": device_kind(model.device),
    }
    with ExitStack() as held:
        folder = place_of(held.enter_context(TemporaryDirectory(prefix="gemscope-")) if pieces is None else pieces)
        work = Work(None, identity, what="score", own=f"{UNLIKE}/.*", folder=folder)
        work.begin()
        held.callback(work.end)
        reading = partial(_read, model, readers, length=length, batch=batch, every_token=every_token)
        count = partial(counted, model, length=length)
        known = work.read_so_far() if world.first else {}
        with memory.fewer("score", batch, model.device), progress("score", tokens, "tokens") as advance:
            advance(sum(known.values()))
            for passage, most in work.mine(corpus.pieces(piece), world, tokens=tokens, count=count):
                near = passage.number * piece <= _LONGEST * loss_tokens
                known[passage.number] = reading(
                    work, passage, most, loss_tokens=loss_tokens if near else 0, advance=advance
                )
                if world.first and world.size > 1:
                    advance(work.news(known))
        work.require_all()
        read, sinks, passed, kept = _together(work, readings, loss_tokens)
        if any(reading.variance.n == 0 for reading in readings):
            raise InputError(f"{corpus.name} gave no token that counts: nothing to score")
        with memory.fewer("losses", batch, model.device):
            found, whole = _losses(model, readings, stacks, kept, once=partial(_once, work), progress=progress)
    each = tuple(
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
    if not loss_tokens:
        return Scored(each, ())
    return Scored(
        each,
        tuple(
            Replaced(name=stack.name, layers=len(stack.readings), **losses)
            for stack, losses in zip(stacks, whole, strict=True)
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """What is known of a piece beside its sums."""

    sinks: Count
    passed: Mapping[str, Count]
    kept: Count
    """Batches of rows that are to be read again."""


def _read(
    model: LanguageModel,
    readers: Sequence[_Reading | _Layers],
    work: Work,
    passage: Passage,
    tokens: int | None,
    *,
    loss_tokens: int,
    advance: Advance,
    length: int,
    batch: int,
    every_token: bool,
) -> int:
    """Reads a piece by itself, and keeps its sums and the rows of its first `loss_tokens`; how many tokens it has."""
    readings = [reading for reader in readers for reading in reader.readings]
    sites = sorted({site for reading in readings for site in (reading.site, reading.site_out)})
    for reading in readings:
        reading.empty()
    arrays: dict[str, Tensor] = {}
    read = sinks = batches = kept = 0
    packed = model.rows(passage.documents, length=length, batch=batch, every_token=every_token)
    short = (rows.trimmed for rows in enough(packed, tokens))
    capture = partial(model.capture, sites=sites, every_token=every_token)
    for rows, captured in ahead(short, capture, model.device):
        for reader in readers:
            reader.read(captured)
        sinks += captured[readings[0].site].dropped["sink"]  # the same at all sites
        if kept < loss_tokens:
            parts = {"ids": rows.ids, "real": rows.real, "counted": rows.counted}
            parts |= {str(site): captured[site].kept for site in sites}
            arrays |= {f"kept.{batches}.{name}": part for name, part in parts.items()}
            kept += int(rows.counted.sum())
            batches += 1
        step = int(rows.real.sum())
        read += step
        advance(step)
    for index, reading in enumerate(readings):
        arrays |= {f"{index}.{name}": part for name, part in reading.state().items()}
    facts = _Piece(sinks=sinks, passed=dict(passage.passed), kept=batches)
    whole = {name: part.cpu().numpy() for name, part in arrays.items()}
    work.put(passage.number, read=read, facts=asdict(facts), arrays=whole)
    return read


def _together(work: Work, readings: Sequence[_Sums], loss_tokens: int) -> tuple[int, int, Passed, list[Kept]]:
    """Sums over all pieces, in the order of the text, and the rows of the first `loss_tokens`. How many tokens were
    read, and are sinks; rows without text. Raises CorruptFile for what no reading of these SAEs has kept.
    """
    for reading in readings:
        reading.empty()
    sites = sorted({site for reading in readings for site in (reading.site, reading.site_out)})
    read = sinks = kept_tokens = 0
    passed: Passed = Counter()
    kept: list[Kept] = []
    for number, (tokens, piece, arrays) in enumerate(work.all(_Piece)):
        tensors = {name: torch.from_numpy(part) for name, part in arrays.items()}
        try:
            for index, reading in enumerate(readings):
                reading.add_state({name: tensors.get(f"{index}.{name}") for name in _STATE})
            for batch in range(piece.kept if kept_tokens < loss_tokens else 0):
                if kept_tokens < loss_tokens:
                    names = (*_ROWS, *map(str, sites))
                    kept.append(_kept({name: tensors.get(f"kept.{batch}.{name}") for name in names}))
                    kept_tokens += int(kept[-1].tokens.counted.sum())
        except ValueError as error:
            raise work.damaged(number, error) from error
        read += tokens
        sinks += piece.sinks
        passed.update(piece.passed)
    return read, sinks, passed, kept


_STATE = ("variance.n", "variance.total", "variance.sums", "firings.n", "firings.counts")
_ROWS = ("ids", "real", "counted")


def _kept(parts: Mapping[str, Tensor | None]) -> Kept:
    """Rows to be read again. Raises ValueError for what were none."""
    ids, *masks = parts.values()
    if ids is None or ids.dtype != torch.int64 or ids.ndim != 2 or not len(ids):
        raise ValueError("its rows are no rows of tokens")
    if any(mask is None or mask.dtype != torch.bool or mask.shape != ids.shape for mask in masks):
        raise ValueError("its rows do not say which tokens count")
    real, counted, *at = (mask for mask in masks if mask is not None)
    return Kept(Tokens(ids, real, counted), dict(zip(map(Site.parse, list(parts)[3:]), at, strict=True)))


@dataclass(frozen=True)
class _Made:
    """Of the piece that losses are, there is no more to say."""


def _once(work: Work, make: Callable[[], list[Losses]]) -> list[Losses]:
    """The losses, as one more piece: whoever finds the others done makes it, and the rest read it."""
    number = work.number
    if not work.has(number):
        made = make()
        sums = np.array([[one.n, one.total, one.divergence] for one in made], np.float64).reshape(-1, 3)
        work.put(number, read=0, facts={}, arrays={"losses": sums})
    _, arrays = work.get(number, _Made)
    require_forms(arrays, {"losses": Form((None, 3), "float64")}, where=str(work.folder))
    return [Losses(int(n), total, divergence) for n, total, divergence in arrays["losses"].tolist()]


class _Sums:
    """One SAE, or one layer of a cross-layer transcoder, and its running sums."""

    def __init__(
        self, sae: SAE, sites: tuple[Site, Site], name: str, no_losses: str | None, digest: str | None = None
    ) -> None:
        self.sae, self.name, self.no_losses = sae, name, no_losses
        self.digest = digest or sae.digest
        self.site, self.site_out = sites
        self.empty()

    def empty(self) -> None:
        """As if nothing had been read."""
        self.variance = Variance()
        self.firings = Firings(self.sae.d_sae)

    def state(self) -> dict[str, Tensor]:
        """The sums, to be stored."""
        variance, firings = self.variance.state(), self.firings.state()
        return {f"variance.{name}": one for name, one in variance.items()} | {
            f"firings.{name}": one for name, one in firings.items()
        }

    def add_state(self, state: Mapping[str, Tensor | None]) -> None:
        """What was stored of other text. Raises ValueError for what was not."""
        whole = {name: one for name, one in state.items() if one is not None}
        wide = None if self.variance.total is None else len(self.variance.total)
        forms = {name: Form(one.shape, str(one.dtype).removeprefix("torch.")) for name, one in self.state().items()}
        forms["variance.total"] = Form((wide if len(whole.get("variance.total", ())) else None,), "float64")
        try:
            require_forms(whole, forms)
        except CorruptFile as error:
            raise ValueError(error) from error
        parts = {
            part: {name.removeprefix(f"{part}."): one for name, one in whole.items() if name.startswith(part)}
            for part in ("variance", "firings")
        }
        self.variance.merge(Variance.of(parts["variance"]))
        self.firings.merge(Firings.of(parts["firings"], self.sae.d_sae))

    def add(self, features: FeatureActivations, target: Tensor, out: Tensor) -> None:
        """The features of counted tokens, what is there where it writes, and what it writes."""
        self.variance.add(*answered_for(self.sae, target.to(out.device), out))
        self.firings.add(features)

    def spliced(self, counted: Tensor) -> Sequence[Edit]:
        """What puts its output in place."""
        return replacement([self.sae], at=counted)

    def figures(self) -> dict[str, Any]:
        """All that is known without running a changed model."""
        variance, firings = self.variance, self.firings
        return {
            "sae": self.name,
            "digest": self.digest,
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
        features, out = sums.sae.read(acts.rows.to(sums.sae.device, torch.float32))
        sums.add(features, captured[sums.site_out].values[acts.kept], out)


class _Layers:
    """A cross-layer transcoder: what is written at a layer comes of the features of all layers up to it."""

    def __init__(self, model: LanguageModel, clt: CrossLayerTranscoder) -> None:
        require_layers(model, clt)
        self.clt = clt
        why = "what a cross-layer transcoder writes at a layer comes of features of earlier ones too"
        places = zip(clt.encoders, clt.sites, clt.sites_out, clt.digests, strict=True)
        self.readings = [
            _Sums(encoder, (site, site_out), f"{clt.info.name}/layer_{site.layer}", why, digest)
            for encoder, site, site_out, digest in places
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


@dataclass(frozen=True)
class _Stack:
    """Those that stand in the model at once, one at each site."""

    name: str
    readings: Sequence[_Sums]
    saes: CrossLayerTranscoder | Sequence[SAE]

    def spliced(self, counted: Tensor) -> Sequence[Edit]:
        """What puts all of their outputs in place."""
        return replacement(self.saes, at=counted)

    def ablated(self, name: str, counted: Tensor) -> Sequence[Edit]:
        """What puts zero, or the mean, in the place of all."""
        return [_ablated(reading, name, counted)[0] for reading in self.readings]


def _stacks(readers: Sequence[_Reading | _Layers], model: str) -> list[_Stack]:
    """Each cross-layer transcoder, and the SAEs where they are of several sites of one kind, each of another."""
    found = [_Stack(one.clt.info.name, one.readings, one.clt) for one in readers if isinstance(one, _Layers)]
    single = [one.sums for one in readers if isinstance(one, _Reading)]
    written = {reading.site_out for reading in single}
    apart = len(single) > 1 and len(written) == len(single) and len({site.kind for site in written}) == 1
    if apart and not any(reading.no_losses for reading in single):
        name = f"{len(single)} SAEs at {min(written)} to {max(written)} of {model}"
        found.append(_Stack(name, single, [reading.sae for reading in single]))
    return found


def _losses(
    model: LanguageModel,
    readings: Sequence[_Sums],
    stacks: Sequence[_Stack],
    kept: Sequence[Kept],
    *,
    once: Callable[[Callable[[], list[Losses]]], list[Losses]],
    progress: Progress,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The fields of each score that come from changed models, and those of each stack."""
    changes: list[Change] = []
    places: list[dict[str, int]] = []
    ablations: dict[tuple[Site, Site], dict[str, int]] = {}

    def placed(site: Site, edits: Callable[[Tensor], Sequence[Edit]]) -> int:
        changes.append(Change(site, edits))
        return len(changes) - 1

    for reading in readings if kept else ():
        if reading.no_losses:
            places.append({})
            continue
        pair = (reading.site, reading.site_out)
        if pair not in ablations:
            ablations[pair] = {
                name: placed(reading.site, partial(_ablated, reading, name)) for name in ("zero", "mean")
            }
        places.append({**ablations[pair], "spliced": placed(reading.site, reading.spliced)})
    for stack in stacks if kept else ():
        site = stack.readings[0].site
        at = {name: placed(site, partial(stack.ablated, name)) for name in ("zero", "mean")}
        places.append({**at, "spliced": placed(site, stack.spliced)})
    owners = [(reading.site, reading.no_losses) for reading in readings]
    owners += [(stack.readings[0].site, None) for stack in stacks]
    sites = list(dict.fromkeys(change.site for change in changes))

    def make() -> list[Losses]:
        clean, changed = losses(model, kept, changes, progress=progress)
        return [*(clean[site] for site in sites), *changed]

    found = once(make) if changes else []
    clean, changed = dict(zip(sites, found, strict=False)), found[len(sites) :]
    each = [
        _figures(clean[site], {name: changed[place] for name, place in at.items()}) if at else {"no_losses": why}
        for (site, why), at in zip(owners, places or [{}] * len(owners), strict=True)
    ]
    return each[: len(readings)], each[len(readings) :]


def _ablated(reading: _Sums, name: str, counted: Tensor) -> Sequence[Edit]:
    mean = reading.variance.mean
    vector = torch.zeros_like(mean) if name == "zero" else mean
    return [Constant(reading.site_out, vector.float(), name=name, at=counted)]


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
