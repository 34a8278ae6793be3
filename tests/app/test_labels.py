"""Labels written, found and taken away by a reader."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from atlases import HOSTILE_LABEL
from served import AT, planted, reader


def test_a_label_is_added_found_and_taken_away(tmp_path: Path) -> None:
    with reader(planted(tmp_path / "atlas")) as client:
        added = client.post(f"{AT}/5/labels", json={"text": "rivers & <b>seas</b>", "author": "me"})
        assert added.status_code == 201
        assert added.json()["description"] == "rivers & <b>seas</b>"
        assert added.json()["authorId"] == "me"
        assert client.get(f"{AT}/5.json").json()["explanations"][0] == added.json()
        assert "rivers &amp; &lt;b&gt;seas" in client.get(f"{AT}/5").text
        assert [one["index"] for one in client.get(f"{AT}/search.json?text=river").json()["features"]] == ["5"]
        gone = client.delete(f"{AT}/5/labels/{added.json()['id']}", headers={"accept": "application/json"})
        assert gone.status_code == 204
        assert client.get(f"{AT}/5.json").json()["explanations"] == []
        again = client.delete(f"{AT}/5/labels/{added.json()['id']}", headers={"accept": "application/json"})
        assert again.status_code == 404


def test_labels_can_be_added_and_taken_away_by_forms_alone(tmp_path: Path) -> None:
    with reader(planted(tmp_path / "atlas")) as client:
        page = client.get(f"{AT}/5").text
        action = re.search(r'<form class="add" method="post" action="([^"]+)"', page)
        assert action
        added = client.post(action[1], data={"text": "rivers"}, follow_redirects=False)
        assert added.status_code == 303
        assert added.headers["location"] == f"{AT}/5"
        page = client.get(f"{AT}/5").text
        assert "rivers" in page
        form = re.search(r'action="([^"]+/forget)".*?name="id" value="(\d+)"', page, re.DOTALL)
        assert form
        part = client.post(form[1], data={"id": form[2]}, headers={"hx-request": "true"})
        assert part.status_code == 200
        assert "rivers" not in part.text
        assert "<html" not in part.text


@pytest.mark.parametrize(
    "body", [{"text": ""}, {"text": "  "}, {}, {"text": 5}, {"text": "a" * 2001}, {"text": "\ud800"}, [], "text"]
)
def test_what_is_no_label_is_refused(still: TestClient, body: Any) -> None:
    answer = still.post(f"{AT}/5/labels", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"].count("\n") == 0


def test_labels_that_mean_harm_are_only_text(still: TestClient) -> None:
    pages = ("/0", "", "/search?text=alert", "/1", "/2", "/3", "/0?embed=true", "?text=alert")
    for path in pages:
        page = still.get(f"{AT}{path}").text
        assert "<script>alert" not in page
        assert "<img src=x" not in page
    assert "&lt;script&gt;alert" in still.get(f"{AT}/0").text
    data = still.get(f"{AT}/0.json")
    assert data.headers["content-type"] == "application/json"
    assert data.json()["explanations"][0]["description"] == HOSTILE_LABEL


def test_readers_see_whole_pages_while_labels_are_written(tmp_path: Path) -> None:
    with reader(planted(tmp_path / "atlas")) as client:
        writing = threading.Event()
        wrong: list[int] = []

        def write() -> None:
            for index in range(40):
                if client.post(f"{AT}/{index}/labels", json={"text": f"label {index}"}).status_code != 201:
                    wrong.append(index)
            writing.set()

        def read() -> None:
            while not writing.is_set():
                if client.get(f"{AT}/7").status_code != 200 or client.get(f"{AT}?labelled=true").status_code != 200:
                    wrong.append(-1)

        threads = [threading.Thread(target=one) for one in (write, read, read)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert not wrong
        assert client.get(f"{AT}/39.json").json()["explanations"][0]["description"] == "label 39"
