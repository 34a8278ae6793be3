"""A score against the same figures computed here, on tiny models, with SAEs of which the answer is known."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from by_hand import planted_clt
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.cli.main import main
from gemscope.errors import Awaited, EmptyText, InputError, Mismatch
from gemscope.features.files.saving import save_sae
from gemscope.features.listing import load_stack
from gemscope.features.load import load_sae
from gemscope.features.sae import SAE, SAEInfo
from gemscope.reports import losses as losses_module
from gemscope.reports import score as score_module
from gemscope.reports.checking import check
from gemscope.reports.score import far
from gemscope.reports.scoring import score
from gemscope.reports.sweep import compare
from gemscope.testing import D_MODEL, identity_sae, tiny_model
from gemscope.text.corpus import Corpus
from gemscope.text.tokens import Tokens
from gemscope.world import World

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


class Noting(nn.Module):
    """A module that computes as before; what goes in can be looked up afterwards."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, torch.empty(0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.seen = args[0]
        return self.inner(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class Overwritten(Noting):
    """A module of whose output some positions are overwritten by what `made` gives for it."""

    def __init__(self, inner: nn.Module, where: Tensor, made: Callable[[Tensor], Tensor]) -> None:
        super().__init__(inner)
        self.where, self.made = where, made

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.inner(*args, **kwargs)
        x = out[0] if isinstance(out, tuple) else out
        self.seen = x
        new = torch.where(self.where[..., None], self.made(x), x)
        return (new, *out[1:]) if isinstance(out, tuple) else new


class Rebuilt:
    """A float64 copy of a tiny model with the SAE, or a constant, built into block 1: no hook, no edit, no capture."""

    def __init__(self, model: LanguageModel, sae: SAE) -> None:
        self.model, self.sae = model, sae
        self.hf = deepcopy(model.hf).double()
        inner = self.hf.gpt_neox if hasattr(self.hf, "gpt_neox") else getattr(self.hf, "transformer", None)
        self.blocks = (inner or self.hf.model).__getattr__("layers" if not hasattr(self.hf, "transformer") else "h")
        self.weights = {name: weight.detach().double() for name, weight in sae.named_parameters()}

    def sae_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and output, by the formulas alone."""
        w = self.weights
        pre = x @ w["W_enc"] + w["b_enc"]
        f = pre * (pre > w["threshold"]) * (pre > 0)
        out = f @ w["W_dec"] + w["b_dec"]
        return f, out + x @ w["W_skip"].T if "W_skip" in w else out

    def run(
        self, tokens: Tokens, where: Tensor, made: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities with `made(read, written)` in the place of what is written, and what is read and written."""
        block = self.blocks[1]
        if not self.sae.is_transcoder:
            self.blocks[1] = built = Overwritten(block, where, lambda x: made(x, x))
            out = self._logits(tokens)
            self.blocks[1] = block
            return out, built.seen, built.seen
        mlp = block.mlp
        block.mlp = noting = Noting(mlp)
        normed = hasattr(block, "post_feedforward_layernorm")  # Gemma's MLP has a norm behind it
        last = block.post_feedforward_layernorm if normed else noting
        built = Overwritten(last, where, lambda y: made(noting.seen, y))
        setattr(block, "post_feedforward_layernorm" if normed else "mlp", built)
        out = self._logits(tokens)
        block.mlp = mlp
        if normed:
            block.post_feedforward_layernorm = last
        return out, noting.seen, built.seen

    def _logits(self, tokens: Tokens) -> Tensor:
        with torch.no_grad():
            # No mask: what is on the right of a token, padding too, cannot reach it.
            logits = self.hf(input_ids=tokens.ids, use_cache=False).logits
        return logits.log_softmax(-1)


def slow(model: LanguageModel, sae: SAE, corpus: Corpus, **options: int) -> dict[str, float]:
    """Every figure of a score, computed here token by token in float64."""
    rebuilt = Rebuilt(model, sae)
    batches = list(model.rows(corpus, **options))
    assert any(tokens.padded for tokens in batches)
    nothing = [torch.zeros_like(tokens.real) for tokens in batches]
    clean = [rebuilt.run(tokens, where, lambda x, y: y) for tokens, where in zip(batches, nothing, strict=True)]
    masks = [counted_by_hand(tokens, x) for tokens, (_, x, _) in zip(batches, clean, strict=True)]
    x = torch.cat([x[mask] for (_, x, _), mask in zip(clean, masks, strict=True)])
    y = torch.cat([y[mask] for (_, _, y), mask in zip(clean, masks, strict=True)])
    f, out = rebuilt.sae_of(x)
    l0 = sorted((f != 0).sum(-1).tolist())
    n, density, mean = len(x), (f != 0).double().mean(0), y.mean(0)
    figures = {
        "tokens": n,
        "masked": sum(int(tokens.real.sum()) for tokens in batches) - n,
        "sinks": 0,
        "l0": sum(l0) / n,
        "l0_std": (sum(each**2 for each in l0) / n - (sum(l0) / n) ** 2) ** 0.5,
        "l0_p95": l0[math.ceil(0.95 * n) - 1],
        "fvu": ((y - out).pow(2).sum() / (y - mean).pow(2).sum()).item(),
        "cosine": torch.cosine_similarity(y, out, dim=-1).mean().item(),
        "l2_ratio": (out.norm(dim=-1) / y.norm(dim=-1)).mean().item(),
        "relative_bias": (out.pow(2).sum() / (y * out).sum()).item(),
        "dead": (density == 0).double().mean().item(),
        "dense": (density > 0.1).double().mean().item(),
    }
    figures["explained_variance"] = 1 - figures["fvu"]
    changes: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "spliced": lambda x, y: rebuilt.sae_of(x)[1],
        "zero": lambda x, y: torch.zeros_like(y),
        "mean": lambda x, y: mean.expand_as(y),
    }
    for name, made in changes.items():
        changed = [rebuilt.run(tokens, mask, made)[0] for tokens, mask in zip(batches, masks, strict=True)]
        losses, divergences = [], []
        for tokens, mask, (before, _, _), after in zip(batches, masks, clean, changed, strict=True):
            for row in range(len(tokens)):
                for t in range(tokens.ids.shape[1] - 1):
                    if mask[row, t] and tokens.real[row, t + 1]:
                        p, q, following = before[row, t], after[row, t], tokens.ids[row, t + 1]
                        losses.append((-p[following].item(), -q[following].item()))
                        divergences.append((p.exp() * (p - q)).sum().item())
        figures["loss_tokens"] = len(losses)
        figures["loss"] = sum(one for one, _ in losses) / len(losses)
        figures[f"{name}_loss"] = sum(other for _, other in losses) / len(losses)
        figures["kl" if name == "spliced" else f"{name}_kl"] = sum(divergences) / len(losses)
    figures["delta_loss"] = figures["spliced_loss"] - figures["loss"]
    for name in ("zero", "mean"):
        ablated, kl = figures[f"{name}_loss"], figures[f"{name}_kl"]
        figures[f"loss_recovered_{name}"] = (ablated - figures["spliced_loss"]) / (ablated - figures["loss"])
        figures[f"kl_score_{name}"] = (kl - figures["kl"]) / kl
    return figures


