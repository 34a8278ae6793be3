"""Text and turns of a chat become the ids that transformers' own `apply_chat_template` gives: one BOS, never two,
wherever text comes in.
"""

from __future__ import annotations

import io
import json

import pytest
import torch
from tokenizers import processors

import gemscope as gs
from by_hand import model_of, random_sae
from gemscope.activations.model import LanguageModel
from gemscope.cli.main import main
from gemscope.errors import InputError
from gemscope.reports.steer import steer
from gemscope.testing import tiny_model

# As the published templates of these families are built; written anew.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}"
    "{% for turn in messages %}{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}"
    "{{ '<turn>' + ('model' if turn['role'] == 'assistant' else turn['role']) + '\n' }}"
    "{{ turn['content'] | trim + '</turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
LLAMA_3 = (
    "{% for turn in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|im_start|>' + turn['role'] + '\n\n' + turn['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for turn in messages %}{% if turn['role'] == 'user' %}{{ '[INST] ' + turn['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + turn['content'] + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for turn in messages %}{{ '<|im_start|>' + turn['role'] + '\n' + turn['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {"gemma2": GEMMA, "gemma3": GEMMA, "llama 3": LLAMA_3, "mistral": MISTRAL, "qwen3": CHATML}

ASKED = [{"role": "user", "content": " Why? "}]
TALK = [*ASKED, {"role": "assistant", "content": "a the"}, {"role": "user", "content": "and"}]
BEGUN = [*ASKED, {"role": "assistant", "content": "In the"}]


def chatting(family: str) -> LanguageModel:
    model = tiny_model("llama" if family == "llama 3" else family)
    model.tokenizer.chat_template = TEMPLATES[family]
    if family == "llama 3":  # bytes as pieces and a BOS of its own in front
        bos = "<|endoftext|>"
        model.tokenizer.bos_token = bos
        model.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, model.tokenizer.convert_tokens_to_ids(bos))]
        )
    return model


@pytest.fixture(params=TEMPLATES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return chatting(request.param)


def truth(model: LanguageModel, chat: list[dict[str, str]], **options: object) -> list[int]:
    ids = model.tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True, **options)["input_ids"]
    return list(map(int, ids))


def rendered(model: LanguageModel, chat: list[dict[str, str]], **options: object) -> str:
    return str(model.tokenizer.apply_chat_template(chat, tokenize=False, **options))


# --- never two BOS --------------------------------------------------------------------------------------------------


def test_text_that_a_template_rendered_gets_the_ids_that_the_template_gives(model: LanguageModel) -> None:
    for chat in (ASKED, TALK):
        for options in ({}, {"add_generation_prompt": True}):
            text = rendered(model, chat, **options)
            assert model.tokens(text).ids.tolist() == [truth(model, chat, **options)]
            assert model.ids(text) == truth(model, chat, **options)


def test_bos_stands_once_wherever_text_comes_in(model: LanguageModel) -> None:
    if model.bos is None:
        assert model.name == "tiny-qwen3"
        return
    sae = random_sae(model)
    text, bos = rendered(model, ASKED), model.bos
    mark = model.strings([bos])[0]
    plain = model.tokens(text.removeprefix(mark)).ids.tolist()
    assert plain[0][0] == bos
    assert plain[0].count(bos) == 1
    for given in (text, mark + text, mark * 3 + text):
        assert model.tokens(given).ids.tolist() == plain
        assert model.tokens([given, "the"]).ids[0].tolist() == plain[0]
        assert model.capture(given, ["1.res"])["1.res"].tokens.ids.tolist() == plain
        assert [one.token for one in gs.look(model, sae, given).tokens] == model.strings(plain[0])
        assert gs.attribute(model, sae, given).tokens == tuple(model.strings(plain[0]))
        assert model.generate(given, max_new_tokens=3) == model.generate(text.removeprefix(mark), max_new_tokens=3)
        written = [steer(model, one, [], max_new_tokens=3).pairs for one in (given, text.removeprefix(mark))]
        assert written[0] == written[1]
    assert model.tokens(mark).ids.tolist() == [[bos]]
    assert model.tokens([bos, bos, 40]).ids.tolist() == [[bos, bos, 40]]  # ids are taken as they are


