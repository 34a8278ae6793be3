"""Edits inside transformers' own `generate`, whatever its cache, and what is refused there by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from transformers import CompileConfig, DynamicCache, StaticCache

from anatomy import NEWER
from by_hand import hooks, model_of
from continued import NEW, PROMPTS, every_family, push, slowly, vector
from gemscope.activations.editing import Edit
from gemscope.activations.model import LanguageModel
from gemscope.errors import InputError
from gemscope.testing import tiny_model
from gemscope.text.tokens import Tokens


@every_family
@pytest.mark.parametrize("at", ["all", "prompt", "generated", (-1,)])
def test_hf_generate_writes_the_same(family: str, at: object) -> None:
    model = model_of(family)
    edit = push(at=at)
    tokens = model.tokens(PROMPTS, side="left")
    length = tokens.ids.shape[1]
    with model.edited(edit):
        theirs = model.hf.generate(
            input_ids=tokens.ids, attention_mask=tokens.real.long(), max_new_tokens=NEW, do_sample=False,
        )[:, length:]  # fmt: skip
        ours = model.generate(PROMPTS, max_new_tokens=NEW)
    assert model.tokenizer.batch_decode(theirs, skip_special_tokens=True) == ours
    assert hooks(model) == 0


@cache
def by_hand(family: str, ids: tuple[int, ...], at: object, *, without: int = 0, new: int = NEW) -> list[int]:
    """`slowly`, with the places to push at given by number alone; the first `without` tokens are left alone. Once for
    all the ways to write that are compared with it.
    """
    chosen = chosen_at(at, len(ids))
    return slowly(model_of(family), list(ids), 2.0 * vector(), lambda i, _: i >= without and chosen(i), new=new)


def chosen_at(at: object, prompt: int) -> Callable[[int], bool]:
    named = {
        "all": lambda i: True,
        "prompt": lambda i: i < prompt,
        "generated": lambda i: i >= prompt,
        (-1,): lambda i: i == prompt - 1,
    }
    return named.get(at, lambda i: i in at)  # type: ignore[call-overload,operator]


LONGER = "it was a theory of the other morning and the thing"


PLACES = ["all", "prompt", "generated", (-1,), (2, 5)]


MASKED_BY_LAYER = pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "gemma3", "qwen2", "qwen3", "mistral"])


def by_transformers(model: LanguageModel, tokens: Tokens, edit: Edit, **options: object) -> list[list[int]]:
    with model.edited(edit):
        found = model.hf.generate(
            **{"input_ids": tokens.ids, "attention_mask": tokens.real.long(), "max_new_tokens": NEW} | options,
            do_sample=False, eos_token_id=10_000,  # none that there is
        )  # fmt: skip
    return found[:, tokens.ids.shape[1] :].tolist()


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"use_cache": False}, {"prompt_lookup_num_tokens": 2}], ids=["static", "no-cache", "lookup"])  # fmt: skip
@pytest.mark.parametrize(
    "family", ["gemma2", "gemma3_text", "gemma3", "qwen2", "qwen3", "mistral", "llama", "gpt2", *NEWER]
)
def test_hf_generate_writes_what_a_loop_by_hand_writes_whatever_its_cache(
    family: str, options: dict[str, object]
) -> None:
    """Longer than the sliding windows of 16, and beside a shorter text where the way of writing takes several."""
    model = model_of(family)
    if "prompt_lookup_num_tokens" in options and getattr(model.hf, "_is_stateful", False):
        pytest.skip("transformers has no such way for a model with a state that cannot go back")
    texts = [LONGER] if "prompt_lookup_num_tokens" in options else [LONGER, PROMPTS[1]]
    tokens = model.tokens(texts, side="left")
    for at in PLACES:
        found = by_transformers(model, tokens, push(at=at), **options)
        for row, text in zip(found, texts, strict=True):
            ids = tuple(model.tokens(text).ids[0].tolist())
            assert row == by_hand(family, ids, at), (at, text)
    assert hooks(model) == 0


@MASKED_BY_LAYER
def test_a_cache_of_an_earlier_turn_is_no_part_of_what_is_edited_but_of_the_prompt(family: str) -> None:
    model = model_of(family)
    first = model.tokens(PROMPTS[1])
    more = model.tokens("the and the thing").ids[:, 1:]
    config = getattr(model.hf.config, "text_config", model.hf.config)
    for made in (lambda: DynamicCache(config=config), lambda: StaticCache(config=config, max_cache_len=64)):
        for at in ("all", "prompt", "generated", (-1,)):
            turn = model.hf.generate(
                input_ids=first.ids, attention_mask=first.real.long(), do_sample=False, eos_token_id=10_000,  # none that there is
                max_new_tokens=NEW, past_key_values=(cache := made()),
            )  # fmt: skip
            said = turn[:, : int(cache.get_seq_length())]
            ids = torch.cat([said, more], 1)
            found = by_transformers(model, Tokens.of(ids.tolist()), push(at=at), past_key_values=cache)
            expected = by_hand(family, tuple(ids[0].tolist()), at, without=said.shape[1])
            assert found == [expected], (at, type(cache))


def test_a_cache_filled_in_the_same_block_is_gone_on_from_step_by_step(endless: None) -> None:
    """A loop of the user's own: the first pass is the prompt, what follows behind its cache is generated."""
    model = model_of("qwen3")
    ids = model.tokens(PROMPTS[1]).ids
    for at in PLACES:
        written, cache, given = [], None, ids
        with model.edited(push(at=at)):
            for _ in range(NEW):
                out = model.hf(input_ids=given, past_key_values=cache, use_cache=True)
                cache, given = out.past_key_values, out.logits[:, -1:].argmax(-1)
                written.append(int(given))
        assert written == by_hand("qwen3", tuple(ids[0].tolist()), at), at


