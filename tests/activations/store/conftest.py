"""A tiny model, a few texts, and what was harvested of them."""

from __future__ import annotations

import pytest

from gemscope.activations import writer as writers
from gemscope.activations.harvest import harvest
from gemscope.activations.model import LanguageModel
from gemscope.activations.store import Store
from gemscope.testing import tiny_model
from gemscope.text.corpus import Corpus
from harvested import SITES, TEXTS


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.of(TEXTS)


@pytest.fixture(scope="module")
def store(model: LanguageModel, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Store:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writers, "_SHARD", 15_000)  # several shards, none of them of a round size
        return harvest(model, corpus, SITES, to=tmp_path_factory.mktemp("store") / "deep" / "store", length=24, batch=2)
