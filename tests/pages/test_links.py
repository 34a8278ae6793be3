"""Addresses: on the server, in a folder, in one file."""

from __future__ import annotations

import re

from every_page import LINKS, MANIFEST, QUERY, STATIC, all_pages, dashboard
from gemscope.pages.links import NoLinks, ServerLinks, SiteLinks, static_digest
from gemscope.pages.standalone import article
from html_tree import parse


def test_addresses_on_the_server_have_neuronpedias_shape() -> None:
    assert LINKS.feature(12) == "/tiny-model/1-res-tiny/12"
    assert LINKS.source() == LINKS.browse() == "/tiny-model/1-res-tiny"
    assert LINKS.browse(dead=False, text="", order="max", limit=None) == "/tiny-model/1-res-tiny?dead=false&order=max"
    assert LINKS.search(kind="label", text="a&b=<c>") == "/tiny-model/1-res-tiny/search?kind=label&text=a%26b%3D%3Cc%3E"
    assert LINKS.json(LINKS.feature(12)) == "/tiny-model/1-res-tiny/12.json"
    assert LINKS.json(LINKS.browse(order="max")) == "/tiny-model/1-res-tiny.json?order=max"
    assert ServerLinks("a/../b", 'c"?d', "/proxy").feature(1) == "/proxy/a%2F..%2Fb/c%22%3Fd/1"
    assert ServerLinks().source() == ServerLinks().feature(3) == ServerLinks().json("") == ""


def test_addresses_in_a_folder_are_relative() -> None:
    links = SiteLinks(3, "tiny-model", "1-res-tiny")
    assert links.home() == "../../../index.html"
    assert links.feature(12) == "../../../tiny-model/1-res-tiny/12/index.html"
    assert links.json(links.feature(12)).endswith("/12/index.json")
    assert links.browse() == links.source()
    assert links.browse(**{**dict.fromkeys(QUERY), "offset": 200, "limit": 100}).endswith("/1-res-tiny/page-3.html")
    assert links.browse(order="max") == links.browse(text="sea") == links.search() == links.prompt() == ""


def test_a_single_file_reaches_what_is_in_it() -> None:
    links = NoLinks(within={7})
    assert links.feature(7) == "#feature-7"
    assert links.feature(8) == ""
    tree = parse(article(dashboard(), MANIFEST, links=links))
    assert [one.attributes["href"] for one in tree.all("a")] == ["#feature-12-labels", "#feature-7"]
    assert "names of rivers" in tree.text


def test_static_files_carry_the_digest_of_all_of_them() -> None:
    assert LINKS.static("gemscope.css") == f"/static/gemscope.css?v={static_digest()}"
    for page in all_pages().values():
        for name in re.findall(r'/static/([^?"]+)\?', page):
            assert (STATIC / name).is_file()
