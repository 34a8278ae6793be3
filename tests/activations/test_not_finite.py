"""A model that computes NaN or Inf says so, whatever is asked of it: never an empty text, a feature list or a score."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import gemscope as gs
from by_hand import TEXT, hooks, random_sae
from gemscope.activations.model import LanguageModel
from gemscope.errors import NotFinite
from gemscope.reports.steer import steer
from gemscope.testing import TINY, tiny_model

ASKS: dict[str, Callable[[LanguageModel], object]] = {
    "logits": lambda model: model.logits(TEXT),
    "capture": lambda model: model.capture(TEXT, ["2.res"]),
    "capture with logits": lambda model: model.capture(TEXT, ["0.res"], logits=True),
    "gradient": lambda model: model.gradient(TEXT, "0.res", lambda logits: logits[0, -1, 3]),
    "generate": lambda model: model.generate(TEXT, max_new_tokens=3),
    "generate, no cache": lambda model: model.generate([TEXT, "the"], max_new_tokens=3, cache=False),
    "stream": lambda model: list(model.stream(TEXT, max_new_tokens=3, temperature=1.0, seed=1)),
    "look": lambda model: gs.look(model, random_sae(model, "2.res"), TEXT),
    "check": lambda model: gs.check(model, random_sae(model, "2.res"), gs.Corpus.of([TEXT] * 40), tokens=64),
    "score": lambda model: gs.score(model, random_sae(model, "2.res"), gs.Corpus.of([TEXT] * 40), tokens=64, length=64),
    "steer": lambda model: steer(model, TEXT, [gs.Steer(random_sae(model), 3, 1.0)], max_new_tokens=3),
    "attribute": lambda model: gs.attribute(model, random_sae(model), TEXT),
}


def damaged(value: float = float("nan"), dtype: torch.dtype = torch.float32) -> LanguageModel:
    model = tiny_model("llama", dtype=dtype)
    model.hf.model.layers[1].mlp.down_proj.weight[3, 5] = value
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("ask", ASKS)
def test_a_model_with_damaged_weights_says_so(ask: str, value: float) -> None:
    model = damaged(value)
    with pytest.raises(NotFinite, match=r"NaN or Inf (at 2\.res|in its logits|in the gradient|at 1\.res)") as raised:
        ASKS[ask](model)
    assert "\n" not in str(raised.value)
    assert hooks(model) == 0


def test_what_lies_in_front_of_the_damage_can_be_read() -> None:
    model, whole = damaged(), tiny_model("llama")
    assert torch.equal(model.capture(TEXT, ["0.res"])["0.res"].values, whole.capture(TEXT, ["0.res"])["0.res"].values)


@pytest.mark.parametrize("family", TINY)
def test_one_token_with_a_damaged_row_is_enough_and_others_are_read(family: str) -> None:
    model = tiny_model(family)
    model.hf.get_input_embeddings().weight[42, 3] = float("nan")
    with pytest.raises(NotFinite, match=r"computes NaN or Inf at 0\.res"):
        model.capture(torch.tensor([[5, 40, 41, 43, 44], [5, 40, 41, 42, 43]]), ["0.res"])
    with pytest.raises(NotFinite):
        model.logits([5, 40, 41, 42, 43])
    assert model.capture([5, 40, 41, 43, 44], ["0.res"])["0.res"].values.isfinite().all()


def test_a_weight_of_the_unembedding_is_found_where_only_logits_show_it() -> None:
    model = tiny_model("qwen2")
    model.hf.lm_head.weight[7, 3] = float("nan")
    assert model.capture(TEXT, ["2.res"])["2.res"].values.isfinite().all()
    for ask in ("logits", "generate", "stream", "steer"):
        with pytest.raises(NotFinite, match="in its logits"):
            ASKS[ask](model)


def test_numbers_too_large_for_half_precision_are_told_as_such() -> None:
    model = tiny_model("llama", dtype=torch.float16)
    model.hf.model.layers[1].mlp.down_proj.weight.mul_(3e4)
    with pytest.raises(NotFinite, match="too large for float16"):
        model.generate(TEXT, max_new_tokens=2)


def test_a_token_that_is_never_written_is_no_damage() -> None:
    """Some models forbid tokens by a logit of −inf: that is a probability of 0."""
    model = tiny_model("llama")
    model.hf.lm_head.register_forward_hook(lambda _, __, out: out.index_fill(-1, torch.tensor([9]), -float("inf")))
    assert model.logits(TEXT)[..., 9].isneginf().all()
    assert isinstance(model.generate(TEXT, max_new_tokens=2), str)


def test_padding_may_hold_anything() -> None:
    model = tiny_model("llama")
    clean = model.capture(["the thing", "it"], ["1.res"])["1.res"]
    real = clean.tokens.real[..., None]

    def spoil(_: object, __: object, out: object) -> object:  # a bare tensor in transformers 5, (hidden, ...) in 4.57
        hidden = torch.where(real, out[0] if isinstance(out, tuple) else out, torch.nan)
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    handle = model.hf.model.layers[1].register_forward_hook(spoil)
    found = model.capture(["the thing", "it"], ["1.res"])["1.res"]
    handle.remove()
    assert torch.equal(found.rows, clean.rows)


def test_too_much_strength_is_told_as_such_and_the_edit_named() -> None:
    model = tiny_model("llama")
    far = gs.Steer(random_sae(model), 3, 3e38)
    with (
        pytest.raises(NotFinite, match=r"under add feature 3 .*: use less strength") as raised,
        model.edited(*[far] * 8),
    ):
        model.logits(TEXT)
    assert "weights" not in str(raised.value)
    assert "and 7 more" in str(raised.value)
    assert model.logits(TEXT).isfinite().all()
