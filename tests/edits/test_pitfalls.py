"""The pitfalls of steering: one test for each line of docs/edits.md's list; number 6, the KV cache, and number 8 are in
test_generation.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import gemscope as gs
from by_hand import (
    TEXT,
    block,
    features64,
    model_of,
    random_sae,
    undecided,
)
from edited import after, arriving, assert_moved, every_family, moved64, nudge, sae_of, touched
from gemscope.activations.model import LanguageModel
from gemscope.errors import NotFinite
from gemscope.features.logit_lens import convention, logit_effects
from gemscope.features.sae import SAE
from gemscope.testing import D_MODEL, tiny_model

# One test for each line of docs/edits.md's list; number 6, the KV cache, is in test_generation.py.


def test_pitfall_1_the_error_term_is_of_what_arrived_not_of_what_was_edited() -> None:
    """Computed after the edit it would take the edit back, and the output would never change."""
    model, sae = model_of("llama"), sae_of("llama", "1.res")
    x, counted = arriving(model, TEXT, "1.res")
    now = after(model, TEXT, "1.res", gs.Splice(sae, error=True), gs.Clamp(sae, 11, 7.0))
    assert_moved(x, now, moved64("Clamp", sae, 11, 7.0, x), counted)
    assert (now - x)[counted].norm(dim=-1).min() > 0.1
    spliced = after(model, TEXT, "1.res", gs.Splice(sae, error=False), gs.Clamp(sae, 11, 7.0))
    assert not torch.allclose(spliced[counted], now[counted], atol=0.1)


def test_pitfall_2_bos_and_attention_sinks_are_left_alone() -> None:
    model = tiny_model("gemma2", seed=1)
    token = model.tokenizer("the")["input_ids"][-1]
    model.hf.model.embed_tokens.weight[token] *= 1e4
    ids = model.tokens("and a thing in the other morning, it was").ids
    sink = (ids == token)[0]
    assert sink.sum() >= 1
    ordinary = ~sink
    ordinary[0] = False
    edit = gs.Clamp(sae_of("gemma2", "0.res"), 3, 9.0)
    hit = torch.tensor(touched(model, ids, "0.res", edit))[0]
    assert not hit[sink].any()
    assert not hit[0]
    assert hit[ordinary].all()
    everywhere = gs.Steer.along("0.res", torch.full((D_MODEL,), 1e6), every_token=True)
    assert torch.tensor(touched(model, ids, "0.res", everywhere)).all()


def test_pitfall_2_a_sink_is_one_of_its_row_whatever_else_is_in_the_batch() -> None:
    model = tiny_model("llama", seed=1)
    token = model.tokenizer("the")["input_ids"][-1]
    model.hf.model.embed_tokens.weight[token] *= 300
    texts = ["it was a theory and the other", "the the the the the the the", "and so it was"]
    edit = nudge("0.res")
    together = touched(model, model.tokens(texts), "0.res", edit)
    for row, text in zip(together, texts, strict=True):
        alone = touched(model, text, "0.res", edit)[0]
        assert row[: len(alone)] == alone


def test_pitfall_3_units_are_the_same_however_norms_were_folded() -> None:
    """Decoder rows of length one and activations as large, or the other way round: the same SAE, the same edit."""
    model, folded = model_of("llama"), random_sae(model_of("llama"), gate="relu")
    plain = random_sae(model, gate="relu")
    lengths = plain.W_dec.norm(dim=-1)
    folded.W_dec /= lengths[:, None]
    folded.W_enc *= lengths
    folded.b_enc *= lengths
    torch.testing.assert_close(plain(torch.ones(3, D_MODEL)), folded(torch.ones(3, D_MODEL)))
    corpus = gs.Corpus.of([TEXT])
    units = [gs.Units.measured(model, sae, corpus, tokens=50) for sae in (plain, folded)]
    feature = max(range(48), key=units[1].maximum)
    strengths = [each.max(feature, 2.0) for each in units]
    assert strengths[0].raw != pytest.approx(strengths[1].raw, rel=0.05)  # raw units differ, and say so
    assert strengths[0].of_norm == pytest.approx(strengths[1].of_norm, rel=1e-5)
    for edit in (gs.Steer, gs.Clamp, gs.AtLeast):
        one, other = (
            after(model, TEXT, "1.res", edit(sae, feature, strength))
            for sae, strength in zip((plain, folded), strengths, strict=True)
        )
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@every_family
def test_pitfall_4_edits_act_on_the_models_own_activations(family: str) -> None:
    """Not on a version of the model with folded norms and centred weights: what transformers calls the hidden states,
    plus the change, and nothing else."""
    model, sae = model_of(family), sae_of(family, "0.res")
    ids = model.tokens(TEXT).ids
    _, counted = arriving(model, TEXT, "0.res")
    clean = tiny_model(family).hf(input_ids=ids, output_hidden_states=True).hidden_states[1]
    assert torch.equal(incoming(model, ids)[1], clean)
    with model.edited(gs.Clamp(sae, 3, 9.0)):
        edited = incoming(model, ids)[1]
    assert_moved(clean, edited, moved64("Clamp", sae, 3, 9.0, clean), counted)


def incoming(model: LanguageModel, ids: Tensor) -> list[Tensor]:
    """What comes into each block in the last pass, read with a hook of torch's own: where an edit lies below the middle
    of the model, a pass without it comes before, to tell sinks."""
    seen: list[Tensor] = []
    handles = [
        block(model, layer).register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((args or tuple(kwargs.values()))[0].clone()), with_kwargs=True
        )
        for layer in range(3)
    ]
    model.hf(input_ids=ids)
    for handle in handles:
        handle.remove()
    return seen[-3:]


@every_family
def test_pitfall_5_a_block_is_counted_from_0_and_res_is_behind_it(family: str) -> None:
    model = model_of(family)
    ids = model.tokens(TEXT).ids
    clean = incoming(model, ids)
    for site, same in (("0.res", [True, False, False]), ("1.res", [True, True, False]), ("2.res", [True] * 3)):
        with model.edited(nudge(site)):
            edited = incoming(model, ids)
            assert not torch.equal(model.logits(ids), tiny_model(family).logits(ids))
        assert [torch.equal(*pair) for pair in zip(clean, edited, strict=True)] == same


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_pitfall_7_a_small_change_to_a_large_residual_is_not_lost(family: str) -> None:
    """Added up in float32 and rounded once, whatever the model's number format."""
    model = tiny_model(family, dtype=torch.bfloat16)
    sae = random_sae(model)
    x, counted = arriving(model, TEXT, "1.res")
    assert x.dtype == torch.bfloat16
    v = torch.full((D_MODEL,), 0.011)
    now = after(model, TEXT, "1.res", gs.Steer.along("1.res", v, 0.7))
    assert torch.equal(now[counted], (x[counted].float() + 0.7 * v).bfloat16())
    # Two halves of a step add up to a whole one, though either alone rounds to nothing.
    shift = gs.Cap.along("1.res", torch.eye(D_MODEL)[0], low=256.0, high=256.0)  # coordinate 0 is 256: steps of 2
    step = torch.eye(D_MODEL)[0]
    with model.edited(shift):
        for edits, expected in (([0.75], 256.0), ([0.75, 0.75], 258.0)):
            with model.edited(*(gs.Steer.along("1.res", step, by) for by in edits)):
                found = model.capture(TEXT, ["1.res"])["1.res"].values[counted][:, 0]
            assert (found == expected).all()
    # And what a feature is, is computed from x as it is, in float32.
    assert not undecided(sae, x)
    f = features64(sae, x)[..., 9, None]
    expected = (x.double() + (6.0 - f) * sae.W_dec[9].double()).bfloat16()
    now = after(model, TEXT, "1.res", gs.Clamp(sae, 9, 6.0))
    assert (now == expected)[counted].double().mean() > 0.995
    torch.testing.assert_close(now[counted], expected[counted], rtol=2**-7, atol=0)