def counted_by_hand(tokens: Tokens, x: Tensor) -> Tensor:
    """Of each row, its tokens that count without those ten times as long as the middle one."""
    mask = tokens.counted.clone()
    for row in range(len(tokens)):
        norms = x[row].norm(dim=-1)
        if tokens.counted[row].any():
            mask[row] &= norms <= 10 * norms[tokens.counted[row]].median()
    return mask


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "qwen3", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("kind", ["sae", "transcoder"])
def test_every_figure_equals_that_of_a_model_rebuilt_with_the_sae_inside(
    family: str, kind: str, corpus: Corpus
) -> None:
    model = tiny_model(family)
    where = {"site": "1.res"} if kind == "sae" else {"site": "1.transcoder", "site_out": "1.mlp", "skip": True}
    sae = random_sae(**where)
    told, expected = score(model, sae, corpus, **OPTIONS), slow(model, sae, corpus, **OPTIONS)
    for name, value in expected.items():
        assert getattr(told, name) == pytest.approx(value, rel=2e-4, abs=2e-5), name
    assert told.kl > 0.01  # there is something to compare
    assert abs(told.zero_loss - told.mean_loss) > 1e-3
    known = {name for name, value in told.to_dict().items() if isinstance(value, (int, float)) and value is not None}
    assert known - {"every_token", "features"} == set(expected)  # none is left unchecked


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
    assert told.sinks == sinks
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


def test_an_sae_of_another_width_is_refused(model: LanguageModel, corpus: Corpus) -> None:
    with pytest.raises(Mismatch, match=rf"has {D_MODEL} at 1\.res"):
        score(model, SAE(7, 20, site="1.res"), corpus)
    with pytest.raises(InputError, match=r"set sae\.site"):
        score(model, SAE(D_MODEL, 20), corpus)


