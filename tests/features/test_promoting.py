"""What all features promote by an effect: against products of whole matrices in numpy, however it is cut into blocks."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from by_hand import model_of, random_sae
from gemscope.errors import InputError, Mismatch
from gemscope.features.effect import Effect, effect
from gemscope.features.promoting import promotions
from gemscope.text.corpus import Corpus

CORPUS = Corpus.of(["the sun and the moon in the air, a light in the sea and on the land of the other morning"])


@cache
def measured(family: str) -> Effect:
    return effect(model_of(family), "1.res", CORPUS, tokens=24, length=12)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_tokens_and_figures_are_those_of_the_whole_product(family: str) -> None:
    model, found = model_of(family), measured(family)
    sae = random_sae(model, "1.res")
    with torch.no_grad():
        sae.W_dec[2] = 0
    known = np.array(sorted(i for i in set(model.tokenizer.get_vocab().values()) if i < model.vocab))
    W_U = model.hf.get_output_embeddings().weight.detach().double().numpy()[known]
    W_U = W_U - W_U.mean(0)
    W_dec = sae.W_dec.detach().double().numpy()
    this, later = found.this.double().numpy(), found.later.double().numpy()
    share = np.array(found.of.halves) / sum(found.of.halves)
    halves = [W_dec @ (this[half] + later[half]).T @ W_U.T for half in (0, 1)]
    whole = share[0] * halves[0] + share[1] * halves[1]
    here = W_dec @ (share[0] * this[0] + share[1] * this[1]).T @ W_U.T
    blocks = list(promotions(model, sae, found, k=5, block=7))
    assert [one.features.start for one in blocks] == list(range(0, sae.d_sae, 7))
    for block in blocks:
        for row, feature in enumerate(block.features):
            logits = whole[feature]
            if feature == 2:
                assert block.spread[row] == 0
                assert block.agreement[row].isnan()
                continue
            order = np.argsort(-logits)
            assert block.promoted[row].tolist() == known[order[:5]].tolist()
            assert block.suppressed[row].tolist() == known[order[::-1][:5]].tolist()
            scale = np.abs(logits).max()
            assert block.promoted_values[row].numpy() == pytest.approx(logits[order[:5]], abs=1e-5 * scale)
            assert block.spread[row].item() == pytest.approx(logits.std(), rel=1e-4)
            both = [half[feature] for half in halves]
            assert block.agreement[row].item() == pytest.approx(np.corrcoef(*both)[0, 1], abs=1e-4)
            assert block.this[row].item() == pytest.approx(here[feature] @ logits / (logits @ logits), abs=1e-4)
            least = np.minimum(*(one[order[:5]] / one.std() for one in both))
            assert block.least[row].numpy() == pytest.approx(least, abs=1e-4)
            assert block.kinship[row].diagonal().numpy() == pytest.approx(np.ones(5), abs=1e-5)
    (at_once,) = promotions(model, sae, found, k=5)
    assert torch.equal(at_once.promoted, torch.cat([one.promoted for one in blocks]))


def test_kinship_is_the_cosine_without_what_most_rows_share() -> None:
    model, found = model_of("llama"), measured("llama")
    (one,) = promotions(model, random_sae(model, "1.res"), found, k=4)
    known = sorted(i for i in set(model.tokenizer.get_vocab().values()) if i < model.vocab)
    W_U = model.hf.get_output_embeddings().weight.detach().double().numpy()
    centred = W_U - W_U[known].mean(0)
    strongest = np.linalg.svd(centred[known])[2][0]  # 1 in 100 of 32 is one
    rows = centred[one.promoted[3].numpy()]
    rows = rows - np.outer(rows @ strongest, strongest)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    assert one.kinship[3].numpy() == pytest.approx(rows @ rows.T, abs=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_a_mistake_is_one_clear_line() -> None:
    model, found = model_of("llama"), measured("llama")
    with pytest.raises(InputError, match="k=0: at least one token"):
        promotions(model, random_sae(model, "1.res"), found, k=0)
    with pytest.raises(Mismatch, match=r"writes at 0\.res, this effect is that of 1\.res"):
        promotions(model, random_sae(model, "0.res"), found)
    with pytest.raises(Mismatch, match="of tiny-llama, not of tiny-gpt2"):
        promotions(model_of("gpt2"), random_sae(model_of("gpt2"), "1.res"), found)