def test_pitfall_7_norms_do_not_overflow_in_half_precision() -> None:
    model = tiny_model("llama", dtype=torch.float16)
    model.hf.model.embed_tokens.weight *= 3000  # norms near 17,000: their squares are beyond float16
    assert sum(touched(model, TEXT, "0.res", gs.Steer.along("0.res", torch.full((D_MODEL,), 512.0)))[0]) >= 10
    with pytest.raises(NotFinite, match="float16"), model.edited(gs.Steer.along("0.res", torch.full((D_MODEL,), 1e6))):
        model.logits(TEXT)


def test_pitfall_10_the_logit_lens_says_what_steering_does_up_to_the_final_norm() -> None:
    """Behind the last block, along what is orthogonal to x the final norm only divides: by x's root mean square."""
    model = model_of("llama")
    x = model.capture(TEXT, ["2.res"])["2.res"].values[0, -1].double()
    d = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d -= (d @ x) / (x @ x) * x
    sae = SAE(D_MODEL, 1, site="2.res")
    sae.W_dec.copy_(d[None])
    effects = next(iter(logit_effects(model, sae, k=3)))
    by = 0.02
    with model.edited(gs.Steer(sae, 0, by, at=(-1,))):
        up = model.logits(TEXT)[0, -1].double()
    with model.edited(gs.Steer(sae, 0, -by, at=(-1,))):
        down = model.logits(TEXT)[0, -1].double()
    change = (up - down) / (2 * by) * x.pow(2).mean().sqrt()
    used = len(model.tokenizer)
    change = change[:used] - change[:used].mean()
    top = change.topk(3)
    assert top.indices.tolist() == effects.promoted[0].tolist()
    torch.testing.assert_close(top.values.float(), effects.promoted_values[0], rtol=2e-3, atol=2e-3)
    assert "without a division by the final norm's scale" in convention(model, sae)
