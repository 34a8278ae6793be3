"""Atlases in the formats of others: what goes out comes back, and what others get wrong is put right or named."""

import copy
import csv
import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from atlases import HOSTILE_LABEL, Plan, planted_atlas
from foreign import ADDRESS, EACH, LENGTH, ROWS, F, examples_file
from gemscope.atlas.dashboard import Dashboard, Example
from gemscope.atlas.entry import Entry
from gemscope.atlas.exchange.counted import firings, from_zero
from gemscope.atlas.exchange.csv import guarded
from gemscope.atlas.exchange.folder import slugged
from gemscope.atlas.exchange.intake import Taken
from gemscope.atlas.exchange.neuronpedia import writing
from gemscope.atlas.exchange.pieces import bytes_of, looks_byte_level
from gemscope.atlas.exchange.verbs import EXPORTS, export, import_atlas
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.atlas.writer import Writer
from gemscope.cli.main import main
from gemscope.errors import CorruptFile, FileError, InputError, MissingDependency, NotFound
from gemscope.features.catalog import snapshot

SOURCE = "tiny-model/1-res-tiny"


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Atlas]:
    with planted_atlas(tmp_path_factory.mktemp("exchange") / "planted.atlas") as made:
        yield made


def _rows(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def _texts(examples: list[Example]) -> list[str]:
    return ["".join(one.tokens) for one in examples]


def _shown(page: Dashboard) -> dict[tuple[str, ...], Example]:
    """Examples by what they read, each once: an import shows the same window once."""
    out: dict[tuple[str, ...], Example] = {}
    for one in page.examples:
        out.setdefault(tuple(one.tokens), one)
    return out


# --- CSV and Parquet ------------------------------------------------------------------------------------------------


def test_csv_has_a_row_a_feature_and_reads_back(atlas: Atlas, tmp_path: Path) -> None:
    export(atlas, tmp_path / "all.csv", format="csv")
    raw = (tmp_path / "all.csv").read_bytes()
    assert b"\r\n" in raw
    assert not raw.startswith(b"\xef\xbb\xbf")
    csv.field_size_limit(1 << 24)
    rows = list(csv.DictReader(io.StringIO(raw.decode(), newline="")))
    assert [int(row["index"]) for row in rows] == list(range(len(atlas)))
    for row, page in zip(rows, atlas, strict=True):
        assert float(row["density"]) == page.density
        assert int(row["count"]) == page.count
        assert float(row["max"]) == page.max
        assert json.loads(row["promoted_tokens"]) == [one.token for one in page.promoted]
        assert json.loads(row["neighbours"]) == [one.feature for one in page.neighbours]
    assert rows[0]["label"] == HOSTILE_LABEL
    assert rows[6]["encoder_cosine"] == ""


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =cmd|'/C calc'!A0", "\n=1"])
def test_a_spreadsheet_finds_no_formula(text: str, tmp_path: Path) -> None:
    assert guarded(text) == "'" + text
    assert guarded("1=2") == "1=2"
    with planted_atlas(tmp_path / "a.atlas", features=3) as made:
        made.explain(1, text)
        export(made, tmp_path / "out.csv", format="csv", features=[1])
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["label"] == "'" + text


def test_parquet_holds_everything_with_nested_lists(atlas: Atlas, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra")
    export(atlas, tmp_path / "all.parquet", format="parquet")
    rows = parquet.read_table(tmp_path / "all.parquet").to_pylist()
    assert len(rows) == len(atlas)
    for row, page in zip(rows, atlas, strict=True):
        assert row["density"] == page.density
        assert row["label"] == page.label
        assert [one["token"] for one in row["promoted"]] == [one.token for one in page.promoted]
        assert [one["interval"] for one in row["examples"]] == [one.interval for one in page.examples]
        assert [one["ids"] for one in row["examples"]] == [one.ids for one in page.examples]
        for mine, one in zip(row["examples"], page.examples, strict=True):
            assert mine["values"] == pytest.approx(one.values)
        assert (row["histogram"] is None) == (page.histogram is None)


def test_without_pyarrow_one_line_says_how_to_get_it(atlas: Atlas, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match=r"gemscope\[parquet\]"):
        export(atlas, tmp_path / "all.parquet", format="parquet")
    assert not list(tmp_path.iterdir())


# --- what every export does -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", EXPORTS)
def test_chosen_features_alone_come_out_and_nothing_is_left_of_a_failure(
    atlas: Atlas, tmp_path: Path, format: str, monkeypatch: Any
) -> None:
    with pytest.raises(NotFound, match="features 0 to 39"):
        export(atlas, tmp_path / "out", format=format, features=[1, 40])
    assert not list(tmp_path.iterdir())
    first = export(atlas, tmp_path / "one", format=format, features=[9, 3, 9])
    again = export(atlas, tmp_path / "two", format=format, features=[3, 9])
    assert _content(first) == _content(again)
    real = Atlas.__getitem__

    def breaks(self: Atlas, index: int) -> Dashboard:
        if index == 9:
            raise OSError(28, "No space left on device")
        return real(self, index)

    monkeypatch.setattr(Atlas, "__getitem__", breaks)
    with pytest.raises(FileError, match="no room left"):
        export(atlas, tmp_path / "three", format=format, features=[3, 9])
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


def _content(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()}


@pytest.mark.parametrize("format", ["neuronpedia", "neuronpedia-upload", "anthropic", "site"])
def test_a_folder_that_exists_is_never_written_over(atlas: Atlas, tmp_path: Path, format: str) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileError, match="exists"):
        export(atlas, tmp_path / "mine", format=format)
    assert not list((tmp_path / "mine").iterdir())


def test_an_unknown_format_is_named(atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no format 'pdf': expected one of html"):
        export(atlas, tmp_path / "x", format="pdf")


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".", "..", "a\\b", "a" * 300])
def test_no_name_of_a_model_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    made = planted_atlas(tmp_path / "a.atlas", features=2, model_id=name)
    for format in ("neuronpedia", "site"):
        with pytest.raises(InputError, match="cannot name a folder"):
            export(made, tmp_path / "out", format=format)
    made.close()
    assert {path.name for path in tmp_path.iterdir()} == {"a.atlas"}
    assert "/" not in slugged(name)


