"""Text continued under edits: with the cache as without, in a batch as alone, by transformers' own loop as by ours, at
the positions that were asked for; paired noise; and where a text ends. The reference recomputes everything for every
token, with a hook of torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gemscope as gs
from anatomy import NEWER
from by_hand import TEXT, hooks, model_of, random_sae
from continued import AT, NEW, PROMPTS, assert_same, edited, ending_with, every_family, push, slowly, vector, written
from gemscope.activations.generation import Dice
from gemscope.activations.model import LanguageModel
from gemscope.errors import InputError, TextTooLong
from gemscope.testing import tiny_model

few = settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


# --- with the cache as without --------------------------------------------------------------------------------------


@every_family
def test_pitfall_6_with_the_cache_the_same_is_written_as_without(family: str, endless: None) -> None:
    """Edits act on the prompt and on every step, whether or not a cache spares the tokens before."""
    model = model_of(family)
    sae = random_sae(model, "1.res")
    for at in AT:
        edits = [push(at=at), gs.Clamp(sae, 5, 4.0, at=at)]
        for options in ({}, {"temperature": 1.0, "seed": 3}):
            cached = edited(model, PROMPTS, *edits, **options)
            assert_same(cached, edited(model, PROMPTS, *edits, cache=False, **options))
        assert cached[0].shape == (3, NEW)
    assert not torch.equal(edited(model, PROMPTS, push())[0], written(model.stream(PROMPTS, max_new_tokens=NEW))[0])
    assert hooks(model) == 0


@pytest.mark.parametrize("kind", ["att", "att_out", "mid", "transcoder", "mlp", "res"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", *NEWER])
def test_at_every_site_the_cache_changes_nothing(family: str, kind: str, endless: None) -> None:
    model = model_of(family)
    site = f"1.{kind}"
    sae = random_sae(model, site)
    edits = [gs.Clamp(sae, 5, 6.0), gs.Splice(sae, error=False), gs.Ablate(random_sae(model, "0.res"), 2)]
    cached = edited(model, PROMPTS, *edits)
    assert_same(cached, edited(model, PROMPTS, *edits, cache=False))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_a_transcoder_in_the_mlps_place_writes_the_same_with_the_cache(family: str, endless: None) -> None:
    model = model_of(family)
    transcoder = random_sae(model, "1.transcoder", site_out="1.mlp", skip=True)
    for edits in ([gs.Replace(transcoder)], [gs.Clamp(transcoder, 3, 5.0), gs.Replace(transcoder, at="generated")]):
        cached = edited(model, PROMPTS, *edits)
        assert_same(cached, edited(model, PROMPTS, *edits, cache=False))
        assert not torch.equal(cached[0], written(model.stream(PROMPTS, max_new_tokens=NEW))[0])


@every_family
def test_what_is_written_is_what_a_slow_loop_writes(family: str, endless: None) -> None:
    model = model_of(family)
    change = 2.0 * vector()
    rules: dict[object, Callable[[int, int], bool]] = {
        "all": lambda i, n: True,
        "prompt": lambda i, n: i < n,
        "generated": lambda i, n: i >= n,
        (2, 5): lambda i, n: i in {2, 5},
        (-1,): lambda i, n: i == n - 1,
        (-2,): lambda i, n: i == n - 2,
    }
    for (at, chosen), prompt in zip(rules.items(), PROMPTS[:2] * 3, strict=True):
        ids = model.tokens(prompt).ids[0].tolist()
        found, _ = edited(model, prompt, push(at=at))
        assert found[0].tolist() == slowly(model, ids, change, chosen), at
    plain = written(model.stream(PROMPTS[1], max_new_tokens=NEW))[0][0].tolist()
    assert plain == slowly(model, model.tokens(PROMPTS[1]).ids[0].tolist(), change, lambda i, n: False)


@few
@given(st.lists(st.integers(10, 300), min_size=1, max_size=9), st.floats(-6, 6), st.integers(0, 3))
def test_the_cache_changes_nothing_whatever_the_prompt(ids: list[int], by: float, at: int) -> None:
    model = model_of("gemma2")
    edit = push(by=by, at=AT[at])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModel, "ends", ending_with())
        tokens = model.tokens(ids)
        assert_same(edited(model, tokens, edit), edited(model, tokens, edit, cache=False))


def test_a_sink_in_the_prompt_or_written_later_is_left_alone_with_the_cache_as_without(endless: None) -> None:
    model = tiny_model("llama", seed=1)
    for id_ in range(40, 300, 3):  # a third of all tokens, so that some are written
        model.hf.model.embed_tokens.weight[id_] *= 300
    for options in ({}, {"temperature": 1.5, "seed": 1}):
        cached = edited(model, PROMPTS[:2], push("0.res"), max_new_tokens=16, **options)
        assert_same(cached, edited(model, PROMPTS[:2], push("0.res"), max_new_tokens=16, cache=False, **options))
    loud = torch.tensor([[id_ in range(40, 300, 3) for id_ in row] for row in cached[0].tolist()])
    assert loud.any()


# --- in a batch as alone --------------------------------------------------------------------------------------------


@every_family
def test_in_a_batch_each_text_goes_on_as_it_does_alone(family: str, endless: None) -> None:
    model = model_of(family)
    for at in ("all", "generated", (-2,)):
        ids, logprobs = edited(model, PROMPTS, push(at=at), temperature=0.8, seed=4, draws=[0, 1, 2])
        for row, prompt in enumerate(PROMPTS):
            alone = edited(model, prompt, push(at=at), temperature=0.8, seed=4, draws=[row])
            assert_same((ids[row : row + 1], logprobs[row : row + 1]), alone)


def test_only_the_rows_named_are_edited_step_by_step(endless: None) -> None:
    model = model_of("qwen3")
    clean, pushed = written(model.stream(PROMPTS, max_new_tokens=NEW)), edited(model, PROMPTS, push())
    some = edited(model, PROMPTS, push(), rows=[1])
    for row in range(3):
        assert_same(*((ids[row : row + 1], p[row : row + 1]) for ids, p in (some, pushed if row == 1 else clean)))
    assert clean[0][1].tolist() != pushed[0][1].tolist()


def test_edits_of_different_rows_go_side_by_side(endless: None) -> None:
    model = model_of("llama")
    texts = [PROMPTS[1]] * 3
    with model.edited(push(by=2.0), rows=[1]), model.edited(push(by=-3.0), rows=[2]):
        ids, _ = written(model.stream(texts, max_new_tokens=NEW))
    alone = [written(model.stream(texts[0], max_new_tokens=NEW))] + [
        edited(model, texts[0], push(by=by)) for by in (2.0, -3.0)
    ]
    assert ids.tolist() == [one[0][0].tolist() for one in alone]


# --- which tokens ---------------------------------------------------------------------------------------------------


@every_family
def test_generated_means_no_position_of_the_prompt(family: str, endless: None) -> None:
    model = model_of(family)
    clean, found = written(model.stream(PROMPTS, max_new_tokens=2)), edited(model, PROMPTS, push(at="generated"), max_new_tokens=2)  # fmt: skip
    assert torch.equal(found[0][:, 0], clean[0][:, 0])
    assert torch.equal(found[1][:, 0], clean[1][:, 0])  # the first token is said by the prompt alone, bit by bit
    ordinary = ~torch.isin(clean[0][:, 0], torch.tensor(sorted(model.special_ids)))
    assert (found[1] != clean[1])[ordinary, 1].all()
    assert ordinary.any()


@every_family
def test_prompt_means_no_position_behind_it(family: str, endless: None) -> None:
    """As if edited keys and values of the prompt were all that the edit left behind."""
    model = model_of(family)
    tokens = model.tokens(PROMPTS[1])
    prompt = tokens.ids.shape[1]
    ids, logprobs = edited(model, PROMPTS[1], push(at="prompt"))
    whole = torch.cat([tokens.ids, ids], 1)
    counted = tokens.counted[0].tolist() + [False] * NEW
    with model.edited(push(at=torch.tensor([counted]))):
        expected = model.logits(whole)[0, prompt - 1 : -1].log_softmax(-1).gather(-1, ids[0][:, None])[:, 0]
    torch.testing.assert_close(logprobs[0], expected, atol=2e-4, rtol=1e-4)


def test_log_probabilities_of_a_whole_text_are_those_of_its_steps(endless: None) -> None:
    """`logits(..., prompt=n)` reads what was generated as the steps read it, for every kind of position."""
    model = model_of("gemma3")
    tokens = model.tokens(PROMPTS[1])
    prompt = tokens.ids.shape[1]
    for at in AT:
        ids, logprobs = edited(model, PROMPTS[1], push(at=at))
        with model.edited(push(at=at)):
            whole = model.logits(torch.cat([tokens.ids, ids], 1), prompt=prompt)
        expected = whole[0, prompt - 1 : -1].log_softmax(-1).gather(-1, ids[0][:, None])[:, 0]
        torch.testing.assert_close(logprobs[0], expected, atol=2e-4, rtol=1e-4)


def test_a_special_token_that_is_written_is_left_alone(endless: None) -> None:
    model = tiny_model("qwen2")
    mark = model.tokenizer.get_vocab()["<|endoftext|>"]
    logits = model.logits(PROMPTS[0])[0, -1]
    model.hf.lm_head.weight[mark] = model.hf.lm_head.weight[logits.argmax()] * 3  # now the likeliest token
    clean = written(model.stream(PROMPTS[0], max_new_tokens=2))
    assert clean[0][0, 0] == mark
    default = edited(model, PROMPTS[0], push(at="generated"), max_new_tokens=2)
    assert torch.equal(default[1], clean[1])
    everywhere = edited(model, PROMPTS[0], push(at="generated", every_token=True), max_new_tokens=2)
    assert everywhere[1][0, 0] == clean[1][0, 0]
    assert everywhere[1][0, 1] != clean[1][0, 1]


def test_the_first_position_is_touched_only_with_every_token(endless: None) -> None:
    model = model_of("gemma2")
    for prompt, at in (([model.bos], "prompt"), ([model.bos], (0,)), ("the thing", (0,))):
        clean = written(model.stream(model.tokens(prompt), max_new_tokens=3))
        assert torch.equal(edited(model, model.tokens(prompt), push(at=at), max_new_tokens=3)[1], clean[1])
        loud = edited(model, model.tokens(prompt), push(at=at, every_token=True), max_new_tokens=3)
        assert not torch.equal(loud[1], clean[1])


def test_a_mask_speaks_of_the_prompt(endless: None) -> None:
    """What is generated has no place in a mask of the prompt's tokens: it is not edited, with the cache or without."""
    model = model_of("llama")
    tokens = model.tokens(PROMPTS, side="left")
    mask = tokens.counted.clone()
    masked = edited(model, tokens, push(at=mask))
    assert_same(masked, edited(model, tokens, push(at="prompt")))
    assert_same(masked, edited(model, tokens, push(at=mask), cache=False))


