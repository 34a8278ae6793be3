"""A feature's page, whole and as a frame."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

import every_page
from every_page import DEAD, LINKS, dashboard, feature_page
from gemscope.atlas.dashboard import Logit, Writes
from gemscope.atlas.entry import AGREED
from gemscope.atlas.files.manifest import Measured
from gemscope.pages.embed import Embed
from gemscope.pages.render import render
from html_tree import Element, parse


def test_a_feature_page_holds_everything_known_of_a_feature() -> None:
    tree = parse(feature_page(dashboard(), writable=True))
    assert tree.one("h1").text == "names of seas"
    assert "bodies of water score 0.71 max-act" in re.sub(r"\s+", " ", tree.one(class_="others").text)
    figures = {
        one.all("dt")[0].text.split()[0]: one.all("dd")[0].text for one in tree.one("dl", class_="figures").all("div")
    }
    assert figures["Fires"] == "1.25 % 1 token in 80: 150 of 12k"
    assert (figures["Max"], figures["Mean"], figures["Encoder"]) == ("8", "1.25", "0.75 cosine")
    assert [svg.all("title")[0].text for svg in tree.all("svg", role="img")] == [
        "Its effect on all logits",
        "Its activations",
    ]
    promoted, suppressed = tree.all("table", class_="logit")
    assert [[cell.text for cell in row.all("td")] for row in promoted.one("tbody").all("tr")] == [
        ["·Ocean", "+2"],
        ["·coast", "+1"],
    ]
    assert [cell.text for cell in suppressed.one("tbody").all("td")] == ["def", "−1.5"]
    assert [rect.attributes["width"] for rect in promoted.all("rect")] == ["100", "50"]
    (lowered,) = suppressed.all("rect")
    assert (lowered.attributes["class"], lowered.attributes["x"]) == ("minus", "0")
    lists = tree.all("ol", class_="strips")
    assert [len(one.all("token-strip")) for one in lists] == [1, 1]
    assert [re.sub(r"\s+", " ", one.text) for one in tree.all("h3")] == [
        "0 to 4 96.7 % of its firings (145)",
        "Does it write what it reads?",
    ]
    at = tree.all("small", class_="at")[0]
    assert (at.text, at.attributes["title"]) == ("a book", "document 3, token 40 · CC0")
    near, along = tree.all("table", class_="relatives")
    assert near.all("a")[0].attributes["href"] == "/tiny-model/1-res-tiny/7"
    assert "names of rivers" in near.text
    assert [cell.text for cell in along.one("tbody").all("td")] == ["9 capital letters", "50 %", "0.25"]
    provenance = re.sub(r"\s+", " ", tree.one(class_="provenance").text)
    for said in ("org/Tiny-Model", "c0ffee", "org/tiny-sae", "1.res", "40 documents, 12,000 tokens counted"):
        assert said in provenance
    assert "not counted: 100 special, 7 sink" in provenance
    assert "final norm's gain folded in, centred" in provenance
    turns = {
        one.attributes["rel"]: one.attributes["href"]
        for one in tree.one(class_="turn").all("a")
        if "rel" in one.attributes
    }
    assert turns == {
        "prev": "/tiny-model/1-res-tiny/11",
        "next": "/tiny-model/1-res-tiny/13",
        "nofollow": "/tiny-model/1-res-tiny/random",
    }
    assert tree.one("a", type="application/json").attributes["href"] == "/tiny-model/1-res-tiny/12.json"


def test_the_marks_of_an_example_say_their_values() -> None:
    tree = parse(feature_page(dashboard()))
    first = tree.all("token-strip")[0]
    said = [(mark.text, mark.attributes["title"], mark.attributes["class"]) for mark in first.all("mark")]
    assert said == [(" of", "1", "a3"), (" Sea", "2", "a5"), (" Sea", "8", "a9 p")]


def test_the_first_and_the_last_feature_have_one_neighbour_each() -> None:
    first = parse(feature_page(dashboard(), previous=None)).one(class_="turn")
    last = parse(feature_page(dashboard(), following=None)).one(class_="turn")
    assert [one.attributes.get("rel") for one in first.all("a")] == ["next", "nofollow"]
    assert [one.attributes.get("rel") for one in last.all("a")] == ["prev", "nofollow"]


def test_a_dead_feature_says_so_and_shows_what_its_weights_say() -> None:
    tree = parse(feature_page(DEAD))
    assert "it fired on none of the 12,000 counted tokens" in tree.one(class_="notice").text
    assert not tree.all("token-strip")
    assert len(tree.all("table", class_="logit")) == 2


def test_texts_can_be_tried_where_a_model_is_loaded_and_elsewhere_it_is_said_why_not() -> None:
    form = parse(feature_page(dashboard(), test_text="the sea")).one("details", class_="test").one("form")
    assert form.attributes["hx-post"] == "/tiny-model/1-res-tiny/12/test"
    assert "hx-trigger" not in form.attributes  # it is sent when it is submitted
    assert form.one("textarea").text == "the sea"
    still = parse(feature_page(dashboard(), live=False, why="no model here"))
    assert not still.all("details", class_="test")
    assert "no model here" in still.text
    assert not [one for one in still.all("script") if "htmx" in one.attributes["src"]]


def test_explanations_are_added_where_writing_is_possible() -> None:
    assert not parse(feature_page(dashboard())).all("form", class_="add")
    tree = parse(feature_page(dashboard(), writable=True))
    form = tree.one("form", class_="add")
    assert (form.attributes["action"], form.attributes["method"]) == ("/tiny-model/1-res-tiny/12/explain", "post")
    assert form.attributes["hx-target"] == "#feature-12-title"
    assert tree.one("a", href="#feature-12-labels")
    assert tree.one("section", id="feature-12-labels").one("form", class_="add")
    # Those of explainers stay; the reader's own can go.
    removed = tree.all("form", class_="inline")
    assert [one.one("input").attributes["value"] for one in removed] == ["2"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, None),
        ({"embed": "True"}, None),
        ({"embed": "1"}, None),
        ({"embed": "true", "height": "300", "foo": "bar"}, Embed()),
        ({"embed": "true", "embedplots": "false", "embedtest": "no"}, Embed(plots=False)),
        ({"embed": "true", "embedlink": "false", "defaulttesttext": "a b"}, Embed(link=False, default_test_text="a b")),
        ({"embed": "true", "embedsteer": "true"}, Embed(steer=True)),
        ({"embed": "true", "embedsteer": "yes"}, Embed()),
    ],
)
def test_frames_follow_neuronpedias_parameters(query: dict[str, str], expected: Embed | None) -> None:
    assert Embed.of(query) == expected


def test_a_frame_shows_the_parts_it_is_asked_for() -> None:
    whole = parse(feature_page(dashboard(), embed=Embed(), test_text="sea"))
    assert not whole.all("header", class_="top")
    assert not whole.all("footer")
    link = whole.one("main").all("a")
    assert [(one.attributes["href"], one.attributes["target"]) for one in link] == [
        ("/tiny-model/1-res-tiny/12", "_blank")
    ]
    parts = {one.attributes["data-part"] for one in whole if "data-part" in one.attributes}
    assert parts == {"explanation", "plots", "activations", "test"}
    for part in ("plots", "activations", "test"):
        shown = parse(feature_page(dashboard(), embed=Embed(**{part: False})))
        assert {one.attributes["data-part"] for one in shown if "data-part" in one.attributes} == parts - {part}
    assert not parse(feature_page(dashboard(), embed=Embed(link=False))).one("main").all("a")
    unnamed = parse(feature_page(dashboard(), embed=Embed(explanation=False)))
    assert "unseen" in unnamed.one("h1").attributes["class"]
    fixed = parse(feature_page(dashboard(), embed=Embed(testfield=False), test_text="sea")).one(
        "details", class_="test"
    )
    assert not fixed.all("textarea")
    assert fixed.one("input").attributes["value"] == "sea"


def test_a_tried_text_says_where_it_fires() -> None:
    def result(values: list[float]) -> Element:
        counted = [False, True, True]
        page = render(
            "test_result.html",
            links=LINKS,
            tokens=["<bos>", " a", " b"],
            values=values,
            counted=counted,
            max=8.0,
            feature=1,
        )
        return parse(page)

    assert (
        "4 at its strongest, 50 % of the corpus's max; it fires on 1 of 2 counted tokens."
        in result([0.0, 4.0, 0.0]).text
    )
    assert "does not fire" in result([0.0, 0.0, 0.0]).text
    assert "a5" in result([0.0, 2.0, 0.0]).one("mark").attributes["class"]


def _writes(agreement: float = 0.95) -> Writes:
    return Writes(
        promoted=[Logit(1, " <b>sea</b>", 0.2), Logit(2, " seas", 0.1)],
        suppressed=[Logit(3, " land", -0.1)],
        spread=0.02,
        agreement=agreement,
        this=0.25,
        words="sea, <b>ocean</b>",
    )


def test_what_it_writes_is_shown_first_and_the_direct_path_folded_behind_it() -> None:
    of = Measured(corpus="a <i>text", corpus_digest="", tokens=1234, length=32, dtype="", agreement=0.9, digest="")
    tree = parse(feature_page(replace(dashboard(), writes=_writes()), manifest=replace(every_page.MANIFEST, effect=of)))
    first, second, *direct = tree.all("table", class_="logit")
    assert [row.all("td")[0].text for row in first.one("tbody").all("tr")] == ["·<b>sea</b>", "·seas"]
    assert [row.all("td")[0].text for row in second.one("tbody").all("tr")] == ["·land"]
    assert len(direct) == 2
    assert len(tree.one("details", class_="direct").all("table", class_="logit")) == 2
    said = re.sub(r"\s+", " ", tree.one("p", class_="measured").text)
    assert said.startswith(
        "What a unit of it does to the logits, measured over 1,234 tokens of a <i>text: 25 % of it at once"
    )
    assert said.endswith("The halves of that text agree to 0.95.")
    assert "promotes sea, <b>ocean</b>" in tree.one("p", class_="origin").text
    assert not [one for one in tree.all("b") if "class" not in one.attributes]


def test_it_is_never_shown_where_the_halves_of_its_text_disagree() -> None:
    page = replace(dashboard(), writes=_writes(AGREED - 0.01))
    tree = parse(feature_page(page))
    assert len(tree.all("table", class_="logit")) == 2
    assert not tree.all("details", class_="direct")
    assert "sea" not in tree.one("table", class_="promoted").text
    assert "agree to no more than 0.79" in tree.one("p", class_="measured").text
    printed = "\n".join(map(str, str(page).splitlines()))
    assert "directly" not in printed


def test_without_a_label_what_it_promotes_is_its_label() -> None:
    tree = parse(feature_page(replace(dashboard(), writes=_writes(), explanations=[])))
    assert tree.one("h1").text == "promotes sea, <b>ocean</b>"
    assert "directly promotes" in str(replace(dashboard(), writes=_writes()))