# --- Neuronpedia, out -----------------------------------------------------------------------------------------------

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
    first = _content(export(atlas, tmp_path / "one", format="neuronpedia"))
    assert first == _content(export(atlas, tmp_path / "two", format="neuronpedia"))
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


# --- out and in again -----------------------------------------------------------------------------------------------


def _same_figures(page: Dashboard, back: Dashboard) -> None:
    assert (back.count, back.tokens, back.density) == (page.count, page.tokens, page.density)
    assert back.max == pytest.approx(page.max, rel=1e-7)
    assert (back.histogram is None) == (page.histogram is None or page.dead)
    if back.histogram is not None and page.histogram is not None:
        assert back.histogram.counts == page.histogram.counts
        assert back.histogram.step == pytest.approx(page.histogram.step)
    for mine, theirs in ((back.promoted, page.promoted), (back.suppressed, page.suppressed)):
        assert [one.token for one in mine] == [one.token for one in theirs]
        assert [one.value for one in mine] == pytest.approx([one.value for one in theirs], rel=1e-3)
    assert [one.feature for one in back.neighbours] == [one.feature for one in page.neighbours]
    said = [(one.text, one.method, one.author) for one in page.explanations]
    assert [(one.text, one.method, one.author) for one in back.explanations] == said


def _same_examples(page: Dashboard, back: Dashboard) -> None:
    """Peaks exactly, the rest of a window to 11 bits of its largest value."""
    mine, theirs = _shown(back), _shown(page)
    assert set(mine) == set(theirs)
    for tokens, one in mine.items():
        other = theirs[tokens]
        assert (one.peak, one.interval is None) == (other.peak, other.interval is None)
        assert one.value == other.value
        assert one.values == pytest.approx(other.values, abs=2**-11 * page.max)
        if one.interval is not None and other.interval is not None:
            found, told = back.intervals[one.interval], page.intervals[other.interval]
            assert found.low <= one.value < found.high
            assert (found.low, found.high, found.count) == pytest.approx((told.low, told.high, told.count), rel=1e-6)


def test_out_to_neuronpedia_and_in_again_keeps_figures_examples_logits_and_labels(atlas: Atlas, tmp_path: Path) -> None:
    export(atlas, tmp_path / "v1", format="neuronpedia")
    with import_atlas("neuronpedia", tmp_path / "v1", tmp_path / "back.atlas") as back:
        assert len(back) == len(atlas)
        for page, other in zip(atlas, back, strict=True):
            _same_figures(page, other)
            _same_examples(page, other)
            if page.histogram is not None and not page.dead:  # the mean is told by the histogram alone
                assert other.mean == pytest.approx(page.mean, abs=page.histogram.step / 2)
        told, kept = back.manifest, atlas.manifest
        assert (told.model, told.site, told.sae, told.gate) == (kept.model, kept.site, kept.sae, kept.gate)
        assert (told.model_id, told.source_id, told.tokens) == (kept.model_id, kept.source_id, kept.tokens)
        assert told.metadata["missing"] == ""
        assert verify(back.folder) == []


def test_out_to_anthropic_s_json_and_in_again_keeps_everything(atlas: Atlas, tmp_path: Path) -> None:
    export(atlas, tmp_path / "features", format="anthropic")
    with import_atlas("anthropic", tmp_path / "features", tmp_path / "back.atlas") as back:
        assert len(back) == len(atlas)
        for page, other in zip(atlas, back, strict=True):
            _same_figures(page, other)
            _same_examples(page, other)
            assert other.mean == page.mean
            assert other.encoder_cosine == page.encoder_cosine
            assert [vars(one) for one in other.intervals] == [vars(one) for one in page.intervals]
            assert [one.feature for one in other.coactive] == [one.feature for one in page.coactive]
            assert other.logit_histogram == page.logit_histogram
        assert (back.manifest.model, back.manifest.site) == (atlas.manifest.model, atlas.manifest.site)
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


# --- Neuronpedia, in: files in its own shape, written by hand ---------------------------------------------------------


def _feature(index: int, **more: Any) -> dict[str, Any]:
    return {
        "modelId": "gemma-2-2b",
        "layer": "20-gemmascope-res-16k",
        "index": str(index),
        "creatorId": "c1",
        "maxActApprox": 8.0,
        "hasVector": True,
        "vector": [0.5, -0.5],
        "hookName": "blocks.20.hook_resid_post",
        "topkCosSimIndices": [2, 3],
        "topkCosSimValues": [0.4, 0.7],
        "correlated_features_indices": [99],
        "neg_str": ["▁no", "never", "gone"],
        "neg_values": [-0.5, -0.25, -10000],
        "pos_str": [" yes", "Ā", "sure"],
        "pos_values": [1.5, 0.5, 9999],
        "frac_nonzero": 0.01,
        "freq_hist_data_bar_heights": [6, 3, 0, 1],
        "freq_hist_data_bar_values": [1.0, 3.0, 5.0, 7.0],
        "logits_hist_data_bar_heights": [1, 4, 1],
        "logits_hist_data_bar_values": [-1.0, 0.0, 1.0],
        **more,
    }


def _activation(index: int, tokens: list[str], values: list[float], **more: Any) -> dict[str, Any]:
    peak = max(range(len(values)), key=values.__getitem__)
    return {
        "id": f"a{index}",
        "modelId": "gemma-2-2b",
        "layer": "20-gemmascope-res-16k",
        "index": str(index),
        "creatorId": "c1",
        "tokens": tokens,
        "values": values,
        "maxValue": max(values),
        "maxValueTokenIndex": peak,
        "qualifyingTokenIndex": peak,
        "binMin": -1,
        "binMax": 8.0,
        "binContains": -1,
        **more,
    }


def _explanation(index: int, text: str, **more: Any) -> dict[str, Any]:
    return {"index": str(index), "authorId": "u1", "description": text, "embedding": [0.1] * 256, **more}


