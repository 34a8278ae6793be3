"""The map of all features, as a page and as data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

import gemscope as gs
from atlases import HOSTILE_LABEL
from gemscope.app.application import app
from gemscope.atlas.files.manifest import Mapped
from gemscope.atlas.notes.kept import Kept
from gemscope.atlas.notes.lists import Lists
from gemscope.pages.charts.plane import TILES, encoded, regions, tiles
from gemscope.pages.labels import said
from html_tree import parse
from served import AT, BASE, HOSTILE, planted

PLACES = np.random.default_rng(0).integers(0, 65536, (40, 2)).astype(np.uint16)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("mapped")
    with gs.Atlas(planted(folder / "a", features=40)) as atlas:
        atlas.put_places(PLACES, Mapped(method="made <up>", kept=0.25))
    planted(folder / "b", features=40, source_id="2-res-tiny")
    lists = Lists(folder / "lists")
    lists.add("Kin & <kind>", *(Kept(model="tiny-model", source="1-res-tiny", index=index) for index in (3, 9, 4000)))
    lists.add("Elsewhere", Kept(model="m", source="s", index=3))
    made = app([folder / "a", folder / "b"], lists=lists)
    with TestClient(made, base_url=BASE, raise_server_exceptions=False) as client:
        yield client
    made.state.shelf.close()


def test_the_page_reads_without_a_script(client: TestClient) -> None:
    page = parse(client.get(f"{AT}/map").text)
    drawing = page.one("svg", class_="plane")
    assert sum(path.attributes["d"].count("M") for path in drawing.all("path")) >= 30
    regions = page.one("details", class_="regions").all("a")
    assert regions
    assert all(one.attributes["href"].startswith(f"{AT}/") for one in regions)
    assert "25 %" in page.one("p", class_="lede").text
    assert {one.attributes["value"] for one in page.one("select").all("option")} == {"", "kin-kind", "elsewhere"}


def test_its_points_are_eight_bytes_a_feature(client: TestClient) -> None:
    element = parse(client.get(f"{AT}/map").text).one("feature-map")
    answer = client.get(element.attributes["data-points"])
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert len(answer.content) == 8 * 40
    columns = np.frombuffer(answer.content[:160], "<u2").reshape(2, 40)
    assert (columns.T == PLACES).all()
    steps = np.frombuffer(answer.content[160:], np.uint8).reshape(4, 40)
    features = client.get(f"{AT}.json?limit=40").json()["features"]
    assert (steps[0] > 0).tolist() == [one["frac_nonzero"] > 0 for one in features]
    order = np.argsort([one["frac_nonzero"] for one in features], kind="stable")
    assert (np.diff(steps[0][order].astype(int)) >= 0).all()
    assert (steps[2] > 0).tolist() == [one["description"] is not None for one in features]
    assert client.get(f"{AT}/map/points").headers["cache-control"] == "no-cache, private"


def test_labels_come_a_tile_at_a_time(client: TestClient) -> None:
    element = parse(client.get(f"{AT}/map").text).one("feature-map")
    url = element.attributes["data-tiles"]
    found: dict[str, str] = {}
    for tile in range(TILES**2):
        answer = client.get(url.replace("/0.json", f"/{tile}.json"))
        assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
        for index, label in answer.json()["labels"].items():
            x, y = PLACES[int(index)].tolist()
            assert tile == y // 4096 * 16 + x // 4096
            found[index] = label
    features = client.get(f"{AT}.json?limit=40").json()["features"]
    assert found == {one["index"]: said(one["description"]) for one in features if one["description"]}
    assert client.get(url.replace("/0.json", "/256.json")).status_code == 404


@pytest.mark.parametrize(
    ("query", "lit", "said"),
    [
        ("list=kin-kind", "3 9", "2 features of the list Kin & <kind>"),
        ("feature=12", "12", ""),
        ("text=words", None, "whose labels say words"),
        ("", "", ""),
    ],
)
def test_lists_searches_and_features_are_lit_up(client: TestClient, query: str, lit: str | None, said: str) -> None:
    page = parse(client.get(f"{AT}/map?{query}").text)
    shown = page.one("feature-map").attributes["data-lit"]
    if lit is None:
        found = client.get(f"{AT}/search.json?text=words&limit=200").json()["features"]
        lit = " ".join(one["index"] for one in found)
        assert lit
    assert shown == lit
    assert len(page.one("svg", class_="plane").all("circle")) == len(lit.split())
    assert said in page.one("main").text


@pytest.mark.parametrize(
    ("query", "note"),
    [
        ("list=elsewhere", "has no feature of this atlas"),
        ("list=none", "There is no list 'none'"),
        ("text=zzz", "No label says that"),
        ("feature=4000", "There is no feature 4000"),
    ],
)
def test_what_cannot_be_lit_up_is_said(client: TestClient, query: str, note: str) -> None:
    answer = client.get(f"{AT}/map?{query}")
    assert answer.status_code == 200
    page = parse(answer.text)
    assert note in page.one("p", class_="notice").text
    assert page.one("feature-map").attributes["data-lit"] == ""


def test_an_atlas_without_a_map_says_how_to_make_one(client: TestClient) -> None:
    at = AT.replace("1-res", "2-res")
    page = client.get(f"{at}/map")
    assert page.status_code == 200
    assert "gemscope atlas map" in page.text
    assert "<feature-map" not in page.text
    assert client.get(f"{at}/map.json").json()["places"] is None
    for path in ("points", "tiles/0.json"):
        assert client.get(f"{at}/map/{path}", headers={"accept": "application/json"}).status_code == 404


def test_data_of_the_map(client: TestClient) -> None:
    found = client.get(f"{AT}/map.json?list=kin-kind").json()
    assert found["places"] == PLACES.tolist()
    assert found["lit"] == [3, 9]
    assert found["method"] == "made <up>"


def test_a_new_label_is_on_the_map(tmp_path: Path) -> None:
    with gs.Atlas(planted(tmp_path / "a")) as atlas:
        atlas.put_places(np.resize(PLACES, (len(atlas), 2)), Mapped(method="x", kept=0.0))
        made = app([atlas], lists=Lists(tmp_path / "lists"))
        with TestClient(made, base_url=BASE) as client:
            before = parse(client.get(f"{AT}/map").text).one("feature-map").attributes["data-tiles"]
            client.post(f"{AT}/3/labels", json={"text": HOSTILE})
            page = client.get(f"{AT}/map").text
            after = parse(page).one("feature-map").attributes["data-tiles"]
            assert after != before
            x, y = np.resize(PLACES, (len(atlas), 2))[3].tolist()
            tile = y // 4096 * 16 + x // 4096
            assert client.get(after.replace("/0.json", f"/{tile}.json")).json()["labels"]["3"] == said(HOSTILE)
            assert "<script>alert" not in page


def test_labels_that_mean_harm_are_only_text(client: TestClient) -> None:
    page = client.get(f"{AT}/map?text=alert&list=").text
    assert "<script>alert" not in page
    assert HOSTILE_LABEL[:8] == "<script>"
    text = client.get(f"{AT}/map", params={"text": HOSTILE}).text
    assert "<script>alert" not in text


# --- without a server -------------------------------------------------------------------------------------------------


def test_a_region_is_named_by_what_its_labels_share() -> None:
    dice = np.random.default_rng(0)
    middles = np.array([[10_000, 10_000], [50_000, 10_000], [30_000, 50_000]])
    about = ["names of rivers", "numbers in years", "closing brackets"]
    group = np.arange(90) % 3
    places = (middles[group] + dice.integers(-4000, 4000, (90, 2))).astype(np.uint16)
    labels = {one: about[group[one]] if dice.random() < 0.7 else f"oddity {one}" for one in range(90)}
    found = regions(places, np.full(90, 0.01), np.full(90, 0.9), labels)
    large = {(one.x // 22_000, one.y // 22_000): one.label for one in found if one.level == 0}
    assert set(large.values()) == set(about)
    assert len({one.feature for one in found}) == len(found)
    assert regions(places, np.zeros(90), np.full(90, 0.9), labels) == []
    assert regions(places, np.full(90, 0.01), np.full(90, 0.9), {}) == []


def test_points_of_dead_features_and_of_one_feature_alone_are_encoded() -> None:
    one = encoded(PLACES[:1], np.array([0.0]), np.array([0.0]), np.array([0.5]), np.array([False]))
    assert one[4:] == b"\0\0\0\0"
    one = encoded(PLACES[:1], np.array([1.0]), np.array([3.0]), np.array([1.0]), np.array([True]))
    assert list(one[4:]) == [255, 1, 255, 0]
    assert tiles(np.array([[0, 0], [65535, 65535]], np.uint16)).tolist() == [0, TILES**2 - 1]
