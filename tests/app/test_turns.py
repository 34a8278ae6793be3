"""Texts read and replied to as turns of a chat."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from gemscope.edits.steer import Steer
from gemscope.reports.steer import steer as run_steer
from served import AT, MODEL, PROMPT, SAE, STEER, TEXT, told

_TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{{ turn['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_BOX = r'<input type="checkbox" name="chat" value="true"( checked)?>'


@pytest.fixture
def chats(live: TestClient) -> Iterator[TestClient]:
    """The same with a model that was made for chats."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODEL.tokenizer, "chat_template", _TEMPLATE)
        yield live


def rendered(text: str, *, reply: bool) -> list[str]:
    """The tokens of a user's turn, as transformers itself gives them."""
    turns = [{"role": "user", "content": text}]
    ids = MODEL.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, add_generation_prompt=reply)
    return MODEL.strings(ids["input_ids"])


def test_a_text_is_read_as_a_chat_turn_where_that_is_asked_for(chats: TestClient) -> None:
    asked = {"text": TEXT, "chat": "true"}
    found = chats.get(f"{AT}/prompt.json", params={**asked, "pin": 5}).json()
    assert [one["token"] for one in found["tokens"]] == rendered(TEXT, reply=False)
    assert len(found["values"]) == len(found["tokens"])
    plain = chats.get(f"{AT}/prompt.json", params={"text": TEXT}).json()
    assert len(plain["tokens"]) < len(found["tokens"])
    causes = chats.get(f"{AT}/attribute.json", params={**asked, "position": 2}).json()
    assert causes["tokens"] == rendered(TEXT, reply=True)
    for method in (chats.get, chats.post):  # a form alone, without scripts
        page = method(f"{AT}/prompt", **{"params" if method == chats.get else "data": asked}).text
        assert re.findall(_BOX, page) == [" checked"]
        assert page.count("<tr") == 1 + len(found["tokens"])
        why = page.split('id="why"')[1].split("</form>")[0]
        assert 'name="chat" value="true"' in why  # the same tokens are counted there
    cause = chats.get(f"{AT}/attribute", params=asked).text
    assert 'type="hidden" name="chat" value="true"' in cause
    assert re.findall(_BOX, cause) == [" checked"]


def test_a_prompt_is_replied_to_as_a_chat_turn_and_the_link_keeps_it(chats: TestClient) -> None:
    asked = {"feature": 5, "strength": 2, "prompt": PROMPT, "tokens": 4, "temperature": 0, "chat": "true"}
    found = chats.get(f"{STEER}.json", params={**asked, "run": True}).json()
    assert found["chat"] is True
    pair = found["runs"][0]["pairs"][0]
    assert found["runs"][0]["prompt"] == "".join(rendered(PROMPT, reply=True))
    assert pair["default"]["text"] == MODEL.generate([{"role": "user", "content": PROMPT}], max_new_tokens=4)
    assert "chat=true" in urlsplit(found["url"]).query
    again = chats.get(f"{STEER}.json?{urlsplit(found['url']).query}&run=true").json()
    assert again["runs"] == found["runs"]
    page = chats.get(f"{STEER}", params=asked).text
    assert re.findall(_BOX, page) == [" checked"]
    assert "chat=true" in re.findall(r'data-remove href="([^"]+)"', page)[0]
    (name, _), *_, (done, last) = told(chats.get(f"{STEER}/stream", params=asked))
    assert (name, done) == ("frame", "done")
    assert last["runs"][0]["pairs"][0]["default"]["text"] == pair["default"]["text"]
    assert re.findall(_BOX, chats.get(STEER, params={**asked, "chat": "false"}).text) == [""]


def test_where_the_model_has_no_chat_template_no_box_is_there_and_a_link_is_one_line(live: TestClient) -> None:
    assert not re.findall(_BOX, live.get(f"{AT}/prompt").text)
    assert not re.findall(_BOX, live.get(STEER).text)
    for path, name in (("prompt", "text"), ("attribute", "text"), ("steer", "prompt")):
        asked = {name: TEXT, "chat": "true", "feature": 5, "run": "true"} if path == "steer" else {name: TEXT, "chat": "true"}  # fmt: skip
        answer = live.get(f"{AT}/{path}.json", params=asked)
        assert answer.status_code == 400
        assert "has no chat template" in answer.json()["error"]


def _went_on(said: list[str], replies: list[str]) -> list[dict[str, str]]:
    turns = [("user", said[0])]
    for reply, then in zip(replies, said[1:], strict=True):
        turns += [("assistant", reply), ("user", then)]
    return [{"role": role, "content": content} for role, content in turns]


def test_each_side_of_a_chat_goes_on_in_its_own_words_with_the_same_dice(chats: TestClient) -> None:
    said, alone, steered = ["the sea", "and the sun", PROMPT], ["the cat", "a"], ["the sun and the sea and", "the"]
    asked = {"feature": 5, "strength": 4, "prompt": said[-1], "tokens": 6, "seed": 3, "chat": "true"}
    before = {"said": said[:-1], "alone": alone, "steered": steered}
    (run,) = chats.post(f"{STEER}.json", data={**asked, **before}).json()["runs"]
    edits, how = [Steer(SAE, 5, 4.0)], {"max_new_tokens": 6, "seed": 3}
    for name, replies in (("default", alone), ("steered", steered)):
        (expected,) = run_steer(MODEL, _went_on(said, replies), edits, **how).pairs
        assert run["pairs"][0][name]["ids"] == list(getattr(expected, name).ids)
        assert run["pairs"][0][name]["logprobs"] == pytest.approx(getattr(expected, name).logprobs, abs=1e-4)
    assert "the sun and the sea" in run["prompt"]
    assert "the cat" in run["default_prompt"]
    ended = told(chats.post(f"{STEER}/stream", data={**asked, **before}))[-1]
    assert (ended[0], ended[1]["runs"]) == ("done", [run])


def test_a_chat_goes_on_by_a_form_alone(chats: TestClient) -> None:
    asked = {"feature": "5", "prompt": "the sea", "tokens": "4", "chat": "true", "run": "true"}
    page = chats.get(STEER, params=asked).text
    assert re.search(r"<textarea[^>]*></textarea>", page)  # for what is said next
    for turn in (1, 2):
        kept = {
            name: [html.unescape(one) for one in re.findall(f'form="steering" name="{name}" value="([^"]*)"', page)]
            for name in ("said", "alone", "steered")
        }
        assert [len(one) for one in kept.values()] == [turn] * 3
        page = chats.get(STEER, params={**asked, **kept, "prompt": "and then?"}).text
    assert page.count('class="said"') == 3
    assert 'name="said"' not in chats.get(STEER, params={**asked, "chat": ""}).text


@pytest.mark.parametrize(
    ("state", "told_so"),
    [
        ({"alone": []}, "1 turns said, 0 replies alone and 1 steered"),
        ({"n": 2}, "one sample and no controls"),
        ({"noise": True}, "one sample and no controls"),
        ({"chat": ""}, "one sample and no controls"),
        ({name: ["a"] * 17 for name in ("said", "alone", "steered")}, "has length 17, expected a list of at most 16"),
    ],
)
def test_what_is_no_chat_is_one_line(chats: TestClient, state: dict[str, object], told_so: str) -> None:
    asked = {"feature": 5, "prompt": PROMPT, "chat": "true", "said": ["a"], "alone": ["b"], "steered": ["c"], **state}
    answer = chats.post(f"{STEER}.json", data=asked)
    assert answer.status_code == 400
    assert told_so in answer.json()["error"]