def _published(folder: Path, **files: list[Any]) -> Path:
    """A source's folder: `features_0`, `activations_3`, `explanations_gpt_4o_1` name folder and batch."""
    about = {"id": "20-gemmascope-res-16k", "modelId": "gemma-2-2b", "setName": "gemmascope-res-16k"}
    about |= {"num_prompts": 10, "num_tokens_in_prompt": 100, "dataset": "monology/pile", "creatorId": "c1"}
    place = folder / "gemma-2-2b" / "20-gemmascope-res-16k"
    place.mkdir(parents=True)
    (place / "source.jsonl").write_text(json.dumps(about) + "\n")
    for name, rows in files.items():
        kind, _, number = name.rpartition("_")
        path = place / kind.replace("_", "-") / f"batch-{number}.jsonl.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return place


def _imported(tmp_path: Path, d_sae: int = 12, **files: list[Any]) -> Atlas:
    atlas = import_atlas("neuronpedia", _published(tmp_path / "v1", **files), tmp_path / "in.atlas", d_sae=d_sae)
    assert verify(atlas.folder) == []
    return atlas


WINDOW = ["<bos>", "▁The", " cat", "↵", "sat"]


def test_a_source_in_neuronpedia_s_own_shape_becomes_an_atlas(tmp_path: Path) -> None:
    with _imported(
        tmp_path,
        features_0=[_feature(0), _feature(1)],
        activations_0=[_activation(0, WINDOW, [0, 0, 8, 0, 1])],
        explanations_0=[_explanation(0, "cats", typeName="np_max-act-logits", explanationModelName="gpt-4o-mini")],
    ) as atlas:
        page = atlas[0]
        manifest = atlas.manifest
        assert (manifest.model, manifest.site) == ("google/gemma-2-2b", "20.res")
        assert manifest.neuronpedia_id == "gemma-2-2b/20-gemmascope-res-16k"
        assert (manifest.model_id, manifest.source_id) == ("gemma-2-2b", "20-gemmascope-res-16k")
        assert page.examples[0].tokens == ["<bos>", " The", " cat", "\n", "sat"]
        assert page.examples[0].values == [0, 0, 8, 0, 1]
        assert (page.examples[0].document, page.examples[0].position) == (-1, -1)
        assert [one.token for one in page.promoted] == [" yes", "Ā"]
        assert page.neighbours[0].feature == 3  # by cosine, whatever their order
        assert (page.explanations[0].text, page.explanations[0].method) == ("cats", "np_max-act-logits · gpt-4o-mini")
        assert page.decoder_norm == 1
        assert page.mean == pytest.approx((6 * 1 + 3 * 3 + 7) / 10)
        assert atlas.by_token(page.examples[0].ids[2])[0].summary.feature == 0


def test_trap_1_batches_of_different_folders_do_not_correspond(tmp_path: Path) -> None:
    features = [_feature(index) for index in (0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)]  # as text is ordered
    examples = {index: _activation(index, [f" w{index}", " x"], [4, 0]) for index in range(12)}
    with _imported(
        tmp_path,
        features_0=features[:3],
        features_10=features[3:],
        activations_0=[examples[11], examples[3]],
        activations_2=[examples[index] for index in range(12) if index not in (3, 11)],
        explanations_7=[_explanation(10, "ten"), _explanation(2, "two")],
    ) as atlas:
        assert [atlas[index].examples[0].tokens[0] for index in range(12)] == [f" w{index}" for index in range(12)]
        assert (atlas[10].label, atlas[2].label, atlas[1].label) == ("ten", "two", None)


def test_trap_2_groups_are_told_by_bins_and_wrong_ones_are_put_right(tmp_path: Path) -> None:
    low, high = {"binMin": 0.0, "binMax": 4.0, "binContains": 0.9}, {"binMin": 4.0, "binMax": 8.0, "binContains": 0.1}
    with _imported(
        tmp_path,
        features_0=[_feature(0)],
        activations_0=[
            _activation(0, [" weak", " a"], [2, 0], **low),
            _activation(0, [" wrong", " a"], [7, 0], **low),  # filed under the lower interval
            _activation(0, [" right", " a"], [5, 0], **high),
            _activation(0, [" top", " a"], [8, 0]),
            _activation(0, [" top", " a"], [8, 0], **high),  # the same window again
            _activation(0, [" edge", " a"], [4, 0], **high),
            _activation(0, [" never", " a"], [0, 0], **low),
            _activation(0, [" less", " a"], [-1, 0], **low),
        ],
    ) as atlas:
        page = atlas[0]
        assert [one.tokens[0] for one in page.strongest] == [" top"]
        assert [(one.low, one.count) for one in page.intervals] == [(0, 9), (4, 1)]
        assert [one.tokens[0] for one in page.within(1)] == [" wrong", " right", " edge"]
        assert [one.tokens[0] for one in page.within(0)] == [" weak"]
        assert atlas.manifest.metadata["put_right"] == {
            "duplicates": 1,
            "silent": 2,
            "rebinned": 1,
            "logits": 2,
            "exact": 1,
        }


def test_shares_that_add_up_to_more_than_all_firings_are_brought_down(tmp_path: Path) -> None:
    shares = [(0.0, 2.0, 0.15), (2.0, 4.0, 0.15), (4.0, 8.0, 0.8)]
    rows = [
        _activation(0, [f" {low}"], [low + 1], binMin=low, binMax=high, binContains=share)
        for low, high, share in shares
    ]
    with _imported(tmp_path, features_0=[_feature(0)], activations_0=rows) as atlas:
        assert [one.count for one in atlas[0].intervals] == [1, 1, 7]


def test_an_example_stands_for_its_qualifying_token_not_for_the_strongest_in_its_window(tmp_path: Path) -> None:
    bounds = {"binMin": 0.0, "binMax": 4.0, "binContains": 0.5, "qualifyingTokenIndex": 1}
    with _imported(
        tmp_path, features_0=[_feature(0)], activations_0=[_activation(0, [" a", " b", " c"], [0, 2, 7], **bounds)]
    ) as atlas:
        (one,) = atlas[0].examples
        assert (one.peak, one.value, one.interval) == (1, 2, 0)
        assert "rebinned" not in atlas.manifest.metadata["put_right"]