def test_a_corpus_of_rendered_chats_has_one_bos_in_each_row_and_none_within(model: LanguageModel) -> None:
    texts = [rendered(model, chat) for chat in (ASKED, TALK, ASKED)]
    mark = "" if model.bos is None else model.strings([model.bos])[0]
    rows = list(model.rows(gs.Corpus.of(texts), length=24, batch=2))
    bare = list(model.rows(gs.Corpus.of([text.removeprefix(mark) for text in texts]), length=24, batch=2))
    assert [one.ids.tolist() for one in rows] == [one.ids.tolist() for one in bare]
    if model.bos is not None:
        ids = torch.cat([one.ids for one in rows])
        assert (ids[:, 0] == model.bos).all()
        separated = model.bos == model.separator  # then it stands between documents too, put there for that
        assert separated or not (ids[:, 1:] == model.bos).any()


def test_probes_read_rendered_text_with_one_bos_too() -> None:
    model = chatting("gemma2")
    rows = [(rendered(model, [{"role": "user", "content": f"{text}{n}"}]), text) for n in range(8) for text in "ab"]
    mark = model.strings([model.bos or 0])[0]
    found = [
        gs.sparse_probe(model, random_sae(model), [(text.removeprefix(cut), label) for text, label in rows]).to_dict()
        for cut in ("", mark)
    ]
    assert found[0] == found[1]


# --- turns ----------------------------------------------------------------------------------------------------------


def test_turns_become_the_ids_that_transformers_gives(model: LanguageModel) -> None:
    for chat in (ASKED, TALK, BEGUN):
        assert model.tokens(chat).ids.tolist() == [truth(model, chat)]
        assert model.tokens(tuple(chat)).ids.tolist() == [truth(model, chat)]
    for chat in (ASKED, TALK):
        assert model.tokens(chat, reply=True).ids.tolist() == [truth(model, chat, add_generation_prompt=True)]
    assert model.tokens(BEGUN, reply=True).ids.tolist() == [truth(model, BEGUN, continue_final_message=True)]
    assert model.tokens(BEGUN, reply=True).ids.tolist() != model.tokens(BEGUN).ids.tolist()
    assert model.tokens("the", reply=True).ids.tolist() == model.tokens("the").ids.tolist()


def test_several_chats_are_several_rows(model: LanguageModel) -> None:
    tokens = model.tokens([ASKED, TALK], side="left")
    for row, chat in enumerate((ASKED, TALK)):
        assert tokens.ids[row][tokens.real[row]].tolist() == truth(model, chat)


def test_a_chat_is_looked_at_as_it_stands(model: LanguageModel) -> None:
    seen = gs.look(model, random_sae(model), TALK)
    assert [one.token for one in seen.tokens] == model.strings(truth(model, TALK))
    assert {str(one.token) for one in seen.tokens if not one.counted} >= set(seen.tokens[0].token.split())


def test_replies_are_what_transformers_writes(model: LanguageModel) -> None:
    for chat, options in ((ASKED, {"add_generation_prompt": True}), (BEGUN, {"continue_final_message": True})):
        ids = torch.tensor([truth(model, chat, **options)])
        theirs = model.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
        said = model.tokenizer.decode(theirs[0, ids.shape[1] :], skip_special_tokens=True)
        assert model.generate(chat, max_new_tokens=4) == said
        assert model.generate([chat, ASKED], max_new_tokens=4)[0] == said
        assert steer(model, chat, [], max_new_tokens=4, temperature=0).pairs[0].default.text == said
        steps = [int(step.ids) for step in model.stream(chat, max_new_tokens=4)]
        assert steps == theirs[0, ids.shape[1] :].tolist()


