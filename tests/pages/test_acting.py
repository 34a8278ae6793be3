"""Pages on which a model reads, or acts."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from every_page import ASKED, LINKS, LOOK, MANIFEST, attribution, dashboard, dialled, feature_page, steer_page, steered
from gemscope.app.requests import Cause as Asking
from gemscope.atlas.output import Outcome, OutputScore
from gemscope.edits.strength import Strength
from gemscope.pages.changes import STEPS, changes
from gemscope.pages.embed import Embed
from gemscope.pages.render import render
from gemscope.pages.standalone import article
from html_tree import parse


def test_the_prompt_view_shows_each_token_and_says_why_some_do_not_count() -> None:
    labels = {12: "names of seas"}
    page = render(
        "prompt.html", links=LINKS, manifest=MANIFEST, live=True, text="Sea of", look=LOOK, labels=labels, pinned=12,
        pinned_values=[0.0, 8.0, 0.0], error=None, start=0, span=9,
    )  # fmt: skip
    tree = parse(page)
    rows = tree.one("table", class_="look").one("tbody").all("tr")
    assert [row.one("th").text for row in rows] == ["<bos>", "·Sea", "·of"]
    assert [row.attributes.get("class", "") for row in rows] == ["uncounted", "", "uncounted"]
    assert rows[0].all("td")[-1].text == "not counted: the first position"
    assert rows[2].all("td")[-1].text == "not counted: special, or an attention sink"
    fired = rows[1].all("li")
    assert [one.all("a")[0].attributes["href"] for one in fired] == [LINKS.feature(12), LINKS.feature(7)]
    assert "names of seas" in fired[0].text
    # Shades are relative to the strongest that counts, not to a sink.
    assert [one.all("span")[0].attributes["class"] for one in fired] == ["a9", "a5"]
    pins = rows[1].all("button", class_="pin")
    assert [(one.attributes["name"], one.attributes["value"], one.attributes["form"]) for one in pins] == [
        ("pin", "12", "prompt"),
        ("pin", "7", "prompt"),
    ]
    assert [one.attributes.get("aria-pressed") for one in pins] == ["true", None]
    strip = tree.one(class_="pinned").one("token-strip")
    assert [mark.text for mark in strip.all("mark")] == [" Sea"]
    figures = [one.text for one in tree.all("dl")[0].all("dd")]
    assert figures == ["3 1 counted", "2 features a token", "—"]


def test_tokens_are_marked_by_how_much_likelier_they_became() -> None:
    tokens = [f" {place}" for place in range(9)]
    sizes = [0.0, 0.05, *(1.01 * step for step in STEPS)]
    before = [-9.0] * 9
    after = [-9.0 + size for size in (*sizes, -0.2, -1.0, -8.0)]
    tree = parse(changes(tokens, before, after))
    marks = {mark.text: mark.attributes for mark in tree.all("mark")}
    assert list(marks) == [" 2", " 3", " 4", " 5", " 6", " 7", " 8"]
    assert [one["class"] for one in marks.values()] == ["a2", "a4", "a6", "a8", "n1", "n2", "n4 p"]
    assert tree.text == "".join(tokens)
    assert parse(changes([" x"], [math.log(0.25)], [math.log(0.5)])).one("mark").attributes["title"] == (
        "+0.693 nats: 25 % → 50 %"
    )
    assert not parse(changes([], [], [])).all("mark")


@given(st.lists(st.tuples(st.text(max_size=8), st.floats(-50, 0), st.floats(-50, 0)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_what_a_model_writes_stays_text(ones: list[tuple[str, float, float]]) -> None:
    columns = zip(*ones, strict=True) if ones else ([], [], [])
    tokens, before, after = ([*column] for column in columns)
    tree = parse(changes(tokens, before, after))
    assert {one.tag for one in tree} <= {"", "token-strip", "mark", "br"}
    for letter in tree.text:
        assert letter == "\n" or letter.isprintable() or unicodedata.category(letter) not in ("Cc", "Cf", "Zl", "Zp")


def test_the_steer_view_is_a_form_of_its_own_state() -> None:
    tree = parse(steer_page())
    form = tree.one("form", class_="steering")
    assert form.attributes["action"] == LINKS.steer()
    assert form.attributes.get("method", "get") == "get"
    said: list[tuple[str, str]] = []
    for one in form:
        if one.tag == "input" and one.attributes.get("name") and one.attributes.get("type") != "checkbox":
            said.append((one.attributes["name"], one.attributes["value"]))
    assert said == [
        ("feature", "12"), ("strength", "2max"), ("factor", "0"), ("feature", "7"), ("strength", "-0.5"), ("factor", "1.5"),
        ("add", ""), ("temperature", "0.5"), ("seed", "16"), ("tokens", "40"), ("n", "2"),
    ]  # fmt: skip
    assert [one.attributes["name"] for one in form.all("input", type="checkbox") if "checked" in one.attributes] == [
        "random"
    ]
    outputs = [one.text for one in form.all("output")]
    assert outputs[0] == "= 16 raw = 2 × max = 0.5 × median norm"
    assert outputs[2] == "= −0.5 raw = −0.167 × max"  # the norm is not known yet
    assert [one.attributes["href"] for one in form.all("a", class_="button")] == ["/without/12", "/without/7"]


def test_what_was_written_stands_in_columns() -> None:
    runs = [steered(" x", " y", samples=2), steered(" z", " z", name="random", edit="other features", samples=2)]
    tree = parse(steer_page(runs=runs))
    rows = tree.all("div", class_="texts")
    assert [[one.text for one in row.all("h3")] for row in rows] == [
        ["The model alone 1", "Steered 1", "Control: other features 1"],
        ["The model alone 2", "Steered 2", "Control: other features 2"],
    ]
    assert [one.text for one in rows[0].all("token-strip")] == [" a b", " x y", " z z"]
    assert "add feature 12" in tree.one("dl", class_="facts").text


def test_a_frame_has_the_steer_panel_where_it_is_asked_for() -> None:
    def panels(**values: Any) -> int:
        return len(parse(feature_page(dashboard(), asked=ASKED, rows=dialled()[:1], **values)).all("steer-panel"))

    assert panels() == panels(embed=Embed(steer=True)) == 1
    assert panels(embed=Embed()) == 0
    unlinked = parse(feature_page(dashboard(), asked=ASKED, rows=dialled()[:1], embed=Embed(steer=True, link=False)))
    assert not unlinked.one("main").all("a")
    assert panels(live=False) == 0
    assert "steer" not in article(dashboard(), MANIFEST)


def test_causes_show_what_was_predicted_beside_what_was_measured() -> None:
    values: dict[str, Any] = {"labels": {12: "names of seas"}, "hints": {7: " a"}, "error": None, "address": ""}
    page = render("attribution.html", links=LINKS, asked=Asking(text="Sea of"), found=attribution(), **values)
    tree = parse(page)
    assert [[cell.text for cell in row.all("td")] for row in tree.one("tbody").all("tr")] == [
        ["12", "names of seas", "·Sea 1", "8", "+2", "+1.5"],
        ["7", "on ·a", "·Sea 1", "1", "−0.5", "—"],
    ]
    drawn = [
        (one.attributes.get("class", ""), one.attributes["x"], one.attributes["width"])
        for one in tree.one("tbody").all("rect")
        if one.attributes.get("class") != "zero"
    ]
    assert drawn == [("", "0", "100"), ("", "0", "75"), ("minus", "-25", "25")]  # from the middle, to its own side
    assert len(tree.one("tbody").all("rect", class_="zero")) == 3
    assert tree.one("tbody").all("a")[0].attributes["href"] == LINKS.feature(12)
    assert "25 % likely" in tree.text
    assert "25 % what the SAE leaves out" in tree.text
    chosen = [one for one in tree.one("select").all("option") if "selected" in one.attributes]
    assert [one.attributes["value"] for one in chosen] == ["1"]
    assert [one.attributes["value"] for one in tree.all("button") if "name" in one.attributes] == [" of"]


def test_an_output_score_says_what_it_is_of() -> None:
    figures = {"score": 0.3, "rank": 2.0, "probability": 0.31, "mass": 0.4, "unedited": 0.01, "control": 0.02}
    score = OutputScore(
        feature=12,
        tokens=(" Ocean",),
        ids=(7,),
        strength=Strength(8.0, 1.0, 0.25),
        prompts=("This is the", "We found a"),
        examples=Outcome(tokens=(" Sea",), ids=(8,), **{**figures, "mass": 0.5}),
        **figures,
    )
    tree = parse(render("output_score.html", links=LINKS, score=score, why=""))
    assert tree.one("strong").text.lower() == f"{score.verdict}.".lower()
    assert [[cell.text for cell in row if cell.tag in ("th", "td")] for row in tree.one("tbody").all("tr")] == [
        ["of its examples", "50 %", "1 %", "2 %"],
        ["promoted", "40 %", "1 %", "2 %"],
    ]
    for part in ("Output score 0.3", "31 %, rank 2", "2 neutral prompts", "1 × max"):
        assert part in tree.text
    none = parse(render("output_score.html", links=LINKS, score=None, why="it fired nowhere")).text
    assert "cannot be measured: it fired nowhere" in none