def test_trap_3_a_rounded_density_is_made_exact_where_the_histogram_counts(tmp_path: Path) -> None:
    with _imported(
        tmp_path,
        features_0=[
            _feature(0, frac_nonzero=0.01, freq_hist_data_bar_heights=[6, 3, 0, 1]),  # 10 of 1000: counts
            _feature(1, frac_nonzero=0.012, freq_hist_data_bar_heights=[0.6, 0.3, 0, 0.1]),  # a shape alone
            _feature(2, frac_nonzero=0.0, freq_hist_data_bar_heights=[], freq_hist_data_bar_values=[]),
        ],
        activations_0=[_activation(2, [" rare"], [1])],
    ) as atlas:
        assert [atlas[index].count for index in range(3)] == [10, 12, 1]
        shape = atlas[1].histogram
        assert shape is not None
        assert shape.counts == [7, 4, 0, 1]
        assert atlas[2].histogram is None
        assert "1 exact" in atlas.manifest.metadata["counts"]
        assert "2 are shares" in atlas.manifest.metadata["counts"]
    taken = Taken()
    rare = firings(0.0, 10_000_000, [30, 10], 1, taken)  # 4e-6 is told as 0.000 %
    assert (rare[0], taken.exact) == (40, 1)


def test_where_no_number_of_tokens_is_told_the_manifest_says_that_counts_are_shares(tmp_path: Path) -> None:
    place = _published(tmp_path, features_0=[_feature(0, frac_nonzero=0.25)])
    (place / "source.jsonl").unlink()
    with import_atlas("neuronpedia", place, tmp_path / "in.atlas", d_sae=1) as atlas:
        assert atlas[0].density == 0.25
        assert "not told" in atlas.manifest.metadata["counts"]


def test_trap_4_pieces_become_bytes() -> None:
    assert bytes_of("▁cat") == b" cat"
    assert bytes_of("↵↵") == b"\n\n"
    assert bytes_of("<0xE2>") == b"\xe2"
    assert bytes_of("\\xe2\\x82") == b"\xe2\x82"
    assert bytes_of("\\x41") == b"\\x41"  # a text that reads so: no half character
    assert bytes_of("Ã©") == "Ã©".encode()
    assert bytes_of("Ã©", byte_level=True) == "é".encode()
    assert bytes_of("âĢ", byte_level=True) == b"\xe2\x80"
    assert bytes_of("Ġcat", byte_level=True) == b" cat"
    assert bytes_of("日本", byte_level=True) == "日本".encode()
    assert bytes_of("\ud800") == b"?"


def test_trap_4_a_byte_level_vocabulary_is_known_by_its_pieces(tmp_path: Path) -> None:
    gpt2 = [" the", "Ã©", "âĢĻs", "↵", "’", "ä¸Ń", "âĢ", "é"]
    gemma = [" the", "é", "日本", "été", "’", "Ā", "<0xE2>", "naïve"]
    assert looks_byte_level(gpt2)
    assert not looks_byte_level(gemma)
    assert not looks_byte_level(["plain", " words", "Ã©", "日本"])
    with _imported(
        tmp_path,
        features_0=[_feature(0, pos_str=["ĠÃ©t"], pos_values=[1.0])],
        activations_0=[_activation(0, ["ä¸Ń", "âĢ", "ľ", " caf", "Ã©"], [0, 0, 0, 0, 8])],
    ) as atlas:
        assert atlas[0].examples[0].tokens == ["中", "", "“", " caf", "é"]
        assert atlas[0].promoted[0].token == " ét"


def test_trap_5_missing_logits_are_left_out(tmp_path: Path) -> None:
    row = _feature(
        0, pos_str=["a", "b", "c", "d"], pos_values=[-10000, None, float("nan"), 2], neg_str=[], neg_values=[]
    )
    with _imported(tmp_path, features_0=[row]) as atlas:
        assert [(one.token, one.value) for one in atlas[0].promoted] == [("d", 2)]
        assert atlas[0].suppressed == []
        assert atlas.manifest.metadata["put_right"]["logits"] == 3


def test_trap_6_the_maximum_is_what_either_says_at_least_and_cosines_may_be_empty(tmp_path: Path) -> None:
    with _imported(
        tmp_path,
        features_0=[
            _feature(0, maxActApprox=1.0, topkCosSimIndices=[], topkCosSimValues=[]),
            _feature(1, maxActApprox=0),
        ],
        activations_0=[_activation(0, [" a"], [5])],
    ) as atlas:
        assert atlas[0].max == 5
        assert atlas[0].neighbours == []
        assert atlas[1].examples == []


def test_trap_8_examples_of_visitors_are_left_out_and_every_explainer_s_folder_is_read(tmp_path: Path) -> None:
    with _imported(
        tmp_path,
        features_0=[_feature(0)],
        activations_0=[_activation(0, [" a"], [5]), _activation(0, [" typed"], [9], creatorId="visitor")],
        explanations_0=[_explanation(0, "first", typeName="oai_token-act-pair")],
        explanations_gpt_4o_mini_0=[_explanation(0, "second"), _explanation(0, "  ")],
    ) as atlas:
        assert [one.tokens for one in atlas[0].examples] == [[" a"]]
        assert atlas[0].max == 8
        assert [one.text for one in atlas[0].explanations] == ["second", "first"]
        assert atlas.manifest.metadata["put_right"]["foreign"] == 1


def test_trap_9_missing_features_are_named(tmp_path: Path) -> None:
    with _imported(
        tmp_path,
        features_0=[_feature(index) for index in (0, 1, 5, 5)],
        activations_0=[_activation(3, [" a"], [5])],
    ) as atlas:
        assert atlas.manifest.metadata["missing"] == "2-4, 6-11"
        assert atlas.manifest.metadata["put_right"]["repeated"] == 1
        assert atlas.manifest.metadata["put_right"]["orphans"] == 1
        assert (atlas[3].count, atlas[3].max) == (1, 5)  # as much as its example shows
        assert atlas[4].dead


def test_the_catalogue_knows_how_many_features_there_are(tmp_path: Path, monkeypatch: Any) -> None:
    (known,) = [one for one in snapshot() if one.neuronpedia_id == "gemma-2-2b/20-gemmascope-res-16k"]
    few = replace(known, width=3)
    monkeypatch.setattr("gemscope.features.catalog.snapshot", lambda: (few,))
    place = _published(tmp_path, features_0=[_feature(0)])
    with import_atlas("neuronpedia", place, tmp_path / "in.atlas") as atlas:
        assert (len(atlas), atlas.manifest.metadata["missing"]) == (3, "1-2")
        assert atlas.manifest.sae == known.address