@pytest.mark.parametrize("at", ["prompt", "generated", (-1,), (0, -2)])
def test_where_nothing_says_where_the_prompt_ends_an_edit_that_asks_is_refused(at: object) -> None:
    model = model_of("gemma2")
    ids = model.tokens(PROMPTS[1]).ids
    cache = model.hf(input_ids=ids[:, :4], use_cache=True).past_key_values
    with pytest.raises(InputError, match="where the prompt ends") as raised, model.edited(push(at=at)):
        model.hf(input_ids=ids[:, 4:5], past_key_values=cache, use_cache=True)
    assert "\n" not in str(raised.value)
    with model.edited(push(at=at)):
        cache = model.hf(input_ids=ids[:, :4], use_cache=True).past_key_values
        with pytest.raises(InputError, match="where the prompt"):  # more of it, or several steps at once?
            model.hf(input_ids=ids[:, 4:], past_key_values=cache, use_cache=True)
    assert hooks(model) == 0


@pytest.mark.parametrize("at", ["all", (2, 5), "mask"])
def test_behind_any_cache_an_edit_acts_where_that_does_not_matter(at: object) -> None:
    model = model_of("gemma2")
    ids = model.tokens(PROMPTS[1]).ids
    cache = model.hf(input_ids=ids[:, :4], use_cache=True).past_key_values
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, [2, 5]] = True
    with model.edited(push(at=mask if at == "mask" else at)):
        found = model.hf(input_ids=ids[:, 4:], past_key_values=cache, use_cache=True).logits[0, -1].argmax()
    places = (2, 5) if at == "mask" else at
    assert [int(found)] == by_hand("gemma2", tuple(ids[0].tolist()), places, without=4, new=1)


@pytest.mark.parametrize("how", ["an option", "the model's own", "a configuration"])
def test_a_prompt_in_pieces_is_refused_by_name(how: str) -> None:
    model = tiny_model("qwen2")
    ids = model.tokens(PROMPTS[1]).ids
    options: dict[str, object] = {}
    if how == "an option":
        options = {"prefill_chunk_size": 3}
    elif how == "a configuration":
        options = {"generation_config": copy.deepcopy(model.hf.generation_config)}
        options["generation_config"].prefill_chunk_size = 3  # type: ignore[attr-defined]
    else:
        model.hf.generation_config.prefill_chunk_size = 3
    with pytest.raises(InputError, match="prefill_chunk_size=3") as raised, model.edited(push()):
        model.hf.generate(ids, max_new_tokens=2, **options)
    assert "\n" not in str(raised.value)
    assert hooks(model) == 0


def test_rows_packed_into_one_are_refused_by_name() -> None:
    model = model_of("llama")
    ids = model.tokens(PROMPTS[1]).ids
    with pytest.raises(InputError, match="packed into one row"), model.edited(push()):
        model.hf.generate_batch(ids.tolist())
    own = torch.ones(1, 1, 7, 7).tril().bool()
    with pytest.raises(InputError, match=r"attention_mask of shape \(1, 1, 7, 7\)"), model.edited(push()):
        model.hf(input_ids=ids[:, :7], attention_mask=own)
    with pytest.raises(InputError, match="attention_mask as a dict"), model_of("qwen2").edited(push()):
        model_of("qwen2").hf(input_ids=ids[:, :7], attention_mask={"full_attention": own})


def test_a_pass_that_is_not_announced_is_refused_also_after_one_that_was() -> None:
    """`forward` itself steps round what the model tells: tokens of the pass before must not stand in for its own."""
    model = model_of("llama")
    ids = model.tokens(PROMPTS[1]).ids
    with model.edited(push()):
        model.hf(ids)
        with pytest.raises(InputError, match="call the model itself"):
            model.hf.forward(ids)


def test_generate_does_not_compile_under_edits_and_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    ids = model.tokens(PROMPTS[1]).ids
    monkeypatch.setattr(type(model.hf), "get_compiled_call", lambda *_: pytest.fail("compiled"))
    everywhere = CompileConfig()
    everywhere._compile_all_devices = True
    config = copy.deepcopy(model.hf.generation_config)
    config.update(compile_config=everywhere, cache_implementation="static", max_new_tokens=3, do_sample=False)
    with model.edited(push()):
        for given in ((ids, config), (ids,)):
            model.hf.generate(*given, **({} if len(given) == 2 else {"generation_config": config}))
    assert config.disable_compile in (None, False)  # the caller's own is left alone
    assert not {"generate", "prepare_inputs_for_generation", "generate_batch"} & vars(model.hf).keys()
