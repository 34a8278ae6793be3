"""Features that promote a token: by page, as data, and where an atlas knows nothing of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from atlases import with_effect
from gemscope.atlas.reader import Atlas
from html_tree import parse
from served import AT, reader


@pytest.fixture(scope="module")
def measured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with Atlas(folder) as atlas:
        made = with_effect(atlas, tmp_path_factory.mktemp("measured") / "atlas")
        made.close()
    with reader(made.folder) as client:
        yield client


def test_a_token_leads_to_the_features_that_promote_it(measured: TestClient) -> None:
    found = measured.get(f"{AT}/search.json", params={"kind": "promoted", "text": "sun"}).json()
    assert found["note"] == ""
    assert found["promoting"]
    assert all(int(one["index"]) % 2 for one in found["promoting"])  # on others the halves do not agree
    heights = [one["stands_out"] for one in found["promoting"]]
    assert heights == sorted(heights, reverse=True)
    assert {one["place"] for one in found["promoting"]} <= {0, 1}
    token = found["tokens"][0]
    one = measured.get(f"{AT}/search.json", params={"kind": "promoted", "text": "sun", "token": token["id"]}).json()
    assert len(one["promoting"]) == token["features"] > 0
    page = parse(measured.get(f"{AT}/search", params={"kind": "promoted", "text": "sun"}).text)
    shown = [link.text for row in page.one("table", class_="hits").one("tbody").all("tr") for link in row.all("a")]
    assert shown == [one["index"] for one in found["promoting"]]


def test_meanings_are_shown_in_lists_and_data_keeps_both_apart(measured: TestClient) -> None:
    lines = {one["index"]: one for one in measured.get(f"{AT}.json").json()["features"]}
    assert lines["3"]["promotes"] == "sun, <b>river</b>"
    assert "promotes" not in lines["3"]["description"]
    assert lines["1"]["promotes"] is None
    assert "promotes sun, &lt;b&gt;river&lt;/b&gt;" in measured.get(AT).text
    told = measured.get(f"{AT}/3.json").json()
    assert told["effect"]["promotes"] == "sun, <b>river</b>"
    assert told["effect"]["agreed"]
    assert told["pos_str"] != told["effect"]["pos_str"]
    assert measured.get(f"{AT}/4.json").json()["effect"] is None


def test_nothing_is_found_quietly_and_without_an_effect_it_is_said_why(measured: TestClient, still: TestClient) -> None:
    page = measured.get(f"{AT}/search", params={"kind": "promoted", "text": "nosuchword"}).text
    assert "No feature has it among the tokens that it promotes most." in page
    none = still.get(f"{AT}/search.json", params={"kind": "promoted", "text": "sun"}).json()
    assert none["note"].startswith("This atlas has no measured effect")
    assert none["promoting"] == []
    assert "Promoted tokens" not in still.get(f"{AT}/search").text
    assert "Promoted tokens" in measured.get(f"{AT}/search").text
