"""Features as pages of attribution graphs read them, out: and in again, what went out."""

import json
from pathlib import Path

import pytest

from dashboards import same_examples, same_figures
from gemscope.atlas.exchange.verbs import export, import_atlas
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify


def test_out_to_anthropic_s_json_and_in_again_keeps_everything(atlas: Atlas, tmp_path: Path) -> None:
    export(atlas, tmp_path / "features", format="anthropic")
    with import_atlas("anthropic", tmp_path / "features", tmp_path / "back.atlas") as back:
        assert len(back) == len(atlas)
        for page, other in zip(atlas, back, strict=True):
            same_figures(page, other)
            same_examples(page, other)
            assert other.mean == page.mean
            assert other.encoder_cosine == page.encoder_cosine
            assert [vars(one) for one in other.intervals] == [vars(one) for one in page.intervals]
            assert [one.feature for one in other.coactive] == [one.feature for one in page.coactive]
            assert other.logit_histogram == page.logit_histogram
        assert (back.manifest.model, back.manifest.site) == (atlas.manifest.model, atlas.manifest.site)
        assert verify(back.folder) == []


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
