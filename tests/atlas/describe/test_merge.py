"""Merging atlases of several texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from atlases import content
from gemscope.activations.model import LanguageModel
from gemscope.atlas.describe.merge import merge
from gemscope.atlas.describe.run import describe
from gemscope.atlas.files.whole import SUMS
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.checked import read_tensors
from gemscope.errors import CorruptFile, InputError, Mismatch, NotFound
from gemscope.features.map import plane
from gemscope.features.sae import SAE
from gemscope.testing import planted_sae
from gemscope.text.corpus import Corpus
from texts import CONFIG


def test_merged_atlases_equal_one_pass_over_all_texts(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path
) -> None:
    others = [
        describe(model, sae, corpus, to=tmp_path / f"part-{number}", config=CONFIG)
        for number, corpus in enumerate(corpora[1:])
    ]
    whole = describe(model, sae, corpora, to=tmp_path / "whole", config=CONFIG)
    merged = merge([atlas, *others], to=tmp_path / "merged")
    assert content(merged.folder) == content(whole.folder)
    pair = merge([atlas, others[0]], to=tmp_path / "pair")
    again = merge([pair, others[1].folder], to=tmp_path / "again")
    assert content(again.folder) == content(whole.folder)
    assert verify(merged.folder) == []
    assert merged.places is not None
    assert (merged.places == plane(sae.W_dec).places).all()


def test_an_atlas_without_a_map_says_why_and_gets_that_of_another(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path
) -> None:
    bare = describe(model, sae, corpora[1], to=tmp_path / "bare", config=CONFIG, map=False)
    assert bare.places is None
    assert (bare.manifest.map, bare.manifest.no_map) == (None, "none was asked for")
    merged = merge([bare, atlas], to=tmp_path / "merged")
    assert merged.manifest.map == atlas.manifest.map
    assert (merged.places == atlas.places).all()
    twice = merge([bare, bare], to=tmp_path / "twice")
    assert (twice.places, twice.manifest.no_map) == (None, "none was asked for")


def test_merged_with_an_atlas_that_never_gathered_norms_none_is_said(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path
) -> None:
    older = describe(model, sae, corpora[1], to=tmp_path / "older", config=CONFIG)
    arrays, _ = read_tensors(older.folder / SUMS, framework="np")
    del arrays["norms.counts"]
    save_file(arrays, older.folder / SUMS)
    assert atlas.manifest.median_norm
    assert merge([atlas, older], to=tmp_path / "merged").manifest.median_norm is None


def test_a_damaged_corpus_is_not_merged(atlas: Atlas, tmp_path: Path) -> None:
    import shutil

    damaged = Path(shutil.copytree(atlas.folder, tmp_path / "damaged"))
    rows = np.load(damaged / "corpus.npy", mmap_mode="r+")
    rows[0, 1] = np.iinfo(rows.dtype).max - 1
    rows.flush()
    with pytest.raises(CorruptFile, match=f"token {rows[0, 1]} is in the corpus.*gemscope atlas verify"):
        merge([atlas, damaged], to=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_labels_come_along_when_atlases_are_merged(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    parts = [
        describe(model, sae, corpus, to=tmp_path / f"part-{number}", config=CONFIG)
        for number, corpus in enumerate(corpora[:2])
    ]
    for part, texts in zip(parts, (["in both", "first"], ["in both", "last"]), strict=True):
        for text in texts:
            part.explain(3, text, author="somebody")
    parts[0].explain(5, "alone")
    merged = merge(parts, to=tmp_path / "merged")
    assert [one.text for one in merged[3].explanations] == ["last", "first", "in both"]
    assert merged[3].explanations[0].author == "somebody"
    assert merged.labels([3, 5]) == {3: "last", 5: "alone"}
    assert [one.feature for one in merged.search("alone")] == [5]
    assert verify(merged.folder) == []


def test_atlases_that_are_not_of_one_kind_are_not_merged(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path
) -> None:
    other = planted_sae(site="1.res", seed=4).sae
    stranger = describe(model, other, corpora[1], to=tmp_path / "stranger", config=CONFIG)
    with pytest.raises(Mismatch, match="sae_digest differ"):
        merge([atlas, stranger], to=tmp_path / "merged")
    with pytest.raises(InputError, match="1 atlases given"):
        merge([atlas], to=tmp_path / "merged")
    (stranger.folder / SUMS).unlink()
    with pytest.raises(NotFound, match=f"no {SUMS}"):
        merge([stranger, stranger], to=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
