"""A language model and its tokenizer: text to ids by the tokenizer's own rules, what is refused, and what it writes."""

from functools import cache

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from by_hand import MAIN
from gemscope.activations.model import LanguageModel
from gemscope.errors import EmptyText, InputError, SiteNotFound, TextTooLong, TokenOutOfRange
from gemscope.testing import tiny_model
from gemscope.text.corpus import Corpus
from gemscope.text.pieces import Piece
from gemscope.text.tokens import Tokens

TEXT = "The theory and the thing: é, 日本 — x\n"


@cache
def model_of(family: str) -> LanguageModel:
    return tiny_model(family)


@pytest.mark.parametrize("family", MAIN)
def test_a_model_says_what_it_is(family):
    model = model_of(family)
    assert (model.n_layers, model.d_model, model.vocab, model.context) == (3, 32, 320, 128)
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert repr(model) == f"LanguageModel(tiny-{family} from memory, 3 layers, d_model=32, torch.float32, cpu)"
    assert not model.hf.training


# --- text to tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MAIN)
def test_text_is_read_by_the_tokenizers_own_rules(family):
    model = model_of(family)
    ids = model.tokenizer(TEXT)["input_ids"]
    assert model.tokens(TEXT).ids.tolist() == [ids]
    assert (model.bos is not None) == (family in {"gemma2", "gemma3_text", "gemma3", "mistral"})
    assert (ids[0] == model.tokenizer.bos_token_id) == (model.bos is not None)
    assert model.bos in {None, model.tokenizer.bos_token_id}
    assert model.tokenizer.all_special_ids
    assert model.special_ids >= set(model.tokenizer.all_special_ids)


def test_chat_marks_are_special_though_no_role_names_them():
    model = model_of("qwen3")
    mark = model.tokenizer.get_vocab()["<|im_start|>"]
    assert mark not in model.tokenizer.all_special_ids
    assert mark in model.special_ids


@pytest.mark.parametrize(
    ("family", "token"),
    [("gemma2", "<eos>"), ("llama", "<|endoftext|>"), ("qwen2", "<|endoftext|>"), ("mistral", "</s>")],
)
def test_documents_are_parted_by_the_token_that_training_text_was(family, token):
    model = model_of(family)
    assert model.separator == model.tokenizer.get_vocab()[token]


