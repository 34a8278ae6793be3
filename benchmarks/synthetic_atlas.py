"""Atlases of any size, made from a seed, whose pages weigh what real ones do: what `pages.py` serves. Written by the
real Writer, in the shape that `describe` gives; what the features mean is nothing.

Tokens follow Zipf's law, densities spread over four decades, a dozenth of the features is dead. A page holds 20
examples and five from every interval, 64 tokens each of which one in ten is active, both histograms, 20 tokens, 20
neighbours, 20 partners; three features in four have a label.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from realistic import CACHE

from gemscope.atlas.dashboard import Explanation
from gemscope.atlas.entry import Entry
from gemscope.atlas.files.manifest import Manifest, Part
from gemscope.atlas.writer import Writer

_RECIPE = 2
"""Raise it when anything below changes what is made."""
ROWS, LENGTH = 8192, 256
"""Of the corpus: 2 million tokens."""
VOCABULARY = 50_000
BEFORE, AFTER = 40, 23
_TOP, _EACH, _INTERVALS, _BINS = 20, 5, 8, 64
_ACTIVE = 0.1
_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "ou")]


def atlas_folder(features: int, *, cache: Path = CACHE) -> Path:
    """A folder that holds such an atlas, made when it is not there yet."""
    folder = cache / f"atlas-{features}-recipe-{_RECIPE}"
    if folder.exists():
        return folder
    print(f"making {folder.name}", file=sys.stderr)
    cache.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n")
    ids = _corpus()
    starts = range(1, ids.size, 900)
    with Writer(folder) as writer:
        for start in range(0, ROWS, 1024):
            writer.add_rows(ids[start : start + 1024])
        for number, start in enumerate(starts):
            writer.add_document(start, f"book {number % 40}", "CC0-1.0")
        writer.add_tokens({id_: _word(id_) for id_ in range(VOCABULARY)} | {0: b"<|endoftext|>"}, special=[0])
        for entry in _entries(ids, features):
            writer.add(entry)
        for feature in range(features):
            if feature % 4:
                writer.add_explanation(feature, Explanation(id=0, text=label(feature), method="synthetic"))
        writer.finish(_manifest(features, len(starts))).close()
    return folder


def label(feature: int) -> str:
    """Four to eight words, of which the first ones are rare."""
    draw = np.random.default_rng((7, feature))
    words = [_word(int(id_)).decode().strip() for id_ in draw.zipf(1.3, 4 + feature % 5).clip(1, VOCABULARY - 1)]
    return f"{_word(feature % VOCABULARY).decode().strip()} and {' '.join(words)}"


def _word(id_: int) -> bytes:
    """Short for frequent ones, with the blank in front of it; one in eight ends a word."""
    text, rest = "", id_
    while rest or not text:
        text += _SYLLABLES[rest % len(_SYLLABLES)]
        rest //= len(_SYLLABLES)
    return (text if id_ % 8 == 7 else f" {text}").encode()


def _corpus() -> np.ndarray[Any, np.dtype[np.int64]]:
    draw = np.random.default_rng(1)
    weights = 1 / np.arange(3, 3 + VOCABULARY - 1)
    bounds = np.cumsum(weights / weights.sum())
    ids = 1 + np.searchsorted(bounds, draw.random((ROWS, LENGTH))).clip(max=VOCABULARY - 2)
    ids[:, 0] = 0
    return ids.astype(np.int64)


def _entries(ids: np.ndarray[Any, Any], features: int) -> Iterator[Entry]:
    flat = ids.reshape(-1)
    order = np.argsort(flat, kind="stable")
    firsts = np.searchsorted(flat[order], np.arange(VOCABULARY + 1))
    for index in range(features):
        draw = np.random.default_rng((3, index))
        if index % 12 == 11:
            yield Entry(index=index, count=0, max=0.0, mean=0.0, **_relatives(draw, features))
            continue
        token = 1 + int(50 * draw.pareto(0.6)) % (VOCABULARY - 1)
        own = order[firsts[token] : firsts[token + 1]]
        yield _living(index, own, draw, features)


def _living(index: int, own: np.ndarray[Any, Any], draw: np.random.Generator, features: int) -> Entry:
    exponent = int(draw.integers(0, 8))
    ceiling = 2.0**exponent
    count = int(10 ** draw.uniform(1.7, 5.2))
    # Fewer at each higher bin, as activations go.
    histogram = draw.multinomial(count - 1, _shares(draw))
    histogram[int(_BINS * 0.5) + int(draw.integers(_BINS // 2))] += 1
    last = int(histogram.nonzero()[0][-1])
    high = (last + 0.5) * ceiling / _BINS
    inside = histogram.reshape(_INTERVALS, -1).sum(1)
    drawn = [np.full(min(_EACH, int(n)), interval) for interval, n in enumerate(inside)][::-1]
    intervals = np.concatenate([np.full(min(_TOP, count), -1), *drawn])
    peaks = np.where(intervals < 0, 0.0, (intervals + draw.random(len(intervals))) * ceiling / _INTERVALS)
    n_top = int((intervals < 0).sum())
    peaks[:n_top] = high * np.sort(draw.uniform(0.8, 1, n_top))[::-1]
    peaks[0] = high
    peaks = np.minimum(peaks, high).clip(min=1e-3)
    own = own[own % LENGTH > 0]
    positions = draw.choice(own, len(peaks)) if len(own) else draw.integers(1, LENGTH, len(peaks)) + LENGTH * 5
    # Every cell of every window, one in ten active, and the example's own always.
    column = positions % LENGTH
    cells = column[:, None] + np.arange(-BEFORE, AFTER + 1)
    active = (draw.random(cells.shape) < _ACTIVE) & (cells > 0) & (cells < LENGTH)
    active[:, BEFORE] = True
    values = draw.random(cells.shape) ** 2 * peaks[:, None]
    values[:, BEFORE] = peaks
    owners, places = active.nonzero()
    return Entry(
        index=index,
        count=count,
        max=float(np.float32(high)),
        mean=float(((np.arange(_BINS) + 0.5) * histogram).sum() / count * ceiling / _BINS),
        encoder_cosine=float(draw.uniform(0.1, 0.9)),
        decoder_norm=1.0,
        step=ceiling / _BINS,
        histogram=histogram,
        edges=(np.arange(_INTERVALS + 1) * ceiling / _INTERVALS).astype(np.float32),
        interval_counts=inside,
        positions=positions,
        intervals=intervals,
        owners=owners,
        columns=cells[owners, places],
        values=values[owners, places].astype(np.float32).clip(min=1e-4),
        **_relatives(draw, features),
    )


def _shares(draw: np.random.Generator) -> np.ndarray[Any, Any]:
    falling = np.exp(-np.arange(_BINS) * draw.uniform(0.03, 0.2))
    return np.asarray(falling / falling.sum())


def _relatives(draw: np.random.Generator, features: int) -> dict[str, Any]:
    def falling(size: int) -> np.ndarray[Any, Any]:
        return np.sort(draw.random(size, dtype=np.float32))[::-1]

    def some(size: int, below: int) -> np.ndarray[Any, Any]:
        return np.unique(draw.integers(0, below, 2 * size))[:size]

    promoted, suppressed = some(10, VOCABULARY), some(10, VOCABULARY)
    near, partners = some(20, features), some(20, features)
    return {
        "promoted": promoted,
        "promoted_values": falling(len(promoted)) * 3,
        "suppressed": suppressed,
        "suppressed_values": -falling(len(suppressed)) * 3,
        "logit_low": -3.0,
        "logit_step": 0.12,
        "logit_histogram": draw.multinomial(VOCABULARY, np.full(50, 0.02)),
        "neighbours": near,
        "cosines": falling(len(near)),
        "partners": partners,
        "jaccards": falling(len(partners)),
        "shares": falling(len(partners)),
    }


def _manifest(features: int, documents: int) -> Manifest:
    part = Part(
        name="synthetic",
        digest="0" * 64,
        rows=ROWS,
        documents=documents,
        counted=ROWS * (LENGTH - 1),
        masked={"first": ROWS},
    )
    return Manifest(
        model="synthetic/model",
        model_id="synthetic",
        source_id=f"0-res-{features}",
        revision=None,
        sae="synthetic",
        sae_digest="1" * 64,
        site="0.res",
        site_out="0.res",
        gate="jumprelu",
        d_sae=features,
        parts=(part,),
        length=LENGTH,
        before=BEFORE,
        after=AFTER,
        bos=True,
        logits="made up",
        no_logits=None,
        coactivation="made up",
        options={"top": _TOP, "each": _EACH},
        versions={},
    )
