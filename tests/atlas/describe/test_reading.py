"""A harvest read in the place of its text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import save_file

import gemscope as gs
from atlases import content
from gemscope.activations.model import LanguageModel
from gemscope.atlas.describe.run import describe
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.checked import read_tensors
from gemscope.errors import InputError
from gemscope.features.sae import SAE
from gemscope.testing import planted_sae, tiny_model
from gemscope.text.corpus import Corpus
from texts import CONFIG


def test_a_harvest_gives_the_figures_of_the_live_model(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path
) -> None:
    store = gs.harvest(model, corpora[0], ["1.res"], to=tmp_path / "store", length=CONFIG.length, batch=CONFIG.batch)
    stored = describe(model, sae, store, to=tmp_path / "stored", config=CONFIG)
    assert stored.manifest.tokens == atlas.manifest.tokens
    assert verify(stored.folder) == []
    same = 0
    for mine, theirs in zip(stored, atlas, strict=True):
        assert abs(mine.count - theirs.count) <= 2  # stored in float16: what lies at a threshold may cross it
        assert mine.max == pytest.approx(theirs.max, rel=1e-2)
        assert mine.promoted == theirs.promoted
        if mine.strongest and theirs.strongest:
            one, other = mine.strongest[0], theirs.strongest[0]
            assert one.ids[one.peak] == other.ids[other.peak]
            same += (one.document, one.position) == (other.document, other.position)
    assert same > 40


def test_saes_of_several_sites_are_described_from_one_harvest(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    """To the byte as each by itself, and, as nothing was rounded, with every figure of one pass of the live model."""
    saes = [sae, planted_sae(site="0.mlp", seed=5, d_sae=48).sae]
    shape = {"length": CONFIG.length, "batch": CONFIG.batch}
    store = gs.harvest(model, corpora[0], ["0.mlp", "1.res"], to=tmp_path / "store", dtype="float32", **shape)
    stored = describe(model, saes, store, to=tmp_path / "stored", config=CONFIG)
    live = describe(model, saes, corpora[0], to=tmp_path / "live", config=CONFIG)
    for one, both, passed in zip(saes, stored, live, strict=True):
        alone = describe(model, one, store, to=tmp_path / one.info.name, config=CONFIG)
        assert content(both.folder) == content(alone.folder)
        assert both.manifest.tokens == passed.manifest.tokens
        assert sum(page.count for page in both) > 100
        for mine, theirs in zip(both, passed, strict=True):
            for figure in ("count", "max", "mean", "histogram", "promoted", "coactive"):
                assert getattr(mine, figure) == getattr(theirs, figure)


def test_saes_of_several_sites_are_refused_where_a_harvest_holds_other_tokens_at_each(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    """As stores of before format 3 may, in which sinks were told site by site."""
    store = gs.harvest(model, corpora[0], ["0.mlp", "1.res"], to=tmp_path / "store", length=CONFIG.length)
    path = store.folder / "0.mlp" / "00000-00.safetensors"
    rows, _ = read_tensors(path, framework="np")
    save_file({name: one[1:].copy() for name, one in rows.items()}, path)
    manifest = json.loads((store.folder / "manifest.json").read_text())
    manifest["format"] = 2
    manifest["sites"]["0.mlp"] -= 1
    manifest["shards"]["0.mlp"][0]["rows"] -= 1
    (store.folder / "manifest.json").write_text(json.dumps(manifest))
    old = gs.Store(store.folder)
    saes = [sae, planted_sae(site="0.mlp", seed=5, d_sae=48).sae]
    with pytest.raises(
        InputError, match=r"1\.res and 0\.mlp of .* hold different tokens .* format 2 may: harvest again"
    ):
        describe(model, saes, old, to=tmp_path / "both", config=CONFIG)
    assert not (tmp_path / "both.partial").exists()
    assert describe(model, saes[1], old, to=tmp_path / "alone", config=CONFIG).manifest.tokens == len(old["0.mlp"])


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_places_in_documents_are_right_whether_text_or_its_harvest_was_read(
    family: str, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    model = tiny_model(family)
    store = gs.harvest(model, corpora[0], ["1.res"], to=tmp_path / "store", length=CONFIG.length, batch=CONFIG.batch)
    mixed = describe(model, sae, [store, corpora[0]], to=tmp_path / "mixed", config=CONFIG)
    ids = [model.tokenizer(document.text, add_special_tokens=False)["input_ids"] for document in corpora[0]]
    examples = [one for page in mixed for one in page.examples]
    assert {one.document < len(ids) for one in examples} == {True, False}
    for one in examples:
        assert ids[one.document % len(ids)][one.position] == one.ids[one.peak]
