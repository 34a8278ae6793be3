"""A small model, an SAE and texts; the atlas of them, and all of their activations at once."""

from __future__ import annotations

import pytest
import torch

from gemscope.activations.model import LanguageModel
from gemscope.atlas.describe.run import describe
from gemscope.atlas.reader import Atlas
from gemscope.features.sae import SAE
from gemscope.testing import planted_sae, tiny_model
from gemscope.text.corpus import Corpus
from texts import CONFIG, varied


@pytest.fixture(scope="session")
def model() -> LanguageModel:
    return tiny_model("gemma2")


@pytest.fixture(scope="session")
def sae() -> SAE:
    return planted_sae(site="1.res", seed=3).sae


@pytest.fixture(scope="session")
def corpora() -> list[Corpus]:
    return [Corpus.of(varied(seed)) for seed in range(3)]


@pytest.fixture(scope="session")
def atlas(model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return describe(model, sae, corpora[0], to=tmp_path_factory.mktemp("atlas") / "whole", config=CONFIG)


@pytest.fixture(scope="session")
def dense(model: LanguageModel, sae: SAE, corpora: list[Corpus]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids [R, T], counted [R, T], activations [R, T, F] with 0 where a token does not count: the whole text at once."""
    found = []
    for rows in model.rows(corpora[0], length=CONFIG.length, batch=CONFIG.batch):
        acts = model.capture(rows, [sae.site])[sae.site]
        values = sae.encode_dense(acts.values) * acts.counted[..., None]
        found.append((rows.ids.masked_fill(~rows.real, -1), acts.counted, values))
    ids, counted, values = (torch.cat(part) for part in zip(*found, strict=True))
    return ids, counted, values
