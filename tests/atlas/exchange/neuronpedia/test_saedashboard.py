"""SAEDashboard's own output, in."""

import json
from pathlib import Path
from typing import Any

from gemscope.atlas.exchange.verbs import import_atlas
from neuronpedia_files import activation_line, feature_line


def test_saedashboard_s_own_output_is_read_with_the_features_it_skipped(tmp_path: Path) -> None:
    names = {"binMin": "bin_min", "binMax": "bin_max", "binContains": "bin_contains"}
    names["qualifyingTokenIndex"] = "qualifying_token_index"

    def feature(index: int) -> dict[str, Any]:
        row = feature_line(index)
        shown = activation_line(index, [" a", " b"], [0, 5])
        row["feature_index"] = row.pop("index")
        row["feature_index"] = index
        row["activations"] = [{names.get(key, key): value for key, value in shown.items() if key != "index"}]
        return {**row, "n_prompts_total": 10, "n_tokens_in_prompt": 100}

    about = {"model_id": "gpt2-small", "layer": 8, "sae_set": "res-ours", "sae_id_suffix": None}
    for number, indices in ((0, (0, 1)), (1, (4,))):
        batch = about | {"features": [feature(index) for index in indices]}
        (tmp_path / f"batch-{number}.json").write_text(json.dumps(batch))
    (tmp_path / "skipped_indexes.json").write_text(json.dumps({"skipped_indexes": [2]}))
    with import_atlas("neuronpedia", tmp_path, tmp_path / "in.atlas") as atlas:
        assert (len(atlas), atlas.manifest.metadata["missing"]) == (5, "3")
        assert atlas.manifest.source_id == "8-res-ours"
        assert atlas.manifest.site == "8.res"
        assert atlas[4].examples[0].value == 5
        assert (atlas[4].count, atlas[4].tokens) == (10, 1000)
        assert atlas[2].dead
