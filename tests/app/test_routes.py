"""The server: what its pages and its data are, who may ask for them, and what it does with those who mean harm."""

import json
import re
import threading
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from gemscope.app.application import app
from gemscope.app.shelf import shelf
from gemscope.atlas.reader import Atlas
from gemscope.errors import InputError, NotFound
from served import AT, SAE, planted, reader

# --- pages and the data beside them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/tiny-model",
        AT,
        f"{AT}?order=max&descending=true&dead=false&text=sea&limit=5&offset=1&min_density=&max_max=1e9",
        f"{AT}/0",
        f"{AT}/6",
        f"{AT}/63?embed=true&embedplots=false&height=300",
        f"{AT}/search",
        f"{AT}/search?text=sea",
        f"{AT}/search?kind=token&text=sea",
        f"{AT}/search?kind=text&text=the+cat",
        f"{AT}/prompt",
        f"{AT}/prompt?text=the+cat&pin=3",
        f"{AT}/steer",
        f"{AT}/steer?feature=3&strength=2max&prompt=the+cat&tokens=3&run=true",
        f"{AT}/attribute",
        f"{AT}/attribute?text=the+cat",
        f"{AT}/3/output-score",
    ],
)
def test_every_page_is_there_and_so_is_its_data(live: TestClient, path: str) -> None:
    page = live.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text.startswith("<!doctype html>")
    where, _, query = path.partition("?")
    found = live.get(f"{where}.json?{query}")
    assert found.status_code == 200
    assert found.headers["content-type"] == "application/json"
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.json()


def test_a_link_on_a_page_leads_to_a_page(live: TestClient) -> None:
    seen: set[str] = set()
    waiting = ["/"]
    while waiting and len(seen) < 150:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        answer = live.get(path)
        assert answer.status_code == 200, path
        if answer.headers["content-type"].startswith("text/html"):
            links = re.findall(r'(?:href|src)="(/[^"#]*)', answer.text)
            waiting += [link.replace("&amp;", "&") for link in links]
    assert any(path.startswith("/static/") for path in seen)
    assert f"{AT}/5" in seen


def test_a_browser_finds_an_icon_beside_answers_that_name_none(live: TestClient) -> None:
    answer = live.get("/favicon.ico")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/svg+xml"
    assert answer.content == live.get("/static/gem.svg").content


def test_a_feature_s_data_is_the_dashboard_s_with_the_names_of_neuronpedia(live: TestClient, folder: Path) -> None:
    with Atlas(folder) as atlas:
        expected = json.loads(json.dumps(atlas[3].to_dict()))
    assert live.get(f"{AT}/3.json").json() == expected
    assert live.get("/api/feature/tiny-model/1-res-tiny/3").json() == expected


def test_the_table_as_data_is_what_the_atlas_lists(live: TestClient, folder: Path) -> None:
    found = live.get(f"{AT}/browse.json?order=density&descending=true&dead=false&limit=7").json()
    with Atlas(folder) as atlas:
        listed = atlas.summaries(order="density", descending=True, dead=False, limit=7)
        assert found["total"] == atlas.count(dead=False)
    assert [one["index"] for one in found["features"]] == [str(one.feature) for one in listed]
    assert [one["frac_nonzero"] for one in found["features"]] == [one.density for one in listed]
    assert found == live.get(f"{AT}.json?order=density&descending=true&dead=false&limit=7").json()


def test_a_page_that_asks_for_a_part_of_itself_gets_that(live: TestClient) -> None:
    part = {"hx-request": "true"}
    for path in (AT, f"{AT}/search?text=sea", f"{AT}/prompt?text=the+cat"):
        found = live.get(path, headers=part)
        assert found.status_code == 200
        assert found.headers["vary"] == live.get(path).headers["vary"] == "hx-request"
        assert "<html" not in found.text
    missing = live.get(f"{AT}/prompt?text=x&k=0", headers=part)
    assert missing.status_code == 400
    assert "<html" not in missing.text
    assert "from 1 to 20" in missing.text


def test_labels_are_searched_everywhere_at_once(live: TestClient) -> None:
    found = live.get("/search.json?text=sea+and").json()["features"]
    assert [one["description"] for one in found] == ["sea and words like it"]
    assert found[0]["modelId"] == "tiny-model"


# --- what is not there, and what cannot be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        f"{AT}/64",
        f"{AT}/99999999999",
        f"{AT}/{'9' * 5000}",
        f"{AT}/-1",
        f"{AT}/1.5",
        f"{AT}/1e3",
        f"{AT}/%D9%A3",
        f"{AT}/%C2%B3",
        f"{AT}/%00",
        f"{AT}/1%00",
        f"{AT}/%201",
        f"{AT}/%3Cscript%3Ealert(1)%3C%2Fscript%3E",
        "/tiny-model/none/0",
        "/none/1-res-tiny/0",
        "/none",
        "/%FF%FE",
        "/a/b/c/d/e",
        "/api/none",
        "/api/feature/tiny-model/1-res-tiny/none",
        "/static/",
        "/static/none.css",
        "/static/%2e%2e/%2e%2e/pyproject.toml",
        "/static/..%2f..%2fserver.py",
        "/static/../../../../etc/passwd",
        "/static//etc/passwd",
        "/static/%2Fetc%2Fpasswd",
        "/static/vendor/../../render.py",
        "/static/gemscope.css%00",
        "/..%2f..%2f..%2fetc%2fpasswd",
        "/tiny-model/..%2F..%2Fetc/passwd",
        "/tiny-model%2F..%2F..%2Fmanifest.json",
        "/manifest.json",
    ],
)
def test_what_is_not_there_is_404_as_a_page_and_as_data(still: TestClient, path: str) -> None:
    for accept in ("text/html", "application/json"):
        answer = still.get(path, headers={"accept": accept})
        assert answer.status_code == 404
        is_data = accept == "application/json" or path.startswith("/api/") or path.endswith(".json")
        assert answer.headers["content-type"].startswith("application/json" if is_data else "text/html")
        assert "Traceback" not in answer.text
        assert "root:" not in answer.text
        assert is_data or "<script>alert" not in answer.text
        assert answer.headers["content-security-policy"]