def test_a_corpus_of_which_nothing_counts_is_refused(model: LanguageModel) -> None:
    lone = "a" if model.bos is None else ""
    with pytest.raises((InputError, EmptyText)):
        score(model, random_sae(), Corpus.of([lone or " "]), **OPTIONS)


def test_rows_a_pass_are_a_matter_of_memory_alone(
    model: LanguageModel, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score(model, random_sae(), corpus, **OPTIONS)
    monkeypatch.setattr(losses_module, "_LOGITS", 1)
    assert losses_module._rows_a_pass(model, next(model.rows(corpus, **OPTIONS))) == 1
    one_by_one = score(model, random_sae(), corpus, **OPTIONS)
    assert one_by_one.loss_tokens == whole.loss_tokens
    for name in ("loss", "spliced_loss", "kl", "zero_loss", "mean_loss", "mean_kl"):
        assert getattr(one_by_one, name) == pytest.approx(getattr(whole, name), rel=1e-5)


def test_every_token_counted_is_said_loudly(model: LanguageModel, corpus: Corpus) -> None:
    told = score(model, random_sae(), corpus, every_token=True, **OPTIONS)
    batches = list(model.rows(corpus, **OPTIONS))
    assert told.tokens == sum(int(tokens.real.sum()) for tokens in batches)
    assert told.masked == 0
    assert told.loss_tokens == sum(int((tokens.real.sum(-1) - 1).sum()) for tokens in batches)
    assert "mislead" in str(told)
    assert "mislead" in told.to_html()
    assert "mislead" not in str(score(model, random_sae(), corpus, loss_tokens=0, **OPTIONS))


def test_a_site_that_the_model_does_not_read_has_no_losses(model: LanguageModel, corpus: Corpus) -> None:
    told = score(model, random_sae(site="1.transcoder_nogain"), corpus, **OPTIONS)
    assert told.delta_loss is None
    assert told.fvu > 0
    assert "no losses: the model does not read 1.transcoder_nogain itself" in str(told)
    assert "Not measured" in told.to_html()


def test_numbers_of_tokens_that_make_no_sense_are_refused(model: LanguageModel, corpus: Corpus) -> None:
    with pytest.raises(InputError, match="tokens=0: at least one"):
        score(model, random_sae(), corpus, tokens=0)
    with pytest.raises(InputError, match="loss_tokens=-1"):
        score(model, random_sae(), corpus, loss_tokens=-1)


class Passes:
    """How often a model runs, to its end or up to a site."""

    def __init__(self, model: LanguageModel) -> None:
        self.n = 0
        self._handle = model.hf.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.n += 1

    def stop(self) -> int:
        self._handle.remove()
        return self.n


def test_several_saes_share_one_reading_and_score_as_each_alone(corpus: Corpus) -> None:
    model = tiny_model("llama")
    transcoder = random_sae(site="1.transcoder", site_out="1.mlp", skip=True)
    saes = [random_sae(0), random_sae(1, d_sae=40), random_sae(2, site="2.res"), transcoder]
    batches = len(list(model.rows(corpus, **OPTIONS)))
    model.capture("it", ["0.res"])  # a model's typical norm is measured the first time
    passes = Passes(model)
    together = compare(model, saes, corpus, **OPTIONS)
    # Statistics, clean, two ablations at each of three sites, four splices.
    assert passes.stop() == batches * (1 + 1 + 2 * 3 + 4)
    for sae, told in zip(saes, together.scores, strict=True):
        alone = score(model, sae, corpus, **OPTIONS).to_dict()
        for name, value in told.to_dict().items():
            assert value == (pytest.approx(alone[name], rel=1e-5) if isinstance(value, float) else alone[name]), name


def test_a_comparison_marks_those_that_no_other_beats(model: LanguageModel, corpus: Corpus) -> None:
    saes = [random_sae(seed, d_sae=20 + 30 * seed) for seed in range(4)] + [identity_sae(D_MODEL)]
    found = compare(model, saes, corpus, **OPTIONS)
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    for figure in ("delta_loss", "fvu"):
        points = [(one["l0"], one[figure]) for one in facts["scores"]]
        beaten = {
            a
            for a, (l0, value) in enumerate(points)
            for b, (other_l0, other) in enumerate(points)
            if a != b and other_l0 <= l0 and other <= value and (other_l0, other) != (l0, value)
        }
        assert facts["pareto"][figure] == [place for place in range(len(saes)) if place not in beaten]
    assert len(saes) - 1 in facts["pareto"]["fvu"]  # nothing explains more than the identity
    text, page = str(found), found.to_html()
    assert text.count("●") == 1 + sum(map(len, facts["pareto"].values()))
    assert page.count("<circle") == 2 * len(saes)
    assert page.count('class="dot"') == sum(map(len, facts["pareto"].values()))
    with pytest.raises(InputError, match="no SAEs given"):
        compare(model, [], corpus)


def test_saes_are_told_apart_by_the_end_of_their_addresses(model: LanguageModel, corpus: Corpus) -> None:
    def names(*full: str) -> tuple[str, ...]:
        saes = [random_sae() for _ in full]
        for sae, name in zip(saes, full, strict=True):
            sae.info = SAEInfo(name=name)
        return compare(model, saes, corpus, tokens=24, loss_tokens=0, **OPTIONS).names

    assert names("g/r/layer_20/width_16k/average_l0_71", "g/r/layer_20/width_16k/average_l0_22") == (
        "average_l0_71",
        "average_l0_22",
    )
    assert names("a/b", "c/b") == ("a/b", "c/b")
    assert names("same/one", "same/one") == ("one", "one")
    assert names("/a/b", "c") == ("/a/b", "c")


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.mark.parametrize("several", [False, True])
def test_the_page_is_one_file_that_fetches_nothing_and_escapes_everything(
    model: LanguageModel, tmp_path: Path, several: bool
) -> None:
    sae = random_sae()
    sae.info = SAEInfo(name=HOSTILE)
    (tmp_path / "a&b").mkdir()
    file = tmp_path / "a&b" / "<b>.txt"
    file.write_text(" ".join(TEXTS) * 3)
    named = LanguageModel(model.hf, model.tokenizer, name=HOSTILE)
    corpus = Corpus.read(file)
    found = compare(named, [sae, sae], corpus, **OPTIONS) if several else score(named, sae, corpus, **OPTIONS)
    page = found.to_html()
    assert "<img" not in page
    assert "<b>" not in page
    assert "alert(1)</script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "url(" not in page
    assert page.count('<svg class="chart"') == 2
    assert "default-src 'none'" in page
    assert 'srcdoc="' in found._repr_html_()
    ElementTree.fromstring("<div>" + "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL)) + "</div>")


def test_a_stack_is_scored_in_one_reading_as_each_layer_alone(corpus: Corpus, tmp_path: Path) -> None:
    model = tiny_model("llama", layers=3)
    saes = [random_sae(seed, site=f"{seed}.res") for seed in range(3)]
    for seed, sae in enumerate(saes):
        save_sae(sae, tmp_path / f"res/layer_{seed}/width_64/average_l0_9")
    stack = load_stack(tmp_path)
    batches = len(list(model.rows(corpus, **OPTIONS)))
    model.capture("it", ["0.res"])
    passes = Passes(model)
    together = compare(model, stack, corpus, **{**OPTIONS, "loss_tokens": 0})
    assert passes.stop() == batches
    for sae, told in zip(saes, together.scores, strict=True):
        alone = score(model, sae, corpus, **{**OPTIONS, "loss_tokens": 0})
        assert (told.site, told.digest, told.l0) == (alone.site, alone.digest, alone.l0)
        assert told.fvu == pytest.approx(alone.fvu, rel=1e-6)


def test_a_cross_layer_transcoder_is_scored_layer_by_layer_in_one_pass(corpus: Corpus) -> None:
    """Beside plain sums in float64 over what the model's own modules give."""
    model = tiny_model("gemma2", layers=3, seed=4)
    clt = planted_clt(model.width(Site(0, "mid")), 24, layers=3)
    batches = len(list(model.rows(corpus, **OPTIONS)))
    model.capture("it", ["0.res"])
    passes = Passes(model)
    told = compare(model, clt, corpus, **{**OPTIONS, "loss_tokens": 200})
    again = 5  # batches for the losses: as the model is, with all layers in place, and with two ablations of them
    assert passes.stop() == batches + 4 * again
    x, target = ([], [], []), ([], [], [])
    for rows in model.rows(corpus, **OPTIONS):
        captured = model.capture(rows, [*clt.sites, *clt.sites_out])
        for layer in range(3):
            kept = captured[clt.sites[layer]].kept
            x[layer].append(captured[clt.sites[layer]].values[kept].double())
            target[layer].append(captured[clt.sites_out[layer]].values[kept].double())
    features = []
    for layer, encoder in enumerate(clt.encoders):
        z = torch.cat(x[layer]) @ encoder.W_enc.double() + encoder.b_enc.double()
        features.append(z.clamp(min=0))
    for layer, one in enumerate(told.scores):
        out = clt.b_dec[layer].double() + torch.cat(x[layer]) @ clt.skips[layer].double().T
        for earlier in range(layer + 1):
            out = out + features[earlier] @ clt.written[earlier].tensor[:, layer - earlier].double()
        wanted = torch.cat(target[layer])
        fvu = (wanted - out).pow(2).sum() / (wanted - wanted.mean(0)).pow(2).sum()
        assert one.fvu == pytest.approx(fvu.item(), rel=1e-4)
        assert one.l0 == pytest.approx((features[layer] > 0).double().sum(-1).mean().item(), rel=1e-3)
        assert (one.site, one.features, one.delta_loss) == (f"{layer}.mid → {layer}.mlp", 24, None)
        assert "features of earlier ones" in (one.no_losses or "")
        assert one.digest == clt.digests[layer]
    assert "layer_2" in str(told)
    with pytest.raises(Mismatch, match=r"reads 17 numbers per token, .* has 32 at 0\.mid"):
        compare(model, planted_clt(17, 24, layers=3), corpus, **OPTIONS)


@pytest.fixture(scope="module")
def saved_twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled SAE, as `a` and as `b` of one folder."""
    folder = tmp_path_factory.mktemp("saes")
    save_sae(load_sae("smollm2"), folder / "a")
    shutil.copytree(folder / "a", folder / "b")
    return folder


@pytest.mark.usefixtures("at_hand")
@pytest.mark.parametrize("given", ["{}/*", "{}"])
def test_the_shell_compares_what_a_pattern_matches_and_what_a_folder_holds(
    given: str, saved_twice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, text = tmp_path / "page.html", tmp_path / "few.txt"
    text.write_text(next(iter(Corpus.sample())).text[:250])
    words = ["score", "smollm2", given.format(saved_twice), str(text), "--also", "smollm2", "--tokens", "64"]
    assert main([*words, "--json", "--html", str(page)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [Path(one["sae"]).name for one in facts["scores"]] == ["a", "b", "smollm2"]
    assert len({one["delta_loss"] for one in facts["scores"]}) == 1
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.usefixtures("at_hand", "little_text")
def test_the_shell_scores_the_default_with_at_least_these_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "--tokens", "64", "--loss-tokens", "64", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"l0", "fvu", "delta_loss", "kl", "dead", "tokens"} <= facts.keys()
    assert facts["tokens"] > 64 * 0.9


def test_a_wrong_site_or_a_flipped_sign_is_plain_to_see_on_the_bundled_model(bundled_model: LanguageModel) -> None:
    """Half a layer off, a layer off, the decoder's sign turned round: each is worse in every figure that matters."""
    model, flipped = bundled_model, load_sae("smollm2")
    flipped.W_dec.neg_()
    wrong = [load_sae("smollm2", site=site) for site in ("15.res", "14.res", "16.res", "15.mid")]
    right, *others = compare(
        model, [*wrong, flipped], Corpus.sample(), tokens=96, loss_tokens=96, length=96, batch=1
    ).scores
    assert right.fvu < 0.25
    assert right.delta_loss < 0.2
    assert 30 < right.l0 < 80
    for one in others:
        assert one.fvu > 1.25 * right.fvu, one.site
        assert one.delta_loss > 2 * right.delta_loss, one.site
        assert one.kl > 1.25 * right.kl, one.site
    assert others[-1].explained_variance < 0
    assert others[-1].cosine < right.cosine - 0.4


def test_a_score_prints_itself_and_is_json(model: LanguageModel, corpus: Corpus) -> None:
    told = score(model, random_sae(), corpus, **OPTIONS)
    facts = json.loads(json.dumps(told.to_dict()))
    assert facts["fvu"] == told.fvu
    assert facts["explained_variance"] == pytest.approx(1 - facts["fvu"])
    text = str(told)
    for piece in ("L0", "explained variance", "delta loss", f"{told.fvu:.4f}", model.name, "1.res"):
        assert piece in text
    assert not any(math.isnan(value) for value in facts.values() if isinstance(value, float))


@pytest.mark.parametrize(
    ("l0", "declared", "tokens", "said"),
    [
        (64.5, 49.97, 51_000, "29% more than the SAE's card says (49.97)"),
        (30.0, 50.0, 2000, "40% less"),
        (56.7, 49.97, 20_000, None),  # as on documents of its own sources
        (64.5, 49.97, 1999, None),  # too few to tell
        (64.5, None, 51_000, None),
        (64.5, 0.0, 51_000, None),
    ],
)
def test_an_l0_far_from_the_cards_is_told(l0: float, declared: float | None, tokens: int, said: str | None) -> None:
    told = far(l0, declared, tokens)
    assert told is None if said is None else (told is not None and said in told)


def test_score_and_check_say_that_text_is_unlike_the_saes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_module, "_MANY", 10)
    model, corpus = tiny_model(), Corpus.of([*TEXTS, "the end and the ending " * 9])
    sae = identity_sae(D_MODEL, site="1.res")
    fires = score(model, sae, corpus, loss_tokens=0, **OPTIONS).l0
    for declared, off in ((fires, False), (fires / 1.3, True), (fires * 1.5, True)):
        sae.info = replace(sae.info, declared_l0=declared)
        one = score(model, sae, corpus, loss_tokens=0, **OPTIONS)
        assert (one.far is not None) is off
        for said in (str(one), one.to_html(), " ".join(check(model, sae, corpus).notes)):
            assert ("unlike what" in " ".join(said.split())) is off
        assert one.to_dict()["declared_l0"] == declared
        assert score(model, sae, corpus, loss_tokens=0, every_token=True, **OPTIONS).far is None


# --- on text unlike the SAE's -----------------------------------------------------------------------------------------


def test_a_score_on_two_texts_is_the_score_on_each(tmp_path: Path) -> None:
    """In pieces that two workers share, too: a text each would be half of it."""
    model, sae = tiny_model(), identity_sae(D_MODEL, site="1.res")
    own, other = Corpus.of(TEXTS), Corpus.of([text[::-1] for text in TEXTS])
    how: dict[str, Any] = {"loss_tokens": 40, "piece": 30, **OPTIONS}
    found = score(model, sae, own, unlike=other, **how)
    assert found.unlike == score(model, sae, other, **how)
    assert replace(found, unlike=None) == score(model, sae, own, **how)
    shared = {**how, "unlike": other, "pieces": tmp_path / "pieces"}
    for rank in (0, 1):
        with suppress(Awaited):
            there = score(model, sae, own, world=World(rank, 2), **shared)
    assert there == found
    assert {path.parent.name for path in (tmp_path / "pieces").rglob("*.safetensors")} == {"pieces"}
    assert len(list((tmp_path / "pieces" / "unlike").rglob("*.safetensors"))) > 2


def test_what_workers_wait_for_is_missing_of_either_text(tmp_path: Path) -> None:
    model, sae = tiny_model(), identity_sae(D_MODEL, site="1.res")
    other = Corpus.of([text[::-1] for text in TEXTS])
    with pytest.raises(Awaited) as told:
        score(model, sae, Corpus.of(TEXTS), unlike=other, piece=30, pieces=tmp_path, world=World(0, 2), **OPTIONS)
    both = 2 * sum(1 for _ in Corpus.of(TEXTS).pieces(30))
    there = len(list(tmp_path.rglob("*.safetensors")))
    assert 0 < there < both
    assert told.value.left() == both - there


def test_figures_on_unlike_text_are_told_in_words_as_a_page_and_as_data() -> None:
    model, sae = tiny_model(), identity_sae(D_MODEL, site="1.res")
    other = Corpus.of(["other words, of another kind"] * 3)
    found = score(model, sae, Corpus.of(TEXTS), unlike=other, loss_tokens=20, **OPTIONS)
    assert found.unlike is not None
    data = json.loads(json.dumps(found.to_dict()))
    assert data["unlike"]["fvu"] == found.unlike.fvu
    assert data["unlike"]["delta_loss"] == found.unlike.delta_loss
    assert "formulas" in data
    assert "formulas" not in data["unlike"]
    for said in (str(found), found.to_html()):
        assert "On unlike text" in said
        assert f"{found.unlike.fvu:.4f}" in said
        assert f"{found.unlike.delta_loss:+.4f}" in said
    both = compare(model, [sae, sae], Corpus.of(TEXTS), unlike=other, loss_tokens=20, **OPTIONS)
    assert [one.unlike for one in both.scores] == [found.unlike] * 2
    assert "FVU, unlike" in str(both)
    assert f"{found.unlike.fvu:.4f}" in both.to_html()
