"""Files in Neuronpedia's own shape, written by hand."""

import gzip
import json
from pathlib import Path
from typing import Any

from gemscope.atlas.exchange.verbs import import_atlas
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify


def feature_line(index: int, **more: Any) -> dict[str, Any]:
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


def activation_line(index: int, tokens: list[str], values: list[float], **more: Any) -> dict[str, Any]:
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


def explanation_line(index: int, text: str, **more: Any) -> dict[str, Any]:
    return {"index": str(index), "authorId": "u1", "description": text, "embedding": [0.1] * 256, **more}


def published(folder: Path, **files: list[Any]) -> Path:
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


def imported(tmp_path: Path, d_sae: int = 12, **files: list[Any]) -> Atlas:
    atlas = import_atlas("neuronpedia", published(tmp_path / "v1", **files), tmp_path / "in.atlas", d_sae=d_sae)
    assert verify(atlas.folder) == []
    return atlas
