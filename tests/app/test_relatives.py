"""Relatives at other sites on a feature's page: links where the other atlas is served too, what is known where not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from atlases import HOSTILE_LABEL
from gemscope.atlas.reader import Atlas
from html_tree import Element, parse
from kinships import chain
from served import reader

AT = "/tiny-model/1-res-tiny"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def whole(folders: list[Path]) -> Iterator[TestClient]:
    with reader(*folders) as client:
        yield client


@pytest.fixture(scope="module")
def alone(folders: list[Path]) -> Iterator[TestClient]:
    with reader(folders[1]) as client:
        yield client


def tables(html: str) -> list[Element]:
    return [one for one in parse(html).all("table", class_="relatives") if "correlation" in one.text]


def test_the_sites_above_come_first_and_lead_to_their_features(whole: TestClient) -> None:
    page = whole.get(f"{AT}/4").text
    above, below = tables(page)
    assert [link.attributes["href"] for link in above.all("a")] == [
        f"/tiny-model/2-res-tiny/{one}" for one in (5, 6, 7)
    ]
    assert [link.attributes["href"] for link in below.all("a")] == [
        f"/tiny-model/0-res-tiny/{one}" for one in (5, 6, 7)
    ]
    assert page.index("Above: 2.res") < page.index("Below: 0.res")
    for link in above.all("a"):
        assert whole.get(link.attributes["href"]).status_code == 200
    cells = [cell.text.strip() for cell in above.one("tbody").all("tr")[0].all("td")]
    assert cells[1:] == ["0.90", "0.80", "+1.25"]
    assert "same feature" in cells[0]
    assert "There from" in page
    assert "Found at" in whole.get(f"{AT}/5").text


def test_without_the_other_atlas_there_are_numbers_and_what_was_known(alone: TestClient) -> None:
    page = alone.get(f"{AT}/4").text
    for table in tables(page):
        assert not table.all("a")
        assert "words like it" in table.text
    told = alone.get(f"{AT}/4.json").json()
    assert [one["source"] for one in told["relatives"]] == ["tiny-model/0-res-tiny", "tiny-model/2-res-tiny"]


def test_labels_are_those_that_the_other_atlas_has_now(tmp_path: Path) -> None:
    folders = chain(tmp_path)
    with reader(*folders) as client:
        client.post(
            "/tiny-model/2-res-tiny/5/explain",
            data={"text": "a new <i>name</i>"},
            headers={"origin": "http://127.0.0.1:8400"},
        )
        with Atlas(folders[2]) as atlas:
            assert atlas.labels([5]) == {5: "a new <i>name</i>"}
        page = client.get(f"{AT}/4").text
        assert "a new &lt;i&gt;name&lt;/i&gt;" in page
        assert client.get(f"{AT}/4.json").json()["relatives"][1]["features"][0]["label"] == "a new <i>name</i>"
        assert client.get(f"/api/feature{AT}/4").json()["relatives"][1]["features"][0]["label"] == "a new <i>name</i>"


def test_what_means_harm_is_text(whole: TestClient) -> None:
    page = whole.get(f"{AT}/39").text  # goes to feature 0
    assert HOSTILE_LABEL not in page
    assert "<script>alert(" not in page
    assert "&lt;script&gt;alert(" in page
    assert "<b>sample</b>" not in page
    assert "&lt;b&gt;sample" in page


def test_in_a_frame_there_are_none(whole: TestClient) -> None:
    assert not tables(whole.get(f"{AT}/4?embed=true").text)