# --- dice -----------------------------------------------------------------------------------------------------------


@every_family
def test_pitfall_8_equal_distributions_write_equal_text(family: str, endless: None) -> None:
    """Both columns of a comparison: the same noise, so that what differs comes from the edit."""
    model = model_of(family)
    texts = [PROMPTS[1]] * 6
    ids, logprobs = edited(
        model, texts, push(by=0.0), rows=[3, 4, 5], temperature=1.0, seed=7, draws=[0, 1, 2, 0, 1, 2]
    )
    assert torch.equal(ids[:3], ids[3:])
    torch.testing.assert_close(logprobs[:3], logprobs[3:])
    assert len({tuple(row) for row in ids[:3].tolist()}) == 3
    ids, _ = edited(model, texts, push(), rows=[3, 4, 5], temperature=1.0, seed=7, draws=[0, 1, 2, 0, 1, 2])
    assert not torch.equal(ids[:3], ids[3:])
    unedited = written(model.stream(texts[:3], max_new_tokens=NEW, temperature=1.0, seed=7))
    assert torch.equal(ids[:3], unedited[0])  # the default column does not depend on what stands beside it


def test_a_seed_says_what_is_written_and_leaves_the_global_one_alone(endless: None) -> None:
    model = model_of("llama")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (edited(model, "the", push(), temperature=1.0, seed=seed)[0].tolist() for seed in (1, 1, 2))
    assert one == same != other
    assert torch.equal(torch.get_rng_state(), before)


