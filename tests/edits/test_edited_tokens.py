"""On which tokens edits act, to first order and until they are called off; weights as they come, and units."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gemscope as gs
from by_hand import (
    TEXT,
    decoded64,
    features64,
    hooks,
    kinds_of,
    model_of,
    random_sae,
    undecided,
)
from edited import (
    SETTERS,
    Boom,
    after,
    arriving,
    assert_moved,
    every_family,
    few,
    made,
    moved64,
    nudge,
    sae_of,
    touched,
)
from gemscope.features.mapped import Mapped
from gemscope.testing import tiny_model

# --- on which tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gemma2", "llama", "mistral"])
def test_the_tokens_that_count_are_those_that_are_edited(family: str) -> None:
    model = model_of(family)
    eos = model.tokenizer.eos_token
    tokens = model.tokens(["the thing and" + eos + "the other", "it was"])
    for site in ("0.res", "1.mlp", "2.mid"):
        counted = model.capture(tokens, [site])[site].counted
        assert touched(model, tokens, site, nudge(site)) == counted.tolist()
        assert touched(model, tokens, site, nudge(site, every_token=True)) == tokens.real.tolist()
        assert not counted[0, 0]
        assert counted.sum() < tokens.real.sum() - 2


def test_positions_are_counted_in_the_row_and_from_its_end() -> None:
    model = model_of("llama")
    T, F = True, False
    for side in ("left", "right"):
        tokens = model.tokens(["a b c", "a b c d e"], side=side)  # 5 and 9 tokens
        real = tokens.real
        assert real.sum(-1).tolist() == [5, 9]
        for at, short, long in (
            ((1,), [F, T, F, F, F], [F, T, *[F] * 7]),
            ((1, 3), [F, T, F, T, F], [F, T, F, T, *[F] * 5]),
            ((-1,), [F, F, F, F, T], [*[F] * 8, T]),
            ((-5, -2), [F, F, F, T, F], [F, F, F, F, T, F, F, T, F]),
            ((7,), [F] * 5, [*[F] * 7, T, F]),
            ((0,), [F] * 5, [F] * 9),  # the first of a row is left alone
        ):
            found = touched(model, tokens, "1.res", nudge(at=at))
            rows = [[hit for hit, there in zip(row, is_real, strict=True) if there]
                    for row, is_real in zip(found, real.tolist(), strict=True)]  # fmt: skip
            assert rows == [short, long], (side, at)
        found = touched(model, tokens, "1.res", nudge(at=(0,), every_token=True))
        assert [sum(row) for row in found] == [1, 1]
        assert [row.index(True) for row in found] == [int(row.int().argmax()) for row in real]


def test_a_mask_is_taken_exactly_as_it_is() -> None:
    model = model_of("gemma2")
    tokens = model.tokens(["the thing", "it"])
    mask = torch.rand(tokens.ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[0, 0] = True  # BOS
    assert touched(model, tokens, "1.res", nudge(at=mask)) == mask.tolist()


@given(st.sets(st.integers(0, 3)))
@settings(few, max_examples=10)
def test_rows_that_are_not_named_are_left_alone(rows: set[int]) -> None:
    model = model_of("qwen2")
    texts = ["the thing and", "it was a morning", "the other", "and the theory of it"]
    clean = model.logits(texts)
    with model.edited(nudge()):
        whole = model.logits(texts)
    with model.edited(nudge(), rows=sorted(rows)):
        part = model.logits(texts)
    for row in range(4):
        assert torch.equal(part[row], (whole if row in rows else clean)[row])
    assert not torch.equal(whole, clean)


@pytest.mark.parametrize("family", ["gemma2", "llama", "gpt2"])
def test_prompt_and_generated_are_told_apart_by_what_the_caller_says(family: str) -> None:
    model = model_of(family)
    tokens = model.tokens(TEXT)
    length = tokens.ids.shape[-1]
    before = model.logits(tokens)
    with model.edited(nudge(at="generated", every_token=True)):
        assert torch.equal(model.logits(tokens), before)  # without a word all is prompt
        after_five = model.logits(tokens, prompt=5)
    assert torch.equal(after_five[:, :5], before[:, :5])
    assert not torch.isclose(after_five[:, 5:], before[:, 5:]).all(-1).any()
    mask = (torch.arange(length) < 5)[None]
    with model.edited(nudge(at="prompt", every_token=True)):
        first_five = model.logits(tokens, prompt=5)
    with model.edited(nudge(at=mask)):
        assert torch.equal(model.logits(tokens), first_five)
    with model.edited(nudge(at=~mask)):
        assert torch.equal(model.logits(tokens), after_five)


# --- to first order, and cut short ------------------------------------------------------------------------------------


@every_family
def test_the_gradient_at_a_site_is_what_a_small_change_there_does(family: str) -> None:
    """Through all that reads the site: at `mid` the MLP and the stream both."""
    model = model_of(family)
    text, token = "the thing and the other", 70
    for kind in kinds_of(family):
        site = f"1.{kind}"
        acts, gradient = model.gradient(text, site, lambda logits: logits[0, -1, token])
        assert torch.equal(acts.values, arriving(model, text, site)[0])
        v = torch.randn(acts.d, generator=torch.Generator().manual_seed(1))
        step = 0.02
        ends = []
        for by in (step, -step):
            with model.edited(gs.Steer.along(site, v, by, at=(2,))):
                ends.append(model.logits(text)[0, -1, token].double())
        assert (gradient[0, 2] @ v).item() == pytest.approx(
            ((ends[0] - ends[1]) / (2 * step)).item(), abs=2e-3, rel=5e-3
        )
    assert hooks(model) == 0
    assert torch.is_grad_enabled()


def test_a_watched_pass_ends_when_the_watch_says_so() -> None:
    model = tiny_model("gemma3")
    before, calls = model.logits(TEXT), []

    def check() -> None:
        calls.append(1)
        if len(calls) == 5:
            raise Boom

    with pytest.raises(Boom), model.edited(nudge()), model.watched(check):
        model.generate(TEXT, max_new_tokens=20)
    assert len(calls) == 5  # in the second block of the second pass
    assert hooks(model) == 0
    assert torch.equal(model.logits(TEXT), before)


# --- weights as they come -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_sae_in_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    model = model_of("llama")
    sae = random_sae(model).to(dtype)
    same = random_sae(model)
    same.load_state_dict({name: value.float() for name, value in sae.state_dict().items()})
    x, counted = arriving(model, TEXT, "1.res")
    assert not undecided(same, x)
    for kind in SETTERS:
        now = after(model, TEXT, "1.res", made(kind, sae, 9, 3.0))
        assert now.dtype == torch.float32
        assert_moved(x, now, moved64(kind, same, 9, 3.0, x), counted)
    now = after(model, TEXT, "1.res", gs.Splice(sae, error=False))
    assert_moved(x, now, decoded64(same, features64(same, x)) - x.double(), counted)


def test_an_sae_that_lies_in_a_file_is_read_from_there(tmp_path: object) -> None:
    model, sae = model_of("llama"), sae_of("llama", "1.res")
    gs.save_sae(sae, tmp_path / "sae")
    mapped = gs.load_sae(tmp_path / "sae")
    assert Mapped.of(mapped.W_dec)
    for kind in SETTERS:
        from_file, from_memory = (after(model, TEXT, "1.res", made(kind, one, 9, 3.0)) for one in (mapped, sae))
        torch.testing.assert_close(from_file, from_memory, rtol=2e-6, atol=2e-6)


# --- units ----------------------------------------------------------------------------------------------------------


def test_whichever_unit_is_given_all_three_are_told() -> None:
    model, sae = model_of("llama"), sae_of("llama", "1.res")
    units = gs.Units.measured(model, sae, gs.Corpus.of([TEXT, "and the other thing was in the theory"]), tokens=100)
    corpus = [model.capture(text, ["1.res"])["1.res"] for text in (TEXT, "and the other thing was in the theory")]
    assert units.tokens > 0
    x = torch.cat([acts.rows for acts in corpus])
    peak = features64(sae, x).amax(0)
    feature = int(peak.argmax())
    length = sae.direction(feature).norm().item()
    for strength in (units.max(feature, 2.0), units.raw(feature, 2 * units.maximum(feature)),
                     units.norm(feature, 2 * units.maximum(feature) * length / units.median_norm)):  # fmt: skip
        assert strength.raw == pytest.approx(2 * units.maximum(feature))
        assert strength.of_max == pytest.approx(2.0)
        assert strength.of_norm == pytest.approx(strength.raw * length / units.median_norm)
        assert all(word in str(strength) for word in ("raw", "× max", "× median norm"))
        edit = gs.Steer(sae, feature, strength)
        assert edit.strength == strength
        assert torch.equal(
            after(model, TEXT, "1.res", edit), after(model, TEXT, "1.res", gs.Steer(sae, feature, strength.raw))
        )
        assert "\n" not in str(edit)
    assert gs.Steer(sae, feature, 3.0).strength.raw == 3.0


def test_measured_units_are_the_maxima_and_the_median_norm_of_what_counts() -> None:
    model, sae = model_of("gemma2"), sae_of("gemma2", "1.res")
    corpus = gs.Corpus.of([TEXT * 3, "and the other thing was in the theory " * 4])
    units = gs.Units.measured(model, sae, corpus, tokens=1000)
    rows = [acts for tokens in model.rows(corpus, length=128) for acts in [model.capture(tokens, ["1.res"])["1.res"]]]
    x = torch.cat([acts.rows for acts in rows])
    assert units.tokens == len(x)
    assert units.median_norm == pytest.approx(x.norm(dim=-1).median().item(), rel=0.02)
    peak = features64(sae, x).amax(0)
    for feature in range(0, 48, 5):
        assert units.maximum(feature) == pytest.approx(peak[feature].item(), rel=1e-4)