def test_one_window_that_many_features_show_is_kept_once(tmp_path: Path) -> None:
    with _imported(
        tmp_path,
        features_0=[_feature(index) for index in range(12)],
        activations_0=[_activation(index, WINDOW, [0, 0, index + 1, 0, 0]) for index in range(12)],
    ) as atlas:
        assert atlas.manifest.rows == 1
        assert [atlas[index].examples[0].value for index in range(12)] == list(range(1, 13))


GOOD = b'{"index": "0", "tokens": ["a"], "values": [1]}\n'


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-12], r"batch-0\.jsonl\.gz is damaged or cut short behind line \d+"),
        (lambda raw: b"not gzip", r"batch-0\.jsonl\.gz is damaged"),
        (lambda raw: gzip.compress(GOOD + b'{"index": '), r"batch-0\.jsonl\.gz, line 2 is not JSON"),
        (lambda raw: gzip.compress(b"[1]"), r"line 1: it is a list, expected an object"),
        (lambda raw: gzip.compress(b'{"index": "-3"}'), r"line 1: index is '-3'"),
        (lambda raw: gzip.compress(b'{"index": "0", "tokens": "a"}'), r"tokens is no list of strings"),
        (lambda raw: gzip.compress(b'{"index": "0", "tokens": ["a"], "values": [1, 2]}'), "values is no list of 1"),
        (lambda raw: gzip.compress(b'{"index": "0", "tokens": ["a"], "values": [NaN]}'), "finite numbers"),
        (lambda raw: gzip.compress(b"[" * 100_000), "line 1: it is .*, expected an object"),
    ],
)
def test_a_damaged_file_gets_one_line_and_leaves_nothing(tmp_path: Path, damage: Any, message: str) -> None:
    rows = [_activation(0, [" a", " b"], [5, 0]) for _ in range(50)]
    place = _published(tmp_path / "v1", features_0=[_feature(0)], activations_0=rows)
    path = place / "activations" / "batch-0.jsonl.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptFile, match=message) as caught:
        import_atlas("neuronpedia", place, tmp_path / "in.atlas")
    assert "\n" not in str(caught.value)
    assert {one.name for one in tmp_path.iterdir()} == {"v1"}


@pytest.mark.parametrize("format", ["neuronpedia", "anthropic", "gemma-scope-2"])
def test_an_import_never_writes_over_anything(tmp_path: Path, format: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "in").mkdir()
    options = {"sae": "x"} if format == "gemma-scope-2" else {}
    path = Path(__file__) if format == "gemma-scope-2" else tmp_path / "in"
    with pytest.raises(InputError, match="exists"):
        import_atlas(format, path, tmp_path / "mine", **options)


def test_what_a_killed_import_left_is_in_nobody_s_way(tmp_path: Path) -> None:
    (tmp_path / ".in.atlas.gemscope").mkdir()
    (tmp_path / ".in.atlas.gemscope" / "intake.sqlite").write_bytes(b"not a database")
    with _imported(tmp_path, features_0=[_feature(0)]) as atlas:
        assert atlas[0].count == 10
    assert {one.name for one in tmp_path.iterdir()} == {"v1", "in.atlas"}


def test_a_folder_without_a_source_or_with_two_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no folder"):
        import_atlas("neuronpedia", tmp_path / "none", tmp_path / "in.atlas")
    with pytest.raises(NotFound, match=r"neither features/batch-N\.jsonl\.gz nor batch-N\.json"):
        import_atlas("neuronpedia", tmp_path, tmp_path / "in.atlas")
    _published(tmp_path / "a", features_0=[_feature(0)])
    _published(tmp_path / "b", features_0=[_feature(0)])
    with pytest.raises(InputError, match="holds 2 sources"):
        import_atlas("neuronpedia", tmp_path, tmp_path / "in.atlas")


def test_saedashboard_s_own_output_is_read_with_the_features_it_skipped(tmp_path: Path) -> None:
    names = {"binMin": "bin_min", "binMax": "bin_max", "binContains": "bin_contains"}
    names["qualifyingTokenIndex"] = "qualifying_token_index"

    def feature(index: int) -> dict[str, Any]:
        row = _feature(index)
        shown = _activation(index, [" a", " b"], [0, 5])
        row["feature_index"] = row.pop("index")
        row["feature_index"] = index
        row["activations"] = [{names.get(key, key): value for key, value in shown.items() if key != "index"}]
        return {**row, "n_prompts_total": 10, "n_tokens_in_prompt": 100}

    about = {"model_id": "gpt2-small", "layer": 8, "sae_set": "res-jb", "sae_id_suffix": None}
    for number, indices in ((0, (0, 1)), (1, (4,))):
        batch = about | {"features": [feature(index) for index in indices]}
        (tmp_path / f"batch-{number}.json").write_text(json.dumps(batch))
    (tmp_path / "skipped_indexes.json").write_text(json.dumps({"skipped_indexes": [2]}))
    with import_atlas("neuronpedia", tmp_path, tmp_path / "in.atlas") as atlas:
        assert (len(atlas), atlas.manifest.metadata["missing"]) == (5, "3")
        assert atlas.manifest.source_id == "8-res-jb"
        assert atlas.manifest.site == "8.res"
        assert atlas[4].examples[0].value == 5
        assert (atlas[4].count, atlas[4].tokens) == (10, 1000)
        assert atlas[2].dead


def test_a_histogram_that_does_not_begin_at_0_moves_by_half_a_bin_at_most() -> None:
    step, counts = from_zero([0.35, 0.45, 0.55], np.array([3, 2, 1]))
    assert step == pytest.approx(0.1)
    assert counts.tolist() == [0, 0, 0, 3, 2, 1]
    assert from_zero([0.1, 0.2, 0.9], np.array([1, 1, 1]))[0] == 0
    assert from_zero([100.0, 100.001], np.array([1, 1]))[0] == 0


