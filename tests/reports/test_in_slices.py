"""Whatever reads a model through an SAE says of one in slices what it says of the same in one piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gemscope as gs
from by_hand import random_sae
from gemscope.edits.clamp import Clamp
from gemscope.edits.splice import Splice
from gemscope.features.sae import SAE
from gemscope.testing import tiny_model
from gemscope.text.corpus import Corpus
from texts import CONFIG, varied

TEXT = "the cat sat on the mat and the dog sang of rivers"


@pytest.fixture(scope="module")
def model() -> gs.LanguageModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def saes(model: gs.LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[SAE, SAE]:
    folder = gs.save_sae(random_sae(model), tmp_path_factory.mktemp("saes") / "sae")
    whole, sliced = gs.load_sae(folder), gs.load_sae(folder, device=["cpu", "cpu", "cpu"])
    assert len(sliced.slices) == 3
    return whole, sliced


def near(one: Any, other: Any) -> None:
    """The same, but for the last bits of numbers."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name, value in one.items():
            near(value, other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            near(*pair)
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5)
    else:
        assert one == other


def test_looks_scores_checks_and_causes(model: gs.LanguageModel, saes: tuple[SAE, SAE]) -> None:
    corpus = Corpus.of(varied(0)[:4])
    for told in (
        lambda sae: gs.look(model, sae, TEXT),
        lambda sae: gs.attribute(model, sae, TEXT, " the", k=4),
        lambda sae: gs.score(model, sae, corpus, length=24, batch=2),
        lambda sae: gs.check(model, sae, corpus),
    ):
        whole, sliced = (told(sae).to_dict() for sae in saes)
        for one in (whole, sliced):
            one.pop("computed", None)  # where, in words
        near(whole, sliced)


def test_edits_and_spliced_reconstructions(model: gs.LanguageModel, saes: tuple[SAE, SAE]) -> None:
    tokens = model.tokens(TEXT)
    clean = model.logits(tokens)
    for edits in (
        lambda sae: [Clamp(sae, 40, to=3.0)],
        lambda sae: [Splice(sae, error=False)],
        lambda sae: [Splice(sae, error=True), Clamp(sae, 3, to=2.0)],
    ):
        found = []
        for sae in saes:
            with model.edited(*edits(sae)):
                found.append(model.logits(tokens))
        assert (found[0] - clean).abs().max() > 1e-3
        assert (found[0] - found[1]).abs().max() <= 1e-4


def test_atlases(model: gs.LanguageModel, saes: tuple[SAE, SAE], tmp_path: Path) -> None:
    corpus = Corpus.of(varied(0)[:6])
    atlases = [gs.describe(model, sae, corpus, to=tmp_path / str(n), config=CONFIG) for n, sae in enumerate(saes)]
    assert atlases[0].manifest.sae_digest == atlases[1].manifest.sae_digest
    for feature in (0, 20, 47):
        near(*(atlas[feature].to_dict() for atlas in atlases))
