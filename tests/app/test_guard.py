"""Who may ask, and what may not be sent."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from atlases import planted_atlas
from gemscope.app.application import app
from gemscope.app.guard import Guard
from gemscope.errors import InputError
from served import AT, BASE, planted, reader


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8400", 200),
        ("localhost:8400", 200),
        ("LOCALHOST", 200),
        ("[::1]:8400", 200),
        ("localhost:9000", 200),  # the other end of a tunnel
        ("evil.example", 421),
        ("evil.example:8400", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:8400", 421),
        ("evil.example#localhost", 421),
        ("10.0.0.1:8400", 421),
        ("0.0.0.0:8400", 421),
        ("localhost@evil.example", 400),
        ("evil.example/localhost", 400),
        ("localhost:8400:80", 400),
        ("localhost:port", 400),
        ("", 400),
        ("local host", 400),
    ],
)
def test_only_who_calls_the_server_by_its_name_is_answered(still: TestClient, host: str, status: int) -> None:
    for path in ("/", f"{AT}/3", "/static/gemscope.css", "/health"):
        assert still.get(path, headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"origin": BASE}, 201),
        ({"origin": BASE, "sec-fetch-site": "same-origin"}, 201),
        ({"sec-fetch-site": "none"}, 201),
        ({"origin": "null"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "http://localhost:8400"}, 403),
        ({"origin": "https://127.0.0.1:8400"}, 201),  # a tunnel that speaks https
        ({"origin": "https://127.0.0.1"}, 403),
        ({"origin": BASE, "sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "nonsense"}, 403),
        ({"origin": BASE, "sec-fetch-site": ""}, 403),
    ],
)
def test_other_sites_pages_cannot_post(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    with reader(planted(tmp_path / "atlas", features=8)) as client:
        for path in (f"{AT}/3/labels", f"{AT}/3/explain"):
            answer = client.post(path, json={"text": "hello"}, headers=headers)
            assert answer.status_code == status
        explanations = client.get(f"{AT}/3.json").json()["explanations"]
        assert ("hello" in [one["description"] for one in explanations]) == (status == 201)


def test_other_sites_may_link_and_frame_but_not_load(still: TestClient) -> None:
    cross = {"sec-fetch-site": "cross-site"}
    link = {**cross, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert still.get(f"{AT}/3", headers=link).status_code == 200
    assert still.get(f"{AT}/3?embed=true", headers={**link, "sec-fetch-dest": "iframe"}).status_code == 200
    for mode, dest in (("no-cors", "image"), ("cors", "empty"), ("no-cors", "script"), ("navigate", "object")):
        headers = {**cross, "sec-fetch-mode": mode, "sec-fetch-dest": dest}
        assert still.get(f"{AT}/3.json", headers=headers).status_code == 403


def test_the_policy_forbids_all_that_comes_from_elsewhere(still: TestClient) -> None:
    paths = ("/", AT, f"{AT}/3", f"{AT}/3.json", f"{AT}/prompt", "/none", "/static/gemscope.css", "/health")
    for path in paths:
        headers = still.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'self'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "frame-ancestors *" in still.get(f"{AT}/3?embed=true").headers["content-security-policy"]
    for query in ("embed=1", "embed=True", "embed=false", "embed"):
        assert "frame-ancestors 'self'" in still.get(f"{AT}/3?{query}").headers["content-security-policy"]
    assert "frame-ancestors 'self'" in still.get(f"{AT}?embed=true").headers["content-security-policy"]


def test_no_page_has_scripts_or_styles_of_its_own(live: TestClient) -> None:
    acting = (f"{AT}/steer?feature=3&prompt=a&tokens=2&run=true", f"{AT}/attribute?text=cat", f"{AT}/3/output-score")
    reading = ("/", AT, f"{AT}/0", f"{AT}/0?embed=true", f"{AT}/search?text=sea", f"{AT}/prompt?text=cat", "/none")
    for path in (*reading, *acting):
        page = live.get(path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)", page)
        assert "<style" not in page
        assert not re.search(r"<[^>]*\s(style|on\w+)=", page)
        assert not re.search(r'(?:src|href)="(?:https?:)?//', page)


def test_a_request_that_is_too_long_is_refused_whatever_it_says_of_its_length(still: TestClient) -> None:
    path, kind = f"{AT}/3/labels", {"content-type": "application/json"}
    long = b'{"text": "' + b"a" * 4_000_000 + b'"}'
    assert still.post(path, content=long, headers=kind).status_code == 413
    pieces = still.post(
        path, content=(long[start : start + 50_000] for start in range(0, len(long), 50_000)), headers=kind
    )
    assert pieces.status_code == 413
    assert "4,000,000 bytes" in pieces.json()["error"]
    for length in ("-1", "1e3", "٣", "9" * 30):
        answer = still.post(path, content=b"{}", headers={**kind, "content-length": length.encode()})
        assert answer.status_code in (400, 413)


def test_a_request_that_stops_half_way_is_given_up() -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        with pytest.raises(HTTPException, match="did not arrive in time") as raised:
            await receive()
        assert raised.value.status_code == 408
        await PlainTextResponse("late")(scope, receive, send)

    pieces = [{"type": "http.request", "body": b"a", "more_body": True}]

    async def receive() -> Any:
        return pieces.pop() if pieces else await asyncio.sleep(60)

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
    asyncio.run(Guard(inner, seconds=0.05)(scope, receive, send))
    assert sent[-1]["body"] == b"late"


def test_a_text_of_more_letters_than_any_model_reads_is_refused(live: TestClient) -> None:
    answer = live.post(f"{AT}/3/test", json={"text": "a" * 1_000_001})
    assert answer.status_code == 400
    assert (
        answer.json()["error"]
        == 'the request: field "text" has length 1,000,001, expected text of 1 to 1,000,000 characters'
    )
    fewer = live.post(f"{AT}/3/test", json={"text": "a" * 100_000})
    assert (fewer.status_code, "a text of 100000 tokens does not fit" in fewer.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"text": ' + b"9" * 10_000 + b"}", "application/json", 400),
        (b"text=%FF%FE&a", "application/x-www-form-urlencoded", 503),  # text: two signs of replacement
        (b"\xff=\xfe", "application/x-www-form-urlencoded", 400),
        (b"&".join(b"a%d=1" % n for n in range(200)), "application/x-www-form-urlencoded", 400),
        (b"text=a", "text/plain", 415),
        (b"--x\r\n", "multipart/form-data; boundary=x", 415),
        (b"text=a", "", 415),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(still: TestClient, content: bytes, kind: str, status: int) -> None:
    answer = still.post(f"{AT}/3/test", content=content, headers={"content-type": kind})
    assert answer.status_code == status


def test_names_of_atlases_that_can_be_no_address_are_refused(tmp_path: Path) -> None:
    for number, names in enumerate(
        (
            {"model_id": "../etc"},
            {"model_id": "api"},
            {"source_id": "a/b"},
            {"source_id": ""},
            {"source_id": "search"},
            {"model_id": "a.json"},
        )
    ):
        planted_atlas(tmp_path / str(number), features=4, **names).close()
        with pytest.raises(InputError, match="cannot be part of an address"):
            app([tmp_path / str(number)])


TOKEN = "a secret=of&mine"


@pytest.fixture(scope="module")
def locked(folder: Path) -> Iterator[TestClient]:
    with reader(folder, token=TOKEN, hosts=None) as client:
        yield client


def test_with_a_token_every_request_needs_it(locked: TestClient) -> None:
    locked.cookies.clear()
    for path in ("/", f"{AT}/3", f"{AT}/3.json", "/static/gemscope.css", "/health", "/none", f"{AT}/3?token=wrong"):
        answer = locked.get(path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["content-security-policy"]
    assert locked.post(f"{AT}/3/labels?token={TOKEN}", json={"text": "a"}).status_code == 401
    for headers in (
        {"authorization": f"Bearer {TOKEN}"},
        {"authorization": f"bearer  {TOKEN}"},
        {"x-api-key": TOKEN},
    ):
        assert locked.get(f"{AT}/3", headers=headers).status_code == 200
    for headers in (
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer"},
        {"x-api-key": TOKEN[:-1]},
        {"x-api-key": "é".encode()},
        {"cookie": f"gemscope-8400={TOKEN}"},
        {"cookie": "gemscope-8400=; \x01="},
    ):
        assert locked.get(f"{AT}/3", headers=headers).status_code == 401  # type: ignore[arg-type]


def test_odd_cookies_of_other_servers_on_this_machine_lock_nobody_out(locked: TestClient) -> None:
    """A browser sends them along: cookies do not know ports."""
    locked.cookies.clear()
    found = locked.get(f"{AT}/3", params={"token": TOKEN}, follow_redirects=False)
    ours = found.headers["set-cookie"].partition(";")[0]
    for odd in ('settings={"theme": "dark"}', "a[b]=c", "a b=1", "caf\xe9=1", "=", "x"):
        locked.cookies.clear()
        answer = locked.get(f"{AT}/3", headers={"cookie": f"{odd}; {ours}".encode("latin-1")})  # type: ignore[dict-item]
        assert answer.status_code == 200, odd


def test_a_link_with_the_token_lets_a_browser_in_and_does_not_stay_in_the_address(locked: TestClient) -> None:
    locked.cookies.clear()
    answer = locked.get(f"{AT}/3", params={"token": TOKEN, "embed": "true", "x": "é&"}, follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == f"{AT}/3?embed=true&x=%C3%A9%26"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert locked.get(answer.headers["location"]).status_code == 200
    assert locked.get("/static/gemscope.css").status_code == 200
    locked.cookies.clear()


def test_a_link_with_the_token_leads_nowhere_else(locked: TestClient) -> None:
    for path in ("//evil.example/a", "/%5Cevil.example", "///evil.example"):
        answer = locked.get(f"{BASE}{path}", params={"token": TOKEN}, follow_redirects=False)
        place = answer.headers["location"]
        assert place.startswith("/")
        assert not place.startswith(("//", "/\\"))
    locked.cookies.clear()


def test_who_follows_a_link_from_elsewhere_gets_in_too(locked: TestClient) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    answer = locked.get(f"{AT}/3", params={"token": TOKEN, "x": '"><script>'}, headers=headers)
    assert answer.status_code == 200
    assert f'content="0; url={AT}/3?x=' in answer.text
    assert "<script>" not in answer.text
    assert TOKEN not in answer.text
    locked.cookies.clear()


def test_any_name_without_a_token_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="token"):
        app([folder], hosts=None)