# --- Anthropic's JSON -----------------------------------------------------------------------------------------------


def test_anthropic_s_fields_come_out(atlas: Atlas, tmp_path: Path) -> None:
    folder = export(atlas, tmp_path / "out", format="anthropic")
    one = json.loads((folder / "0.json").read_text())
    assert set(one) == {
        "transcoder_id", "index", "examples_quantiles", "top_logits", "bottom_logits", "act_min", "act_max",
        "quantile_values", "histogram", "activation_frequency", "gemscope",
    }  # fmt: skip
    assert one["examples_quantiles"][0]["quantile_name"] == "Top activations"
    example = one["examples_quantiles"][0]["examples"][0]
    assert set(example) == {"tokens", "tokens_acts_list", "train_token_ind", "is_repeated_datapoint"}
    assert example["tokens_acts_list"][example["train_token_ind"]] == atlas[0].strongest[0].value
    assert len(one["quantile_values"]) == 101
    assert one["quantile_values"] == sorted(one["quantile_values"])
    assert one["quantile_values"][-1] == pytest.approx(one["act_max"])
    assert json.loads((folder / "6.json").read_text())["quantile_values"] == []


def _foreign(index: int) -> dict[str, Any]:
    def example(value: float, word: str) -> dict[str, Any]:
        return {
            "tokens": [word, "\\xe2\\x82", "\\xac"],
            "tokens_acts_list": [value, 0.0, value / 2],
            "train_token_ind": 0,
            "is_repeated_datapoint": False,
        }

    return {
        "transcoder_id": "qwen3/12",
        "index": index,
        "examples_quantiles": [
            {"quantile_name": "Top Activations", "examples": [example(10.0, " a"), example(9.0, " b")]},
            {"quantile_name": "Subsample Interval 0", "examples": [example(6.5, " c"), example(10.0, " a")]},
            {"quantile_name": "Bottom Activations", "examples": [example(0.5, " d")]},
        ],
        "top_logits": [" x", " y"],
        "bottom_logits": [" z"],
        "act_min": 0.0,
        "act_max": 10.0,
        "quantile_values": [0.0, 10.0],
        "histogram": [5.0, 1.0],
        "activation_frequency": 0.001,
    }


def test_features_that_another_tool_wrote_are_read(tmp_path: Path) -> None:
    for index in (0, 3):
        (tmp_path / f"{index}.json").write_text(json.dumps(_foreign(index)))
    with import_atlas(
        "anthropic", tmp_path, tmp_path / "in.atlas", model="Qwen/Qwen3-4B", source="12-transcoder"
    ) as atlas:
        page = atlas[3]
        assert atlas.manifest.metadata["missing"] == "1-2"
        assert (atlas.manifest.model_id, atlas.manifest.source_id) == ("qwen3-4b", "12-transcoder")
        assert page.density == pytest.approx(0.001)
        assert [one.tokens for one in page.strongest] == [[" a", "", "€"], [" b", "", "€"]]
        assert [
            (one.tokens[0], page.intervals[one.interval].low) for one in page.examples if one.interval is not None
        ] == [
            (" c", 6),
            (" d", 0),
        ]
        assert "stand as 0" in (atlas.manifest.logits or "")
        assert page.histogram is None  # it counts examples, not firings
        assert verify(atlas.folder) == []


def test_a_packed_layer_is_read(tmp_path: Path) -> None:
    chunks = []
    for index in range(3):
        packed = gzip.compress(json.dumps(_foreign(index)).encode())
        chunks.append(struct.pack("<I", len(packed)) + packed)
    chunks.insert(1, b"")  # nothing is known of it
    offsets = np.cumsum([0, *map(len, chunks)]).tolist()
    (tmp_path / "layer_12.bin").write_bytes(b"".join(chunks))
    layers = {"12": {"filename": "layer_12.bin", "offsets": offsets}, "13": {"filename": "../x", "offsets": [0, 9]}}
    (tmp_path / "index.json.gz").write_bytes(gzip.compress(json.dumps(layers).encode()))
    with import_atlas("anthropic", tmp_path, tmp_path / "in.atlas", layer=12, d_sae=4) as atlas:
        assert (len(atlas), atlas.manifest.metadata["missing"]) == (4, "1")
        assert atlas[3].max == 10
    with pytest.raises(InputError, match="holds 2 layers"):
        import_atlas("anthropic", tmp_path, tmp_path / "no.atlas")
    with pytest.raises(CorruptFile, match="expected one beside it"):
        import_atlas("anthropic", tmp_path, tmp_path / "no.atlas", layer=13)
    (tmp_path / "layer_12.bin").write_bytes(b"".join(chunks)[:-5])
    with pytest.raises(CorruptFile, match="feature 3 is cut short"):
        import_atlas("anthropic", tmp_path, tmp_path / "no.atlas", layer=12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"examples_quantiles": None}, "no list examples_quantiles"),
        ({"gemscope": {"mean": "\ud800"}}, "half a surrogate pair"),
        ({"examples_quantiles": [{}]}, "group 0 of examples"),
        (
            {"examples_quantiles": [{"examples": [{"tokens": ["a"], "tokens_acts_list": []}]}]},
            "one activation for each",
        ),
        ({"examples_quantiles": [{"examples": [{"tokens": ["a"], "tokens_acts_list": ["b"]}]}]}, "finite numbers"),
        ({"examples_quantiles": [{"examples": [3]}]}, "group 0 of examples"),
        *(
            ({"gemscope": {name: value}}, rf"what stands under 'gemscope': field .{name}")
            for name, value in (
                ("neighbours", [[]]),
                ("decoder_norm", "x"),
                ("explanations", 5.5),
                ("count", True),
                ("coactive", 3),
                ("logit_histogram", {"low": []}),
            )
        ),
    ],
)
def test_a_feature_of_another_shape_gets_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "0.json").write_text(json.dumps(_foreign(0) | change))
    with pytest.raises(CorruptFile, match=message):
        import_atlas("anthropic", tmp_path, tmp_path / "in.atlas")


def test_a_number_that_stands_for_a_pair_is_not_taken_for_a_feature(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "134225932.json").write_text(json.dumps(_foreign(134225932)))
    with pytest.raises(InputError, match="a pair of layer and feature in one number"):
        import_atlas("anthropic", tmp_path / "in", tmp_path / "in.atlas")