def with_tokenizer(template: str | None, *, pad: str | None = None) -> LanguageModel:
    """A Llama whose tokenizer knows no word and has these rules."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | ({"pad_token": pad} if pad else {})
    return LanguageModel(
        model_of("llama").hf, PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special), name="odd"
    )


def test_bos_is_what_stands_in_front_and_nothing_else():
    assert with_tokenizer("<s> $A").bos == 1
    assert with_tokenizer("<s> $A </s>").bos == 1
    assert with_tokenizer("$A </s>").bos is None  # an EOS behind the text
    assert with_tokenizer(None).bos is None  # an unknown word is special too, and no BOS


def test_a_pad_token_that_the_model_has_no_row_for_is_not_used():
    tokenizer = tiny_model("llama").tokenizer
    tokenizer.add_tokens([f"<more{number}>" for number in range(60)])
    tokenizer.add_special_tokens({"pad_token": "<added>"})
    model = LanguageModel(model_of("llama").hf, tokenizer, name="padded")
    assert tokenizer.pad_token_id >= model.vocab
    assert model.logits(["the thing", "it"]).isfinite().all()


@pytest.mark.parametrize("family", ["gemma2", "llama", "mistral", "gpt2"])
def test_each_token_is_shown_as_the_text_it_stands_for(family):
    model = model_of(family)
    ids = model.tokens(" The theory and the  thing").ids[0].tolist()
    words = model.strings(ids)
    first = 0 if model.bos is None else 1
    text = "".join(words[first:])
    assert text.removeprefix(" " if family == "mistral" else "") == " The theory and the  thing"  # its dummy blank
    assert " the" in words
    assert words[:first] == [model.tokenizer.bos_token][:first]
    letter = model.tokenizer("é", add_special_tokens=False)["input_ids"]
    assert model.strings(letter)[-2:] == ["\\xc3", "\\xa9"]  # half a letter each


@pytest.mark.parametrize("family", ["gemma2", "llama", "mistral", "gpt2"])
def test_tokens_of_a_text_are_what_they_complete_of_it(family):
    model = model_of(family)
    said = " The theory of 😂, 日本 and مرحبا é"
    ids = model.tokens(said).ids[0].tolist()
    found = model.texts(ids)
    assert "".join(found[0 if model.bos is None else 1 :]).lstrip() == said.lstrip()
    pieces = [one for one in found if isinstance(one, Piece)]
    assert len(pieces) >= 3
    assert b"\xf0" in [one.raw for one in pieces]  # the smile's first byte


def test_several_texts_are_padded_on_the_side_asked_for():
    model = model_of("gemma2")
    right, left = model.tokens(["the thing", "it"]), model.tokens(["the thing", "it"], side="left")
    assert right.real.tolist() == [[True] * 5, [True, True, True, False, False]]
    assert left.real.tolist() == [[True] * 5, [False, False, True, True, True]]
    assert right.ids[1, -1] == left.ids[1, 0] == model.tokenizer.pad_token_id


@pytest.mark.parametrize(
    "ids",
    [[57, 58], (57, 58), torch.tensor([57, 58]), torch.tensor([[57, 58]], dtype=torch.int32), list(np.array([57, 58]))],
)
def test_ids_are_read_as_they_are(unchecked, ids):
    assert model_of("gemma2").tokens(ids).ids.tolist() == [[57, 58]]


def test_rows_of_ids_are_read_as_they_are():
    assert model_of("llama").tokens(torch.tensor([[57, 58], [59, 60]])).ids.tolist() == [[57, 58], [59, 60]]


def test_a_corpus_becomes_packed_rows_with_bos_in_front_of_each():
    model = model_of("gemma2")
    corpus = Corpus.of(["the thing and the other", "it was", "a morning"])
    ids = [model.tokenizer(one.text, add_special_tokens=False)["input_ids"] for one in corpus]
    batches = list(model.rows(corpus, length=8, batch=2))
    text = [
        id_
        for tokens in batches
        for row, real in zip(tokens.ids, tokens.real, strict=True)
        for id_ in row[real][1:].tolist()
    ]
    assert text == [id_ for one in ids for id_ in [*one, model.tokenizer.eos_token_id]]
    assert all((tokens.ids[:, 0] == model.tokenizer.bos_token_id).all() for tokens in batches)
    assert not any(tokens.counted[:, 0].any() for tokens in batches)
    for tokens in model.rows(corpus, length=8, batch=2, every_token=True):
        assert torch.equal(tokens.counted, tokens.real)
    assert all(model.logits(tokens).isfinite().all() for tokens in batches)
    with pytest.raises(TextTooLong, match="rows of 129 tokens do not fit: tiny-gemma2 reads up to 128"):
        model.rows(corpus, length=129)


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("", EmptyText, "the text is empty: there is nothing to read"),
        ([], EmptyText, "no texts given: there is nothing to read"),
        (["the", ""], EmptyText, "text 1 of 2 (counted from 0) is empty"),
        (torch.zeros(0, dtype=torch.int64), EmptyText, "the text is empty"),
        (torch.zeros(0, 4, dtype=torch.int64), EmptyText, "no texts given"),
        ("x " * 200, TextTooLong, "a text of 400 tokens does not fit: tiny-llama reads up to 128; shorten it"),
        (["the", "x " * 200], TextTooLong, "a text of 400 tokens does not fit"),
        ([5, 320], TokenOutOfRange, "no token 320: tiny-llama has tokens 0 to 319"),
        ([-1, 5], TokenOutOfRange, "no token -1: tiny-llama has tokens 0 to 319"),
        (torch.tensor([[5, 6], [7, 4000]]), TokenOutOfRange, "no token 4000"),
        (Tokens.of([[5, 4000]]), TokenOutOfRange, "no token 4000"),
        (torch.tensor([5.0, 6.5]), InputError, "token ids of type float32 given: expected whole numbers"),
        (torch.tensor([True, False]), InputError, "token ids of type bool given"),
        (torch.tensor(5), InputError, "token ids of shape () given: expected one row [T] or rows [B, T]"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), InputError, "token ids of shape (1, 2, 3) given"),
        ([5, 6.5], InputError, "item 0 is a int: expected texts alone, or token ids alone"),
        ([5.0], InputError, "item 0 is a float: expected texts alone, or token ids alone"),
        ([[5, 6], [7]], InputError, "item 0 is a list: expected texts alone, or token ids alone"),
        (["the", 5], InputError, "item 1 is a int: expected texts alone, or token ids alone"),
        ("half a \ud83d letter", InputError, "text 0 holds half a surrogate pair"),
        (5, InputError, "a int cannot be read: expected text, a list of texts, turns of a chat, or token ids"),
        (None, InputError, "a NoneType cannot be read"),
    ],
)
def test_what_cannot_be_read_gets_one_clear_line(unchecked, text, kind, says):
    model = model_of("llama")
    for read in (model.tokens, model.logits, lambda text: model.capture(text, ["1.res"])):
        with pytest.raises(InputError) as raised:
            read(text)
        assert type(raised.value) is kind
        assert says in str(raised.value)
        assert "\n" not in str(raised.value)


def test_an_sae_without_a_site_names_none(unchecked):
    with pytest.raises(SiteNotFound, match="None is not a site"):
        model_of("llama").capture("the", [None])


# --- what it writes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MAIN)
def test_it_writes_the_likeliest_token_each_time(family):
    model = model_of(family)
    ids = model.tokens("the thing").ids[0].tolist()
    written = []
    for _ in range(4):
        written.append(model.logits([*ids, *written])[0, -1].argmax().item())
        if written[-1] == model.tokenizer.eos_token_id:
            break
    assert model.generate("the thing", max_new_tokens=4) == model.tokenizer.decode(written, skip_special_tokens=True)


def test_sampling_follows_its_seed_and_leaves_the_global_one_alone():
    model = model_of("llama")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (model.generate("the", max_new_tokens=12, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    assert torch.equal(torch.get_rng_state(), before)


def test_more_than_fits_is_not_begun():
    with pytest.raises(TextTooLong, match="5 tokens and 124 new ones do not fit: tiny-gemma2 reads up to 128"):
        model_of("gemma2").generate("the thing", max_new_tokens=124)
