"""Attention sinks: planted ones in every family at every site, and real ones of the bundled model, told apart by the hidden
states that transformers itself computes.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gemscope.activations import sinks
from gemscope.activations.load import load_model
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import KINDS, Site, locate
from gemscope.edits.steer import Steer
from gemscope.errors import SiteNotFound
from gemscope.testing import TINY, tiny_model
from gemscope.text.corpus import Corpus

FAMILY = sorted(TINY)
SHORT = ["the thing", "and the", "it"]
LONG = " ".join(["the thing and then", "it is the end", "all there is"] * 3)


def planted(family: str, **options: int) -> tuple[LanguageModel, int]:
    """Behind its first block one of its tokens has a few enormous numbers in the stream, as massive activations come
    about: by hooks of torch's own, which stay.
    """
    model = tiny_model(family, **options)
    token = model.tokenizer("and the")["input_ids"][-1]
    read: list[Tensor] = []

    def plant(_: nn.Module, __: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        stream = output[0] if isinstance(output, tuple) else output
        stream[..., :2] += 3_000 * stream.std() * (read[-1] == token)[..., None]

    model.hf.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(args[0] if args else kwargs["input_ids"]), with_kwargs=True
    )
    model.hf.get_submodule(locate(model.hf, Site(0, "res")).module).register_forward_hook(plant)
    return model, token


def sites_of(model: LanguageModel) -> list[Site]:
    found = [Site(None, "embed")]
    for layer in range(model.n_layers):
        for kind in KINDS:
            if kind == "embed":
                continue
            try:
                locate(model.hf, Site(layer, kind))
            except SiteNotFound:
                continue
            found.append(Site(layer, kind))
    return found


# --- planted --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("texts", [SHORT, LONG], ids=["short", "long"])
def test_a_planted_sink_is_told_at_every_site_and_nothing_else_is(family: str, texts: str | list[str]) -> None:
    model, token = planted(family)
    tokens = model.tokens(texts)
    expected = tokens.counted & (tokens.ids != token)
    assert (tokens.counted & (tokens.ids == token)).any()
    assert expected.any()
    for site in sites_of(model):
        acts = model.capture(tokens, [site])[site]
        assert torch.equal(acts.counted, expected), site
        assert acts.dropped["sink"] == int((tokens.counted & (tokens.ids == token)).sum())
    found = model.capture(tokens, sites_of(model))
    assert all(torch.equal(acts.counted, expected) for acts in found.values())
    every = model.capture(tokens, sites_of(model), every_token=True)
    assert all(torch.equal(acts.counted, tokens.real) for acts in every.values())


@pytest.mark.parametrize("family", FAMILY)
def test_a_row_of_one_sink_and_nothing_beside_it_is_told_too(family: str) -> None:
    """No other token is there to compare it with: the model's vocabulary is."""
    model, token = planted(family)
    other = model.tokens("it").ids[0, -1].item()
    row = [other, token] if model.bos is None else [model.bos, token]
    assert not model.capture(row, ["0.mlp"])["0.mlp"].counted.any()
    assert not model.capture([row[0], token, token, token], ["0.mlp"])["0.mlp"].counted.any()


@pytest.mark.parametrize("family", FAMILY)
def test_what_is_told_of_a_token_does_not_hang_on_what_else_is_in_the_batch(family: str) -> None:
    model, _ = planted(family)
    texts = [*SHORT, "the end of the thing"]
    together = model.capture(texts, ["0.res"])["0.res"].counted
    for row, text in zip(together, texts, strict=True):
        alone = model.capture(text, ["0.res"])["0.res"].counted[0]
        assert torch.equal(row[: len(alone)], alone)
        assert not row[len(alone) :].any()