# --- Gemma Scope 2 --------------------------------------------------------------------------------------------------


def test_gemma_scope_2_s_examples_become_an_atlas_without_a_model(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("gemscope.atlas.exchange.gemma_scope_2.reading._BLOCK", 64)
    monkeypatch.setattr("gemscope.atlas.exchange.gemma_scope_2.reading._ROWS", 16)
    given = examples_file()
    save_file(given, tmp_path / "examples.safetensors")
    with import_atlas("gemma-scope-2", tmp_path / "examples.safetensors", tmp_path / "a.atlas", sae=ADDRESS) as atlas:
        assert verify(atlas.folder) == []
        values, seqs, positions = (given[name].float().numpy() for name in ("activations", "seq_ids", "positions"))
        assert (len(atlas), atlas.manifest.rows, atlas.manifest.length) == (F, 60, LENGTH)
        assert (atlas.manifest.model, atlas.manifest.site) == ("google/gemma-3-1b-pt", "13.res")
        assert atlas.manifest.tokens == ROWS * LENGTH
        for index in (0, 7, 63, 64, 149):
            page = atlas[index]
            assert page.max == values[index].max()
            assert page.count == round(float(given["feature_frequencies"][index]) * ROWS * LENGTH)
            best = values[index].argmax()
            first = page.strongest[0]
            assert first.value == values[index, best]
            row = given["tokens"][int(seqs[index, best])].tolist()
            at = int(positions[index, best])
            assert first.ids == row[max(0, at - 40) : at + 24]
            assert first.tokens == [f"[{id_}]" for id_ in first.ids]
            assert len(page.strongest) == 20
            assert {one.value for one in page.examples} <= set(values[index].tolist())
            assert [one.value for one in page.strongest] == sorted((one.value for one in page.strongest), reverse=True)
            assert [one.value for one in page.promoted] == sorted((one.value for one in page.promoted), reverse=True)
            assert page.promoted[0].id == int(given["top_tokens"][index][given["top_logits"][index].argmax()])
            for one in page.examples:
                if one.interval is not None:
                    found = page.intervals[one.interval]
                    assert found.low <= one.value < found.high
            assert sum(one.count for one in page.intervals) == EACH
        assert atlas[5].dead
        assert len(atlas[6].examples) == 3
        seen = atlas[7].strongest[0]
        assert seen.values[seen.peak + 2] == pytest.approx(400, rel=1e-3)  # its neighbour is seen in its window alone
        assert sum(one.value >= 400 for one in atlas[7].examples) == 1
    with import_atlas(
        "gemma-scope-2", tmp_path / "examples.safetensors", tmp_path / "b.atlas", sae=ADDRESS, whole_corpus=True
    ) as whole:
        assert whole.manifest.rows == ROWS
        with Atlas(tmp_path / "a.atlas") as atlas:
            assert [one.ids for one in whole[9].examples] == [one.ids for one in atlas[9].examples]


def test_gemma_scope_2_s_tokens_are_read_by_a_model_s_tokenizer(tmp_path: Path) -> None:
    from gemscope.testing import tiny_model

    model = tiny_model("gemma2")
    given = examples_file()
    path = tmp_path / "examples.safetensors"
    save_file(given | {"tokens": given["tokens"] % len(model.tokenizer)}, path)
    with import_atlas("gemma-scope-2", path, tmp_path / "a.atlas", sae="my/sae", model=model) as atlas:
        one = atlas[0].strongest[0]
        assert "".join(one.tokens) == b"".join(model.token_bytes(one.ids)).decode(errors="replace")
        with import_atlas("gemma-scope-2", path, tmp_path / "b.atlas", sae="my/sae", model=model.tokenizer) as again:
            assert again[0].strongest[0].tokens == one.tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("seq_ids"), r"holds activations \[150, 60\], .* seq_ids is missing or of another shape"),
        (
            lambda file: file.update(positions=file["positions"][:, :5].contiguous()),
            "positions is missing or of another",
        ),
        (lambda file: file["seq_ids"].add_(1000), "feature 0 has an example outside the file's own corpus"),
        (lambda file: file["feature_frequencies"].neg_(), "no frequencies"),
        *(
            (lambda file, name=name: file.update({name: file[name].float()}), f"{name} holds no whole numbers")
            for name in ("top_tokens", "bottom_tokens", "seq_ids", "positions", "tokens")
        ),
    ],
)
def test_a_file_of_another_shape_is_told_what_it_holds(tmp_path: Path, change: Any, message: str) -> None:
    given = copy.deepcopy(examples_file())
    change(given)
    save_file(given, tmp_path / "examples.safetensors")
    with pytest.raises(CorruptFile, match=message):
        import_atlas("gemma-scope-2", tmp_path / "examples.safetensors", tmp_path / "a.atlas", sae=ADDRESS)
    assert {one.name for one in tmp_path.iterdir()} == {"examples.safetensors"}


def test_a_frequency_beyond_all_counting_is_refused(tmp_path: Path) -> None:
    given = copy.deepcopy(examples_file())
    given["feature_frequencies"].fill_(1e30)
    save_file(given, tmp_path / "examples.safetensors")
    with pytest.raises(InputError, match=r"feature 0 has count=\d+: from 0 to"):
        import_atlas("gemma-scope-2", tmp_path / "examples.safetensors", tmp_path / "a.atlas", sae=ADDRESS)
    assert not (tmp_path / "a.atlas").exists()


def test_a_number_in_the_place_of_a_name_is_left_out(atlas: Atlas, tmp_path: Path) -> None:
    export(atlas, tmp_path / "out", format="anthropic")
    path = tmp_path / "out" / "gemscope.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"model_id": 7, "sae": 2**70, "site": 3}))
    with import_atlas("anthropic", tmp_path / "out", tmp_path / "in.atlas") as again:
        assert again.manifest.site == "unknown"
        assert len(again) == len(atlas)


