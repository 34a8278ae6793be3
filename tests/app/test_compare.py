"""Two features, two texts and two SAEs side by side, as a reader asks for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from gemscope.reports.feature_pair import compare_features
from gemscope.reports.text_pair import compare_texts
from html_tree import parse
from served import AT, LINKED, MODEL, SAE, as_json, here, planted, reader

ONE, OTHER = "the cat and the sun", "the cat and the sea"
A, B = f"{AT[1:]}/3", f"{AT[1:]}/4"
BESIDE = "/tiny-model/1-res-other"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("atlases")
    atlases = planted(folder / "one"), planted(folder / "other", source_id="1-res-other")
    with reader(*atlases, models=here) as made:
        yield made


def test_two_features_have_a_page_and_its_data(client: TestClient) -> None:
    tree = parse(client.get(f"/compare?a={A}&b={B}").text)
    assert tree.one("head").one("title").text.startswith("3 beside 4")
    atlas = client.app.state.shelf.first[0].atlas  # type: ignore[attr-defined]
    found = compare_features(atlas, 3, 4, saes=(SAE, SAE))
    assert found.telling in tree.text
    for page in (found.one, found.other):
        assert page.strongest[0].tokens[page.strongest[0].peak].strip() in tree.text
    assert len(tree.all("svg", role="img")) == 2
    assert as_json(client.get(f"/compare.json?a={A}&b={B}").json()) == as_json(found.to_dict())


def test_each_neighbour_of_a_feature_leads_to_both_side_by_side(client: TestClient) -> None:
    tree = parse(client.get(f"{AT}/3").text)
    links = [one.attributes["href"] for one in tree.all("a") if one.attributes["href"].startswith("/compare?")]
    assert links
    for link in links:
        assert client.get(link).status_code == 200


def test_two_texts_are_compared_where_somebody_asks_here(client: TestClient) -> None:
    address = f"{AT}/compare?text={ONE}&other={OTHER}"
    found = compare_texts(MODEL, SAE, ONE, OTHER, atlas=client.app.state.shelf.first[0].atlas)  # type: ignore[attr-defined]
    assert client.get(f"{AT}/compare.json?text={ONE}&other={OTHER}").json() == as_json(found.to_dict())
    tree = parse(client.get(address).text)
    for one in found.only_one:
        assert any(link.attributes["href"] == f"{AT}/{one.feature}" for link in tree.all("a"))
    # A link from elsewhere shows the texts, and has none read.
    linked = parse(client.get(address, headers=LINKED).text)
    assert [area.text for area in linked.all("textarea")] == [ONE, OTHER]
    assert "Press Compare" in linked.text
    posted = client.post(f"{AT}/compare", data={"text": ONE, "other": OTHER}, follow_redirects=False)
    assert posted.status_code == 303
    assert parse(client.get(posted.headers["location"]).text).all("textarea")[1].text == OTHER


def test_two_saes_show_their_figures_and_match_when_asked(client: TestClient) -> None:
    address = f"/compare?a={AT[1:]}&b={BESIDE[1:]}"
    tree = parse(client.get(address).text)
    assert "Match their features" in tree.text
    assert client.get(address.replace("compare", "compare.json", 1)).json()["matching"] is None
    assert "Press Match" in client.get(f"{address}&match=true", headers=LINKED).text
    found = client.get(f"{address.replace('compare', 'compare.json', 1)}&match=true").json()
    assert found["matching"]["by"] == "decoder"  # the same SAE twice
    assert all(pair["one"] == pair["other"] for pair in found["matching"]["pairs"])
    page = client.get(address).text
    assert "The same in both" in page
    assert "mean max cosine similarity" in page
    assert len([one for one in parse(page).all("svg") if "Best matches" in one.text]) == 2
    more = client.get(f"{address.replace('compare', 'compare.json', 1)}&match=true&k=3").json()["matching"]
    assert len(more["pairs"]) == 3


@pytest.mark.parametrize(
    ("query", "status"),
    [
        (f"a={A}&b={AT[1:]}", 400),
        ("a=x&b=y", 400),
        (f"a={A}&b=tiny-model/none/3", 404),
        (f"a={A}&b={AT[1:]}/99999", 404),
        (f"a={'x' * 600}&b={B}", 400),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(query: str, status: int, client: TestClient) -> None:
    answer = client.get(f"/compare.json?{query}")
    assert answer.status_code == status
    assert "\n" not in answer.json()["error"]


def test_a_page_asks_which_two(client: TestClient) -> None:
    tree = parse(client.get("/compare").text)
    assert {one.attributes["name"] for one in tree.one("form", class_="pair-form").all("input")} == {"a", "b"}
    assert client.get("/compare.json").status_code == 400


def test_who_has_nothing_to_compare_is_offered_features_saes_and_texts(client: TestClient) -> None:
    links = [one.attributes["href"] for one in parse(client.get("/compare").text).one("main").all("a")]
    assert {one.partition("?")[0] for one in links} == {"/compare", f"{AT}/compare", "/tiny-model/1-res-other/compare"}
    assert f"/compare?a={AT[1:]}&b=tiny-model/1-res-other" in links
    assert sum(one.count("/") == 5 for one in links)  # pairs of features
    for link in links:
        assert client.get(link).status_code == 200
    texts = [one.attributes["href"] for one in parse(client.get(f"{AT}/compare").text).one(class_="to-try").all("a")]
    assert len(texts) == 3
    assert all(client.get(text).status_code == 200 for text in texts)
