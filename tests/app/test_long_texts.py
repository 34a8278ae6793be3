"""Texts as long as the model reads: posted, with an address where they are short, shown a part at a time."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from gemscope.app import prompt
from gemscope.app.responses import SHORT
from html_tree import parse
from served import AT, MODEL, TEXT

PARTS: dict[str, str] = {"hx-request": "true"}


@pytest.mark.parametrize(
    ("path", "form", "query"),
    [
        ("prompt", {"text": TEXT, "pin": "5"}, "text=the+cat+and+the+sun&pin=5"),
        ("prompt", {"text": TEXT, "start": "0"}, "text=the+cat+and+the+sun"),
        ("attribute", {"text": TEXT, "position": "2", "target": ""}, "text=the+cat+and+the+sun&position=2"),
    ],
)
def test_what_is_posted_is_led_to_the_address_that_says_the_same(
    live: TestClient, path: str, form: dict[str, str], query: str
) -> None:
    answer = live.post(f"{AT}/{path}", data=form, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{AT}/{path}?{query}")
    assert live.post(f"{AT}/{path}", data=form).text == live.get(f"{AT}/{path}?{query}").text


def test_a_page_s_script_is_told_the_address_of_what_it_posted_on_its_own_page_alone(live: TestClient) -> None:
    told = live.post(f"{AT}/prompt", data={"text": TEXT}, headers=PARTS)
    assert told.headers["hx-push-url"] == f"{AT}/prompt?text=the+cat+and+the+sun"
    assert "<html" not in told.text
    # Causes come into the page of a prompt, whose address stays.
    assert "hx-push-url" not in live.post(f"{AT}/attribute", data={"text": TEXT}, headers=PARTS).headers
    assert "hx-push-url" not in live.get(f"{AT}/prompt", params={"text": TEXT}, headers=PARTS).headers


def test_a_text_that_is_too_long_for_an_address_is_answered_where_it_was_posted(live: TestClient) -> None:
    text = "the" + " " * SHORT + "cat"
    tokens = len(MODEL.ids(text))
    assert tokens > 128  # of this model's reading it is told how much it is, and how much it reads
    for path in ("prompt", "attribute"):
        answer = live.post(f"{AT}/{path}", data={"text": text}, follow_redirects=False)
        assert answer.status_code == 400
        assert f"a text of {tokens} tokens does not fit" in answer.text
        assert "reads up to 128" in answer.text
    pushed = live.post(f"{AT}/prompt", data={"text": text}, headers=PARTS).headers["hx-push-url"]
    assert pushed == f"{AT}/prompt"


def test_a_long_text_is_shown_a_part_at_a_time_and_read_once(live: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt, "SPAN", 4)
    text = "the sea and the sun and the cat and the river"
    whole = live.get(f"{AT}/prompt.json", params={"text": text}).json()
    (source,) = live.app.state.shelf  # type: ignore[attr-defined]
    monkeypatch.setattr("gemscope.app.reading.look", lambda *_, **__: pytest.fail("it was read again"))
    places: list[Any] = []
    for start in range(0, len(whole["tokens"]), 4):
        page = parse(live.post(f"{AT}/prompt", data={"text": text, "start": start}, headers=PARTS).text)
        rows = page.one("table", class_="look").one("tbody").all("tr")
        places += [int(row.one("button", class_="why-next").attributes["value"]) for row in rows]
        forward = [one.attributes["value"] for one in page.all("button") if one.attributes.get("form") == "parts"]
        assert str(start + 4) in forward or start + 4 >= len(whole["tokens"])
    assert places == [*range(len(whole["tokens"]))]
    assert len(source.live._looks) <= 4


def test_looks_that_are_kept_are_few(live: TestClient) -> None:
    (source,) = live.app.state.shelf  # type: ignore[attr-defined]
    texts = [f"{TEXT} {number}" for number in range(9)]
    for text in texts:
        live.get(f"{AT}/prompt", params={"text": text})
    kept = [ids for ids, _ in source.live._looks]
    assert kept == [MODEL.tokens(text).ids.numpy().tobytes() for text in texts[5:]]


def test_the_text_stands_in_a_page_a_few_times_and_not_once_for_each_token(live: TestClient) -> None:
    text = "zither and the sun " * 4
    page = live.get(f"{AT}/prompt", params={"text": text}).text
    assert page.count(text.strip()) <= 3
