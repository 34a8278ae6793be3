"""A score against the same figures computed here, on tiny models, with SAEs of which the answer is known."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.edits.splice import Splice
from gemscope.errors import EmptyText, InputError, Mismatch
from gemscope.features.sae import SAE, SAEInfo
from gemscope.reports.score import score
from gemscope.testing import D_MODEL, identity_sae, tiny_model
from gemscope.text.corpus import Corpus
from gemscope.text.tokens import Tokens

TEXTS = [
    f"the {word} and the {word} sang in {word * 3}, thinking of rivers and hours" for word in ("one", "two", "sun")
]
OPTIONS = {"length": 24, "batch": 2}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.of([*TEXTS, "the end and the ending " * 9])


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny_model(request.param)


def random_sae(seed: int = 0, d_sae: int = 80, site: str = "1.res", **options: object) -> SAE:
    sae = SAE(D_MODEL, d_sae, site=site, info=SAEInfo(name="random"), **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for weight in sae.parameters():
        weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    if sae.threshold is not None:
        sae.threshold.abs_()
    return sae


def reading(model: LanguageModel, corpus: Corpus, site: str | Site = "1.res") -> list[tuple[Tokens, Tensor, Tensor]]:
    """Tokens, activations and what counts, batch by batch as the score reads them."""
    found = []
    for tokens in model.rows(corpus, **OPTIONS):
        acts = model.capture(tokens, [site])[site]
        found.append((tokens, acts.values, acts.counted))
    return found


def test_an_sae_that_changes_nothing_costs_nothing(model: LanguageModel, corpus: Corpus) -> None:
    told = score(model, identity_sae(D_MODEL), corpus, **OPTIONS)
    assert told.fvu == pytest.approx(0, abs=1e-9)
    assert told.explained_variance == pytest.approx(1)
    assert told.cosine == pytest.approx(1, abs=1e-6)
    assert told.delta_loss == pytest.approx(0, abs=1e-5)
    assert told.kl == pytest.approx(0, abs=1e-6)
    assert told.l0 == pytest.approx(D_MODEL, abs=0.01)
    assert told.dense > 0.9


def test_every_figure_equals_one_computed_here(model: LanguageModel, corpus: Corpus) -> None:
    sae = random_sae()
    told = score(model, sae, corpus, **OPTIONS)
    batches = reading(model, corpus)
    x = torch.cat([values[counted] for _, values, counted in batches]).double()
    pre = x @ sae.W_enc.double() + sae.b_enc
    f = pre * (pre > sae.threshold) * (pre > 0)
    out = f @ sae.W_dec.double() + sae.b_dec
    l0 = (f > 0).sum(-1).double()
    density = (f > 0).double().mean(0)
    assert told.tokens == len(x)
    assert told.tokens + told.masked == sum(int(tokens.real.sum()) for tokens, _, _ in batches)
    assert told.l0 == pytest.approx(l0.mean().item(), rel=1e-4)
    assert told.l0_std == pytest.approx(l0.std(correction=0).item(), rel=1e-3)
    assert told.fvu == pytest.approx(((x - out).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item(), rel=1e-4)
    assert told.explained_variance == pytest.approx(1 - told.fvu)
    assert told.cosine == pytest.approx(torch.cosine_similarity(x, out, dim=-1).mean().item(), rel=1e-4)
    assert told.dead == pytest.approx((density == 0).double().mean().item())
    assert told.dense == pytest.approx((density > 0.1).double().mean().item())


class Replaced(nn.Module):
    """A block that computes as before and then has some positions overwritten."""

    def __init__(self, block: nn.Module, where: Tensor, sae: SAE) -> None:
        super().__init__()
        self.block, self.where, self.sae = block, where, sae

    def forward(self, *args: object, **kwargs: object) -> object:
        out = self.block(*args, **kwargs)
        many = isinstance(out, tuple)
        x = out[0] if many else out
        pre = x @ self.sae.W_enc + self.sae.b_enc
        f = pre * (pre > self.sae.threshold) * (pre > 0)
        new = torch.where(self.where[..., None], f @ self.sae.W_dec + self.sae.b_dec, x)
        return (new, *out[1:]) if many else new

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


def test_losses_equal_those_of_a_model_rebuilt_with_the_sae_inside(corpus: Corpus) -> None:
    """The block itself is exchanged for one that overwrites its output: no hook, no splice."""
    model, sae = tiny_model("llama"), random_sae()
    told = score(model, sae, corpus, **OPTIONS)
    clean_losses, spliced_losses, divergences = [], [], []
    for tokens, _, counted in reading(model, corpus):
        clean = model.logits(tokens).double().log_softmax(-1)
        block = model.hf.model.layers[1]
        model.hf.model.layers[1] = Replaced(block, counted, sae)
        spliced = model.logits(tokens).double().log_softmax(-1)
        model.hf.model.layers[1] = block
        for row in range(len(tokens)):
            for t in range(tokens.ids.shape[1] - 1):
                if counted[row, t] and tokens.real[row, t + 1]:
                    following = tokens.ids[row, t + 1]
                    clean_losses.append(-clean[row, t, following].item())
                    spliced_losses.append(-spliced[row, t, following].item())
                    p, q = clean[row, t], spliced[row, t]
                    divergences.append((p.exp() * (p - q)).sum().item())
    n = len(clean_losses)
    assert told.loss_tokens == n
    assert told.loss == pytest.approx(sum(clean_losses) / n, rel=1e-5)
    assert told.spliced_loss == pytest.approx(sum(spliced_losses) / n, rel=1e-5)
    assert told.delta_loss == pytest.approx(told.spliced_loss - told.loss)
    assert told.kl == pytest.approx(sum(divergences) / n, rel=1e-4)
    assert told.kl > 0.01


def test_uncounted_tokens_pass_a_splice_untouched(model: LanguageModel, corpus: Corpus) -> None:
    """A block's output at an uncounted position is what it was; at a counted one it is the SAE's."""
    sae = random_sae()
    tokens, values, counted = reading(model, corpus)[0]
    assert not counted.all()
    with model.edited(Splice(sae, counted)):
        edited = model.capture(tokens, ["1.res"], every_token=True)["1.res"].values
    out = Splice(sae, counted)(values)
    for got in (edited, out):
        if got is out:
            assert torch.equal(got[~counted], values[~counted])
            torch.testing.assert_close(got[counted], sae(values[counted]), rtol=1e-5, atol=1e-5)
    following = model.capture(tokens, ["1.res"], every_token=True)["1.res"].values
    assert torch.equal(following, values)  # and the model is as before


def test_attention_sinks_are_neither_measured_nor_spliced(corpus: Corpus) -> None:
    """One token's activations are made enormous: the figures are those of the others."""
    model = tiny_model("llama", seed=1)
    token = model.tokenizer("the")["input_ids"][-1]
    model.hf.model.embed_tokens.weight[token] *= 1e4
    batches = reading(model, corpus, "0.res")
    sinks = sum(int((tokens.counted & (tokens.ids == token)).sum()) for tokens, _, _ in batches)
    assert sinks >= 3
    sae = random_sae(site="0.res")
    told = score(model, sae, corpus, **OPTIONS)
    assert told.masked == sum(int((tokens.real & ~counted).sum()) for tokens, _, counted in batches)
    x = torch.cat([values[counted] for _, values, counted in batches])
    error, spread = (x - sae(x)).pow(2).sum().item(), (x - x.mean(0)).pow(2).sum().item()
    assert told.fvu == pytest.approx(error / spread, rel=1e-3)
    everything = torch.cat([values[tokens.counted] for tokens, values, _ in batches])
    assert (everything - everything.mean(0)).pow(2).sum() > 1e3 * spread  # what one sink would do to the denominator


