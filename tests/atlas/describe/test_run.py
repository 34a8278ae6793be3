"""Describing: what is in an atlas is what the whole text says, held at once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from atlases import content
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.atlas.describe.gather import DescribeConfig
from gemscope.atlas.describe.run import describe
from gemscope.atlas.describe.weights import address_of
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.errors import EmptyText, FileError, InputError, Mismatch
from gemscope.features.held_out import hashes, is_held_out
from gemscope.features.sae import SAE
from gemscope.testing import planted_sae, tiny_model
from gemscope.text.corpus import Corpus
from texts import CONFIG


def test_counts_maxima_means_and_histograms_are_those_of_the_whole_text_held_at_once(
    atlas: Atlas, dense: tuple[torch.Tensor, ...]
) -> None:
    ids, counted, values = dense
    assert atlas.manifest.tokens == int(counted.sum())
    assert atlas.manifest.rows == len(ids)
    for feature in range(len(atlas)):
        page = atlas[feature]
        fired = values[..., feature][values[..., feature] > 0]
        assert page.count == len(fired)
        assert page.density == len(fired) / int(counted.sum())
        if not len(fired):
            assert page.dead
            assert not page.examples
            continue
        assert page.max == pytest.approx(fired.max().item(), rel=1e-5)
        assert page.mean == pytest.approx(fired.double().mean().item(), rel=1e-5)
        assert page.histogram is not None
        assert sum(page.histogram.counts) == page.count
        below = [int((fired < (bin_ + 1) * page.histogram.step).sum()) for bin_ in range(64)]
        running = torch.tensor(page.histogram.counts).cumsum(0)
        assert (running - torch.tensor(below)).abs().max() <= 1  # a sum in another order may cross an edge
        assert sum(interval.count for interval in page.intervals) == page.count
        assert page.intervals[-1].high > page.max >= page.intervals[-1].high / 2


def test_the_strongest_examples_are_the_rows_peaks_with_their_text_and_each_text_once(
    atlas: Atlas, dense: tuple[torch.Tensor, ...], model: LanguageModel
) -> None:
    ids, counted, values = dense
    shown_rows = ~is_held_out(hashes(ids.numpy(), counted.numpy()))
    ids, values = ids[shown_rows], values[shown_rows]
    for feature in range(0, len(atlas), 3):
        peaks = values[..., feature].max(1).values
        expected = sorted({round(peak, 3) for peak in peaks[peaks > 0].tolist()}, reverse=True)
        strongest = atlas[feature].strongest
        shown = [one.value for one in strongest]
        assert shown == sorted(shown, reverse=True)
        assert shown[:1] == pytest.approx(expected[:1], rel=1e-4)
        texts = set()
        for one in strongest:
            texts.add(tuple(one.ids[: one.peak + 1]))
            row = next(
                row
                for row in range(len(ids))
                if abs(peaks[row] - one.value) < 1e-4 and one.ids[one.peak] in ids[row].tolist()
            )
            column = int(values[row, :, feature].argmax())
            start = max(0, column - CONFIG.before)
            assert one.ids == ids[row, start : start + len(one.ids)].tolist()
            assert one.peak == column - start
            around = values[row, start : start + len(one.ids), feature].tolist()
            assert one.values == pytest.approx(around, rel=2e-3, abs=1e-4)
            assert "".join(one.tokens) == model.tokenizer.decode(one.ids)
        assert len(texts) == len(strongest)


def test_no_example_lies_on_a_token_that_does_not_count(atlas: Atlas, model: LanguageModel) -> None:
    for page in atlas:
        for one in page.examples:
            assert one.ids[one.peak] not in model.special_ids
            assert all(value == 0 for id_, value in zip(one.ids, one.values, strict=True) if id_ in model.special_ids)
    part = atlas.manifest.parts[0]
    assert part.masked["first"] == part.rows
    assert part.masked["special"] > 0


def test_examples_of_an_interval_lie_in_it_and_are_not_among_the_strongest(atlas: Atlas) -> None:
    drawn = 0
    for page in atlas:
        strongest = {(one.document, one.position) for one in page.strongest}
        for number, interval in enumerate(page.intervals):
            examples = page.within(number)
            assert len(examples) <= min(CONFIG.each, interval.count)
            drawn += len(examples)
            for one in examples:
                assert interval.low <= one.value < interval.high
                assert (one.document, one.position) not in strongest
    assert drawn > 100


def test_documents_and_positions_lead_back_to_the_text(
    atlas: Atlas, model: LanguageModel, corpora: list[Corpus]
) -> None:
    texts = [document.text for document in corpora[0]]
    assert atlas.manifest.documents == len(texts)
    checked = 0
    for page in atlas:
        for one in page.examples:
            ids = model.tokenizer(texts[one.document], add_special_tokens=False)["input_ids"]
            assert ids[one.position] == one.ids[one.peak]
            checked += 1
    assert checked > 200


def test_logits_neighbours_and_partners_come_along(atlas: Atlas, sae: SAE, dense: tuple[torch.Tensor, ...]) -> None:
    _, _, values = dense
    fires = (values > 0).flatten(0, 1).double()
    both = fires.T @ fires
    directions = torch.nn.functional.normalize(sae.W_dec, dim=-1)
    cosines = directions @ directions.T
    cosines.fill_diagonal_(-2)
    for feature in range(0, len(atlas), 5):
        page = atlas[feature]
        assert len(page.promoted) == len(page.suppressed) == CONFIG.logits
        assert page.promoted[0].value > page.promoted[-1].value > page.suppressed[0].value
        assert [one.cosine for one in page.neighbours] == pytest.approx(
            [max(0.0, one) for one in cosines[feature].topk(len(page.neighbours)).values.tolist()], abs=1e-3
        )
        for partner in page.coactive:
            joint = both[feature, partner.feature]
            union = both[feature, feature] + both[partner.feature, partner.feature] - joint
            assert partner.jaccard == pytest.approx((joint / union).item(), rel=2e-3)
            assert partner.share == pytest.approx((joint / both[feature, feature]).item(), rel=2e-3)
        assert page.decoder_norm == pytest.approx(1.0, rel=1e-5)


def test_a_described_atlas_is_sound_and_says_what_it_is_of(atlas: Atlas, sae: SAE) -> None:
    assert verify(atlas.folder) == []
    manifest = atlas.manifest
    assert (manifest.model_id, manifest.source_id) == address_of(manifest.model, sae)
    assert manifest.sae_digest == sae.digest
    assert "centred" in str(manifest.logits) or "mean" in str(manifest.logits)
    assert manifest.parts[0].counted == manifest.tokens


def test_the_median_norm_is_that_of_the_models_own_hidden_states(
    atlas: Atlas, model: LanguageModel, corpora: list[Corpus]
) -> None:
    lengths = []
    for rows in model.rows(corpora[0], length=CONFIG.length, batch=CONFIG.batch):
        out = model.hf(input_ids=rows.ids, attention_mask=rows.real.long(), output_hidden_states=True)
        counted = model.capture(rows, ["1.res"])["1.res"].counted
        lengths.append(out.hidden_states[2][counted].norm(dim=-1))
    assert atlas.manifest.median_norm == pytest.approx(torch.cat(lengths).median().item(), rel=0.005)


def test_a_transcoders_norm_is_taken_where_it_writes(
    model: LanguageModel, corpora: list[Corpus], tmp_path: Path
) -> None:
    sae = planted_sae(site="1.res", seed=3).sae
    sae.site_out = Site.parse("0.mlp")
    atlas = describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG)
    lengths = [
        captured["0.mlp"].values[captured["1.res"].counted].norm(dim=-1)
        for rows in model.rows(corpora[0], length=CONFIG.length, batch=CONFIG.batch)
        for captured in [model.capture(rows, ["1.res", "0.mlp"])]
    ]
    assert atlas.manifest.median_norm == pytest.approx(torch.cat(lengths).median().item(), rel=0.005)


def test_several_saes_in_one_pass_give_what_each_gives_alone(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path
) -> None:
    other = planted_sae(site="0.mlp", seed=5, d_sae=48).sae
    both = describe(model, [sae, other], corpora[0], to=tmp_path / "both", config=CONFIG)
    assert [one.manifest.source_id for one in both] == ["1-res-64", "0-mlp-48"]
    alone = describe(model, other, corpora[0], to=tmp_path / "alone", config=CONFIG)
    assert content(both[0].folder) == content(atlas.folder)
    assert content(both[1].folder) == content(alone.folder)


def test_a_token_limit_ends_the_pass(model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path) -> None:
    some = describe(model, sae, corpora, to=tmp_path / "some", tokens=96, config=CONFIG)
    assert some.manifest.rows * CONFIG.length < 96 + CONFIG.length * CONFIG.batch
    assert len(some.manifest.parts) == 1


def test_an_atlas_is_never_written_over(model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas) -> None:
    with pytest.raises(InputError, match="exists: an atlas is never written over"):
        describe(model, sae, corpora[0], to=atlas.folder, config=CONFIG)


def test_what_cannot_be_described_leaves_nothing(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    narrow = planted_sae(8, 12, active=2, site="1.res").sae
    with pytest.raises(Mismatch):
        describe(model, narrow, Corpus.of(["the end"]), to=tmp_path / "a", config=CONFIG)
    with pytest.raises(InputError, match="no token that counts"):
        describe(tiny_model("llama"), sae, Corpus.of(["t"]), to=tmp_path / "a", config=CONFIG)
    with pytest.raises(EmptyText):
        describe(model, sae, Corpus.of(["the end"]).where(lambda _: False), to=tmp_path / "a", config=CONFIG)
    with pytest.raises(InputError, match="no SAEs"):
        describe(model, [], Corpus.of(["the end"]), to=tmp_path / "a", config=CONFIG)
    with pytest.raises(InputError, match="no text"):
        describe(model, sae, [], to=tmp_path / "a", config=CONFIG)
    with pytest.raises(InputError, match="leave no room"):
        describe(model, sae, corpora[0], to=tmp_path / "a", config=DescribeConfig(length=1, before=0, after=0))
    with pytest.raises(InputError, match="tokens=0: at least 1"):
        describe(model, sae, corpora[0], to=tmp_path / "a", tokens=0, config=CONFIG)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"cannot write .*file/a: Not a directory"):
        describe(model, sae, corpora[0], to=tmp_path / "file" / "a", config=CONFIG)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"top": 0}, '"top" is 0, expected a whole number from 1'),
        ({"each": -1}, '"each" is -1, expected a whole number from 0'),
        ({"before": 200, "after": 60}, "reach beyond a row of length=256"),
    ],
)
def test_impossible_settings_are_refused_at_once(settings: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        DescribeConfig(**settings)


def test_the_manifest_holds_no_clock_and_no_place(atlas: Atlas) -> None:
    text = (atlas.folder / "manifest.json").read_text()
    assert str(atlas.folder.parent) not in text
    assert json.loads(text)["options"]["top"] == CONFIG.top


def test_places_that_top_more_than_a_handful_of_features_are_named(tmp_path: Path) -> None:
    """One place is made an outlier that is no sink: the strongest of whatever fires there."""
    model = tiny_model("llama", seed=1)
    texts = [" ".join(["river sang of hours"] * 5), "sun x", " ".join(["another order round there"] * 4)]
    token = model.tokens(texts[1]).ids[0, -1].item()
    model.hf.model.embed_tokens.weight[token] *= 2.5
    sae = planted_sae(model.d_model, 48, site="0.res").sae
    atlas = describe(model, sae, Corpus.of(texts), to=tmp_path / "atlas", config=CONFIG)
    places = Counter(one.examples[0].position + 1000 * one.examples[0].document for one in atlas if one.examples)
    crowded = sorted((count for count in places.values() if count > 6), reverse=True)
    assert crowded
    assert [one.features for one in atlas.manifest.crowded] == crowded
    worst = atlas.ids(np.array([atlas.manifest.crowded[0].position]))[0]
    assert worst == token
    assert f"[[{model.strings([token])[0]}]]" in str(atlas)
