"""Neuronpedia's batches and uploads, out: and in again, what went out."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlases import HOSTILE_LABEL, SOURCE, Plan, content_within, planted_atlas
from dashboards import same_examples, same_figures
from gemscope.atlas.entry import Entry
from gemscope.atlas.exchange.neuronpedia import writing
from gemscope.atlas.exchange.verbs import export, import_atlas
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.atlas.writer import Writer


def _rows(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


FEATURE_FIELDS = [
    "modelId",
    "layer",
    "index",
    "creatorId",
    "createdAt",
    "maxActApprox",
    "hasVector",
    "vector",
    "vectorLabel",
    "hookName",
    "vectorDefaultSteerStrength",
    "topkCosSimIndices",
    "topkCosSimValues",
    "neuron_alignment_indices",
    "neuron_alignment_values",
    "neuron_alignment_l1",
    "correlated_neurons_indices",
    "correlated_neurons_pearson",
    "correlated_neurons_l1",
    "correlated_features_indices",
    "correlated_features_pearson",
    "correlated_features_l1",
    "neg_str",
    "neg_values",
    "pos_str",
    "pos_values",
    "frac_nonzero",
    "freq_hist_data_bar_heights",
    "freq_hist_data_bar_values",
    "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
    "decoder_weights_dist",
    "sourceSetName",
]
ACTIVATION_FIELDS = [
    "id",
    "modelId",
    "layer",
    "index",
    "creatorId",
    "dataSource",
    "dataIndex",
    "tokens",
    "values",
    "maxValue",
    "minValue",
    "maxValueTokenIndex",
    "dfaValues",
    "dfaMaxValue",
    "dfaTargetIndex",
    "lossValues",
    "logitContributions",
    "binMin",
    "binMax",
    "binContains",
    "qualifyingTokenIndex",
]
EXPLANATION_FIELDS = [
    "id",
    "modelId",
    "layer",
    "index",
    "authorId",
    "description",
    "embedding",
    "typeName",
    "explanationModelName",
]


def test_neuronpedia_s_layout_and_fields_come_out(atlas: Atlas, tmp_path: Path) -> None:
    place = export(atlas, tmp_path / "v1", format="neuronpedia") / SOURCE
    features = _rows(place / "features" / "batch-0.jsonl.gz")
    activations = _rows(place / "activations" / "batch-0.jsonl.gz")
    explanations = _rows(place / "explanations" / "batch-0.jsonl.gz")
    assert [row["index"] for row in features] == [str(index) for index in range(len(atlas))]
    assert all(set(FEATURE_FIELDS) <= set(row) for row in features)
    assert all(set(ACTIVATION_FIELDS) <= set(row) for row in activations)
    assert all(set(EXPLANATION_FIELDS) <= set(row) for row in explanations)
    assert len({row["id"] for row in activations + explanations}) == len(activations) + len(explanations)
    assert {len(row["id"]) for row in activations} == {25}
    assert all(row["layer"] == "1-res-tiny" and row["sourceSetName"] == "res-tiny" for row in features)
    top = [row for row in activations if row["index"] == "0" and row["binContains"] == -1]
    assert len(top) == len(atlas[0].strongest)
    assert {(row["binMin"], row["binMax"]) for row in top} == {(-1, atlas[0].max)}
    assert any("↵" in row["tokens"] for row in activations)
    assert not any("\n" in token for row in activations for token in row["tokens"])
    for name, fields in {"model": "id", "release": "name", "sourceset": "releaseName", "source": "setName"}.items():
        assert fields in _rows(place / f"{name}.jsonl")[0]
    assert _rows(tmp_path / "v1" / "config" / "explanation_type.jsonl")[0]["name"] == "planted"


def test_the_same_atlas_gives_the_same_bytes(atlas: Atlas, tmp_path: Path) -> None:
    first = content_within(export(atlas, tmp_path / "one", format="neuronpedia"))
    assert first == content_within(export(atlas, tmp_path / "two", format="neuronpedia"))
    assert first[f"{SOURCE}/features/batch-0.jsonl.gz"][4:8] == bytes(4)


def test_features_are_cut_into_batches_and_found_again(tmp_path: Path, monkeypatch: Any) -> None:
    assert writing.BATCH == 1024
    monkeypatch.setattr(writing, "BATCH", 16)
    with planted_atlas(tmp_path / "a.atlas") as made:
        place = export(made, tmp_path / "v1", format="neuronpedia") / SOURCE
        for folder in ("features", "activations", "explanations"):
            names = {path.name for path in (place / folder).iterdir()}
            assert names == {"batch-0.jsonl.gz", "batch-1.jsonl.gz", "batch-2.jsonl.gz"}
        assert _rows(place / "features" / "batch-1.jsonl.gz")[0]["index"] == "16"
        with import_atlas("neuronpedia", tmp_path / "v1", tmp_path / "b.atlas") as back:
            assert len(back) == 40
            assert [one.count for one in back.summaries(limit=2000)] == [
                one.count for one in made.summaries(limit=2000)
            ]


def test_upload_bodies_hold_128_features_in_the_shape_of_the_call(tmp_path: Path) -> None:
    with planted_atlas(tmp_path / "a.atlas", features=130, rows=8) as made:
        folder = export(made, tmp_path / "up", format="neuronpedia-upload")
        bodies = [json.loads((folder / f"upload-{number}.json").read_text()) for number in (0, 1)]
        assert [len(body["features"]) for body in bodies] == [128, 2]
        one = bodies[0]["features"][0]
        assert set(one) == {"index", "density", "topLogits", "bottomLogits", "explanations", "activations"}
        assert set(one["activations"][0]) == {"tokens", "values", "quantileMin", "quantileMax", "quantileFraction"}
        assert one["topLogits"][0] == {
            "token": made[0].promoted[0].token.replace("\n", "↵"),
            "value": made[0].promoted[0].value,
        }
        assert one["explanations"] == [{"text": HOSTILE_LABEL, "methodName": "planted", "modelName": None}]


def test_out_to_neuronpedia_and_in_again_keeps_figures_examples_logits_and_labels(atlas: Atlas, tmp_path: Path) -> None:
    export(atlas, tmp_path / "v1", format="neuronpedia")
    with import_atlas("neuronpedia", tmp_path / "v1", tmp_path / "back.atlas") as back:
        assert len(back) == len(atlas)
        for page, other in zip(atlas, back, strict=True):
            same_figures(page, other)
            same_examples(page, other)
            if page.histogram is not None and not page.dead:  # the mean is told by the histogram alone
                assert other.mean == pytest.approx(page.mean, abs=page.histogram.step / 2)
        told, kept = back.manifest, atlas.manifest
        assert (told.model, told.site, told.sae, told.gate) == (kept.model, kept.site, kept.sae, kept.gate)
        assert (told.model_id, told.source_id, told.tokens) == (kept.model_id, kept.source_id, kept.tokens)
        assert told.metadata["missing"] == ""
        assert verify(back.folder) == []


def test_activations_leave_for_a_decoder_of_norm_1(tmp_path: Path) -> None:
    entry = Entry(
        index=0,
        count=2,
        max=3.0,
        mean=2.5,
        decoder_norm=2.0,
        step=1.0,
        histogram=np.array([0, 0, 1, 1]),
        edges=np.array([0, 4], np.float32),
        interval_counts=np.array([2]),
        positions=np.array([1, 2]),
        intervals=np.array([-1, 0]),
        owners=np.array([0, 0, 1]),
        columns=np.array([1, 2, 2]),
        values=np.array([3, 2, 2], np.float32),
        promoted=np.array([1]),
        promoted_values=np.array([4], np.float32),
    )
    plan = Plan(features=1, rows=1, length=4, before=1, after=1)
    with Writer(tmp_path / "a.atlas") as writer:
        writer.add_rows(np.array([[0, 1, 2, 3]]))
        writer.add_tokens({id_: f" w{id_}".encode() for id_ in range(4)})
        writer.add(entry)
        part = replace(plan.manifest().parts[0], counted=4)
        made = writer.finish(replace(plan.manifest(), parts=(part,)))
    place = export(made, tmp_path / "v1", format="neuronpedia") / SOURCE
    made.close()
    (feature,) = _rows(place / "features" / "batch-0.jsonl.gz")
    first, second = _rows(place / "activations" / "batch-0.jsonl.gz")
    assert feature["maxActApprox"] == 6
    assert feature["freq_hist_data_bar_values"] == [1, 3, 5, 7]
    assert feature["pos_values"] == [2]
    assert first["values"] == pytest.approx([0, 6, 4], rel=1e-3)
    assert (second["binMin"], second["binMax"]) == (0, 8)
    with import_atlas("neuronpedia", tmp_path / "v1", tmp_path / "b.atlas") as back:
        assert back[0].decoder_norm == 1
        assert back[0].max == 6
        assert "norm 1" in back.manifest.metadata["units"]