def test_true_is_no_place_of_a_token(tmp_path: Path) -> None:
    row = _activation(0, [" a", " b"], [1, 5]) | {"qualifyingTokenIndex": True, "maxValueTokenIndex": False}
    with _imported(tmp_path, features_0=[_feature(0)], activations_0=[row]) as atlas:
        assert [one.value for one in atlas[0].examples] == [5]


def test_a_truncated_file_of_examples_gets_one_line(tmp_path: Path) -> None:
    path = tmp_path / "examples.safetensors"
    save_file(examples_file(), path)
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(CorruptFile, match="no whole safetensors file"):
        import_atlas("gemma-scope-2", path, tmp_path / "a.atlas", sae=ADDRESS)


# --- HTML -----------------------------------------------------------------------------------------------------------


def _harmless(html: str) -> None:
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert "\u202e" not in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "https://" not in html


def test_one_file_holds_chosen_features_and_nothing_from_elsewhere(atlas: Atlas, tmp_path: Path) -> None:
    html = export(atlas, tmp_path / "some.html", format="html", features=[0, 6, 3]).read_text()
    _harmless(html)
    assert html.count('<article class="feature"') == 3
    assert html.index('id="feature-0"') < html.index('id="feature-3"') < html.index('id="feature-6"')
    assert 'href="#feature-6"' in html
    assert 'href="#feature-1"' not in html
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html


def test_too_many_features_for_one_file_are_refused(atlas: Atlas, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("gemscope.atlas.exchange.html._MANY", 39)
    with pytest.raises(InputError, match="40 features are too many for one file: choose up to 39, or make a site"):
        export(atlas, tmp_path / "all.html", format="html")


def test_every_link_of_a_static_site_leads_to_a_file_of_it(atlas: Atlas, tmp_path: Path) -> None:
    import re
    from urllib.parse import unquote

    site = export(atlas, tmp_path / "site", format="site")
    pages = list(site.rglob("*.html"))
    assert len(pages) == 2 + len(atlas)
    assert (site / SOURCE / "17" / "index.html").exists()
    for page in pages:
        html = page.read_text()
        _harmless(html)
        for url in re.findall(r'(?:href|src)="([^"]*)"', html):
            if not url.startswith("#"):
                assert (page.parent / unquote(url.partition("?")[0])).resolve().is_file(), (page, url)
    data = json.loads((site / SOURCE / "0" / "index.json").read_text())
    assert data["explanations"][0]["description"] == HOSTILE_LABEL
    text = (site / SOURCE / "labels" / "0.js").read_text()
    labels = json.loads(text.removeprefix("gemscopeLabels(0,").removesuffix(");\n"))
    assert labels["of"] == 1
    assert labels["features"][0][:2] == [0, HOSTILE_LABEL]


def test_a_site_of_some_features_links_to_no_others(atlas: Atlas, tmp_path: Path) -> None:
    import re

    site = export(atlas, tmp_path / "site", format="site", features=[2, 5])
    assert {path.name for path in (site / SOURCE).iterdir()} == {"2", "5", "index.html", "labels"}
    html = (site / SOURCE / "2" / "index.html").read_text()
    others = [url for url in re.findall(r'href="([^"]*)"', html) if re.search(r"/\d+/index", url)]
    assert {re.findall(r"/(\d+)/index", url)[0] for url in others} <= {"2", "5"}


@pytest.mark.browser
@pytest.mark.parametrize("where", ["http", "file"])
def test_a_browser_searches_a_static_site_and_shows_a_frame_of_it(atlas: Atlas, tmp_path: Path, where: str) -> None:
    """From a file server and from the disk; nothing is fetched from anywhere else."""
    import functools
    import http.server
    import threading

    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    site = export(atlas, tmp_path / "site", format="site")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}" if where == "http" else site.as_uri()
    try:
        with sync.sync_playwright() as play:
            path = os.environ.get("GEMSCOPE_CHROMIUM") or shutil.which("chromium")
            browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
            page = browser.new_page()
            wrong: list[str] = []
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
            page.on("request", lambda request: None if request.url.startswith(base) else wrong.append(request.url))
            page.on("dialog", lambda dialog: wrong.append(dialog.message))
            page.goto(f"{base}/{SOURCE}/index.html")
            page.fill("input[type=search]", "alert label")
            page.wait_for_selector("ol.found li")
            assert page.locator("ol.found li").count() == 1
            assert "<script>" in (page.locator("ol.found .what").text_content() or "")
            page.click("ol.found a")
            page.wait_for_selector("article.feature")
            assert page.locator("header.top").count() == 1
            page.goto(f"{base}/{SOURCE}/3/index.html?embed=true&embedplots=false&height=300")
            page.wait_for_selector("body.embed")
            assert page.locator("header.top, footer, [data-part=plots], .column.last").count() == 0
            assert page.locator("[data-part=activations]").count() == 1
            assert wrong == []
            browser.close()
    finally:
        server.shutdown()
        server.server_close()


# --- the shell ------------------------------------------------------------------------------------------------------


def test_the_shell_exports_and_imports(atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, back = tmp_path / "v1", tmp_path / "back.atlas"
    assert main(["export", str(atlas.folder), "--format", "neuronpedia", "-o", str(out)]) == 0
    assert main(["import", "neuronpedia", str(out), "-o", str(back), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["features"], told["missing"]) == (len(atlas), "")
    assert main(["export", str(back), "--format", "csv", "-o", str(tmp_path / "x.csv"), "--features", "1,3-5"]) == 0
    assert (tmp_path / "x.csv").read_text(encoding="utf-8").startswith("index,label,")
    assert main(["export", str(tmp_path / "none"), "--format", "csv", "-o", str(tmp_path / "y.csv")]) == 1
    assert "no atlas" in capsys.readouterr().err
    with pytest.raises(SystemExit) as wrong:
        main(["export", str(back), "--format", "csv", "-o", "y", "--features", "a-b"])
    assert wrong.value.code == 2
    with pytest.raises(SystemExit):
        main(["import", "gemma-scope-2", "x", "-o", "y"])


def test_asking_what_can_be_exchanged_loads_nothing_heavy() -> None:
    code = (
        "import sys, gemscope.cli.exchange, gemscope.atlas.exchange.verbs\n"
        "heavy = [name for name in ('torch', 'numpy', 'jinja2', 'pyarrow') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