def test_sampling_follows_the_models_probabilities() -> None:
    """Gumbel's trick gives each token its softmax probability: 20,000 throws, within four standard errors."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    throws = 20_000
    dice = Dice(3, range(throws))
    for temperature in (0.5, 1.0):
        found = torch.bincount(dice.thrown(logits.expand(throws, 4), temperature), minlength=4) / throws
        expected = (logits / temperature).softmax(-1)
        error = (expected * (1 - expected) / throws).sqrt()
        assert ((found - expected).abs() < 4 * error).all()


def test_no_temperature_takes_the_likeliest_whatever_the_seed(endless: None) -> None:
    model = model_of("gpt2")
    assert edited(model, PROMPTS, push(), seed=1)[0].tolist() == edited(model, PROMPTS, push(), seed=2)[0].tolist()


# --- ends -----------------------------------------------------------------------------------------------------------


def test_a_text_that_ended_stays_ended_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    dice = {"max_new_tokens": 12, "temperature": 1.5, "seed": 5}
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "ends", ending_with())
        free, chances = edited(model, PROMPTS, push(), **dice)
    end = free[1, 3].item()
    assert end not in free[1, :3].tolist()
    monkeypatch.setattr(LanguageModel, "ends", ending_with(end))
    with model.edited(push()):
        steps = list(model.stream(PROMPTS, **dice))
        texts = model.generate(PROMPTS, **dice)
    for row in range(3):
        wanted = free[row].tolist()
        stop = wanted.index(end) + 1 if end in wanted else 12
        found = [int(step.ids[row]) for step in steps]
        assert found[:stop] == wanted[:stop]
        assert [bool(step.ended[row]) for step in steps] == [i >= stop - 1 and end in wanted for i in range(len(steps))]
        assert all(step.logprobs[row] == 0 for step in steps[stop:])
        torch.testing.assert_close(
            torch.stack([step.logprobs[row] for step in steps[:stop]]), chances[row, :stop], atol=2e-4, rtol=1e-4
        )
        assert texts[row].removesuffix(model.tokenizer.decode([end])) == model.tokenizer.decode(
            [id_ for id_ in wanted[:stop] if id_ != end], skip_special_tokens=True
        )
    assert steps[-1].ended.tolist() == [end in row for row in free.tolist()]


def test_the_loop_ends_when_all_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    first = int(next(iter(model.stream("the thing", max_new_tokens=1))).ids[0])
    monkeypatch.setattr(LanguageModel, "ends", ending_with(first))
    steps = list(model.stream("the thing", max_new_tokens=9))
    assert len(steps) == 1
    assert steps[0].ended.tolist() == [True]


def test_leaving_a_stream_halfway_leaves_no_trace() -> None:
    model = tiny_model("gemma2")
    before = model.logits(TEXT)
    with model.edited(push()):
        stream = model.stream(TEXT, max_new_tokens=20)
        next(stream)
        del stream
    assert hooks(model) == 0
    assert torch.equal(model.logits(TEXT), before)


def test_half_precision_is_continued_too(endless: None) -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    ids, logprobs = edited(model, PROMPTS, push(), gs.Clamp(random_sae(model), 4, 3.0))
    assert ids.shape == (3, NEW)
    assert logprobs.isfinite().all()
    assert logprobs.dtype == torch.float32


# --- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options", "kind", "says"),
    [
        ("the thing", {"max_new_tokens": 127}, TextTooLong, "4 tokens and 127 new ones do not fit"),
        ("the", {"max_new_tokens": 0}, InputError, "max_new_tokens=0"),
        ("the", {"temperature": float("nan")}, InputError, "temperature=nan"),
        ("the", {"temperature": -1.0}, InputError, "temperature=-1.0"),
        (["the", "it"], {"draws": [0]}, InputError, "1 draws for 2 texts"),
        ("", {}, InputError, "empty"),
    ],
)
def test_what_cannot_be_continued_gets_one_clear_line(
    unchecked: None, text: object, options: dict[str, object], kind: type[Exception], says: str
) -> None:
    model = model_of("llama")
    with pytest.raises(kind) as raised:
        model.stream(text, **options)  # before anything is asked of it
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_batch_padded_on_the_right_is_not_continued() -> None:
    model = model_of("llama")
    tokens = model.tokens(PROMPTS)
    with pytest.raises(InputError, match="padded on the left"):
        model.stream(tokens)


def test_several_texts_come_back_as_a_list_and_one_as_text() -> None:
    model = model_of("mistral")
    several: Sequence[str] = model.generate(PROMPTS, max_new_tokens=4)
    assert several == [model.generate(prompt, max_new_tokens=4) for prompt in PROMPTS]
    assert isinstance(model.generate("the", max_new_tokens=1), str)
