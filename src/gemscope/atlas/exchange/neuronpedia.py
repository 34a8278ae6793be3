"""An atlas in the batches of lines that Neuronpedia publishes and imports, and in the body that its upload takes.

Activations are written for a decoder of norm 1, as theirs are; the strings of tokens as theirs (↵ for a line break).
Reading is `from_neuronpedia.py`'s.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemscope.atlas.dashboard import Dashboard, Example
from gemscope.atlas.exchange.folder import chosen, slug
from gemscope.atlas.exchange.pieces import piece_of
from gemscope.disk import folder_aside
from gemscope.features.histogram import Histogram

if TYPE_CHECKING:
    from gemscope.atlas.files.manifest import Manifest
    from gemscope.atlas.reader import Atlas

BATCH = 1024
"""Features in a file of lines."""
UPLOAD = 128
"""Features in one upload."""
CREATOR = "gemscope"
"""Who made the rows, where nobody else is named."""
OUR_CONFIG = "gemscope"
"""Where `saelensConfig`, an object of any fields, holds what the other fields have no room for."""
_EPOCH = "1970-01-01T00:00:00"
"""The same atlas gives the same bytes: there are no clocks in them."""


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
                    figures(_feature(page, manifest, creator))
                    for line in _activations(page, creator):
                        examples(line)
                    for line in _explanations(page, creator):
                        explanations(line)
        _write_about(aside / "config", place, manifest, sorted(methods), creator)
    return to


def export_upload(atlas: Atlas, to: Path, *, features: Iterable[int] | None = None) -> Path:
    """A folder of `upload-N.json`, each the body of one call of `/api/feature/upload-batch`. Raises as `export`."""
    manifest, wanted = atlas.manifest, chosen(features, len(atlas))
    with folder_aside(to) as aside:
        for number, start in enumerate(range(0, len(wanted), UPLOAD)):
            pages = (atlas[index] for index in wanted[start : start + UPLOAD])
            body = {
                "modelId": manifest.model_id,
                "source": manifest.source_id,
                "features": [_uploaded(page) for page in pages],
            }
            text = json.dumps(body, ensure_ascii=False, allow_nan=False)
            (aside / f"upload-{number}.json").write_text(text, encoding="utf-8")
    return to


# --- lines ----------------------------------------------------------------------------------------------------------


def _feature(page: Dashboard, manifest: Manifest, creator: str) -> dict[str, Any]:
    unit = page.decoder_norm or 1.0
    logits = page.logit_histogram
    return {
        "modelId": page.model,
        "layer": page.source,
        "index": str(page.index),
        "creatorId": creator,
        "createdAt": _EPOCH,
        "maxActApprox": page.max * unit,
        "hasVector": False,
        "vector": [],
        "vectorLabel": None,
        "hookName": hook_name(manifest.site),
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
        "freq_hist_data_bar_values": middles(page.histogram, unit),
        "logits_hist_data_bar_heights": logits.counts if logits else [],
        "logits_hist_data_bar_values": middles(logits, 1 / unit),
        "decoder_weights_dist": [],
        "sourceSetName": _set_name(page.source),
    }


def _activations(page: Dashboard, creator: str) -> Iterator[dict[str, Any]]:
    for number, one in enumerate(page.examples):
        values, low, high, share = _folded(page, one)
        peak = max(range(len(values)), key=values.__getitem__)
        yield {
            "id": _id(page, "activation", number),
            "modelId": page.model,
            "layer": page.source,
            "index": str(page.index),
            "creatorId": creator,
            "createdAt": _EPOCH,
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
    # Oldest first: an importer that numbers them as they come keeps the newest on top.
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
            "explanationModelName": None,
            "createdAt": _EPOCH,
        }


def _uploaded(page: Dashboard) -> dict[str, Any]:
    unit = page.decoder_norm or 1.0
    activations = []
    for one in page.examples:
        values, low, high, share = _folded(page, one)
        activations.append(
            {
                "tokens": [piece_of(token) for token in one.tokens][:1024],
                "values": values[:1024],
                "quantileMin": low,
                "quantileMax": high,
                "quantileFraction": share,
            }
        )
    return {
        "index": page.index,
        "density": page.density,
        "topLogits": [{"token": piece_of(one.token), "value": one.value / unit} for one in page.promoted[:20]],
        "bottomLogits": [{"token": piece_of(one.token), "value": one.value / unit} for one in page.suppressed[:20]],
        "explanations": [
            {"text": one.text[:512], "methodName": one.method, "modelName": None} for one in page.explanations
        ],
        "activations": activations,
    }


def _folded(page: Dashboard, one: Example) -> tuple[list[float], float, float, float]:
    """An example's activations for a decoder of norm 1, and its group: -1, the maximum and -1 mark the strongest."""
    unit = page.decoder_norm or 1.0
    values = [short(value * unit) if value else 0 for value in one.values]
    if one.interval is None:
        return values, -1.0, page.max * unit, -1.0
    found = page.intervals[one.interval]
    return values, found.low * unit, found.high * unit, found.share


