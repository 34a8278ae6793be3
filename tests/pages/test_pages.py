"""Pages: what values become as HTML, that hostile text stays text, and that readers of all kinds can read it."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import math
import re
import sys
import unicodedata
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from msgspec import structs

from gemscope.app.requests import Cause as Asking
from gemscope.app.requests import Steering
from gemscope.app.steer_view import Dial
from gemscope.app.steering import Run
from gemscope.atlas.dashboard import (
    Dashboard,
    Example,
    Explanation,
    Interval,
    Logit,
    Neighbour,
    Partner,
    Summary,
)
from gemscope.atlas.files.manifest import Manifest, Part
from gemscope.edits.strength import Amount, Strength
from gemscope.features.histogram import Histogram
from gemscope.pages import strips
from gemscope.pages.changes import STEPS, changes
from gemscope.pages.embed import Embed
from gemscope.pages.links import NoLinks, ServerLinks, SiteLinks, static_digest
from gemscope.pages.render import render, typed
from gemscope.pages.standalone import article, document, feature_document, feature_frame, frame
from gemscope.reports.attribution import Attribution, Cause, Target
from gemscope.reports.look import Fired, Look, Token
from gemscope.reports.output_score import Effect, OutputScore
from gemscope.reports.steer import Pair, Steered
from gemscope.reports.writing import Continuation
from gemscope.text.printable import clipped, readable, visible
from html_tree import Element, parse

LINKS = ServerLinks("tiny-model", "1-res-tiny")
STATIC = files("gemscope.pages") / "static"
HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(2)>",
    "</textarea></title></style>",
    "\u202eevil\u2066\u200f",
    "\x00\x07\x1b[31m",
    "{{ 7*7 }}{% raw %}",
    "&lt;&amp;&#60;",
    "javascript:alert(3)",
    "\ud800",
    "x" * 100_000,
]


# --- reading pages back --------------------------------------------------------------------------------------------


# --- values ----------------------------------------------------------------------------------------------------------


def example(tokens: list[str], values: list[float], interval: int | None = None, document: int = 3) -> Example:
    peak = max(range(len(values)), key=values.__getitem__)
    ids = list(range(len(tokens)))
    return Example(document=document, position=40, peak=peak, ids=ids, tokens=tokens, values=values, interval=interval)


def dashboard(label: str | None = "names of seas", **changes: Any) -> Dashboard:
    words = [" the", " Sea", " of", " Japan", "\n", " is"] * 10
    strong = [0.0] * 60
    strong[31], strong[25], strong[2] = 8.0, 2.0, 1.0
    weak = [0.0] * 60
    weak[31] = 1.5
    explanations = [
        Explanation(id=2, text=label or "", author="ada"),
        Explanation(id=1, text="bodies of water", method="max-act", score=0.71),
    ]
    return replace(
        Dashboard(
            model="tiny-model",
            source="1-res-tiny",
            index=12,
            count=150,
            tokens=12_000,
            max=8.0,
            mean=1.25,
            encoder_cosine=0.75,
            decoder_norm=1.0,
            histogram=Histogram(0.0, 0.8, [100, 30, 10, 5, 3, 1, 0, 0, 0, 1]),
            intervals=[Interval(0.0, 4.0, 145, 145 / 150), Interval(4.0, 8.0, 5, 5 / 150)],
            examples=[example(words, strong), example(words, weak, interval=0)],
            promoted=[Logit(4, " Ocean", 2.0), Logit(5, " coast", 1.0)],
            suppressed=[Logit(6, "def", -1.5)],
            logit_histogram=Histogram(-2.0, 0.5, [1, 5, 20, 60, 90, 40, 9, 1]),
            neighbours=[Neighbour(7, 0.9, "names of rivers"), Neighbour(8, 0.5)],
            coactive=[Partner(9, 0.25, 0.5, "capital letters")],
            explanations=explanations if label else [],
        ),
        **changes,
    )


DEAD = dashboard(None, count=0, max=0.0, mean=0.0, histogram=None, intervals=[], examples=[], coactive=[])
PART = Part(name="sample", digest="ab", rows=100, documents=40, counted=12_000, masked={"special": 100, "sink": 7})
MANIFEST = Manifest(
    model="org/Tiny-Model",
    model_id="tiny-model",
    source_id="1-res-tiny",
    revision="c0ffee" * 6,
    sae="org/tiny-sae",
    sae_digest="5eed" * 16,
    site="1.res",
    site_out="1.res",
    gate="jumprelu",
    d_sae=40,
    parts=(PART,),
    length=128,
    before=32,
    after=31,
    bos=False,
    logits="final norm's gain folded in, centred",
    no_logits=None,
    coactivation="all counted tokens",
    options={},
    versions={"gemscope": "0.1.0"},
)
SUMMARIES = [
    Summary(0, 120, 0.01, 8.0, 1.5, "names of seas", " Sea"),
    Summary(1, 6, 0.0005, 3.0, 1.0, None, "\n"),
    Summary(2, 0, 0.0, 0.0, 0.0),
]
QUERY: dict[str, Any] = {
    "order": "density",
    "descending": True,
    "dead": None,
    "labelled": None,
    "min_density": 0.001,
    "max_density": None,
    "min_max": None,
    "max_max": None,
    "text": "sea",
    "offset": 0,
    "limit": 3,
}
LOOK = Look(
    model="org/Tiny-Model",
    sae="org/tiny-sae",
    site="1.res",
    tokens=(
        Token("<bos>", 0, False, 30, (Fired(5, 99.0),)),
        Token(" Sea", 1, True, 2, (Fired(12, 8.0), Fired(7, 2.0))),
        Token(" of", 2, False, 40, (Fired(5, 50.0),)),
    ),
    l0=2.0,
    explained_variance=float("nan"),
)


@dataclass
class Hit:
    summary: Summary
    strength: float
    examples: int


def continuation(*tokens: str, change: float = 0.0) -> Continuation:
    before = tuple(-1.0 - place for place in range(len(tokens)))
    after = tuple(value + change for value in before)
    ids = tuple(range(len(tokens)))
    return Continuation(text="".join(tokens), tokens=tokens, ids=ids, logprobs=before, edited=after, ended=False)


def steered(*tokens: str, name: str = "steered", edit: str = "add feature 12", samples: int = 1) -> Run:
    pair = Pair(default=continuation(" a", " b"), steered=continuation(*tokens, change=2.0))
    return Run(
        name,
        Steered(
            model="org/Tiny-Model", prompt="Sea", edits=(edit,), strengths=(Strength(4.0, 0.5, 0.1),),
            pairs=(pair,) * samples, temperature=0.5, seed=16, max_new_tokens=4, at="all",
            control=None if name == "steered" else edit,
        ),
    )  # fmt: skip


ASKED = Steering(
    features=(12, 7),
    strengths=("2max", -0.5),
    factors=(0.0, 1.5),
    prompt="Sea of",
    n=2,
    random=True,
)


def dialled(label: str | None = "names of seas", token: str | None = " Sea") -> list[Dial]:
    return [
        Dial(replace(SUMMARIES[0], feature=12, label=label), Amount(2.0, "max"), 0.0, 0.25, "/without/12"),
        Dial(replace(SUMMARIES[1], feature=7, token=token), Amount(-0.5), 1.5, None, "/without/7"),
    ]


def steer_page(**values: Any) -> str:
    found: dict[str, Any] = {
        "manifest": MANIFEST, "live": True, "why": "", "several": True, "asked": ASKED, "rows": dialled(),
        "suggestions": [], "suggestions_note": "", "runs": None, "error": None, "note": "",
    }  # fmt: skip
    return render("steer.html", links=LINKS, **{**found, **values})


def attribution(token: str = " Sea", note: str = "logits come in steps") -> Attribution:
    return Attribution(
        model="org/Tiny-Model", sae="org/tiny-sae", site="1.res", dtype="float32", tokens=("<bos>", token, " of"),
        counted=(False, True, True), position=1, target=Target(id=4, token=token, logit=9.5, probability=0.25),
        against=None, logit=9.5,
        rows=(
            Cause(feature=12, position=1, token=token, activation=8.0, predicted=2.0, measured=1.5),
            Cause(feature=7, position=1, token=token, activation=1.0, predicted=-0.5, measured=None),
        ),
        by_feature=(), together_predicted=1.5, together_measured=1.25, correlation=0.9, features=3.0, error=-0.5,
        bias=1.0, skip=0.0, uncounted=0.25, total=3.75, features_by_token=(0.0, 3.0, 0.0),
        error_by_token=(0.0, -1.0, 0.0), active=40, notes=(note,),
    )  # fmt: skip


def feature_page(feature: Dashboard, **changes: Any) -> str:
    values: dict[str, Any] = {
        "feature": feature,
        "manifest": MANIFEST,
        "live": True,
        "previous": 11,
        "following": 13,
        "embed": None,
        "test_text": "",
    }
    return render("feature.html", links=LINKS, **{**values, **changes})


@cache
def all_pages(label: str | None = "names of seas", token: str = " Sea") -> dict[str, str]:
    """One of each, with a label and a token of ours wherever one is shown."""
    summaries = [replace(SUMMARIES[0], label=label, token=token), *SUMMARIES[1:]]
    words, typed = [token, " of", " Japan"], token[:5000]
    feature = dashboard(
        label,
        examples=[example(words, [0.5, 8.0, 0.0]), example(words, [1.5, 0.0, 0.0], interval=0)],
        promoted=[Logit(1, token, 2.0)],
        neighbours=[Neighbour(7, 0.9, label)],
        coactive=[Partner(9, 0.25, 0.5, label)],
    )
    look = replace(LOOK, tokens=tuple(replace(one, token=token) for one in LOOK.tokens))
    manifest = replace(MANIFEST, sae=label or "", parts=(replace(PART, name=label or ""),))
    points = (np.arange(3), np.array([0.1, 0.01, 0.001]), np.array([1.0, 2.0, 3.0]))
    home = [{"manifest": manifest, "living": 38, "dead": 2, "links": LINKS}]
    found = [{"summary": summaries[0], "values": [0.0, 3.0, 1.0]}]
    search = {"manifest": manifest, "text": typed, "note": label, "live": True}
    search |= {"summaries": summaries, "tokens": [(4, token, 7)], "token": 4, "hits": [Hit(summaries[0], 0.5, 3)]}
    search |= {"strings": words, "counted": [False, True, True], "found": found}
    prompt = {"manifest": manifest, "live": True, "text": typed, "look": look, "labels": {12: label or "", 7: "b"}}
    prompt |= {"pinned": 12, "pinned_values": [0.0, 8.0, 0.0], "error": label}
    return {
        "feature": feature_page(feature, writable=True, test_text=typed, documents={3: (label or "", "CC0")}),
        "dead": feature_page(DEAD),
        "embed": feature_page(feature, embed=Embed(default_test_text=typed), test_text=typed),
        "home": render("home.html", links=ServerLinks(), atlases=home),
        "browse": render(
            "browse.html",
            links=LINKS,
            manifest=manifest,
            summaries=summaries,
            total=9,
            query=QUERY | {"text": typed},
            points=points,
        ),
        **{kind: render("search.html", links=LINKS, kind=kind, **search) for kind in ("label", "token", "text")},
        "prompt": render("prompt.html", links=LINKS, **prompt),
        "error": render("error.html", links=ServerLinks(), status=404, title=label or "x", message=token),
        "test": render(
            "test_result.html",
            links=LINKS,
            tokens=words,
            values=[0.0, 3.0, 1.0],
            counted=[False, True, True],
            max=8.0,
            feature=12,
        ),
        "note": render("error_note.html", links=LINKS, message=label or "x"),
        "steer": steer_page(
            manifest=manifest,
            asked=structs.replace(ASKED, prompt=typed[:2000], add=typed[:900]),
            rows=dialled(label, token),
            suggestions=summaries,
            suggestions_note=label or "x",
            runs=[
                steered(token, " of", edit=label or "x", samples=2),
                steered(token, name="noise", edit=label or "x", samples=2),
            ],
            error=label or "x",
        ),
        "steer-off": steer_page(live=False, why=label or "x"),
        "panel": feature_page(feature, asked=ASKED, rows=dialled(label, token)[:1]),
        "causes": render(
            "attribute.html",
            links=LINKS,
            manifest=manifest,
            live=True,
            asked=Asking(text=typed, target=typed[:200], against=typed[:200]),
            found=attribution(token, label or "x"),
            labels={12: label or ""},
            hints={7: token},
            error=label,
        ),
        "explanations": render("explanations.html", links=LINKS, feature=feature, writable=True),
        "alone": feature_document(feature, manifest),
    }


# --- text ------------------------------------------------------------------------------------------------------------


def test_every_character_that_could_hide_or_rearrange_text_is_spelt_out() -> None:
    hidden = [
        letter
        for letter in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    ]
    assert len(hidden) > 2000
    for letter in hidden:
        assert letter not in visible(letter)
    assert readable(" a\nb\tc\r\u202e\x00\U000e0041") == " a↵b⇥c␍\\u202e\\u0000\\U000e0041"
    assert readable("naïve 的 שלום 😀") == "naïve 的 שלום 😀"


def test_a_text_that_is_too_long_says_how_long_it_is() -> None:
    assert clipped("x" * 200) == "x" * 200
    assert clipped("x" * 100_000) == "x" * 100 + "… (100,000 characters)"


@settings(max_examples=150, deadline=None)
@given(
    tokens=st.lists(st.one_of(st.text(max_size=8), st.sampled_from([*HOSTILE, "␞", ""])), min_size=1, max_size=80),
    data=st.data(),
)
def test_a_strip_says_every_token_and_marks_the_active_ones_whatever_they_hold(
    tokens: list[str], data: st.DataObject
) -> None:
    values = data.draw(st.lists(st.sampled_from([0.0, 0.0, 0.5, 8.0, 1e9]), min_size=len(tokens), max_size=len(tokens)))
    peak = data.draw(st.integers(0, len(tokens) - 1))
    values[peak] = 8.0
    one = replace(example(tokens, values), peak=peak)
    expected = [readable(clipped(token)) for token in tokens]
    active = [index for index, value in enumerate(values) if value > 0]
    marked = [expected[index] or "◦" for index in active]
    for made in (strips.example(one, 8.0), strips.strip(tokens, values, 8.0)):
        tree = parse(made)
        assert {element.tag for element in tree} <= {"", "token-strip", "span", "mark", "br"}
        assert [mark.text for mark in tree.all("mark")] == marked
        whole = [marked[active.index(index)] if index in active else text for index, text in enumerate(expected)]
        assert tree.text == "".join(whole)
        assert tree.text.count("↵") - sum(token.count("↵") for token in map(clipped, tokens)) == len(tree.all("br"))
    assert tree.one("token-strip").attributes["dir"] == "auto"


def test_an_example_keeps_what_is_far_from_its_token_apart() -> None:
    tokens, values = [f"{index} " for index in range(64)], [0.0] * 64
    values[30], values[2] = 5.0, 1.0
    tree = parse(strips.example(example(tokens, values), 5.0))
    before, after = tree.one(class_="b"), tree.one(class_="e")
    assert before.text == "".join(tokens[:30])
    assert after.text == "".join(tokens[30:])
    far = tree.all(class_="f")
    assert [one.text for one in far] == ["".join(tokens[:14]), "".join(tokens[47:])]
    assert tree.one("mark", class_="p").text == "30 "
    short = parse(strips.example(example(tokens[:8], [0.0] * 7 + [5.0]), 5.0))
    assert not short.all(class_="f")


def test_what_lies_between_active_tokens_is_one_run_of_text() -> None:
    made = strips.strip([" a"] * 50, [0.0] * 49 + [1.0], 1.0)
    assert len(parse(made).one("token-strip").children) == 2
    assert len(made) < 200


def test_a_token_that_does_not_count_is_set_apart_and_its_value_not_shown() -> None:
    tree = parse(strips.strip(["<bos>", " a", " b"], [99.0, 1.0, 0.0], 2.0, counted=[False, True, True]))
    assert [mark.text for mark in tree.all("mark")] == [" a"]
    assert tree.one("span", class_="u").attributes["title"] == "not counted"
    assert "99" not in strips.strip(["<bos>", " a"], [99.0, 1.0], 2.0, counted=[False, True])


def test_shades_grow_with_the_logarithm_of_the_share() -> None:
    shares = np.linspace(0, 1, 1001)
    opacity = 0.05 + np.log10(1 + 9 * shares) * 0.95
    got = [strips.shade(share) for share in shares.tolist()]
    np.testing.assert_allclose(got, (opacity - 0.05) / 0.95 * 9, atol=0.5 + 1e-9)
    assert got[0] == 0
    assert got[-1] == 9
    assert strips.shade(7.0) == 9
    assert strips.shade(float("inf")) == 9


# --- charts ----------------------------------------------------------------------------------------------------------


# --- addresses -------------------------------------------------------------------------------------------------------


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
    assert [one.attributes["href"] for one in tree.all("a")] == ["#feature-7"]
    assert "names of rivers" in tree.text


def test_static_files_carry_the_digest_of_all_of_them() -> None:
    assert LINKS.static("gemscope.css") == f"/static/gemscope.css?v={static_digest()}"
    for page in all_pages().values():
        for name in re.findall(r'/static/([^?"]+)\?', page):
            assert (STATIC / name).is_file()


# --- pages -----------------------------------------------------------------------------------------------------------

PAGES = list(all_pages())


@pytest.mark.parametrize("name", PAGES)
def test_a_page_keeps_its_own_policy(name: str) -> None:
    page = all_pages()[name]
    tree = parse(page)
    for one in tree:
        assert "style" not in one.attributes
        assert not [attribute for attribute in one.attributes if attribute.startswith("on")]
        for attribute in ("src", "href", "action", "hx-get", "hx-post"):
            address = one.attributes.get(attribute)
            assert address is None or address.startswith(("/", "#", "data:,")), (one.tag, attribute, address)
            assert not (address or "").startswith("//")
        if name != "alone":
            assert one.tag != "style"
            assert one.tag != "script" or (one.attributes["src"] and not one.children)
    assert not re.search(r"https?://", page)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_what_is_on_it(name: str) -> None:
    tree = parse(all_pages()[name])
    ids = [one.attributes["id"] for one in tree if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    for one in tree:
        if one.tag in ("input", "select", "textarea") and one.attributes.get("type") != "hidden":
            label = {"aria-label", "aria-labelledby"} & one.attributes.keys() or _within_label(tree, one)
            assert label or tree.all("label", **{"for": one.attributes["id"]})
        if one.tag in ("a", "button"):
            assert one.text.strip() or one.attributes.get("aria-label")
        if one.tag == "svg":
            assert one.attributes.get("aria-hidden") == "true" or one.all("title")
        for reference in ("aria-labelledby", "for", "form"):
            assert one.attributes.get(reference, "") in {"", *ids}
        target = one.attributes.get("hx-target", "")
        assert name == "explanations" or target.removeprefix("#") in {"", *ids}
    if "<html" in all_pages()[name]:
        assert len(tree.all("h1")) == 1
        assert tree.one("html").attributes["lang"] == "en"
        assert tree.one("head").one("title").text.strip()
        assert len(tree.all("main")) == 1


def _within_label(tree: Element, wanted: Element) -> bool:
    return any(one is wanted for label in tree.all("label") if label.text.strip() for one in label)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_on_every_page(text: str) -> None:
    benign, hostile = all_pages("names", " Sea"), all_pages(text, text)
    for name, page in hostile.items():
        page.encode("utf-8")
        for letter in "\x00\x07\x1b\u202e\u2066\u200f":
            # What a reader typed is given back to them in the field as it was; it is nowhere else.
            assert page.count(letter) == (page.count(html.escape(typed(text))) if letter in typed(text) else 0), name
        # The same elements with the same attributes as for a harmless text: nothing broke out.
        shape = [(one.tag, sorted(one.attributes)) for one in parse(page) if one.tag not in ("br", "mark", "meta")]
        expected = [
            (one.tag, sorted(one.attributes)) for one in parse(benign[name]) if one.tag not in ("br", "mark", "meta")
        ]
        assert shape == expected, name
        assert len(page) < 400_000


def test_a_feature_page_holds_everything_known_of_a_feature() -> None:
    tree = parse(feature_page(dashboard(), documents={3: ("a book", "CC0")}))
    assert tree.one("h1").text == "names of seas"
    assert "bodies of water max-act · score 0.71" in re.sub(r"\s+", " ", tree.one(class_="others").text)
    figures = {
        one.all("dt")[0].text.split()[0]: one.all("dd")[0].text for one in tree.one("dl", class_="figures").all("div")
    }
    assert figures["Density"] == "1.25 % 1 token in 80"
    assert figures["Fires"] == "150 of 12k tokens"
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
        "Does it write what it reads?",
        "Strongest",
        "0 to 4 96.7 % of its firings (145)",
    ]
    assert tree.all("small", class_="at")[0].attributes["title"] == "a book, CC0"
    assert tree.all("small", class_="at")[0].text == "3, token :40"
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
    assert turns == {"prev": "/tiny-model/1-res-tiny/11", "next": "/tiny-model/1-res-tiny/13"}
    assert tree.one("a", type="application/json").attributes["href"] == "/tiny-model/1-res-tiny/12.json"


def test_the_marks_of_an_example_say_their_values() -> None:
    tree = parse(feature_page(dashboard()))
    first = tree.all("token-strip")[0]
    said = [(mark.text, mark.attributes["title"], mark.attributes["class"]) for mark in first.all("mark")]
    assert said == [(" of", "1", "a3"), (" Sea", "2", "a5"), (" Sea", "8", "a9 p")]


def test_the_first_and_the_last_feature_have_one_neighbour_each() -> None:
    first = parse(feature_page(dashboard(), previous=None)).one(class_="turn")
    last = parse(feature_page(dashboard(), following=None)).one(class_="turn")
    assert [one.attributes.get("rel") for one in first.all("a")] == ["next", None]
    assert [one.attributes.get("rel") for one in last.all("a")] == ["prev", None]


def test_a_dead_feature_says_so_and_shows_what_its_weights_say() -> None:
    tree = parse(feature_page(DEAD))
    assert "it fired on none of the 12,000 counted tokens" in tree.one(class_="notice").text
    assert not tree.all("token-strip")
    assert len(tree.all("table", class_="logit")) == 2


def test_texts_can_be_tried_where_a_model_is_loaded_and_elsewhere_it_is_said_why_not() -> None:
    form = parse(feature_page(dashboard(), test_text="the sea")).one("section", class_="test").one("form")
    assert form.attributes["hx-post"] == "/tiny-model/1-res-tiny/12/test"
    assert "hx-trigger" not in form.attributes  # it is sent when it is submitted
    assert form.one("textarea").text == "the sea"
    still = parse(feature_page(dashboard(), live=False, why="no model here"))
    assert not still.all("section", class_="test")
    assert "no model here" in still.text
    assert not [one for one in still.all("script") if "htmx" in one.attributes["src"]]


def test_explanations_are_added_where_writing_is_possible() -> None:
    assert not parse(feature_page(dashboard())).all("form", class_="add")
    tree = parse(feature_page(dashboard(), writable=True))
    form = tree.one("form", class_="add")
    assert (form.attributes["action"], form.attributes["method"]) == ("/tiny-model/1-res-tiny/12/explain", "post")
    assert form.attributes["hx-target"] == "#feature-12-title"
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
        "section", class_="test"
    )
    assert not fixed.all("textarea")
    assert fixed.one("input").attributes["value"] == "sea"


def browse(**changes: Any) -> Element:
    values: dict[str, Any] = {"manifest": MANIFEST, "summaries": SUMMARIES, "total": 9, "query": QUERY}
    return parse(render("browse_rows.html", **{"links": LINKS, **values, **changes}))


def test_the_table_of_features_sorts_by_its_headers_and_keeps_the_filters() -> None:
    tree = browse()
    heads = {one.text.split()[0]: one for one in tree.one("thead").all("th")}
    assert [one.attributes.get("aria-sort") for one in heads.values()] == [None, None, "descending", None, None]
    assert heads["density"].one("a").attributes["href"] == (
        "/tiny-model/1-res-tiny?order=density&min_density=0.001&text=sea&limit=3"
    )
    assert "order=max&descending=true&min_density=0.001" in heads["max"].one("a").attributes["href"]
    rows = [[cell.text for cell in row.all("td")] for row in tree.one("tbody").all("tr")]
    assert rows == [
        ["0", "names of seas", "1 %", "8", "1.5"],
        ["1", "no label; strongest on ↵", "0.05 %", "3", "1"],
        ["2", "did not fire in this corpus", "0 %", "–", "–"],
    ]


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
    page = render("browse.html", links=links, manifest=MANIFEST, summaries=SUMMARIES, total=3, query=query, points=None)
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


def search(kind: str, text: str, **values: Any) -> Element:
    given = {"note": None, "summaries": [], "tokens": [], "token": None, "hits": [], "found": []}
    given |= {"manifest": MANIFEST, "kind": kind, "text": text, "live": True, "strings": [], "counted": []}
    return parse(render("search_results.html", links=LINKS, **{**given, **values}))


def test_search_finds_by_label_by_token_and_by_text() -> None:
    by_label = search("label", "seas", summaries=SUMMARIES[:1])
    assert by_label.one("a", class_="number").attributes["href"] == "/tiny-model/1-res-tiny/0"
    hits = [Hit(SUMMARIES[0], 0.5, 3)]
    by_token = search("token", "sea", tokens=[(4, " Sea", 7), (5, "sea", 1)], token=4, hits=hits)
    tokens = by_token.one(class_="tokens").all("a")
    assert [one.attributes.get("aria-current") for one in tokens] == ["true", None]
    assert "token=5" in tokens[1].attributes["href"]
    assert [cell.text for cell in by_token.one("tbody").all("td")] == ["0", "names of seas", "50 %", "3"]
    found = [{"summary": SUMMARIES[0], "values": [0.0, 4.0]}]
    by_text = search("text", "The Sea", found=found, strings=["The", " Sea"], counted=[False, True])
    assert by_text.one("mark").text == " Sea"
    assert "4 · 50 % of its max" in by_text.text
    for kind in ("label", "token", "text"):
        assert search(kind, "zzz").text.strip()
        assert not search(kind, "").text.strip()


def test_a_number_leads_to_its_feature() -> None:
    assert search("label", " 12 ").one("a").attributes["href"] == "/tiny-model/1-res-tiny/12"
    for text in ("40", "-1", "1e1", "²", "9" * 400):
        assert not search("label", text).all("a")


def test_the_prompt_view_shows_each_token_and_says_why_some_do_not_count() -> None:
    labels = {12: "names of seas"}
    page = render(
        "prompt.html", links=LINKS, manifest=MANIFEST, live=True, text="Sea of", look=LOOK, labels=labels, pinned=12,
        pinned_values=[0.0, 8.0, 0.0], error=None,
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
    pins = rows[1].all("button")
    assert [(one.attributes["name"], one.attributes["value"], one.attributes["form"]) for one in pins] == [
        ("pin", "12", "prompt"),
        ("pin", "7", "prompt"),
    ]
    assert [one.attributes.get("aria-pressed") for one in pins] == ["true", None]
    strip = tree.one(class_="pinned").one("token-strip")
    assert [mark.text for mark in strip.all("mark")] == [" Sea"]
    figures = [one.text for one in tree.all("dl")[0].all("dd")]
    assert figures == ["3 1 counted", "2 features a token", "—"]


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


# --- pages on which a model acts -------------------------------------------------------------------------------------


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


def test_a_frame_has_the_steer_panel_unless_it_is_left_out() -> None:
    def panels(**values: Any) -> int:
        return len(parse(feature_page(dashboard(), asked=ASKED, rows=dialled()[:1], **values)).all("steer-panel"))

    assert panels() == panels(embed=Embed()) == 1
    assert panels(embed=Embed(steer=False)) == 0
    unlinked = parse(feature_page(dashboard(), asked=ASKED, rows=dialled()[:1], embed=Embed(link=False)))
    assert not unlinked.one("main").all("a")
    assert panels(live=False) == 0
    assert "steer" not in article(dashboard(), MANIFEST)


def test_causes_show_what_was_predicted_beside_what_was_measured() -> None:
    values: dict[str, Any] = {"labels": {12: "names of seas"}, "hints": {7: " a"}, "error": None}
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
        strength=Strength(8.0, 1.0, 0.25),
        prompts=("This is the", "We found a"),
        examples=Effect(tokens=(" Sea",), **{**figures, "mass": 0.5}),
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


def test_a_value_that_a_template_is_not_given_is_an_error() -> None:
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        render("home.html", links=ServerLinks())


# --- files of their own ----------------------------------------------------------------------------------------------


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
    assert "url(" not in style
    assert "@import" not in style
    assert "</" not in script
    assert not tree.all("link", rel="stylesheet")
    assert tree.one("head").one("title").text == "tiny-model@1-res-tiny:12"
    assert "names of seas" in tree.one("h1").text


def test_several_features_share_one_document() -> None:
    ones = [replace(dashboard(), index=index) for index in (3, 5)]
    body = "".join(article(one, MANIFEST, links=NoLinks(within={3, 5})) for one in ones)
    tree = parse(document(body, title="two <features>"))
    ids = [one.attributes["id"] for one in tree if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    names = {one.attributes["name"] for one in tree.all("input", type="radio")}
    assert names == {"feature-3-mode", "feature-5-mode"}
    assert tree.one("head").one("title").text == "two <features>"


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


# --- what everybody can read -----------------------------------------------------------------------------------------


def _colours() -> dict[str, tuple[str, str]]:
    css = (STATIC / "gemscope.css").read_text("utf-8")
    return {name: (light, dark) for name, light, dark in re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", css)}


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * letter for letter in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_shade_can_be_read_in_both_themes(theme: int) -> None:
    css = (STATIC / "gemscope.css").read_text("utf-8")
    colours = {name: both[theme] for name, both in _colours().items()}
    shades = []
    for step in range(10):
        rule = re.search(rf"^\.a{step} {{(.*)}}$", css, re.MULTILINE)
        assert rule is not None
        back = re.findall(r"background: light-dark\((#\w+), (#\w+)\)", rule[1])[0][theme]
        text = re.findall(r"[^-]color: light-dark\((#\w+), (#\w+)\)", rule[1])
        assert contrast(text[0][theme] if text else colours["ink"], back) >= 4.5, step
        shades.append(_luminance(back))
    acting = (STATIC / "steer.css").read_text("utf-8")
    for step in range(1, 5):
        back = re.findall(rf"^\.n{step} {{ background: light-dark\((#\w+), (#\w+)\)", acting, re.MULTILINE)[0][theme]
        assert contrast(colours["ink"], back) >= 4.5, step
    steps = [second - first for first, second in itertools.pairwise(shades)]
    assert all(step < 0 for step in steps) if theme == 0 else all(step > 0 for step in steps)
    for back in ("paper", "card", "warn"):
        assert contrast(colours["ink"], colours[back]) >= 7
        assert contrast(colours["link"], colours[back]) >= 4.5
    for back in ("paper", "card"):
        assert contrast(colours["soft"], colours[back]) >= 4.5
        for thing in ("edge", "focus", "dot"):
            assert contrast(colours[thing], colours[back]) >= 3, thing


def test_no_page_sends_anything_before_its_reader_does_something() -> None:
    """htmx sends a form when it is submitted, anything else when it is clicked, unless `hx-trigger` says otherwise."""
    made = Path(str(files("gemscope.pages") / "templates"))
    templates = "".join(one.read_text("utf-8") for one in [*made.glob("*.html"), *made.glob("panels/*.html")])
    triggers = re.findall(r'hx-trigger="([^"]*)"', templates)
    assert triggers == templates.count("hx-trigger") * ["submit, change, input delay:300ms"]  # of the table of features
    assert not re.findall(
        r"hx-ext|hx-on|sse-connect|ws-connect|http-equiv|onload|rel=.preload|rel=.prefetch", templates
    )
    scripts = "".join(one.read_text("utf-8") for one in STATIC.iterdir() if one.name.endswith(".js"))
    assert not re.findall(r"EventSource|WebSocket|sendBeacon|XMLHttpRequest|requestIdleCallback", scripts)
    # A script asks the server in three places, each behind an event of its reader's.
    assert re.findall(r"fetch\(`?([^,)]*)", scripts) == [
        "url", "${this.dataset.units}?${new URLSearchParams(asked", "${this.form.action}?${this.state(button",
    ]  # fmt: skip


def test_scripts_are_few_and_small_and_load_nothing() -> None:
    own = [one for one in STATIC.iterdir() if one.name.endswith(".js")]
    assert sum(len(one.read_bytes()) for one in own) < 24_000
    for one in own:
        text = one.read_text("utf-8")
        assert not re.search(r"https?://|\beval\b|innerHTML|insertAdjacentHTML|import\b", text)


def test_what_others_wrote_comes_with_its_licence() -> None:
    vendor = STATIC / "vendor"
    assert b"version='4.0.1'" in (vendor / "htmx.min.js").read_bytes().replace(b'"', b"'")
    assert "Permission to use, copy, modify, and/or distribute" in (vendor / "htmx.LICENSE").read_text("utf-8")


def test_markup_of_ours_is_not_escaped_twice() -> None:
    assert "&amp;lt;" not in feature_page(dashboard("a < b"))
    assert isinstance(strips.token("<"), Markup)
