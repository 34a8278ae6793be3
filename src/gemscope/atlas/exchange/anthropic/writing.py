"""One JSON file a feature, in the shape that the pages of attribution graphs read (Anthropic's, circuit-tracer's).

What that shape has no room for stands under the key `gemscope`, which those pages pass over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gemscope.atlas.dashboard import Dashboard, Example
from gemscope.atlas.exchange.effects import effect_told
from gemscope.atlas.exchange.folder import chosen
from gemscope.atlas.exchange.numbers import short
from gemscope.atlas.exchange.provenance import OURS, told
from gemscope.atlas.reader import Atlas
from gemscope.disk import folder_aside
from gemscope.features.histogram import Histogram

ABOUT = "gemscope.json"
"""What all features of a folder have in common."""
TOP = "Top activations"


def export(atlas: Atlas, to: Path, *, features: Iterable[int] | None = None) -> Path:
    """A folder `to` of `{index}.json` and `gemscope.json`. Raises FileError, StorageFull, NotFound."""
    manifest, wanted = atlas.manifest, chosen(features, len(atlas))
    with folder_aside(to) as aside:
        about = told(manifest) | {"model_id": manifest.model_id, "source_id": manifest.source_id}
        _write(aside / ABOUT, about | {"format": 1})
        for index in wanted:
            _write(aside / f"{index}.json", feature(atlas[index]))
    return to


def feature(page: Dashboard) -> dict[str, Any]:
    """The object that those pages read."""
    histogram = page.histogram
    groups = [(TOP, page.strongest)]
    for number, one in reversed(list(enumerate(page.intervals))):
        if found := page.within(number):
            groups.append((f"Interval {one.low:.3g} to {one.high:.3g} ({one.share:.1%} of firings)", found))
    return {
        "transcoder_id": f"{page.model}/{page.source}",
        "index": page.index,
        "examples_quantiles": [
            {"quantile_name": name, "examples": [_example(one) for one in found]} for name, found in groups
        ],
        "top_logits": [one.token for one in page.promoted],
        "bottom_logits": [one.token for one in page.suppressed],
        "act_min": histogram.low if histogram else 0.0,
        "act_max": page.max,
        "quantile_values": _quantiles(histogram, page.max),
        "histogram": histogram.counts if histogram else [],
        "activation_frequency": page.density,
        OURS: {
            "count": page.count,
            "tokens": page.tokens,
            "mean": page.mean,
            "encoder_cosine": page.encoder_cosine,
            "decoder_norm": page.decoder_norm,
            "histogram_step": histogram.step if histogram else None,
            "intervals": [[one.low, one.high, one.count] for one in page.intervals],
            "top_logits": [short(one.value) for one in page.promoted],
            "bottom_logits": [short(one.value) for one in page.suppressed],
            "logit_histogram": asdict(page.logit_histogram) if page.logit_histogram else None,
            "effect": effect_told(page),
            "neighbours": [[one.feature, short(one.cosine)] for one in page.neighbours],
            "coactive": [[one.feature, short(one.jaccard), short(one.share)] for one in page.coactive],
            "explanations": [
                {name: value for name, value in vars(one).items() if name not in ("id", "trials")}
                for one in reversed(page.explanations)
            ],
        },
    }


def _example(one: Example) -> dict[str, Any]:
    return {
        "tokens": one.tokens,
        "tokens_acts_list": [short(value) if value else 0 for value in one.values],
        "train_token_ind": one.peak,
        "is_repeated_datapoint": False,
    }


def _quantiles(histogram: Histogram | None, top: float) -> list[float]:
    """The 0th to 100th percentile of its activations, as far as the histogram tells them."""
    if histogram is None or not sum(histogram.counts):
        return []
    below = np.concatenate([[0], np.cumsum(histogram.counts)]) / sum(histogram.counts)
    bounds = np.minimum(histogram.low + histogram.step * np.arange(len(histogram.counts) + 1), top)
    return [float(value) for value in np.interp(np.linspace(0, 1, 101), below, bounds)]


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False), encoding="utf-8", errors="replace")