def test_what_is_not_there_leads_back_to_the_atlas_that_was_asked(still: TestClient) -> None:
    for path in (f"{AT}/99999", f"{AT}?limit=none"):
        page = still.get(path).text
        assert f'<a class="button" href="{AT}">Back to the features</a>' in page
        assert f'action="{AT}/search"' in page
    assert '<a class="button" href="/">Back to the atlases</a>' in still.get("/none/at-all/3").text


@pytest.mark.parametrize(
    "query",
    [
        "order=nonsense",
        "limit=0",
        "limit=100000",
        "offset=-1",
        "offset=%D9%A3",
        "min_density=nan",
        "max_max=1e999",
        "dead=maybe",
        f"text={'a' * 1001}",
    ],
)
def test_a_table_that_cannot_be_is_refused(still: TestClient, query: str) -> None:
    answer = still.get(f"{AT}.json?{query}")
    assert answer.status_code == 400
    assert "expected" in answer.json()["error"] or "at most" in answer.json()["error"]


@pytest.mark.parametrize(
    "text", ['"', "a AND (b OR", "NEAR/", "*", "\x00", "'; DROP TABLE feature; --", "٣", "\u202e", "😀"]
)
def test_any_text_can_be_searched_for(still: TestClient, text: str) -> None:
    for kind in ("label", "token", "text"):
        assert still.get(f"{AT}/search", params={"text": text, "kind": kind}).status_code == 200
    assert still.get(AT, params={"text": text}).status_code == 200


def test_methods_that_are_not_there_are_405(still: TestClient) -> None:
    for method, path in (("POST", AT), ("DELETE", f"{AT}/3"), ("GET", f"{AT}/3/test"), ("PUT", "/"), ("TRACE", "/")):
        answer = still.request(method, path)
        assert answer.status_code == 405, (method, path)
    assert still.head(f"{AT}/3").status_code == 200


def test_a_mistake_of_ours_tells_the_reader_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with reader(folder) as client:
        for thread in threading.enumerate():
            if thread.name == "gemscope-warming":  # reads the atlas as it was
                thread.join()
        (source,) = client.app.state.shelf  # type: ignore[attr-defined]
        source.atlas.close()
        source.atlas.__class__ = type("Broken", (Atlas,), {"dashboard": lambda *_, **__: 1 / 0})
        for accept in ("text/html", "application/json"):
            answer = client.get(f"{AT}/3", headers={"accept": accept})
            assert answer.status_code == 500
            assert "division" not in answer.text
            assert "Traceback" not in answer.text
            assert answer.headers["content-security-policy"]


# --- static files -------------------------------------------------------------------------------------------------------


def test_static_files_are_kept_for_ever_under_their_digest_and_asked_for_again_otherwise(still: TestClient) -> None:
    page = still.get("/").text
    place = re.search(r'href="(/static/gemscope.css\?v=[0-9a-f]+)"', page)
    assert place
    answer = still.get(place[1])
    assert "immutable" in answer.headers["cache-control"]
    plain = still.get("/static/gemscope.css")
    assert plain.content == answer.content
    assert plain.headers["cache-control"] == "no-cache"
    again = still.get("/static/gemscope.css", headers={"if-none-match": plain.headers["etag"]})
    assert again.status_code == 304
    assert not again.content
    assert "immutable" not in still.get("/static/gemscope.css?v=000000000000").headers["cache-control"]


# --- several atlases ------------------------------------------------------------------------------------------------------


def test_atlases_with_one_address_are_told_apart(tmp_path: Path) -> None:
    for name in "abc":
        planted(tmp_path / name, features=8, seed=ord(name))
    suffix = SAE.digest[:6]
    with reader(tmp_path) as client:
        found = client.get("/index.json").json()["sources"]
        names = ["1-res-tiny", f"1-res-tiny__{suffix}", f"1-res-tiny__{suffix}-2"]
        assert [one["id"] for one in found] == names
        for name in names:
            assert client.get(f"/tiny-model/{name}/3.json").json()["layer"] == name
        assert len({client.get(f"/tiny-model/{name}/3.json").json()["maxActApprox"] for name in names}) == 3


def test_a_folder_without_an_atlas_is_one_clear_line(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(NotFound, match="no atlas at"):
            app([folder])
    with pytest.raises(InputError, match="no atlas given"):
        shelf([])
