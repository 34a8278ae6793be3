"""Texts read and replied to as turns of a chat."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from served import AT, MODEL, PROMPT, STEER, TEXT, told

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
