"""Pages as files of their own."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace

from every_page import MANIFEST, dashboard
from gemscope.pages.links import NoLinks
from gemscope.pages.standalone import article, document, feature_document, feature_frame, frame
from html_tree import parse


def test_a_document_holds_all_it_needs_and_allows_nothing_else() -> None:
    page = feature_document(dashboard(), MANIFEST)
    tree = parse(page)
    style, script = tree.one("style").text, tree.one("script").text
    policy = next(one.attributes["content"] for one in tree.all("meta") if "http-equiv" in one.attributes)
    for name, text in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert len((style + script).encode()) <= 25_000
    assert ".keep" not in style  # a form that writes to a server
    assert ".embed" in style
    assert "url(" not in style
    assert "@import" not in style
    assert "</" not in script
    assert not tree.all("link", rel="stylesheet")
    assert tree.one("head").one("title").text == "names of seas · 12 · 1.res 40 · gemscope"
    assert "names of seas" in tree.one("h1").text


def test_several_features_share_one_document() -> None:
    ones = [replace(dashboard(), index=index) for index in (3, 5)]
    body = "".join(article(one, MANIFEST, links=NoLinks(within={3, 5})) for one in ones)
    tree = parse(document(body, title="two <features>"))
    ids = [one.attributes["id"] for one in tree if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    names = {one.attributes["name"] for one in tree.all("input", type="radio")}
    assert names == {"feature-3-mode", "feature-5-mode"}
    assert tree.one("head").one("title").text == "two <features> · gemscope"


def test_a_frame_holds_a_document_and_nothing_of_it_gets_out() -> None:
    page = feature_document(dashboard("\"><script>alert(1)</script> ' &quot;"), None)
    made = frame(page, 300)
    tree = parse(made)
    inner = tree.one("iframe")
    assert [one.tag for one in tree] == ["", "iframe"]
    assert inner.attributes["srcdoc"] == page
    assert inner.attributes["height"] == "300"
    assert "allow-same-origin" not in inner.attributes["sandbox"]
    assert feature_frame(dashboard(), MANIFEST, height=200).startswith("<iframe srcdoc=")
