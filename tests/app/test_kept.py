"""Lists of one's own in the browser: by forms alone and as data, and nobody else's page may write them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from gemscope.app.application import app
from gemscope.atlas.notes.kept import Kept
from gemscope.atlas.notes.lists import Lists
from html_tree import Element, parse
from served import AT, BASE, HOSTILE, as_json, here, planted

TINY = "tiny-model@1-res-tiny"


@pytest.fixture
def lists(tmp_path: Path) -> Lists:
    return Lists(tmp_path / "lists")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("two")
    return [planted(folder / "a"), planted(folder / "b", source_id="2-res-tiny", seed=1)]


@pytest.fixture
def client(two: list[Path], lists: Lists) -> Iterator[TestClient]:
    made = app(two, lists=lists)
    with TestClient(made, base_url=BASE, raise_server_exceptions=False) as client:
        yield client
    made.state.shelf.close()


def entries_of(page: str) -> list[Element]:
    return [one for one in parse(page).all("li") if "data-feature" in one.attributes]


def test_a_feature_is_kept_annotated_moved_and_shared_by_forms_alone(client: TestClient, lists: Lists) -> None:
    form = parse(client.get(f"{AT}/3").text).one("form", action="/lists/keep")
    hidden = {one.attributes["name"]: one.attributes["value"] for one in form.all("input", type="hidden")}
    assert hidden == {"feature": f"{TINY}:3"}
    for index in (3, 5, 9):
        asked = {**hidden, "feature": f"{TINY}:{index}", "list": "Seas & <rivers>", "note": f"note {index}"}
        kept = client.post("/lists/keep", data=asked, follow_redirects=False)
        assert (kept.status_code, kept.headers["location"]) == (303, f"{AT}/{index}")
    assert ">Seas &amp; &lt;rivers&gt;<" in client.get(f"{AT}/3").text
    at = client.get("/lists.json").json()["lists"][0]["url"]
    assert at == "/lists/seas-rivers"

    entries = entries_of(client.get(at).text)
    assert [one.attributes["data-feature"] for one in entries] == [f"{TINY}:{index}" for index in (3, 5, 9)]
    down = entries[0].one("button", **{"data-by": "1"}).attributes
    moved = client.post(
        f"{at}/move", data={"feature": f"{TINY}:3", down["name"]: down["value"]}, follow_redirects=False
    )
    assert (moved.status_code, moved.headers["location"]) == (303, f"{at}#entry-2")
    assert [one.index for one in lists["seas-rivers"]] == [5, 3, 9]
    last = entries_of(client.get(at).text)[1].one("button", **{"data-by": "1"}).attributes
    client.post(f"{at}/move", data={"feature": f"{TINY}:3", "before": last["value"]})
    assert [one.index for one in lists["seas-rivers"]] == [5, 9, 3]

    note = parse(client.get(at).text).all("form", action=f"{at}/note")[0]
    was = {one.attributes["name"]: one.attributes["value"] for one in note.all("input", type="hidden")}
    client.post(f"{at}/note", data={**was, "note": "one\r\ntwo"})
    assert lists["seas-rivers"].features[0].note == "one\ntwo"
    client.post(f"{at}/remove", data={"feature": f"{TINY}:9"})
    assert [one.index for one in lists["seas-rivers"]] == [5, 3]
    client.post(f"{at}/head", data={"name": "Waters", "description": "salt\r\nand sweet"})
    assert (lists["waters"].about, lists["waters"].id) == ("salt\nand sweet", "seas-rivers")

    gone = client.post(f"{at}/delete", follow_redirects=False)
    assert (gone.status_code, gone.headers["location"]) == (303, "/lists")
    assert list(lists) == []
    assert client.get(at).status_code == 404


@pytest.mark.parametrize(
    "path", [AT, f"{AT}/search?text=words", f"{AT}/search?kind=token&text=su", f"{AT}?limit=5&order=max"]
)
def test_several_features_are_chosen_in_a_list_of_them_and_kept_at_once(
    client: TestClient, lists: Lists, path: str
) -> None:
    lists.add("Seas", Kept(model="tiny-model", source="1-res-tiny", index=0))
    page = parse(client.get(path).text)
    boxes = page.all("input", type="checkbox", name="feature")
    form = page.one("form", id="keeping")
    assert boxes
    assert all(box.attributes["form"] == "keeping" for box in boxes)
    assert form.attributes["method"] == "post"
    hidden = {one.attributes["name"]: one.attributes["value"] for one in form.all("input", type="hidden")}
    into = form.one("input", name="list").attributes["value"]
    assert into == "Seas"  # the only one that there is
    chosen = [box.attributes["value"] for box in boxes[:2]]
    answer = client.post(
        form.attributes["action"], data={**hidden, "list": into, "feature": chosen}, follow_redirects=False
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/lists/seas")
    assert {one.address for one in lists["seas"]} == {f"{TINY}:0", *chosen}
    # One alone leads to the list, too, and a script gets a sentence.
    again = {**hidden, "list": "Others <b>", "feature": chosen[:1]}
    assert client.post("/lists/keep", data=again, follow_redirects=False).headers["location"] == "/lists/others-b"
    part = client.post("/lists/keep", data=again, headers={"hx-request": "true"}).text
    assert part.strip() == '1 feature is in <a href="/lists/others-b">Others &lt;b&gt;</a>.'
    refused = client.post("/lists/keep", data={**hidden, "list": into}, headers={"hx-request": "true"})
    assert (refused.status_code, "name at least one to keep" in refused.text) == (400, True)


def test_programs_do_the_same_with_json(client: TestClient, lists: Lists) -> None:
    made = client.post("/lists/new", json={"name": "Seas", "description": "salt"})
    assert made.status_code == 201
    assert made.json() == {
        "format": 1,
        "name": "Seas",
        "description": "salt",
        "features": [],
        "id": "seas",
        "url": "/lists/seas",
    }
    kept = client.post(
        "/lists/keep", json={"feature": [f"{TINY}:3", "tiny-model@2-res-tiny:4"], "list": "seas", "note": "both"}
    )
    assert kept.status_code == 201
    assert [one["layer"] for one in kept.json()["features"]] == ["1-res-tiny", "2-res-tiny"]
    assert kept.json()["features"][0]["label"] == client.get(f"{AT}/3.json").json()["explanations"][0]["description"]
    moved = client.post("/lists/seas/move", json={"feature": f"{TINY}:3", "before": ""})
    assert [one["index"] for one in moved.json()["features"]] == [4, 3]
    assert (
        client.post("/lists/seas/note", json={"feature": f"{TINY}:3", "note": "one", "was": "both"}).status_code == 200
    )
    clash = client.post("/lists/seas/note", json={"feature": f"{TINY}:3", "note": "two", "was": "both"})
    assert clash.status_code == 409
    assert "'one'" in clash.json()["error"]
    exported = client.get("/lists/seas.json")
    assert exported.json()["features"] == as_json(lists["seas"].to_dict())["features"]
    taken = client.post("/lists/import", json={"text": exported.text, "name": "Again"})
    assert taken.status_code == 201
    assert taken.json()["features"] == exported.json()["features"]
    assert {one["name"] for one in client.get("/lists.json").json()["lists"]} == {"Seas", "Again"}
    assert client.post("/lists/again/delete", json={}).status_code == 204
    assert client.post("/lists/again/delete", json={}).status_code == 404


def test_a_note_changed_in_another_window_is_not_written_over_and_what_was_typed_is_given_back(
    client: TestClient, lists: Lists
) -> None:
    lists.add("seas", Kept(model="tiny-model", source="1-res-tiny", index=3))
    asked = {"feature": f"{TINY}:3", "was": ""}
    assert client.post("/lists/seas/note", data={**asked, "note": "first window"}).status_code == 200
    page = client.post("/lists/seas/note", data={**asked, "note": "second <window>"})
    assert page.status_code == 409
    assert lists["seas"].features[0].note == "first window"
    form = parse(page.text).one("form", action="/lists/seas/note")
    assert form.one("textarea").text == "second <window>"
    assert form.one("input", name="was").attributes["value"] == "first window"
    again = {one.attributes["name"]: one.attributes["value"] for one in form.all("input", type="hidden")}
    client.post("/lists/seas/note", data={**again, "note": form.one("textarea").text})
    assert lists["seas"].features[0].note == "second <window>"


def test_two_windows_that_put_different_features_in_lose_neither(client: TestClient, lists: Lists) -> None:
    before = client.get("/lists").text  # both windows have seen no list
    assert "No list yet" in before
    for index in (3, 4):
        client.post("/lists/keep", data={"feature": f"{TINY}:{index}", "list": "seas"})
    client.post("/lists/seas/move", data={"feature": f"{TINY}:4", "before": f"{TINY}:3"})
    client.post("/lists/keep", data={"feature": f"{TINY}:5", "list": "seas"})  # by a window that saw the old order
    assert [one.index for one in lists["seas"]] == [4, 3, 5]


def test_a_list_shows_labels_as_they_are_now_and_says_what_they_were(client: TestClient, lists: Lists) -> None:
    lists.add(
        "seas",
        Kept(model="tiny-model", source="1-res-tiny", index=3, label="once said"),
        Kept(model="tiny-model", source="1-res-tiny", index=4000, label="beyond"),
        Kept(model="elsewhere", source="5-res", index=7, label="of <another> atlas"),
    )
    first, beyond, other = entries_of(client.get("/lists/seas").text)
    now = client.get(f"{AT}/3.json").json()["explanations"][0]["description"]
    assert first.one("p", class_="name").one("a").attributes["href"] == f"{AT}/3"
    assert now in first.text
    assert "when kept: “once said”" in first.text
    for entry, label in ((beyond, "beyond"), (other, "of <another> atlas")):
        assert entry.one("p", class_="name").text.strip() == label
        assert not entry.one("p", class_="name").all("a")
        assert "not served here" in entry.text


def test_a_shared_list_is_one_file_with_the_pages_of_its_features(client: TestClient, lists: Lists) -> None:
    lists.add(
        HOSTILE[:100],
        Kept(model="tiny-model", source="1-res-tiny", index=3),
        Kept(model="tiny-model", source="2-res-tiny", index=3, note="one\ntwo <b>"),
        Kept(model="elsewhere", source="5-res", index=7, label="of <another> atlas"),
    )
    id_ = next(iter(lists)).id
    answer = client.get(f"/lists/{id_}.html")
    assert answer.headers["content-disposition"] == f'attachment; filename="{id_}.html"'
    page = parse(answer.text)
    ids = [one.attributes["id"] for one in page if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    targets = [one.attributes["href"] for one in page.all("a", class_="number")]
    assert targets == ["#feature-3", "#feature-1-3"]
    assert {target[1:] for target in targets} <= set(ids)
    assert len(page.all("article")) == 2
    assert "two <b>" in page.one("ol", class_="found").text
    assert "of <another> atlas" in page.text
    assert "<script>alert" not in answer.text
    assert "http" not in re.sub(r"http-equiv|https?://arxiv[^ ]*", "", answer.text.split("</head>")[1])


def test_what_no_list_takes_is_one_line(client: TestClient, lists: Lists) -> None:
    lists.add("seas", Kept(model="tiny-model", source="1-res-tiny", index=3))
    before = lists["seas"]
    for path, said, status in (
        ("keep", {"feature": f"{TINY}:4000"}, 404),
        ("keep", {"feature": "nobody@here:1"}, 404),
        ("keep", {"feature": "what"}, 400),
        ("keep", {"list": "seas"}, 400),
        ("keep", {"feature": f"{TINY}:4", "list": "x" * 201}, 400),
        ("keep", {"feature": f"{TINY}:4", "note": "x" * 10_001}, 400),
        ("new", {"name": " "}, 400),
        ("new", {"name": "SEAS"}, 400),
        ("import", {"text": "{"}, 400),
        ("import", {"text": "[]"}, 400),
        ("none/move", {"feature": f"{TINY}:3"}, 404),
        ("seas/move", {"feature": f"{TINY}:4"}, 404),
        ("seas/move", {"feature": f"{TINY}:3", "before": f"{TINY}:9"}, 404),
        ("seas/note", {"feature": f"{TINY}:9", "note": "x"}, 404),
        ("seas/remove", {"list": "seas"}, 400),
        ("..%2Fseas/remove", {"feature": f"{TINY}:3"}, 404),
    ):
        answer = client.post(f"/lists/{path}", data=said, headers={"accept": "application/json"})
        assert answer.status_code == status, (path, said, answer.text)
        assert "\n" not in answer.json()["error"]
    assert list(lists) == [before]


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
    ],
)
def test_another_sites_page_writes_no_list(client: TestClient, lists: Lists, headers: dict[str, str]) -> None:
    lists.add("seas", Kept(model="tiny-model", source="1-res-tiny", index=3))
    before = (lists.folder / "seas.json").read_bytes()
    for path in ("keep", "new", "import", "seas/head", "seas/move", "seas/note", "seas/remove", "seas/delete"):
        asked = {"feature": f"{TINY}:3", "name": "x", "text": "[]"}
        assert client.post(f"/lists/{path}", data=asked, headers=headers).status_code == 403
        assert client.get(f"/lists/{path}", params=asked).status_code in (404, 405)
    assert (lists.folder / "seas.json").read_bytes() == before
    assert [path.name for path in lists.folder.iterdir()] == ["seas.json"]


def test_names_and_notes_that_mean_harm_are_only_text(client: TestClient, lists: Lists) -> None:
    lists.add(HOSTILE[:100], Kept(model="tiny-model", source="1-res-tiny", index=3, note=HOSTILE, label=HOSTILE))
    lists.edit(HOSTILE[:100], about=HOSTILE)
    id_ = next(iter(lists)).id
    for path in ("/lists", f"/lists/{id_}", f"{AT}/3", f"/lists/{id_}.html"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "<script>alert" not in answer.text
        assert "alert(1)" in answer.text, path
    data: Any = client.get(f"/lists/{id_}.json")
    assert data.headers["content-type"] == "application/json"
    assert data.json()["features"][0]["description"] == HOSTILE
    assert json.loads((lists.folder / f"{id_}.json").read_text())["name"] == HOSTILE[:100].strip()


def test_a_frame_and_a_dead_feature_and_a_broken_list_do_no_harm(client: TestClient, lists: Lists) -> None:
    assert "/lists/keep" not in client.get(f"{AT}/3?embed=true").text
    assert client.post("/lists/keep", data={"feature": f"{TINY}:6"}).status_code == 200
    assert [one.index for one in lists["bookmarks"]] == [6]
    (lists.folder / "broken.json").write_text("{")
    assert client.get(f"{AT}/6").status_code == 200
    page = client.get("/lists").text
    assert "broken.json is not JSON" in page
    assert "Bookmarks" in page
    assert client.get("/lists/broken", headers={"accept": "application/json"}).status_code == 500


def test_a_list_of_two_or_three_is_there_to_steer_with(two: list[Path], lists: Lists) -> None:
    made = app(two, lists=lists, models=here)
    with TestClient(made, base_url=BASE, raise_server_exceptions=False) as client:
        for name, features in (("two seas", (3, 5)), ("one", (7,)), ("four", (1, 2, 3, 4))):
            asked = {"list": name, "feature": [f"{TINY}:{index}" for index in features]}
            assert client.post("/lists/keep", data=asked, follow_redirects=False).status_code == 303
        page = parse(client.get(f"{AT}/steer?chat=true&prompt=hello").text)
        urls = {
            one.text.split("  ")[0]: one.attributes["href"]
            for one in page.one("section", **{"class": "presets"}).all("a")
        }
        found = next(url for name, url in urls.items() if name.startswith("two seas"))
        assert not any(name.startswith(("one", "four")) for name in urls)
        state = client.get(found.replace("/steer?", "/steer.json?")).json()
        assert [(one["index"], one["strength"]) for one in state["features"]] == [("3", "0.25norm"), ("5", "0.25norm")]
        assert (state["chat"], state["prompt"]) == (True, "hello")
        assert "presets" not in client.get(found).text  # features are chosen
    made.state.shelf.close()
