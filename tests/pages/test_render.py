"""Every page: its policy, hostile text on it, what it sends and loads."""

from __future__ import annotations

import html
import itertools
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from markupsafe import Markup

from every_page import HOSTILE, MANIFEST, STATIC, all_pages, dashboard, feature_page
from gemscope.pages import strips
from gemscope.pages.links import ServerLinks
from gemscope.pages.numbers import wide
from gemscope.pages.render import render, typed
from html_tree import Element, parse

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
            assert one.attributes.get("aria-hidden") == "true" or one.attributes.get("aria-label") or one.all("title")
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


def test_a_value_that_a_template_is_not_given_is_an_error() -> None:
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        render("home.html", links=ServerLinks())


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
    assert triggers == templates.count("hx-trigger") * ["submit, input delay:300ms"]  # of the table of features
    assert not re.findall(
        r"hx-ext|hx-on|sse-connect|ws-connect|http-equiv|onload|rel=.preload|rel=.prefetch", templates
    )
    scripts = {one.name: one.read_text("utf-8") for one in STATIC.iterdir() if one.name.endswith(".js")}
    assert not re.findall(
        r"EventSource|WebSocket|sendBeacon|XMLHttpRequest|requestIdleCallback", "".join(scripts.values())
    )
    # Scripts ask the server in these places, each behind an event of its reader's; but for the map's points, which are to
    # it what a picture's are to another page, and its labels.
    asking = {name: re.findall(r"fetch\(`?([^,)]*)", text) for name, text in scripts.items()}
    assert {name: found for name, found in asking.items() if found} == {
        "page.js": ["/queue/${name}.json`"],
        "steer-panel.js": ["url", "${this.form.action}?${this.state(button"],
        "lists.js": ["url"],
        "feature-map.js": ["url"],
    }  # fmt: skip


def test_scripts_are_few_and_small_and_load_nothing() -> None:
    own = [one for one in STATIC.iterdir() if one.name.endswith(".js")]
    sizes = {one.name: len(one.read_bytes()) for one in own}
    assert sum(sizes.values()) < 50_000
    assert sum(sizes[name] for name in ("theme.js", "page.js", "token-strip.js")) < 8_000  # which every page loads
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


def test_a_document_s_title_says_what_it_is() -> None:
    titles = {
        name: parse(page).one("head").one("title").text for name, page in all_pages().items() if "<title>" in page
    }
    assert titles == {
        "feature": "names of seas · 12 · 1.res 40 · gemscope",
        "alone": "names of seas · 12 · 1.res 40 · gemscope",
        "panel": "names of seas · 12 · 1.res 40 · gemscope",
        "embed": "names of seas · 12 · 1.res 40 · gemscope",
        "dead": "Feature 12 · 1.res 40 · gemscope",
        "home": "Features of language models · gemscope",
        "homes": "Features of language models · gemscope",
        "browse": " Sea: features of tiny-model · 1.res 40 · gemscope",
        "label": " Sea · search · 1.res 40 · gemscope",
        "token": " Sea · search · 1.res 40 · gemscope",
        "text": " Sea · search · 1.res 40 · gemscope",
        "prompt": " Sea · what the model sees · 1.res 40 · gemscope",
        "causes": " Sea · causes · 1.res 40 · gemscope",
        "steer": "Steer with 12, 7 · 1.res 40 · gemscope",
        "steer-off": "Steer with 12, 7 · 1.res 40 · gemscope",
        "error": "names of seas · gemscope",
    }
    assert not [name for name, page in all_pages().items() if "og:" in page]


def test_a_long_label_and_a_wide_sae_are_short_in_a_title() -> None:
    manifest = replace(MANIFEST, d_sae=16384, site="5.mlp", site_out="6.mlp")
    page = feature_page(dashboard("a word that is long and goes on " * 9), manifest=manifest)
    said = parse(page).one("head").one("title").text
    assert said == "a word that is long and goes on a word that is long and… · 12 · 5.mlp → 6.mlp 16k · gemscope"
    assert [wide(count) for count in (7, 999, 1000, 8192, 65536, 131072, 1048576)] == [
        *("7", "999", "1k", "8k", "65k", "131k", "1m")
    ]