def short(value: float) -> float:
    """The float with the fewest digits that is this one as float32, which is what activations are kept as."""
    return float(str(np.float32(value)))


def middles(histogram: Histogram | None, unit: float) -> list[float]:
    """Where the bars stand, times a unit."""
    if histogram is None:
        return []
    return [(histogram.low + (n + 0.5) * histogram.step) * unit for n in range(len(histogram.counts))]


# --- what the lines are of ------------------------------------------------------------------------------------------


def _write_about(config: Path, place: Path, manifest: Manifest, methods: list[str], creator: str) -> None:
    """The rows that features belong to."""
    config.mkdir()
    _write(
        config / "explanation_type.jsonl",
        [{"name": name, "displayName": name, "description": name} for name in methods],
    )
    _write(config / "explanation_model_type.jsonl", [])
    model, source = manifest.model_id, manifest.source_id
    who = {"creatorId": creator, "createdAt": _EPOCH}
    _write(
        place / "model.jsonl",
        [
            {
                "id": model,
                "instruct": model.endswith(("-it", "-instruct")),
                "displayNameShort": model,
                "displayName": manifest.model,
                **who,
                "updatedAt": _EPOCH,
            }
        ],
    )
    _write(
        place / "release.jsonl",
        [
            {
                "name": _set_name(source),
                "description": manifest.sae,
                "descriptionShort": manifest.sae,
                "urls": [],
                "creatorNameShort": creator,
                "creatorName": creator,
                **who,
            }
        ],
    )
    _write(
        place / "sourceset.jsonl",
        [
            {
                "modelId": model,
                "name": _set_name(source),
                **who,
                "creatorName": creator,
                "releaseName": _set_name(source),
                "description": manifest.sae,
                "visibility": "PUBLIC",
            }
        ],
    )
    _write(
        place / "source.jsonl",
        [
            {
                "id": source,
                "modelId": model,
                "setName": _set_name(source),
                "visibility": "PUBLIC",
                "dataset": ", ".join(part.name for part in manifest.parts),
                "num_prompts": manifest.rows,
                "num_tokens_in_prompt": manifest.length,
                "saelensConfig": {OUR_CONFIG: told(manifest)},
                "saelensRelease": None,
                "saelensSaeId": None,
                "hfRepoId": None,
                "hfFolderId": None,
                "creatorId": creator,
                "createdAt": _EPOCH,
            }
        ],
    )


def told(manifest: Manifest) -> dict[str, Any]:
    """What a manifest says that no field of another tool has room for."""
    return {
        "model": manifest.model,
        "revision": manifest.revision,
        "sae": manifest.sae,
        "sae_digest": manifest.sae_digest,
        "site": manifest.site,
        "site_out": manifest.site_out,
        "gate": manifest.gate,
        "d_sae": manifest.d_sae,
        "tokens": manifest.tokens,
        "logits": manifest.logits,
        "no_logits": manifest.no_logits,
    }


def hook_name(site: str) -> str | None:
    """The place in TransformerLens's words; None where it has none."""
    from gemscope.activations.site import Site
    from gemscope.errors import GemscopeError
    from gemscope.features.files.hook_names import hook_of

    try:
        return hook_of(Site.parse(site))
    except GemscopeError:
        return None


def _set_name(source: str) -> str:
    """`20-gemmascope-res-16k` belongs to the set `gemmascope-res-16k`, and so does `20-gemmascope-res-16k__l0-50`."""
    layer, dash, rest = source.partition("-")
    return (rest if dash and layer.isdecimal() else source).partition("__")[0]


def _id(page: Dashboard, kind: str, number: int) -> str:
    """25 characters, as theirs are, and the same for the same atlas."""
    said = f"{page.model}/{page.source}/{page.index}/{kind}/{number}"
    return "c" + hashlib.blake2b(said.encode(), digest_size=12).hexdigest()


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@contextmanager
def _lines(path: Path) -> Iterator[Any]:
    """A writer of lines into a compressed file, with neither a name nor a time in it."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=5, fileobj=raw, mtime=0) as packed:

        def write(row: dict[str, Any]) -> None:
            packed.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n")

        yield write
