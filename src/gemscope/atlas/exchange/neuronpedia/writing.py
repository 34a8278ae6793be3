"""An atlas in the batches of lines that Neuronpedia publishes and imports.

Activations are written for a decoder of norm 1, as theirs are; the strings of tokens as theirs (↵ for a line break).
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gemscope.atlas.dashboard import Dashboard, Example
from gemscope.atlas.exchange.effects import effect_told
from gemscope.atlas.exchange.folder import chosen, slug
from gemscope.atlas.exchange.neuronpedia.about import EPOCH, set_name, write_about
from gemscope.atlas.exchange.numbers import short
from gemscope.atlas.exchange.pieces import piece_of
from gemscope.atlas.exchange.provenance import OURS
from gemscope.atlas.files.manifest import Manifest
from gemscope.atlas.reader import Atlas
from gemscope.disk import folder_aside
from gemscope.features.histogram import Histogram

BATCH = 1024
"""Features in a file of lines."""
CREATOR = "gemscope"
"""Who made the rows, where nobody else is named."""


def export(atlas: Atlas, to: Path, *, features: Iterable[int] | None = None, creator: str = CREATOR) -> Path:
    """A folder `to` with `config/` and `{model}/{source}/`, as under `v1/` of Neuronpedia's datasets.

    `creator` is the id of the user whom an importing Neuronpedia shall hold for its author. Raises FileError,
    StorageFull, NotFound.
    """
    manifest, wanted = atlas.manifest, chosen(features, len(atlas))
    model, source = slug(manifest.model_id), slug(manifest.source_id)
    with folder_aside(to) as aside:
        place = aside / model / source
        for name in ("features", "activations", "explanations"):
            (place / name).mkdir(parents=True)
        methods: set[str] = set()
        models: set[str] = set()
        for number, start in enumerate(range(0, len(wanted), BATCH)):
            name = f"batch-{number}.jsonl.gz"
            with (
                _lines(place / "features" / name) as figures,
                _lines(place / "activations" / name) as examples,
                _lines(place / "explanations" / name) as explanations,
            ):
                for index in wanted[start : start + BATCH]:
                    page = atlas[index]
                    methods |= {one.method for one in page.explanations}
                    models |= {one.model for one in page.explanations if one.model}
                    figures(_feature(page, manifest, creator))
                    for line in _activations(page, creator):
                        examples(line)
                    for line in _explanations(page, creator):
                        explanations(line)
        write_about(aside / "config", place, manifest, creator, methods=sorted(methods), models=sorted(models))
    return to


def _feature(page: Dashboard, manifest: Manifest, creator: str) -> dict[str, Any]:
    unit = page.decoder_norm or 1.0
    logits = page.logit_histogram
    return {
        "modelId": page.model,
        "layer": page.source,
        "index": str(page.index),
        "creatorId": creator,
        "createdAt": EPOCH,
        "maxActApprox": page.max * unit,
        "hasVector": False,
        "vector": [],
        "vectorLabel": None,
        "hookName": _hook_name(manifest.site),
        "vectorDefaultSteerStrength": page.max * unit,
        "topkCosSimIndices": [one.feature for one in page.neighbours],
        "topkCosSimValues": [one.cosine for one in page.neighbours],
        "neuron_alignment_indices": [],
        "neuron_alignment_values": [],
        "neuron_alignment_l1": [],
        "correlated_neurons_indices": [],
        "correlated_neurons_pearson": [],
        "correlated_neurons_l1": [],
        "correlated_features_indices": [],
        "correlated_features_pearson": [],
        "correlated_features_l1": [],
        "neg_str": [piece_of(one.token) for one in page.suppressed],
        "neg_values": [one.value / unit for one in page.suppressed],
        "pos_str": [piece_of(one.token) for one in page.promoted],
        "pos_values": [one.value / unit for one in page.promoted],
        "frac_nonzero": page.density,
        "freq_hist_data_bar_heights": page.histogram.counts if page.histogram else [],
        "freq_hist_data_bar_values": _middles(page.histogram, unit),
        "logits_hist_data_bar_heights": logits.counts if logits else [],
        "logits_hist_data_bar_values": _middles(logits, 1 / unit),
        "decoder_weights_dist": [],
        "sourceSetName": set_name(page.source),
        **({OURS: {"effect": effect_told(page, piece=piece_of, unit=unit)}} if page.writes else {}),
    }


def _activations(page: Dashboard, creator: str) -> Iterator[dict[str, Any]]:
    for number, one in enumerate(page.examples):
        values, low, high, share = folded(page, one)
        peak = max(range(len(values)), key=values.__getitem__)
        yield {
            "id": _id(page, "activation", number),
            "modelId": page.model,
            "layer": page.source,
            "index": str(page.index),
            "creatorId": creator,
            "createdAt": EPOCH,
            "dataSource": None,
            "dataIndex": None if one.document < 0 else str(one.document),
            "tokens": [piece_of(token) for token in one.tokens],
            "values": values,
            "maxValue": values[peak],
            "minValue": min(values),
            "maxValueTokenIndex": peak,
            "dfaValues": [],
            "dfaMaxValue": None,
            "dfaTargetIndex": None,
            "lossValues": [],
            "logitContributions": None,
            "binMin": low,
            "binMax": high,
            "binContains": share,
            "qualifyingTokenIndex": one.peak,
        }


def _explanations(page: Dashboard, creator: str) -> Iterator[dict[str, Any]]:
    # The best last: an importer that numbers them as they come keeps it on top.
    for number, one in enumerate(reversed(page.explanations)):
        yield {
            "id": _id(page, "explanation", number),
            "modelId": page.model,
            "layer": page.source,
            "index": str(page.index),
            "authorId": one.author or creator,
            "description": one.text,
            "embedding": [],
            "typeName": one.method,
            "explanationModelName": one.model or None,
            "notes": one.rule or None,
            "scoreV1": one.score,
            "control": one.control,
            "confidence": one.confidence,
            "createdAt": f"{one.made}T00:00:00" if one.made else EPOCH,
        }


def _hook_name(site: str) -> str | None:
    """The place in TransformerLens's words; None where it has none."""
    from gemscope.activations.site import Site
    from gemscope.errors import GemscopeError
    from gemscope.features.files.hook_names import hook_of

    try:
        return hook_of(Site.parse(site))
    except GemscopeError:
        return None


def _id(page: Dashboard, kind: str, number: int) -> str:
    """25 characters, as theirs are, and the same for the same atlas."""
    said = f"{page.model}/{page.source}/{page.index}/{kind}/{number}"
    return "c" + hashlib.blake2b(said.encode(), digest_size=12).hexdigest()


@contextmanager
def _lines(path: Path) -> Iterator[Any]:
    """A writer of lines into a compressed file, with neither a name nor a time in it."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=5, fileobj=raw, mtime=0) as packed:

        def write(row: dict[str, Any]) -> None:
            packed.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n")

        yield write


def folded(page: Dashboard, one: Example) -> tuple[list[float], float, float, float]:
    """An example's activations for a decoder of norm 1, and its group: -1, the maximum and -1 mark the strongest."""
    unit, (low, high, share) = page.decoder_norm or 1.0, page.group(one)
    values = [short(value * unit) if value else 0 for value in one.values]
    return values, low if low < 0 else low * unit, high * unit, share


def _middles(histogram: Histogram | None, unit: float) -> list[float]:
    """Where the bars stand, times a unit."""
    return [value * unit for value in histogram.middles] if histogram else []