def test_steering_attribution_and_doses_take_turns_and_show_what_was_written() -> None:
    model = chatting("llama 3")
    sae = random_sae(model)
    whole = "".join(model.strings(truth(model, ASKED, add_generation_prompt=True)))
    edits = [gs.Steer(sae, 3, 2.0)]
    assert steer(model, ASKED, edits, max_new_tokens=2).prompt == whole
    assert "".join(gs.attribute(model, sae, ASKED).tokens) == whole


def test_without_a_template_turns_are_one_clear_line() -> None:
    model = model_of("gpt2")
    for call in (model.tokens, model.generate, lambda chat: gs.look(model, random_sae(model), chat)):
        with pytest.raises(InputError, match="tiny-gpt2 has no chat template") as raised:
            call(ASKED)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("chat", "says"),
    [
        ([{"role": "system", "content": "Be kind."}], "no system turn here"),
        ([*ASKED, *ASKED], "turns must alternate"),
        ([{"role": "user"}], "turn 0 of the chat"),
        ([{"role": "user", "content": None}], "turn 0 of the chat"),
        ([{"content": "the"}], "turn 0 of the chat"),
        ([*ASKED, "and"], "turn 1 of the chat"),
        ([*ASKED, {"role": "assistant", "content": "\ud800"}], "half a surrogate pair"),
        ([ASKED, []], "chat 1 is no list of turns"),
        ([ASKED, "the"], "chat 1 is no list of turns"),
        (["the", *ASKED], "item 1 is a dict"),
    ],
)
def test_turns_that_cannot_be_are_one_clear_line(unchecked: None, chat: list[object], says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        chatting("gemma2").tokens(chat)
    assert "\n" not in str(raised.value)


def test_a_template_that_fails_is_one_clear_line() -> None:
    model = chatting("qwen3")
    for template in ("{{ 1 // 0 }}", "{{ nothing.at.all }}", "{% for", "{{ raise_exception('one\ntwo') }}"):
        model.tokenizer.chat_template = template
        with pytest.raises(InputError, match="the chat template of tiny-qwen3 does not take") as raised:
            model.tokens(ASKED)
        assert "\n" not in str(raised.value)


# --- in the shell, with the bundled model ---------------------------------------------------------------------------


@pytest.mark.usefixtures("at_hand")
def test_the_shell_reads_a_users_turn_and_a_whole_chat(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gs.load_model()
    said = [{"role": "user", "content": "Why is it blue?"}]
    talk = [*said, {"role": "assistant", "content": "The light."}]
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(talk)))
    for words, chat in ((["--chat", "Why is it blue?"], said), (["--turns", json.dumps(talk)], talk), (["--turns", "-"], talk)):  # fmt: skip
        assert main(["look", *words, "--json", "-k", "1"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [one["token"] for one in found["tokens"]] == model.strings(truth(model, chat))
    options = ["--max-new-tokens", "2", "--temperature", "0", "--json", "--tokens", "300"]
    assert main(["steer", "2852=1", "Why is it blue?", "--chat", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompt"] == "".join(model.strings(truth(model, said, add_generation_prompt=True)))
    assert found["pairs"][0]["default"]["text"] == model.generate(said, max_new_tokens=2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--turns", "hello"], "TEXT with --turns is not JSON"),
        (["--turns", '{"role": "user"}'], "TEXT with --turns: it is an object, expected a list"),
        (["--turns", "[1]"], "TEXT with --turns: expected turns"),
        (["--turns", '["a", "b"]'], "TEXT with --turns: expected turns"),
        (["--turns", "[]"], "TEXT with --turns: expected turns"),
        (["--turns", '[{"role": "user"}]'], "turn 0 of the chat"),
        (["--chat", ""], "the text is empty"),
    ],
)
def test_a_chat_that_is_none_is_one_line_in_the_shell(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["look", *words]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