def test_dead_and_dense_features_are_counted(model: LanguageModel, corpus: Corpus) -> None:
    sae = identity_sae(D_MODEL)
    sae.b_enc[:5] = -1e4  # never
    sae.b_enc[40:43] = 1e4  # always
    told = score(model, sae, corpus, loss_tokens=0, **OPTIONS)
    reference = score(model, identity_sae(D_MODEL), corpus, loss_tokens=0, **OPTIONS)
    x = torch.cat([values[counted] for _, values, counted in reading(model, corpus)])
    fired = torch.cat([x > 0, x < 0], dim=1).double().mean(0)
    fired[:5], fired[40:43] = 0, 1
    assert told.dead == (fired == 0).double().mean().item() >= 5 / 64
    assert told.dense == (fired > 0.1).double().mean().item()
    assert reference.dead < told.dead


def test_losses_can_be_left_out_or_kept_to_the_first_tokens(model: LanguageModel, corpus: Corpus) -> None:
    sae = random_sae()
    without = score(model, sae, corpus, loss_tokens=0, **OPTIONS)
    assert without.loss is without.delta_loss is without.kl is None
    assert "delta loss" not in str(without)
    few, all_ = score(model, sae, corpus, loss_tokens=10, **OPTIONS), score(model, sae, corpus, **OPTIONS)
    assert 0 < few.loss_tokens < all_.loss_tokens
    assert few.fvu == all_.fvu == without.fvu


