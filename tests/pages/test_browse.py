"""Pages that list and find features."""

from __future__ import annotations

import re
from typing import Any

from every_page import LINKS, MANIFEST, QUERY, SUMMARIES, Hit
from gemscope.atlas.dashboard import Glance
from gemscope.features.histogram import Histogram
from gemscope.pages.links import SiteLinks
from gemscope.pages.render import render
from html_tree import Element, parse

GLANCES = {0: Glance([" the", " Sea", " of"], 1, Histogram(0.0, 2.0, [100, 40, 9, 1]))}


def browse(**changes: Any) -> Element:
    values: dict[str, Any] = {
        "manifest": MANIFEST,
        "summaries": SUMMARIES,
        "total": 9,
        "query": QUERY,
        "glances": GLANCES,
    }
    return parse(render("browse_rows.html", **{"links": LINKS, **values, **changes}))


def test_the_table_of_features_sorts_by_its_headers_and_keeps_the_filters() -> None:
    tree = browse()
    heads = {one.text.split()[0]: one for one in tree.one("thead").all("th")}
    assert [one.attributes.get("aria-sort") for one in heads.values()] == [None, None, None, "descending", None, None]
    assert heads["density"].one("a").attributes["href"] == (
        "/tiny-model/1-res-tiny?order=density&min_density=0.001&text=sea&limit=3"
    )
    assert "order=max&descending=true&min_density=0.001" in heads["max"].one("a").attributes["href"]
    rows = [[cell.text for cell in row.all("td")] for row in tree.one("tbody").all("tr")]
    assert rows == [
        ["0", "names of seas the Sea of", "", "1 %", "8", "1.5"],
        ["1", "no label; strongest on ↵", "", "0.05 %", "3", "1"],
        ["2", "did not fire in this corpus", "", "0 %", "–", "–"],
    ]


def test_a_row_shows_the_strongest_example_and_how_activations_are_spread() -> None:
    first, *rest = browse().one("tbody").all("tr")
    assert first.one(class_="snip").text == " the Sea of"
    assert first.one("mark").text == " Sea"
    assert first.one("svg").attributes["aria-label"] == "half below about 1, all below 8"
    assert not any(row.all("svg") or row.all(class_="snip") for row in rest)


def test_pages_of_the_table_follow_one_another() -> None:
    def turns(offset: int) -> dict[str, str]:
        links = browse(query=QUERY | {"offset": offset}).one("nav").all("a")
        return {one.attributes["rel"]: re.findall(r"offset=(\d+)", one.attributes["href"]) for one in links}  # type: ignore[misc]

    assert turns(0) == {"next": ["3"]}
    assert turns(3) == {"prev": [], "next": ["6"]}
    assert turns(6) == {"prev": ["3"]}
    assert "1–3 of 9 features" in browse().text
    assert "No feature is like that" in browse(summaries=[], total=0).text


def test_a_static_table_has_no_forms_and_no_dead_ends() -> None:
    links = SiteLinks(2, "tiny-model", "1-res-tiny")
    query = {**dict.fromkeys(QUERY), "order": "index", "descending": False, "offset": 0, "limit": 100}
    page = render(
        "browse.html",
        links=links,
        manifest=MANIFEST,
        summaries=SUMMARIES,
        total=3,
        query=query,
        points=None,
        glances=GLANCES,
    )
    tree = parse(page)
    assert not tree.all("form")
    assert not [one for one in tree.all("script") if "htmx" in one.attributes["src"]]
    addresses = [one.attributes["href"] for one in tree.all("a")]
    assert all(addresses)
    assert {one for one in addresses if not one.startswith("#")} == {
        "../../index.html",
        "../../tiny-model/1-res-tiny/index.html",
        *(f"../../tiny-model/1-res-tiny/{index}/index.html" for index in range(3)),
    }


def search_page(kind: str, text: str, **values: Any) -> Element:
    given = {"note": None, "summaries": [], "tokens": [], "token": None, "hits": [], "found": []}
    given |= {"manifest": MANIFEST, "kind": kind, "text": text, "live": True, "strings": [], "counted": []}
    given |= {"readings": [], "missing": None, "total": 1, "firing": 1, "offset": 0, "limit": 50, "glances": GLANCES}
    return parse(render("search_results.html", links=LINKS, **{**given, **values}))


def test_search_finds_by_label_by_token_and_by_text() -> None:
    by_label = search_page("label", "seas", summaries=SUMMARIES[:1])
    assert by_label.one(class_="number").one("a").attributes["href"] == "/tiny-model/1-res-tiny/0"
    hits = [Hit(SUMMARIES[0], 0.5, 3)]
    by_token = search_page("token", "sea", tokens=[(4, " Sea", 7), (5, "sea", 1)], token=4, hits=hits)
    tokens = by_token.one(class_="tokens").all("a")
    assert [one.attributes.get("aria-current") for one in tokens] == ["true", None]
    assert "token=5" in tokens[1].attributes["href"]
    assert [cell.text for cell in by_token.one("tbody").all("td")] == ["0", "names of seas the Sea of", "50 %", "3"]
    found = [{"summary": SUMMARIES[0], "values": [0.0, 4.0]}]
    by_text = search_page("text", "The Sea", found=found, strings=["The", " Sea"], counted=[False, True])
    assert by_text.one("mark").text == " Sea"
    assert "4 · 50 % of its max" in by_text.text
    for kind in ("label", "token", "text"):
        assert search_page(kind, "zzz").text.strip()
        assert not search_page(kind, "").text.strip()
