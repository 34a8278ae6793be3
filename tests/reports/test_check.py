"""`check` tells the right site from wrong ones, and a wrong scale, on a few hundred tokens."""

import importlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

import gemscope as gs
from gemscope.activations.capture import Activations
from gemscope.activations.site import Site
from gemscope.errors import Mismatch
from gemscope.features.activations import FeatureActivations
from gemscope.features.sae import SAE, SAEInfo
from gemscope.testing import identity_sae, tiny_model
from gemscope.text.tokens import Tokens

TEXT = "The cat sat on the mat, and the dog ran after 3 birds that had come from the sea. " * 3


@pytest.fixture(scope="module")
def gemma() -> gs.LanguageModel:
    return tiny_model("gemma2", layers=4)


def fitted(model: gs.LanguageModel, site: str, *, scale: float = 1.0, keep: int = 12) -> SAE:
    """An SAE whose features are the principal directions of one site, both ways: it fits there and not elsewhere."""
    rows = torch.cat(
        [model.capture(tokens, [site])[site].rows for tokens in model.rows(gs.Corpus.of([TEXT] * 3), length=64)]
    )
    x = rows.float() * scale
    mean = x.mean(0)
    axes = torch.linalg.svd(x - mean, full_matrices=False).Vh[:keep]
    sae = SAE(x.shape[1], 2 * keep, gate="relu", site=site, info=SAEInfo(name="principal", declared_l0=keep))
    sae.W_enc.copy_(torch.cat([axes, -axes]).T)
    sae.W_dec.copy_(torch.cat([axes, -axes]))
    sae.b_enc.copy_(-mean @ sae.W_enc)
    sae.b_dec.copy_(mean)
    return sae


@pytest.mark.parametrize("site", ["2.res", "2.mlp", "2.mlp_raw", "2.transcoder", "2.transcoder_nogain"])
def test_the_right_site_passes(gemma: gs.LanguageModel, site: str) -> None:
    found = gs.check(gemma, fitted(gemma, site), gs.Corpus.of([TEXT]))
    assert found.ok, str(found)
    assert found.suggestion is None
    assert found.site == site


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("2.res", "1.res"),  # neighbouring layer
        ("2.res", "2.mlp"),
        ("2.mlp", "2.mlp_raw"),  # before instead of after the norm: silently dead features in the wild
        ("2.mlp_raw", "2.mlp"),
        ("2.transcoder", "2.transcoder_nogain"),  # the gain that Gemma Scope 1 and 2 differ in
        ("2.transcoder_nogain", "2.transcoder"),
        ("2.res", "0.res"),
    ],
)
def test_a_wrong_site_is_named_and_so_is_the_right_one(gemma: gs.LanguageModel, right: str, wrong: str) -> None:
    found = gs.check(gemma, fitted(gemma, right), gs.Corpus.of([TEXT]), site=wrong)
    assert not found.ok
    assert found.site == wrong
    assert found.suggestion is not None
    assert f"it fits {right}, not {wrong}" in found.suggestion


