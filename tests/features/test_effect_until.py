"""What writing at a site does to a later one: against torch's own Jacobian and small steps in the running model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from by_hand import model_of
from gemscope.activations.model import LanguageModel
from gemscope.edits.steer import Steer
from gemscope.errors import InputError, Mismatch
from gemscope.features.effect import Effect, effect
from gemscope.testing import planted_sae, tiny_model
from gemscope.text.corpus import Corpus

TEXTS = ["the sun and the moon in the air", "a light in the sea and on"]
CORPUS = Corpus.of([*TEXTS, "the thing and the end of the other morning", "the land of the sea"])
BLOCKS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}


def _res(model: LanguageModel, first: nn.Module, last: nn.Module, ids: Tensor, pushes: Tensor) -> Tensor:
    """[T, D] what comes out of one block of plain transformers when pushes are added to what comes out of another."""
    found: list[Tensor] = []

    def push(_: nn.Module, __: object, out: Tensor | tuple[Tensor, ...]) -> object:
        hidden = out[0] if isinstance(out, tuple) else out
        new = hidden + pushes[None]
        return (new, *out[1:]) if isinstance(out, tuple) else new

    def keep(_: nn.Module, __: object, out: Tensor | tuple[Tensor, ...]) -> None:
        found.append((out[0] if isinstance(out, tuple) else out)[0])

    handles = [first.register_forward_hook(push), last.register_forward_hook(keep)]
    try:
        model.hf(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found[0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_between_two_sites_it_is_torch_s_jacobian(family: str) -> None:
    exact = family != "llama"
    model = tiny_model(family, dtype=torch.float64 if exact else torch.float32)
    blocks = model.hf.get_submodule(BLOCKS.get(family, "model.layers"))
    this = later = torch.zeros((), dtype=torch.float64)
    n = 0
    for text in TEXTS:
        tokens = model.tokens(text)
        length = tokens.ids.shape[1]
        hidden = partial(_res, model, blocks[0], blocks[1], tokens.ids)
        whole = torch.autograd.functional.jacobian(
            hidden, torch.zeros(length, model.d_model, dtype=model.dtype)
        ).double()
        counted = [at for at in range(1, length) if int(tokens.ids[0, at]) not in model.special_ids]
        n += len(counted)
        this = this + sum(whole[t, :, t] for t in counted)
        later = later + sum(whole[t, :, s] for t in counted for s in counted if s < t)
    found = model.jacobian(TEXTS, "0.res", until="1.res")
    close = {"rtol": 0, "atol": (1e-10 if exact else 1e-4) * this.abs().max().item()}
    assert found.n == n
    torch.testing.assert_close(found.this, this, **close)
    torch.testing.assert_close(found.later, later, **close)
    assert found.later.norm() > 1e-3 * found.this.norm()


@pytest.mark.parametrize(
    ("family", "until"),
    [("llama", "1.transcoder"), ("llama", "1.transcoder_nogain"), ("llama", "1.att"), ("llama", "1.mid"),
     ("gemma2", "1.transcoder_nogain"), ("gemma2", "2.mlp_raw"), ("gpt_neox", "1.mlp"), ("gpt2", "2.att_out")],
)  # fmt: skip
def test_it_says_what_a_small_push_does_at_every_kind_of_later_site(family: str, until: str) -> None:
    model = model_of(family)
    whole = effect(model, "0.res", CORPUS, until=until, tokens=48, length=12)
    direction = torch.randn(model.width("0.res"), generator=torch.Generator().manual_seed(1))
    direction /= direction.norm()
    pushed = {}
    rows = next(model.rows(CORPUS, length=12, batch=4)).first(4, 12)
    for by in (0.02, -0.02):
        counted = model.capture(rows, ["0.res"])["0.res"].counted
        with model.edited(Steer.along("0.res", direction, by)):
            there = model.capture(rows, [until], every_token=True)[until].values[counted].double()
        pushed[by] = there.mean(0)
    change = (pushed[0.02] - pushed[-0.02]) / 0.04
    predicted = (whole.jacobian() @ direction).double()
    torch.testing.assert_close(predicted, change, rtol=0, atol=0.02 * change.abs().max().item())


def test_some_directions_forward_are_what_the_whole_backward_says_of_them_between_two_sites() -> None:
    model = model_of("llama")
    some = torch.randn(3, model.d_model, generator=torch.Generator().manual_seed(2))
    whole = model.jacobian(TEXTS, "0.mlp", until="2.transcoder")
    (found,) = model.jacobians(TEXTS, "0.mlp", 1, until="2.transcoder", directions=some)
    for part in ("this", "later"):
        wanted = getattr(whole, part) @ some.T.double()
        torch.testing.assert_close(getattr(found, part), wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


def test_two_halves_of_a_block_that_are_computed_side_by_side_do_not_answer_to_each_other() -> None:
    found = model_of("gpt_neox").jacobian(TEXTS, "1.att_out", until="1.mlp")
    assert not found.this.any()
    assert not found.later.any()


def test_what_lies_behind_the_later_site_is_not_computed() -> None:
    model, called = tiny_model(), []
    model.hf.model.layers[2].register_forward_pre_hook(lambda *_: called.append(1))
    tokens = model.tokens(TEXTS)
    seen = model.capture(tokens, ["0.res"])
    before = len(called)
    model.jacobian(tokens, "0.res", until="1.res")
    ends = seen["0.res"].kept.sum()
    assert ends
    caches = len(called) - before
    assert caches <= 2 * int(ends)  # those of the tokens before each one; no pass that gradients are taken of


def test_an_effect_on_a_later_site_is_kept_and_says_so(tmp_path: Path) -> None:
    model = model_of("llama")
    whole = effect(model, "0.res", CORPUS, until="1.res", tokens=48, length=12, to=tmp_path / "one.effect")
    read = Effect.load(tmp_path / "one.effect")
    assert read.of == whole.of
    assert read.of.until == "1.res"
    assert torch.equal(read.this, whole.this)
    assert "effect of 0.res of tiny-llama on 1.res" in str(read)
    with pytest.raises(InputError, match="holds an effect of another until"):
        effect(model, "0.res", CORPUS, tokens=48, length=12, to=tmp_path / "one.effect")
    with pytest.raises(Mismatch, match="no mean"):
        Effect.over([read, effect(model, "0.res", CORPUS, tokens=48, length=12)])


def test_an_effect_on_a_later_site_is_none_on_the_logits_and_of_no_other_sites() -> None:
    model = model_of("llama")
    whole = effect(model, "0.res", CORPUS, until="1.res", tokens=48, length=12)
    saes = [planted_sae(site=f"{layer}.res").sae for layer in range(3)]
    whole.require_between(model, saes[0], saes[1])
    for one, other in ((saes[1], saes[1]), (saes[0], saes[2])):
        with pytest.raises(Mismatch):
            whole.require_between(model, one, other)
    with pytest.raises(Mismatch, match="says nothing of the logits"):
        whole.logits(model, torch.zeros(1, model.d_model))
    with pytest.raises(Mismatch, match="says nothing of the logits"):
        whole.promoted(model, saes[0], [0])
    for until in ("0.res", "0.mlp", "embed"):
        with pytest.raises(InputError, match="does not come behind"):
            effect(model, "0.res", CORPUS, until=until, tokens=48, length=12)