def test_large_numbers_that_are_gone_by_the_middle_make_no_sink() -> None:
    """Commas of Gemma 3 270M lie at 19 medians behind the first block and are ordinary from the next one on."""
    model, token = planted("llama", layers=4)

    def take_back(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        output[..., :2] *= output[..., :2].abs() < 100

    model.hf.model.layers[1].register_forward_hook(take_back)
    found = model.capture("and the thing", ["0.res", "2.res"])
    norms = found["0.res"].values.norm(dim=-1)
    assert norms.max() > 100 * norms.median()
    here = found["0.res"].tokens.ids == token
    assert here.any()
    assert found["0.res"].counted[here].all()


def test_a_token_is_a_sink_from_three_typical_norms_on() -> None:
    above = sinks.limit(torch.tensor([1.0, 2.0, 9.0]))
    assert above == 6.0
    norms = torch.tensor([[0.5, 5.9, 6.0, 6.1, 3e4, float("inf")]])
    assert sinks.told(norms, above).tolist() == [[False, False, True, True, True, True]]
    assert not sinks.told(norms[:, :-1], sinks.limit(torch.zeros(0))).any()


def test_where_typical_tokens_have_no_norm_at_all_none_is_a_sink() -> None:
    assert not sinks.told(torch.zeros(1, 3), sinks.limit(torch.zeros(5))).any()


def test_the_typical_norm_is_of_tokens_spread_evenly_over_the_vocabulary() -> None:
    ids = sinks.vocabulary(10_000, without=frozenset({0, 9_999})).tolist()
    assert (len(ids), ids[0], ids[-1]) == (64, 1, 9_998)
    assert set(np.diff(ids).tolist()) <= {158, 159}  # 9,997 ids in 63 steps
    assert sinks.vocabulary(6, without=frozenset({2, 3})).tolist() == [0, 1, 4, 5]


def test_the_typical_norm_is_that_of_the_model_without_the_edits_in_force() -> None:
    model, _ = planted("llama")
    plain = model.capture(LONG, ["0.mlp"])["0.mlp"].counted
    fresh, _ = planted("llama")
    with fresh.edited(Steer.along("0.res", torch.full((fresh.d_model,), 50.0), 1.0)):
        fresh.capture("it", ["0.mlp"])
    assert torch.equal(fresh.capture(LONG, ["0.mlp"])["0.mlp"].counted, plain)


# --- real ones ------------------------------------------------------------------------------------------------------

HELD = [
    "\n\nShe wished for rain.",
    "00    and more",
    " interactive session. You may leave it.",
    "The cat sat on the mat.",
]
"""The second token of a text without BOS is a sink at times; the fourth has none."""


@pytest.fixture(scope="module")
def bundled(bundled_model: LanguageModel) -> LanguageModel:
    return bundled_model if bundled_model.dtype == torch.float32 else load_model("smollm2", dtype="float32")


def hidden(model: LanguageModel, ids: Tensor) -> list[Tensor]:
    """Residual streams behind each block but the last, of transformers itself."""
    with torch.no_grad():
        return list(model.hf.base_model(input_ids=ids, output_hidden_states=True).hidden_states[1:-1])


@pytest.mark.parametrize("text", HELD)
def test_real_sinks_are_those_whose_massive_activations_last(text: str, bundled: LanguageModel) -> None:
    """By Sun et al.: a coordinate above a hundred that is far above the others, here in each of ten layers."""
    tokens = bundled.tokens(text)
    streams = hidden(bundled, tokens.ids)
    late = torch.stack([stream[0].abs() for stream in streams[12:22]])
    massive = (late.amax(-1) > 100 * late.median(-1).values).all(0) & (late.amax(-1) > 100).all(0)
    massive[0] = False  # the first position counts at no time
    assert massive.sum() == (0 if text == HELD[-1] else 1)
    for site in ("0.res", "5.mlp", "15.res", "25.att"):
        counted = bundled.capture(tokens, [site])[site].counted[0]
        assert torch.equal(counted, tokens.counted[0] & ~massive)


def test_ordinary_tokens_of_real_text_are_alike_in_the_middle_and_none_is_lost(bundled: LanguageModel) -> None:
    rows = next(bundled.rows(Corpus.sample().take(12), length=128, batch=4))
    streams = hidden(bundled, rows.ids)
    norms = streams[15].norm(dim=-1)
    ordinary = norms < 2 * norms[rows.counted].median()
    counted = bundled.capture(rows, ["0.res"])["0.res"].counted
    assert torch.equal(counted, rows.counted & ordinary)
    assert counted.sum() > 450