def test_one_token_decides_nothing() -> None:
    """At one place the stream is enormous between attention and MLP alone, along a direction that the SAE has: there
    nearly all of the variance is that token's, and explained."""
    model = tiny_model("gemma2", layers=4)
    sae = fitted(model, "2.res")
    outlier = 4_000 * sae.W_dec[0]
    block = model.hf.model.layers[2]

    def plant(sign: float, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[0, 20] += sign * outlier
        return output

    handles = [
        block.post_attention_layernorm.register_forward_hook(lambda _, __, output: plant(1, output)),
        block.post_feedforward_layernorm.register_forward_hook(lambda _, __, output: plant(-1, output)),
    ]
    found = gs.check(model, sae, gs.Corpus.of([TEXT]))
    wrong = gs.check(model, sae, gs.Corpus.of([TEXT]), site="2.mid")
    for handle in handles:
        handle.remove()
    trials = {trial.site: trial for trial in found.trials}
    assert trials["2.mid"].explained_variance > 0.99 > trials["2.res"].explained_variance
    assert found.ok, str(found)
    assert trials["2.mid"].error > trials["2.res"].error
    assert (trials["2.mid"].better_on or 0) < 0.5
    assert not wrong.ok
    assert "it fits 2.res, not 2.mid" in (wrong.suggestion or "")


def test_a_verdict_on_few_tokens_says_that_it_is_one(gemma: gs.LanguageModel) -> None:
    few = gs.check(gemma, fitted(gemma, "2.res"), gs.Corpus.of(["The cat sat on the mat."]))
    assert few.tokens < 40
    assert f"judged on {few.tokens} tokens alone" in str(few)
    assert any("few" in note for note in few.notes)
    # What is better on most of a few tokens may be so by chance.
    assert not any(trial.clearly for trial in few.trials)


def test_an_sae_of_another_model_fits_nowhere(gemma: gs.LanguageModel) -> None:
    torch.manual_seed(3)
    sae = fitted(gemma, "2.res")
    turn = torch.linalg.qr(torch.randn(gemma.d_model, gemma.d_model)).Q
    sae.W_enc.copy_(turn @ sae.W_enc)
    sae.W_dec.copy_(sae.W_dec @ turn.T)
    sae.b_dec.copy_(turn @ sae.b_dec * 3)
    found = gs.check(gemma, sae, gs.Corpus.of([TEXT]))
    assert not found.ok
    assert "is it the model that it was trained on" in (found.suggestion or "")


def test_an_l0_far_from_the_declared_one_is_not_ok(gemma: gs.LanguageModel) -> None:
    sae = fitted(gemma, "2.res")
    sae.info = SAEInfo(name="principal", declared_l0=100)
    found = gs.check(gemma, sae, gs.Corpus.of([TEXT]))
    assert not found.ok
    assert "L0 is 12 where 100 is declared" in (found.suggestion or "")


def test_the_numbers_are_those_of_the_counted_tokens_alone(gemma: gs.LanguageModel) -> None:
    sae = fitted(gemma, "2.res")
    found = gs.check(gemma, sae, gs.Corpus.of([TEXT]), tokens=128)
    assert found.masked_tokens > 0
    assert found.masked_l0 is not None
    every = gs.check(gemma, sae, gs.Corpus.of([TEXT]), tokens=128, every_token=True)
    assert every.tokens > found.tokens


def test_json_round_trips(gemma: gs.LanguageModel) -> None:
    found = gs.check(gemma, fitted(gemma, "2.res"), gs.Corpus.of([TEXT])).to_dict()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert {"ok", "explained_variance", "l0", "declared_l0", "site", "suggestion"} <= set(again)


def test_a_model_other_than_the_declared_one_is_noted(gemma: gs.LanguageModel) -> None:
    sae = fitted(gemma, "2.res")
    sae.info = SAEInfo(name="principal", declared_l0=12, model="google/gemma-2-9b")
    assert any("google/gemma-2-9b" in note for note in gs.check(gemma, sae, gs.Corpus.of([TEXT])).notes)


def test_another_width_is_refused_before_any_reading(gemma: gs.LanguageModel) -> None:
    with pytest.raises(Mismatch):
        gs.check(gemma, identity_sae(7), gs.Corpus.of([TEXT]))


# --- on the bundled model and SAE -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled(bundled_model: gs.LanguageModel) -> Iterator[tuple[gs.LanguageModel, SAE]]:
    """What flows through a site on one text, and what the SAE makes of it, is computed once: checks of one SAE at many
    sites look at the same ones again and again.
    """
    sae = gs.load_sae("smollm2")
    capture, known = bundled_model.capture, defaultdict[Any, dict[Site, Activations]](dict)
    read, made = SAE.read, {}

    def captured(tokens: Tokens, sites: Iterable[Site], *, every_token: bool = False) -> dict[Site, Activations]:
        held, wanted = known[tokens.ids.numpy().tobytes(), every_token], set(sites)
        if fresh := wanted - held.keys():
            held.update(capture(tokens, fresh, every_token=every_token))
        return {site: held[site] for site in wanted}

    def reading(self: SAE, x: torch.Tensor) -> tuple[FeatureActivations, torch.Tensor]:
        if self.b_enc.data_ptr() != sae.b_enc.data_ptr():
            return read(self, x)
        key = x.numpy().tobytes()
        if key not in made:
            made[key] = read(self, x)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled_model, "capture", captured)
        patch.setattr(SAE, "read", reading)
        yield bundled_model, sae


def test_the_bundled_sae_passes_on_the_bundled_text(bundled: tuple[gs.LanguageModel, SAE]) -> None:
    found = gs.check(*bundled)
    assert found.ok, str(found)
    assert found.explained_variance > 0.8
    assert found.masked_l0 is not None
    assert found.masked_l0 > 10 * found.l0


@pytest.mark.parametrize(
    "wrong",
    [
        "14.res",  # the layer before: of all layers the likest
        "16.mid",  # half a layer on
        "20.res",  # so far off that its own neighbours say nothing
        "15.mlp",  # another kind
        *(
            pytest.param(other, marks=pytest.mark.slow)
            for other in ("16.res", "13.res", "18.res", "15.mid", "15.transcoder", "3.res")
        ),
    ],
)
def test_a_row_of_256_tokens_tells_a_wrong_site_from_the_right_one(
    bundled: tuple[gs.LanguageModel, SAE], wrong: str
) -> None:
    found = gs.check(*bundled, site=wrong, tokens=256)
    assert not found.ok
    assert f"it fits 15.res, not {wrong}" in (found.suggestion or "")


def test_a_missing_input_scale_is_found(bundled: tuple[gs.LanguageModel, SAE], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = bundled
    site = Site(15, "res")
    tokens = model.tokens("It is a truth universally acknowledged, that a single man must be in want of a wife.")
    scale = 1 / model.capture(tokens, [site])[site].rows.float().norm(dim=-1).pow(2).mean().sqrt().item()
    # The same SAE, had it been trained on activations of mean squared norm 1.
    small = gs.load_sae("smollm2")
    for weight in (small.b_enc, small.threshold, small.b_dec):
        weight.mul_(scale)
    # On whatever it reads nearly all of its features are on, which takes long: on few tokens, then.
    monkeypatch.setattr(importlib.import_module("gemscope.reports.trials"), "_FEW", 12)
    (text,) = (document.text[:560] for document in gs.Corpus.sample().take(1))
    found = gs.check(model, small, gs.Corpus.of([text]))
    assert found.tokens > 100
    assert not found.ok
    assert "it fits 15.res scaled by" in (found.suggestion or "")
