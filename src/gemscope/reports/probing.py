"""How well a few features tell classes of text apart, beside the activations that the SAE reads: k-sparse probing.

Where labelled text comes from, `text/labelled.py` knows; the classifier is scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gemscope.activations import memory
from gemscope.activations.fetch import together
from gemscope.activations.model import LanguageModel
from gemscope.atlas.meaning import Given, Meanings, meanings
from gemscope.errors import EmptyText, InputError
from gemscope.features.fit import computed_by, require_fit
from gemscope.features.sae import SAE
from gemscope.progress import Progress, silent
from gemscope.reports.probe import Class, Fit, Probe
from gemscope.reports.separating import Array, fit, require_sklearn
from gemscope.text.labelled import Dataset, Labelled, labelled
from gemscope.text.tokens import Tokens

LEAST = 4
"""Texts that a class must have: some to learn from, some to test on."""


def sparse_probe(
    model: LanguageModel,
    sae: SAE,
    dataset: Dataset,
    *,
    k: Sequence[int] = (1, 2, 5),
    text: str = "text",
    label: str | None = None,
    labels: Iterable[str] | None = None,
    held_out: float = 0.25,
    limit: int | None = 2_000,
    length: int = 128,
    batch: int = 16,
    seed: int = 0,
    atlas: Given = None,
    progress: Progress = silent,
    check: Callable[[], None] = lambda: None,
) -> Probe:
    """Whether a class of text can be read off k features, held-out; the same for the activations that the SAE reads.

    `dataset`, `text`, `label` and `labels` are `labelled`'s: (text, label) pairs, a corpus (by source) or a file with
    two fields named. Two classes make one probe, more make one against the rest each. A share of `held_out` of each
    class is tested on; about `limit` texts are read (drawn by class), the first `length` tokens of each. The same seed
    gives the same figures. Features are named by an atlas of the SAE (None: the bundled one, where it is this SAE's).
    `check` is called as each block of the model runs; what it raises ends the work.
    Raises MissingDependency without scikit-learn, InputError for fewer than two classes, a class with too few texts, a
    k, share or length that cannot be; what `labelled` raises, and Mismatch where model and SAE do not fit.
    """
    require_sklearn()
    site = require_fit(model, sae)
    k = _sizes(k, min(sae.d_in, sae.d_sae))
    if not 0 < held_out < 1:
        raise InputError(f"held_out={held_out}: expected a share between 0 and 1, such as 0.25")
    if not 2 <= length <= model.context:
        raise InputError(f"length={length}: expected 2 to {model.context} tokens, which is what {model.name} reads")
    if batch < 1:
        raise InputError(f"batch={batch}: at least 1 text at a time is needed")
    found = labelled(dataset, text=text, label=label, labels=labels)
    random = np.random.default_rng(seed)
    chosen = _drawn(np.array(found.labels), limit, random)
    read = _Reading(model, sae, [found.texts[one] for one in chosen], length)
    with meanings(sae, atlas) as known_of:
        with memory.fewer("reading texts", batch, model.device), model.watched(check):
            read.run(batch, progress)
        names = np.array([found.labels[one] for one in chosen])[read.kept]
        classes = _classes(found, names)
        y = np.searchsorted(classes, names)
        tested = _split(y, held_out, random)
        rows = []
        for basis, x in (("features", read.features), ("raw", read.raw)):
            for size in (*k, *([None] if basis == "raw" else [])):
                check()
                rows.append(fit(basis, x, y, tested, classes=classes, k=size))
        if known_of is not None:
            rows = _named(rows, known_of)
    counts = [(int((y[~tested] == one).sum()), int((y[tested] == one).sum())) for one in range(len(classes))]
    commonest = int(np.argmax([train for train, _ in counts]))
    return Probe(
        model=model.name,
        sae=sae.info.name,
        site=str(site),
        dataset=found.name,
        classes=tuple(
            Class(label=label, train=train, held_out=held) for label, (train, held) in zip(classes, counts, strict=True)
        ),
        rows=tuple(rows),
        majority=counts[commonest][1] / int(tested.sum()),
        tokens=read.tokens,
        length=length,
        cut=read.cut,
        passed=found.passed,
        skipped=int((~read.kept).sum()),
        repeated=found.repeated,
        left_out=len(found.texts) - len(chosen),
        seed=seed,
        computed=computed_by(model, sae),
    )


def _named(rows: Sequence[Fit], known_of: Meanings) -> list[Fit]:
    """With the labels of the features that are chosen."""

    def named(row: Fit) -> Fit:
        if row.basis != "features":
            return row
        labels = known_of.atlas.meanings({one.dimension for probe in row.probes for one in probe.chosen})
        probes = [
            replace(probe, chosen=tuple(replace(one, label=labels.get(one.dimension)) for one in probe.chosen))
            for probe in row.probes
        ]
        return replace(row, probes=tuple(probes))

    return list(map(named, rows))


# --- which texts, and which part of them is held out --------------------------------------------------------------


def _sizes(k: Sequence[int], most: int) -> list[int]:
    sizes = sorted(set(k))
    if not sizes or sizes[0] < 1 or sizes[-1] > most:
        raise InputError(f"k={list(k)}: expected numbers of dimensions between 1 and {most}")
    return sizes


def _drawn(labels: Array, limit: int | None, random: np.random.Generator) -> list[int]:
    """Indices of the texts to read, in order: all, or about `limit` of them in the classes' proportions."""
    if limit is None or len(labels) <= limit:
        return list(range(len(labels)))
    kept: list[int] = []
    for one in np.unique(labels):
        where = np.flatnonzero(labels == one)
        n = min(len(where), max(LEAST, round(limit * len(where) / len(labels))))
        kept += random.permutation(where)[:n].tolist()
    return sorted(kept)


def _classes(found: Labelled, labels: Array) -> list[str]:
    """The labels there are, sorted. Raises InputError where that is no problem to learn."""
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise InputError(f"{found.name} has {len(classes)} class of texts that can be read: two are needed")
    few = int(np.argmin(counts))
    if counts[few] < LEAST:
        raise InputError(
            f"class {str(classes[few])!r} has {counts[few]} texts that can be read: at least {LEAST} are needed; "
            f"leave it out by naming the others with labels="
        )
    return [str(one) for one in classes]


def _split(y: Array, share: float, random: np.random.Generator) -> Array:
    """Which texts are held out: about that share of each class, at least one, and never all."""
    tested = np.zeros(len(y), dtype=bool)
    for one in np.unique(y):
        where = np.flatnonzero(y == one)
        n = min(len(where) - 1, max(1, round(share * len(where))))
        tested[random.permutation(where)[:n]] = True
    return tested


# --- what the model makes of them ---------------------------------------------------------------------------------


class _Reading:
    """Mean activations of each text: of features (sparse, [N, F]) and raw ([N, D]), over its counted tokens."""

    def __init__(self, model: LanguageModel, sae: SAE, texts: Sequence[str], length: int) -> None:
        self._model, self._sae = model, sae
        self._rows = [_start(model, text, length) for text in texts]
        self.cut = sum(longer for _, longer in self._rows)
        self.kept = np.zeros(len(texts), dtype=bool)
        """Texts with a token that counts; `features` and `raw` are of these."""
        self.tokens = 0

    def run(self, batch: int, progress: Progress) -> None:
        from scipy import sparse

        order = sorted(range(len(self._rows)), key=lambda one: len(self._rows[one][0]))  # little padding
        features: list[Any] = [None] * len(order)
        raw: list[Any] = [None] * len(order)
        with progress("read texts", len(order), "texts") as advance:
            for start in range(0, len(order), batch):
                some = order[start : start + batch]
                for one, *means in zip(some, *self._batch(some), strict=True):
                    features[one], raw[one] = means
                advance(len(some))
        kept = np.flatnonzero(self.kept)
        if not len(kept):
            raise EmptyText("no text has a token that counts: each has one token, or only special ones")
        self.features = sparse.vstack([features[one] for one in kept], format="csr")
        self.raw = np.stack([raw[one] for one in kept])

    def _batch(self, some: Sequence[int]) -> tuple[list[Any], Array]:
        from scipy import sparse

        model, sae = self._model, self._sae
        tokens = Tokens.of([self._rows[one][0] for one in some], special=model.special_ids)
        assert sae.site is not None
        acts = model.capture(tokens, [sae.site])[sae.site]
        n = acts.kept.sum(-1)
        self.kept[list(some)] = (n > 0).numpy()
        self.tokens += int(n.sum())
        values = acts.rows.to(sae.device)
        row = acts.kept.nonzero()[:, 0].to(values.device)
        share = (1 / n.clamp(min=1).double()).to(values.device)
        # Not added up by row where it comes: GPUs do that in any order, and the same seed is to give the same figures.
        counted = acts.counted.to(values.device)[..., None]
        raw = torch.where(counted, acts.values.to(values.device).double(), 0).sum(1).mul_(share[:, None])
        found = sae.encode(values)
        # Texts times features at a time: a batch's few rows may be dense for a moment.
        means = torch.zeros(len(some), sae.d_sae, dtype=torch.float64, device=row.device)
        whose = row[found.tokens]
        means.index_put_((whose, found.features.long()), found.values.double() * share[whose], accumulate=True)
        means, raw = together([means, raw])
        return [sparse.csr_array(one[None]) for one in means.numpy()], raw.numpy()


def _start(model: LanguageModel, text: str, length: int) -> tuple[list[int], bool]:
    """The first `length` ids of a text, and whether there are more."""
    ids = model.ids(text)
    return ids[:length], len(ids) > length
