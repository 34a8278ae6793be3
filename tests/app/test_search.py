"""One box: a number, words of labels, a token or a text, and how what was typed is understood."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from gemscope.atlas.reader import Atlas
from gemscope.reports.look import look
from served import AT, MODEL, SAE, TEXT

SEARCH = f"{AT}/search"


def found(client: TestClient, text: str, **asked: Any) -> dict[str, Any]:
    answer: dict[str, Any] = client.get(f"{SEARCH}.json", params={"text": text, **asked}).json()
    return answer


@pytest.mark.parametrize("text", ["5", " 5 ", "#5", "0"])
def test_a_number_leads_to_its_feature(still: TestClient, text: str) -> None:
    number = int(text.strip(" #"))
    answer = still.get(SEARCH, params={"text": text}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{AT}/{number}")
    part = still.get(SEARCH, params={"text": text}, headers={"hx-request": "true"})
    assert part.headers["hx-redirect"] == f"{AT}/{number}"
    data = found(still, text)
    assert (data["kind"], [one["index"] for one in data["features"]]) == ("feature", [str(number)])


def test_a_number_without_a_feature_is_told_the_range(still: TestClient) -> None:
    last = SAE.d_sae - 1
    for number in (last + 1, 99_999_999_999):
        page = still.get(SEARCH, params={"text": str(number)}, follow_redirects=False)
        assert page.status_code == 200
        assert f"No feature {number}: this SAE has features 0 to {last}." in page.text
        assert found(still, str(number))["note"] == f"no feature {number}: this SAE has features 0 to {last}"
    assert still.get(SEARCH, params={"text": str(last)}, follow_redirects=False).status_code == 303
    # Where something else was asked for, a number is what that has.
    assert "No feature" not in still.get(SEARCH, params={"text": "999", "kind": "label"}).text


@pytest.mark.parametrize("text", ["-1", "1e1", "²", "٣", "9" * 400, "5 5", "1.0"])
def test_what_is_no_number_leads_nowhere(still: TestClient, text: str) -> None:
    assert still.get(SEARCH, params={"text": text}, follow_redirects=False).status_code == 200


def test_words_of_labels_come_before_a_token_and_a_token_before_a_text(live: TestClient, folder: Path) -> None:
    with Atlas(folder) as atlas:
        labelled = next(page for page in atlas if page.label and " and words like it" in page.label)
        word = labelled.label.split()[0]  # type: ignore[union-attr]
        bare = next(
            text.strip()
            for feature in range(SAE.d_sae)
            for text in atlas.strongest_on([feature]).values()
            if text.strip().isalpha() and not atlas.count(text=text.strip())
        )
        said = atlas.count(text=word)
        (id_, token, features), *_ = atlas.tokens_like(bare)
    by_label = found(live, word)
    assert by_label["kind"] == "label"
    assert by_label["total"] == said >= 1
    kinds = [one["kind"] for one in by_label["readings"]]
    assert kinds == ["label", "token", "text"]
    by_token = found(live, bare)
    assert (by_token["kind"], by_token["token"]) == ("token", id_)
    assert {"kind": "token", "features": features, "token": token} in by_token["readings"]
    assert found(live, "the cat sat on zither music")["kind"] == "text"


def test_the_other_readings_are_one_click_away(still: TestClient) -> None:
    page = still.get(SEARCH, params={"text": "sea"}).text
    assert "Understood as <b>words of labels</b>" in page
    links = re.findall(r'class="button" href="([^"]*)"', page)
    assert f"{SEARCH}?kind=token&amp;text=sea" in links
    assert f"{SEARCH}?kind=text&amp;text=sea" in links
    assert still.get(SEARCH, params={"text": "sea", "kind": "token"}).text.count("<b>a token</b>") == 1


def test_all_labels_that_say_so_are_counted_and_the_rest_is_a_page_away(still: TestClient, folder: Path) -> None:
    with Atlas(folder) as atlas:
        total = atlas.count(text="words")
        every = [one.feature for one in atlas.search("words", limit=1000)]
    assert total == len(every) > 4
    first = found(still, "words", limit=3)
    second = found(still, "words", limit=3, offset=3)
    assert first["total"] == second["total"] == total
    assert [int(one["index"]) for one in first["features"] + second["features"]] == every[:6]
    page = still.get(SEARCH, params={"text": "words", "limit": 3}).text
    assert f"{total} features with such a label" in page
    assert "offset=3" in page


def test_by_a_text_all_that_fire_are_counted_and_come_as_look_has_them(live: TestClient, folder: Path) -> None:
    seen = look(MODEL, SAE, TEXT, atlas=folder, foremost=30)
    data = found(live, TEXT, kind="text")
    assert data["fire"] == seen.firing > 30
    assert [int(one["index"]) for one in data["firing"]] == [one.feature for one in seen.foremost]
    page = live.get(SEARCH, params={"text": TEXT, "kind": "text"}).text
    assert f"{seen.firing} features fire on it" in page
    assert "the 30 that say most about it" in page


def test_what_is_posted_has_an_address_where_it_is_short(live: TestClient) -> None:
    form = {"text": "the sea", "kind": "token"}
    answer = live.post(SEARCH, data=form, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{SEARCH}?kind=token&text=the+sea")
    part = live.post(SEARCH, data=form, headers={"hx-request": "true"})
    assert part.headers["hx-push-url"] == answer.headers["location"]
    long = live.post(SEARCH, data={"text": "sea " * 100 + "é" * 900, "kind": "text"}, follow_redirects=False)
    assert long.status_code == 200  # what it is about stands in the page, too long as it is for this model
    assert "reads up to 128" in long.text
    posted = live.post(f"{SEARCH}.json", json=form)
    assert posted.json() == found(live, "the sea", kind="token")


def test_of_tokens_alike_those_are_offered_that_features_have_examples_on(still: TestClient, folder: Path) -> None:
    with Atlas(folder) as atlas:
        alike = atlas.tokens_like("su")
    fired = [id_ for id_, _, features in alike if features]
    others = len(alike) - len(fired)
    assert fired
    assert others > 1
    page = still.get(SEARCH, params={"text": "su", "kind": "token"}).text
    assert [int(one) for one in re.findall(r"&amp;token=(\d+)\"", page)] == fired
    assert f"{others} more tokens like it have no feature's examples." in page
    bare = next(id_ for id_, _, features in alike if not features)
    chosen = still.get(SEARCH, params={"text": "su", "kind": "token", "token": str(bare)}).text
    assert f'token={bare}" aria-current="true"' in chosen
