"""Features as pages of attribution graphs read them, in."""

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemscope.atlas.exchange.verbs import export, import_atlas
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.errors import CorruptFile, InputError


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


def test_a_number_in_the_place_of_a_name_is_left_out(atlas: Atlas, tmp_path: Path) -> None:
    export(atlas, tmp_path / "out", format="anthropic")
    path = tmp_path / "out" / "gemscope.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"model_id": 7, "sae": 2**70, "site": 3}))
    with import_atlas("anthropic", tmp_path / "out", tmp_path / "in.atlas") as again:
        assert again.manifest.site == "unknown"
        assert len(again) == len(atlas)
