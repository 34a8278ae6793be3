"""Neuronpedia, in: what its files get wrong is put right, what is damaged is named."""

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gemscope.atlas.exchange.counted import firings
from gemscope.atlas.exchange.intake import Taken
from gemscope.atlas.exchange.pieces import looks_byte_level
from gemscope.atlas.exchange.verbs import import_atlas
from gemscope.errors import CorruptFile, InputError, NotFound
from gemscope.features.published import snapshot
from neuronpedia_files import activation_line, explanation_line, feature_line, imported, published

WINDOW = ["<bos>", "▁The", " cat", "↵", "sat"]


def test_a_source_in_neuronpedia_s_own_shape_becomes_an_atlas(tmp_path: Path) -> None:
    with imported(
        tmp_path,
        features_0=[feature_line(0), feature_line(1)],
        activations_0=[activation_line(0, WINDOW, [0, 0, 8, 0, 1])],
        explanations_0=[explanation_line(0, "cats", typeName="np_max-act-logits", explanationModelName="gpt-4o-mini")],
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
        assert (page.explanations[0].text, page.explanations[0].method, page.explanations[0].model) == (
            "cats", "np_max-act-logits", "gpt-4o-mini",
        )  # fmt: skip
        assert page.decoder_norm == 1
        assert page.mean == pytest.approx((6 * 1 + 3 * 3 + 7) / 10)
        assert atlas.by_token(page.examples[0].ids[2])[0].summary.feature == 0


def test_trap_1_batches_of_different_folders_do_not_correspond(tmp_path: Path) -> None:
    features = [feature_line(index) for index in (0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)]  # as text is ordered
    examples = {index: activation_line(index, [f" w{index}", " x"], [4, 0]) for index in range(12)}
    with imported(
        tmp_path,
        features_0=features[:3],
        features_10=features[3:],
        activations_0=[examples[11], examples[3]],
        activations_2=[examples[index] for index in range(12) if index not in (3, 11)],
        explanations_7=[explanation_line(10, "ten"), explanation_line(2, "two")],
    ) as atlas:
        assert [atlas[index].examples[0].tokens[0] for index in range(12)] == [f" w{index}" for index in range(12)]
        assert (atlas[10].label, atlas[2].label, atlas[1].label) == ("ten", "two", None)


def test_trap_2_groups_are_told_by_bins_and_wrong_ones_are_put_right(tmp_path: Path) -> None:
    low, high = {"binMin": 0.0, "binMax": 4.0, "binContains": 0.9}, {"binMin": 4.0, "binMax": 8.0, "binContains": 0.1}
    with imported(
        tmp_path,
        features_0=[feature_line(0)],
        activations_0=[
            activation_line(0, [" weak", " a"], [2, 0], **low),
            activation_line(0, [" wrong", " a"], [7, 0], **low),  # filed under the lower interval
            activation_line(0, [" right", " a"], [5, 0], **high),
            activation_line(0, [" top", " a"], [8, 0]),
            activation_line(0, [" top", " a"], [8, 0], **high),  # the same window again
            activation_line(0, [" edge", " a"], [4, 0], **high),
            activation_line(0, [" never", " a"], [0, 0], **low),
            activation_line(0, [" less", " a"], [-1, 0], **low),
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
        activation_line(0, [f" {low}"], [low + 1], binMin=low, binMax=high, binContains=share)
        for low, high, share in shares
    ]
    with imported(tmp_path, features_0=[feature_line(0)], activations_0=rows) as atlas:
        assert [one.count for one in atlas[0].intervals] == [1, 1, 7]


def test_an_example_stands_for_its_qualifying_token_not_for_the_strongest_in_its_window(tmp_path: Path) -> None:
    bounds = {"binMin": 0.0, "binMax": 4.0, "binContains": 0.5, "qualifyingTokenIndex": 1}
    with imported(
        tmp_path,
        features_0=[feature_line(0)],
        activations_0=[activation_line(0, [" a", " b", " c"], [0, 2, 7], **bounds)],
    ) as atlas:
        (one,) = atlas[0].examples
        assert (one.peak, one.value, one.interval) == (1, 2, 0)
        assert "rebinned" not in atlas.manifest.metadata["put_right"]


def test_trap_3_a_rounded_density_is_made_exact_where_the_histogram_counts(tmp_path: Path) -> None:
    with imported(
        tmp_path,
        features_0=[
            feature_line(0, frac_nonzero=0.01, freq_hist_data_bar_heights=[6, 3, 0, 1]),  # 10 of 1000: counts
            feature_line(1, frac_nonzero=0.012, freq_hist_data_bar_heights=[0.6, 0.3, 0, 0.1]),  # a shape alone
            feature_line(2, frac_nonzero=0.0, freq_hist_data_bar_heights=[], freq_hist_data_bar_values=[]),
        ],
        activations_0=[activation_line(2, [" rare"], [1])],
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
    place = published(tmp_path, features_0=[feature_line(0, frac_nonzero=0.25)])
    (place / "source.jsonl").unlink()
    with import_atlas("neuronpedia", place, tmp_path / "in.atlas", d_sae=1) as atlas:
        assert atlas[0].density == 0.25
        assert "not told" in atlas.manifest.metadata["counts"]


def test_trap_4_a_byte_level_vocabulary_is_known_by_its_pieces(tmp_path: Path) -> None:
    gpt2 = [" the", "Ã©", "âĢĻs", "↵", "’", "ä¸Ń", "âĢ", "é"]
    gemma = [" the", "é", "日本", "été", "’", "Ā", "<0xE2>", "naïve"]
    assert looks_byte_level(gpt2)
    assert not looks_byte_level(gemma)
    assert not looks_byte_level(["plain", " words", "Ã©", "日本"])
    with imported(
        tmp_path,
        features_0=[feature_line(0, pos_str=["ĠÃ©t"], pos_values=[1.0])],
        activations_0=[activation_line(0, ["ä¸Ń", "âĢ", "ľ", " caf", "Ã©"], [0, 0, 0, 0, 8])],
    ) as atlas:
        assert atlas[0].examples[0].tokens == ["中", "", "“", " caf", "é"]
        assert atlas[0].promoted[0].token == " ét"


def test_trap_5_missing_logits_are_left_out(tmp_path: Path) -> None:
    row = feature_line(
        0, pos_str=["a", "b", "c", "d"], pos_values=[-10000, None, float("nan"), 2], neg_str=[], neg_values=[]
    )
    with imported(tmp_path, features_0=[row]) as atlas:
        assert [(one.token, one.value) for one in atlas[0].promoted] == [("d", 2)]
        assert atlas[0].suppressed == []
        assert atlas.manifest.metadata["put_right"]["logits"] == 3


def test_trap_6_the_maximum_is_what_either_says_at_least_and_cosines_may_be_empty(tmp_path: Path) -> None:
    with imported(
        tmp_path,
        features_0=[
            feature_line(0, maxActApprox=1.0, topkCosSimIndices=[], topkCosSimValues=[]),
            feature_line(1, maxActApprox=0),
        ],
        activations_0=[activation_line(0, [" a"], [5])],
    ) as atlas:
        assert atlas[0].max == 5
        assert atlas[0].neighbours == []
        assert atlas[1].examples == []


def test_trap_8_examples_of_visitors_are_left_out_and_every_explainer_s_folder_is_read(tmp_path: Path) -> None:
    with imported(
        tmp_path,
        features_0=[feature_line(0)],
        activations_0=[activation_line(0, [" a"], [5]), activation_line(0, [" typed"], [9], creatorId="visitor")],
        explanations_0=[explanation_line(0, "first", typeName="oai_token-act-pair")],
        explanations_gpt_4o_mini_0=[explanation_line(0, "second"), explanation_line(0, "  ")],
    ) as atlas:
        assert [one.tokens for one in atlas[0].examples] == [[" a"]]
        assert atlas[0].max == 8
        assert [one.text for one in atlas[0].explanations] == ["second", "first"]
        assert atlas.manifest.metadata["put_right"]["foreign"] == 1


def test_trap_9_missing_features_are_named(tmp_path: Path) -> None:
    with imported(
        tmp_path,
        features_0=[feature_line(index) for index in (0, 1, 5, 5)],
        activations_0=[activation_line(3, [" a"], [5])],
    ) as atlas:
        assert atlas.manifest.metadata["missing"] == "2-4, 6-11"
        assert atlas.manifest.metadata["put_right"]["repeated"] == 1
        assert atlas.manifest.metadata["put_right"]["orphans"] == 1
        assert (atlas[3].count, atlas[3].max) == (1, 5)  # as much as its example shows
        assert atlas[4].dead


def test_the_catalogue_knows_how_many_features_there_are(tmp_path: Path, monkeypatch: Any) -> None:
    (known,) = [one for one in snapshot() if one.neuronpedia_id == "gemma-2-2b/20-gemmascope-res-16k"]
    few = replace(known, width=3)
    monkeypatch.setattr("gemscope.features.published.snapshot", lambda: (few,))
    place = published(tmp_path, features_0=[feature_line(0)])
    with import_atlas("neuronpedia", place, tmp_path / "in.atlas") as atlas:
        assert (len(atlas), atlas.manifest.metadata["missing"]) == (3, "1-2")
        assert atlas.manifest.sae == known.address


def test_one_window_that_many_features_show_is_kept_once(tmp_path: Path) -> None:
    with imported(
        tmp_path,
        features_0=[feature_line(index) for index in range(12)],
        activations_0=[activation_line(index, WINDOW, [0, 0, index + 1, 0, 0]) for index in range(12)],
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
    rows = [activation_line(0, [" a", " b"], [5, 0]) for _ in range(50)]
    place = published(tmp_path / "v1", features_0=[feature_line(0)], activations_0=rows)
    path = place / "activations" / "batch-0.jsonl.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptFile, match=message) as caught:
        import_atlas("neuronpedia", place, tmp_path / "in.atlas")
    assert "\n" not in str(caught.value)
    assert {one.name for one in tmp_path.iterdir()} == {"v1"}


def test_a_folder_without_a_source_or_with_two_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no folder"):
        import_atlas("neuronpedia", tmp_path / "none", tmp_path / "in.atlas")
    with pytest.raises(NotFound, match=r"neither features/batch-N\.jsonl\.gz nor batch-N\.json"):
        import_atlas("neuronpedia", tmp_path, tmp_path / "in.atlas")
    published(tmp_path / "a", features_0=[feature_line(0)])
    published(tmp_path / "b", features_0=[feature_line(0)])
    with pytest.raises(InputError, match="holds 2 sources"):
        import_atlas("neuronpedia", tmp_path, tmp_path / "in.atlas")


def test_true_is_no_place_of_a_token(tmp_path: Path) -> None:
    row = activation_line(0, [" a", " b"], [1, 5]) | {"qualifyingTokenIndex": True, "maxValueTokenIndex": False}
    with imported(tmp_path, features_0=[feature_line(0)], activations_0=[row]) as atlas:
        assert [one.value for one in atlas[0].examples] == [5]
