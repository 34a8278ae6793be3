"""Nobody sets the model to work but a person on a page of ours, or a program."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from starlette.testclient import TestClient

from served import ASKED, AT, BASE, BODY, LINKED, STEER, here, reader

QUERY = urlencode(ASKED, doseq=True)

COSTLY = (
    f"{STEER}/stream?{QUERY}",
    f"{STEER}/units.json?feature=5",
    f"{STEER}.json?run=true&{QUERY}",
    f"{AT}/attribute.json?text=the+cat",
    f"{AT}/prompt.json?text=the+cat",
    "/tiny-model/prompt.json?text=the+cat",
    f"{AT}/search.json?kind=text&text=the+cat",
    f"{AT}/5/output-score.json",
)
"""Data that takes work."""

COSTLY_PAGES = {
    f"{STEER}?run=true&{QUERY}": "Press Generate",
    f"{AT}/attribute?text=the+cat&position=1&target=a": "Press Explain",
    f"{AT}/prompt?text=the+cat&pin=5": "Press Look",
    "/tiny-model/prompt?text=the+cat": "Press Look",
    f"{AT}/search?kind=text&text=the+cat": "Press Search",
    f"{AT}/5/output-score": "Measure it",
    f"{AT}/5?embed=true&defaulttesttext=the+cat": ">the cat</textarea>",
    f"{AT}/5?embed=true&embedtestfield=false&defaulttesttext=the+cat": ">the cat</p>",
    f"{AT}/5?defaulttesttext=the+cat": ">the cat</textarea>",
}
"""Pages that show what their address carries, and do it when their reader says so."""

BROWSER = {"user-agent": "Mozilla/5.0 (X11; Linux x86_64)"}

OURS = {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors", "referer": f"{BASE}{STEER}"}


@pytest.fixture
def idle(live: TestClient) -> Iterator[TestClient]:
    """The same, and nobody may be given work."""
    with pytest.MonkeyPatch.context() as patch:
        worker = live.app.state.worker  # type: ignore[attr-defined]
        patch.setattr(worker, "submit", lambda *_, **__: pytest.fail("the model was asked"))
        live.app.state.shelf.get("tiny-model", "1-res-tiny").scores.clear()  # type: ignore[attr-defined]
        yield live


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"},
    ],
)
def test_what_other_sites_pages_fetch_is_refused(idle: TestClient, headers: dict[str, str]) -> None:
    for path in (*COSTLY, *COSTLY_PAGES):
        assert idle.get(path, headers=headers).status_code == 403, path
    for path, body in (("/api/steer", BODY), (f"{STEER}.json", ASKED)):
        assert idle.post(path, json=body, headers=headers).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        LINKED,
        {**LINKED, "sec-fetch-dest": "iframe"},
        {**LINKED, "sec-fetch-site": "same-site"},
        {**LINKED, "sec-fetch-site": "none"},  # typed, a bookmark, a link in a letter
        {**OURS, "sec-purpose": "prefetch;prerender"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"referer": "http://evil.example/page"},
        {"referer": "http://127.0.0.1:9999/page"},
        BROWSER,  # that does not say where it comes from
    ],
)
def test_an_address_alone_sets_no_model_to_work(idle: TestClient, headers: dict[str, str]) -> None:
    for path in COSTLY:
        answer = idle.get(path, headers={**headers, "accept": "application/json"})
        assert answer.status_code == 403, path
        assert "press the button" in answer.json()["error"]
    for path, shown in COSTLY_PAGES.items():
        answer = idle.get(path, headers=headers)
        assert answer.status_code == 200, path
        assert shown in answer.text, path


def test_what_an_address_carries_is_filled_in(idle: TestClient) -> None:
    def field(path: str, name: str, headers: dict[str, str]) -> list[str]:
        return re.findall(rf'name="{name}" value="([^"]*)"', idle.get(path, headers=headers).text)

    assert field(f"{AT}/prompt?text=the+cat&pin=5", "pin", LINKED) == ["5"]
    causes = f"{AT}/attribute?text=the+cat&position=1&target=a&k=3"
    assert [field(causes, name, LINKED) for name in ("position", "target", "k")] == [["1"], ["a"], ["3"]]


@pytest.mark.parametrize(
    "headers",
    [
        {},  # a program
        OURS,
        {**OURS, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
        {**BROWSER, "referer": f"{BASE}{STEER}"},  # a browser over plain HTTP
        {**BROWSER, "origin": BASE},
    ],
)
def test_our_own_pages_and_programs_can(live: TestClient, headers: dict[str, str]) -> None:
    for path in (*COSTLY, *COSTLY_PAGES):
        assert live.get(path, headers=headers).status_code == 200, path
    assert live.get(COSTLY[2], headers={**headers, "accept": "application/json"}).json()["runs"]
    assert "<table" in live.get(f"{AT}/prompt?text=the+cat", headers=headers).text


def test_a_form_in_a_frame_that_no_script_takes_over_leads_to_a_page_of_ours_and_writes_nothing(
    live: TestClient,
) -> None:
    frame = live.get(f"{AT}/5?embed=true&embedsteer=true&defaulttesttext=the+cat").text
    forms = re.findall(r"<form[^>]*>", frame)
    assert len(forms) == 2
    assert all('target="_blank"' in form and "action=" in form for form in forms)
    assert 'name="run"' not in frame
    assert 'name="run"' in live.get(f"{AT}/5").text
    assert ">the cat</textarea>" in live.get(f"{AT}/5?text=the+cat").text


def test_only_who_calls_the_server_by_its_name_and_brings_its_token_gets_a_text(folder: Path) -> None:
    with reader(folder, models=here, token="sesame") as client:
        assert client.get(f"{STEER}/stream", params=ASKED).status_code == 401
        assert client.post("/api/steer", json=BODY).status_code == 401
        bearer = {"authorization": "Bearer sesame"}
        assert client.get(f"{STEER}/stream", params=ASKED, headers=bearer).status_code == 200
        assert (
            client.get(f"{STEER}/stream", params=ASKED, headers={**bearer, "host": "evil.example"}).status_code == 421
        )
