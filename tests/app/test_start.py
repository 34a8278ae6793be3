"""The start page: what this is, features to begin with, texts to try, and a feature at random."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from atlases import change_sql, planted_atlas
from gemscope.app.home import TO_TRY
from gemscope.atlas.reader import Atlas
from html_tree import parse
from served import AT, here, planted, reader


def test_it_says_what_this_is_and_offers_features_texts_and_a_search(live: TestClient, folder: Path) -> None:
    page = parse(live.get("/").text)
    assert "language model" in page.one(class_="lede").text
    with Atlas(folder) as atlas:
        expected = [str(one.feature) for one in atlas.striking()]
    assert [one.text for one in page.one(class_="striking").all(class_="number")] == expected
    assert len(page.one(class_="striking").all("svg")) == len(page.one(class_="striking").all("mark")) == 5
    assert page.one("form", class_="search").attributes["action"] == f"{AT}/search"
    tries = [one.attributes["href"] for one in page.one(class_="tries").one("ul").all("a")]
    assert len(tries) == len(TO_TRY)
    assert live.get(tries[0]).status_code == 200
    assert f"{AT}/random" in [one.attributes["href"] for one in page.all("a")]


def test_without_a_model_it_says_why_no_text_is_read(still: TestClient) -> None:
    page = parse(still.get("/").text)
    assert "without a model" in page.one(class_="tries").text
    assert not page.one(class_="tries").all("ul")
    assert page.one(class_="striking")


def test_of_several_atlases_each_has_its_card_and_its_search(tmp_path: Path) -> None:
    planted(tmp_path / "one")
    planted_atlas(tmp_path / "other", source_id="0-res").close()
    with reader(tmp_path / "one", tmp_path / "other") as client:
        page = parse(client.get("/").text)
        forms = [one.attributes["action"] for one in page.all("form")]
        assert forms == ["/search", "/search", f"{AT}/search", "/tiny-model/0-res/search"]
        assert len(page.one(class_="atlases").all("li")) == 2
        assert len(page.one(class_="striking").all(class_="number")) == 5


def test_a_random_feature_lives(still: TestClient, folder: Path) -> None:
    with Atlas(folder) as atlas:
        living = {f"{AT}/{page.index}" for page in atlas if not page.dead}
    found = set()
    for _ in range(20):
        answer = still.get(f"{AT}/random", follow_redirects=False)
        assert (answer.status_code, answer.headers["cache-control"]) == (303, "no-store")
        found.add(answer.headers["location"])
    assert len(found) > 1
    assert found <= living
    assert still.get("/tiny-model/nothing/random").status_code == 404


@pytest.mark.parametrize("damage", ["UPDATE page SET packed = x'00112233'", "DELETE FROM explanation"])
def test_it_is_there_whatever_the_atlas_lacks(tmp_path: Path, damage: str) -> None:
    planted_atlas(tmp_path / "atlas").close()
    change_sql(tmp_path / "atlas", damage)
    with reader(tmp_path / "atlas", models=here) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert "A microscope" in page.text


def test_an_atlas_in_which_nothing_fires_begins_with_no_features(tmp_path: Path) -> None:
    planted_atlas(tmp_path / "atlas").close()
    change_sql(tmp_path / "atlas", "UPDATE feature SET count = 0, max = 0, mean = 0")
    with reader(tmp_path / "atlas") as client:
        assert "to begin with" not in client.get("/").text
        assert client.get(f"{AT}/random", follow_redirects=False).status_code == 303


def test_who_has_no_text_is_offered_the_same_ones_where_texts_are_read(live: TestClient) -> None:
    page = parse(live.get(f"{AT}/prompt").text)
    tries = [one.attributes["href"] for one in page.one(class_="to-try").all("a")]
    assert tries == [one.attributes["href"] for one in parse(live.get("/").text).one(class_="tries").one("ul").all("a")]
    assert "to-try" not in live.get(tries[0]).text  # which is read at a press


def test_any_page_leads_to_a_feature_at_random(live: TestClient) -> None:
    turn = parse(live.get(f"{AT}/3").text).one(class_="turn")
    assert f"{AT}/random" in [one.attributes["href"] for one in turn.all("a")]
