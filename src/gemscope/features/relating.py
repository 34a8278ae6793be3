"""Finds the relatives of features across sites: by decoder directions, by the tokens that they fire on, and by what
writing one does to the other. A block of features at a time, beside all features of the other SAE.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemscope.activations.model import LanguageModel
from gemscope.errors import InputError
from gemscope.features.effect import Effect
from gemscope.features.effect import effect as measure
from gemscope.features.firings import Firings, Kept, keeping, read_firings
from gemscope.features.fit import require_fit, sites_of
from gemscope.features.neighbours import units
from gemscope.features.relatives import FIGURES, About, Bounds, Kin, Measured, Party, Relation, Text, lives
from gemscope.features.sae import SAE
from gemscope.features.together import LEAST
from gemscope.progress import Progress, silent
from gemscope.shapes import Float
from gemscope.text.corpus import Corpus

Array = np.ndarray[Any, np.dtype[Any]]

_PAIRS = 1 << 22
"""Pairs of features looked at at a time: 16 MB for each of their figures."""
_TRIED = 512
"""Features of which it is measured what they reach by chance."""
_CHANCE = 0.99
"""Share of these whose best relative by chance is below the bound."""
_LISTS = ("cosine", "correlation", "raised", "lowered")
"""By what relatives are chosen."""
_COLUMNS = (*FIGURES, "both")


def relate(
    model: LanguageModel,
    saes: Sequence[SAE],
    corpus: Corpus,
    *,
    tokens: int = 100_000,
    length: int = 128,
    batch: int = 16,
    k: int = 4,
    effects: Sequence[Effect] = (),
    effect_tokens: int = 160,
    to: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> tuple[Kin, ...]:
    """The relatives of the features of each of several SAEs of one model among those of the next and of the one before,
    in the model's order. For each feature those are kept that are among the `k` of the highest cosine of decoder
    directions, the `k` that correlate most over `tokens` counted tokens of the text (and fire on two of the same at
    least), the `k` that it raises most and the `k` that it lowers most, or that raise and lower it; with each of them
    all three figures.

        effect(i → j) = (w_j · J d_i) · ā_i / ā_j

    with d_i the decoder row of the earlier feature, J the mean Jacobian from where that SAE writes to where the later
    one reads (`effect(..., until=...)`, over `effect_tokens` tokens, or one of `effects`), w_j the later feature's
    encoder column and ā mean activations where they fire. Of SAEs with a norm, d_i is times the mean scale of the
    tokens and w_j over it.

    Bounds are what chance reaches: figures of 512 living features with the other's directions in shuffled coordinates,
    and its tokens half of the text away.

    `to` is a folder in which what was read and measured is kept until it is removed: stopped, it goes on there.

    Raises InputError for fewer than two SAEs, for one SAE twice, and for an SAE without a site, Mismatch for another
    model's, and what `effect`, `capture` and `encode` raise.
    """
    if len(saes) < 2:
        raise InputError(f"{len(saes)} SAE given: relatives are among the features of two at least")
    if tokens < 2 or k < 1:
        raise InputError(f"tokens={tokens}, k={k}: expected at least 2 and 1")
    for sae in saes:
        require_fit(model, sae)
    saes = sorted(saes, key=lambda sae: sites_of(sae)[::-1])
    names = [_party(sae) for sae in saes]
    if len({one.digest for one in names}) < len(names):
        raise InputError("one SAE is given twice: its features are their own relatives")
    dtype = str(model.dtype).removeprefix("torch.")
    settings: dict[str, object] = {
        "model": model.name,
        "revision": model.revision,
        "dtype": dtype,
        "corpus_digest": corpus.digest,
        "saes": [one.digest for one in names],
        "tokens": tokens,
        "length": length,
        "batch": batch,
    }
    folder = None if to is None else Path(to)
    with _kept(folder, settings) as kept:
        read = read_firings(
            model, saes, corpus, tokens=tokens, length=length, batch=batch, kept=kept, progress=progress
        )
        measuring = _Measuring(
            model=model, corpus=corpus, tokens=effect_tokens, known=effects, folder=folder, progress=progress
        )
        between = [measuring.between(one, other) for one, other in pairwise(saes)]
    text = Text(
        corpus=corpus.name,
        corpus_digest=corpus.digest,
        tokens=read.firings[0].tokens,
        length=length,
        dropped=read.dropped,
        dtype=dtype,
    )
    relations: list[list[Relation]] = [[] for _ in saes]
    sides = [_Side(sae, fired) for sae, fired in zip(saes, read.firings, strict=True)]
    for at, found in enumerate(between):
        pair = _Pair(sides[at], sides[at + 1], found)
        up, down = pair.related(k, progress)
        above = _about(found, names[at + 1], text, pair.bounds(False), later=True)
        below = _about(found, names[at], text, pair.bounds(True), later=False)
        relations[at].append(_relation(above, up))
        relations[at + 1].append(_relation(below, down))
    kin = tuple(
        Kin(model=model.name, revision=model.revision, own=own, relations=tuple(some))
        for own, some in zip(names, relations, strict=True)
    )
    return tuple(replace(one, lives=own) for one, own in zip(kin, lives(kin), strict=True))


def _party(sae: SAE) -> Party:
    reads, writes = sites_of(sae)
    return Party(name=sae.info.name, digest=sae.digest, site=str(reads), site_out=str(writes), d_sae=sae.d_sae)


@contextmanager
def _kept(folder: Path | None, settings: Mapping[str, object]) -> Iterator[Kept | None]:
    if folder is None:
        yield None
        return
    with keeping(folder, settings) as kept:
        yield kept


# --- the mean Jacobian from where one writes to where the other reads -------------------------------------------------


@dataclass(frozen=True)
class _Between:
    """None: nothing that is written there is read here, for the reason given."""

    matrix: Float[Tensor, "later earlier"] | None
    of: Measured | None
    why: str


@dataclass(frozen=True, kw_only=True)
class _Measuring:
    """Of which text, and what is known already."""

    model: LanguageModel
    corpus: Corpus
    tokens: int
    known: Sequence[Effect]
    folder: Path | None
    progress: Progress

    def between(self, one: SAE, other: SAE) -> _Between:
        """From where one writes to where the other reads."""
        site, until = sites_of(one)[1], sites_of(other)[0]
        if site == until:
            here = Measured(site=str(site), until=str(until), tokens=0, agreement=1.0, digest="")
            return _Between(torch.eye(one.d_out), here, "")
        if not site < until:
            return _Between(None, None, f"what {one.info.name} writes at {site} does not reach {until}")
        if site.kind in ("embed", "transcoder_nogain"):
            return _Between(None, None, f"the model does not read what is written at {site}")
        found = next((some for some in self.known if (some.of.site, some.of.until) == (str(site), str(until))), None)
        if found is None:
            file = None if self.folder is None else self.folder / f"{site}-{until}.effect"
            found = measure(
                self.model, site, self.corpus, until=until, tokens=self.tokens, to=file, progress=self.progress
            )
        found.require_between(self.model, one, other)
        of = Measured(
            site=str(site), until=str(until), tokens=found.of.tokens, agreement=found.agreement, digest=found.digest
        )
        return _Between(found.jacobian(), of, "")


# --- figures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """An SAE, and what fired of it."""

    sae: SAE
    fired: Firings

    @cached_property
    def units(self) -> Float[Tensor, "F O"]:
        """Decoder rows of length 1."""
        return units(self.sae.decoder.whole())

    @cached_property
    def written(self) -> Float[Tensor, "F O"]:
        """What a mean firing of each writes."""
        return self.sae.decoder.whole().float() * self._means[:, None]

    @cached_property
    def read(self) -> Float[Tensor, "F D"]:
        """What is read of a pre-activation, in mean firings; zeros for one that never fired."""
        return self.sae.encoder.whole().T.float() / self._means.where(self._means > 0, torch.inf)[:, None]

    @cached_property
    def _means(self) -> Float[Tensor, "F"]:
        return torch.from_numpy(self.fired.means).float() * self.fired.scale

    @property
    def tried(self) -> Array:
        """Living features, spread over all of them."""
        living = np.flatnonzero(self.fired.counts >= LEAST)
        return living[:: max(1, len(living) // _TRIED)][:_TRIED]


class _Pair:
    """An earlier SAE and a later one, and the mean Jacobian between them."""

    def __init__(self, earlier: _Side, later: _Side, between: _Between) -> None:
        self.sides = earlier, later
        self.between = between
        self.comparable = earlier.sae.d_out == later.sae.d_out

    def figures(
        self, some: Array, back: bool, *, shift: int = 0, shuffled: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """[n, G] of some features of one side beside all of the other's, by name. `back` takes the features from the
        later one. With `shift` and `shuffled` it is what chance gives.
        """
        one, other = self.sides[::-1] if back else self.sides
        mixed = shuffled or (lambda rows: rows)
        features = torch.from_numpy(some)
        cosine = effect = torch.zeros(len(some), other.sae.d_sae)
        if self.comparable:
            cosine = (mixed(one.units[features]) @ other.units.T).clamp_(-1, 1)
        if self.between.matrix is not None:
            J = self.between.matrix
            sent = one.read[features] @ J if back else one.written[features] @ J.T
            effect = mixed(sent) @ (other.written if back else other.read).T
        correlation, both = one.fired.beside(other.fired, some.tolist(), shift=shift)
        return {
            "cosine": cosine,
            "correlation": torch.from_numpy(correlation),
            "effect": effect,
            "both": torch.from_numpy(both),
        }

    def related(self, k: int, progress: Progress) -> tuple[_Chosen, _Chosen]:
        """Of each of the earlier one's features, and of each of the later one's."""
        features, others = (side.sae.d_sae for side in self.sides)
        up, down = _Chosen(features, k), _Chosen(others, k)
        each = max(1, _PAIRS // others)
        with progress("relatives", features, "features") as advance:
            for start in range(0, features, each):
                some = np.arange(start, min(start + each, features))
                found = self.figures(some, back=False)
                up.add(found, slice(start, start + len(some)), 0)
                down.add({name: part.T for name, part in found.items()}, slice(None), start)
                advance(len(some))
        return up, down

    def bounds(self, back: bool) -> Bounds:
        """What the best relative of one feature in a hundred reaches by chance; `back`: of the later one's."""
        one, other = self.sides[::-1] if back else self.sides
        tried = one.tried
        best: dict[str, list[Tensor]] = {name: [] for name in FIGURES}
        for some in np.array_split(tried, max(1, -(-len(tried) * other.sae.d_sae // _PAIRS))):
            if not len(some):
                continue
            found = self.figures(some, back, shift=one.fired.tokens // 2, shuffled=_shuffled)
            found["correlation"][found["both"] < LEAST] = 0
            for name in FIGURES:
                best[name].append(found[name].max(-1).values)
        reached = {
            name: torch.cat(some).quantile(_CHANCE).clamp(min=0).item() if some else 1.0 for name, some in best.items()
        }
        return Bounds(
            cosine=reached["cosine"] if self.comparable else None,
            correlation=reached["correlation"],
            effect=None if self.between.matrix is None else reached["effect"],
        )


def _shuffled(rows: Tensor) -> Tensor:
    """Coordinates in another order, the same for all rows and every time."""
    return rows[:, torch.randperm(rows.shape[-1], generator=torch.Generator().manual_seed(0))]


class _Chosen:
    """Of each of F features the k best of each list so far, with all figures."""

    def __init__(self, features: int, k: int) -> None:
        self.k = k
        self.ids = {name: torch.full((features, k), -1) for name in _LISTS}
        self.parts = {name: {part: torch.zeros(features, k) for part in _COLUMNS} for name in _LISTS}

    def add(self, found: dict[str, Tensor], rows: slice, first: int) -> None:
        """Figures [n, G] of the features `rows` beside the other's from `first` on."""
        for name in _LISTS:
            values = _values(name, found)
            top = values.topk(min(self.k, values.shape[-1]), dim=-1)
            new = {part: found[part].gather(-1, top.indices).float() for part in _COLUMNS}
            ids = torch.where(top.values > 0, top.indices + first, -1)
            # What was there has the lower ids, and comes first among equals.
            ids = torch.cat([self.ids[name][rows], ids], -1)
            parts = {part: torch.cat([self.parts[name][part][rows], new[part]], -1) for part in _COLUMNS}
            order = torch.where(ids >= 0, _values(name, parts), -1.0).sort(stable=True, dim=-1, descending=True).indices
            order = order[:, : self.k]
            self.ids[name][rows] = ids.gather(-1, order)
            for part in _COLUMNS:
                self.parts[name][part][rows] = parts[part].gather(-1, order)


def _values(name: str, found: dict[str, Tensor]) -> Tensor:
    """By what a list is ordered; what is not above 0 is in none."""
    if name == "raised":
        return found["effect"]
    if name == "lowered":
        return -found["effect"]
    if name == "correlation":
        return found["correlation"].where(found["both"] >= LEAST, 0.0)
    return found[name]


# --- what comes of it -------------------------------------------------------------------------------------------------


def _about(between: _Between, other: Party, text: Text, bounds: Bounds, *, later: bool) -> About:
    why = [between.why] if between.why else []
    if bounds.cosine is None:
        why.append("directions of different widths have no cosine")
    return About(other=other, later=later, text=text, bounds=bounds, effect=between.of, why="; ".join(why))


def _relation(about: About, chosen: _Chosen) -> Relation:
    """Each pair once, those of a feature that correlate most first."""
    ids = torch.cat([chosen.ids[name] for name in _LISTS], -1).numpy()
    parts = {part: torch.cat([chosen.parts[name][part] for name in _LISTS], -1).numpy() for part in _COLUMNS}
    feature = np.repeat(np.arange(len(ids)), ids.shape[1])
    flat, flats = ids.reshape(-1), {part: values.reshape(-1) for part, values in parts.items()}
    order = np.lexsort((flat, -flats["correlation"], feature))
    order = order[flat[order] >= 0]
    pairs = np.stack([feature[order], flat[order]], -1)
    if len(pairs):
        order = order[np.r_[True, (np.diff(pairs, axis=0) != 0).any(-1)]]
    sizes = np.bincount(feature[order], minlength=len(ids))
    return Relation(
        about=about,
        starts=np.concatenate([[0], sizes.cumsum()]).astype(np.int64),
        ids=flat[order].astype(np.int32),
        cosine=flats["cosine"][order],
        correlation=flats["correlation"][order],
        both=flats["both"][order].astype(np.int32),
        effect=flats["effect"][order],
    )