def test_reading_ends_after_the_tokens_asked_for(model: LanguageModel, corpus: Corpus) -> None:
    told = score(model, random_sae(), corpus, tokens=48, loss_tokens=0, **OPTIONS)
    assert told.tokens + told.masked == 48


def test_a_transcoder_is_scored_on_what_it_writes(model: LanguageModel, corpus: Corpus) -> None:
    sae = random_sae(site="1.transcoder", site_out="1.mlp", skip=True)
    told = score(model, sae, corpus, **OPTIONS)
    xs, ys = [], []
    for tokens in model.rows(corpus, **OPTIONS):
        captured = model.capture(tokens, ["1.transcoder", "1.mlp"])
        counted = captured["1.transcoder"].counted
        xs.append(captured["1.transcoder"].values[counted])
        ys.append(captured["1.mlp"].values[counted])
    x, y = torch.cat(xs).double(), torch.cat(ys).double()
    pre = x @ sae.W_enc.double() + sae.b_enc
    f = pre * (pre > sae.threshold) * (pre > 0)
    assert sae.W_skip is not None
    out = f @ sae.W_dec.double() + sae.b_dec + x @ sae.W_skip.double().T
    assert told.fvu == pytest.approx(((y - out).pow(2).sum() / (y - y.mean(0)).pow(2).sum()).item(), rel=1e-4)
    assert told.site == "1.transcoder → 1.mlp"
    assert told.delta_loss is None


def test_a_transcoder_cannot_be_spliced() -> None:
    with pytest.raises(InputError, match="is a transcoder"):
        Splice(random_sae(site="1.transcoder", site_out="1.mlp"), torch.ones(1, 2, dtype=torch.bool))


def test_an_sae_of_another_width_is_refused(model: LanguageModel, corpus: Corpus) -> None:
    with pytest.raises(Mismatch, match=rf"has {D_MODEL} at 1\.res"):
        score(model, SAE(7, 20, site="1.res"), corpus)
    with pytest.raises(InputError, match=r"set sae\.site"):
        score(model, SAE(D_MODEL, 20), corpus)


def test_a_corpus_of_which_nothing_counts_is_refused(model: LanguageModel) -> None:
    lone = "a" if model.bos is None else ""
    with pytest.raises((InputError, EmptyText)):
        score(model, random_sae(), Corpus.of([lone or " "]), **OPTIONS)


def test_a_score_prints_itself_and_is_json(model: LanguageModel, corpus: Corpus) -> None:
    told = score(model, random_sae(), corpus, **OPTIONS)
    facts = json.loads(json.dumps(told.to_dict()))
    assert facts["fvu"] == told.fvu
    assert facts["explained_variance"] == pytest.approx(1 - facts["fvu"])
    text = str(told)
    for piece in ("L0", "explained variance", "delta loss", f"{told.fvu:.4f}", model.name, "1.res"):
        assert piece in text
    assert not any(math.isnan(value) for value in facts.values() if isinstance(value, float))
