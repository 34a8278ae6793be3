"""A real browser walks through the pages, served and exported: what readers do works, nothing is fetched from elsewhere.

`GEMSCOPE_CHROMIUM` names the browser (default: the `chromium` on the path), `GEMSCOPE_SHOTS` the folder for pictures of
every page (default: tests/output).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

import gemscope as gs
from browsing import AT, BUNDLED, GREETINGS, LIVE, SISTER, Watch, looked, reading, shot, shown, strongest
from gemscope.text.printable import visible

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


# --- a browser, and somebody who watches it ---------------------------------------------------------------------------


# --- what a reader does -----------------------------------------------------------------------------------------------


def label_of(feature: int) -> str | None:
    """What the package's atlas says of it."""
    with gs.Atlas(BUNDLED) as atlas:
        return atlas[feature].label


def test_a_reader_goes_from_the_atlases_to_a_feature_by_sorting_and_filtering(page: Page) -> None:
    page.goto("/")
    page.click(f"a[href='{AT}'] >> nth=0")
    assert page.locator("table.features tbody tr").count() == 100
    page.click("th.max a")
    maxima = [float(text.replace(",", "")) for text in page.locator("td.max").all_text_contents()]
    assert maxima == sorted(maxima, reverse=True)
    assert page.locator("th.max").get_attribute("aria-sort") == "descending"
    everything = shown(page.locator(".count"))
    assert everything == "1–100 of 8,192 features"
    page.fill("[name=min_density]", "0.01")
    page.fill("[name=max_density]", "0.02")
    page.wait_for_url("**max_density=0.02**")
    page.locator(".count", has_not_text=everything).wait_for()
    densities = [float(text.removesuffix(" %")) for text in page.locator("td.density").all_text_contents()]
    assert densities
    assert all(1 <= density <= 2 for density in densities)
    assert "min_density=0.01" in page.url  # the choice can be kept as a bookmark
    assert "order=max" in page.url
    chosen = shown(page.locator("td.index a").first)
    page.click("td.index a >> nth=0")
    page.wait_for_url(f"**{AT}/{chosen}")
    page.go_back()
    assert page.locator("[name=min_density]").input_value() == "0.01"
    page.select_option("[name=dead]", "true")
    page.click("text=Clear")
    page.select_option("[name=dead]", "true")
    with gs.Atlas(BUNDLED) as atlas:
        dead = atlas.count(dead=True)
    page.locator(".count", has_text=f"{dead} features").wait_for()
    assert page.locator("table.features tbody tr").count() == dead < 100


def test_cells_of_the_scatter_lead_to_a_feature_or_to_a_table_of_them(page: Page) -> None:
    place = """wanted => {
        const plot = document.querySelector("feature-scatter");
        const cells = [...plot.cells].filter(([, cell]) => (cell.count > 1) === wanted);
        const [cell, {count, one}] = cells[cells.length >> 1];
        const [x, y] = plot.corner(cell);
        plot.scrollIntoView();
        const box = plot.canvas.getBoundingClientRect();
        return {x: box.x + x + 1, y: box.y + y + 1, count, one};
    }"""
    for several in (False, True):
        page.goto(AT)
        page.wait_for_selector("feature-scatter canvas")
        cell = page.evaluate(place, several)
        page.mouse.move(cell["x"], cell["y"])
        said = shown(page.locator("feature-scatter .under"))
        page.mouse.click(cell["x"], cell["y"])
        if several:
            page.wait_for_url("**min_max=**")
            assert said.startswith(f"{cell['count']} features, {cell['one']} among them")
            assert shown(page.locator(".count")) == f"{cell['count']} features"
        else:
            page.wait_for_url(f"**{AT}/{cell['one']}")
            assert said.startswith(f"Feature {cell['one']}: density about ")


def test_a_mark_says_its_value_when_pointed_at_and_when_focused(page: Page) -> None:
    page.goto(f"{AT}/{SISTER}")
    strip = page.locator("token-strip").first
    value = shown(page.locator(".strips .value").first)
    mark = strip.locator("mark.p")
    assert mark.get_attribute("title") == value
    tip = page.locator("#token-tip")
    mark.hover()
    assert (tip.text_content() or "").split() == [value, visible(strongest())]
    shot(page, "tip-light-desk", whole=False)
    page.mouse.move(2, 2)
    assert tip.is_hidden()
    mark.focus()
    assert (tip.text_content() or "").split() == [value, visible(strongest())]
    assert mark.get_attribute("aria-describedby") == "token-tip"
    page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_a_reader_chooses_how_much_of_each_text_to_see_and_it_is_remembered(page: Page) -> None:
    page.goto(f"{AT}/{SISTER}")
    strip = page.locator("token-strip", has=page.locator(".f")).first
    far = strip.locator(".f").first
    height = {}
    for mode, seen in (("Stacked", False), ("Snippet", False), ("Full", True)):
        page.locator(".examples .modes label", has_text=mode).click()
        assert far.is_visible() == seen
        height[mode] = strip.bounding_box()["height"]  # type: ignore[index]
    assert height["Stacked"] < height["Full"]
    # Stacked: the firing tokens of all texts begin at one place.
    page.locator(".examples .modes label", has_text="Stacked").click()
    lefts = {round(mark.bounding_box()["x"]) for mark in page.locator(".examples mark.p").all()[:10]}  # type: ignore[index]
    assert len(lefts) == 1
    page.locator(".examples .modes label", has_text="Full").click()
    page.goto(f"{AT}/{SISTER - 1}")
    assert page.locator("input.full").is_checked()
    assert not page.locator("br >> nth=0").is_visible()


def test_a_text_of_the_reader_s_own_is_marked_where_the_feature_fires(watched: tuple[Page, Watch]) -> None:
    page, watch = watched
    page.goto(f"{AT}/{SISTER}")
    page.click(".test summary")
    page.fill(".test textarea", "Her younger sister <b>Mary</b> went home.")
    page.click(".test button")
    result = page.locator(f"#feature-{SISTER}-result")
    result.locator("mark").first.wait_for(timeout=LIVE)
    assert "sister" in shown(result.locator("mark.p"))
    assert "at its strongest" in shown(result.locator(".verdict"))
    assert "<b>Mary</b>" in shown(result.locator("token-strip"))
    assert result.locator("b").count() == 0
    result.scroll_into_view_if_needed()
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # it has scrolled
    result.locator("mark.p").hover()
    assert page.locator("#token-tip").is_visible()
    watch.expected = ["status of 400"]
    page.fill(".test textarea", "x " * 9_000)
    page.click(".test button")
    result.get_by_text(re.compile(r"a text of [0-9]+ tokens does not fit: .* reads up to 8192")).wait_for(timeout=LIVE)


def test_a_label_is_added_found_by_search_and_taken_away(page: Page, served: str) -> None:
    page.goto(f"{AT}/{SISTER}")
    rule = shown(page.locator("h1"))
    assert rule == label_of(SISTER)
    page.click("details.add summary")
    page.fill("form.add input", "sisters & <i>zithers</i>")
    page.click("form.add button")
    page.locator("h1", has_text="sisters & <i>zithers</i>").wait_for()  # a person's word goes before a rule
    assert page.locator("h1 i").count() == 0
    page.fill(".find input[type=search]", "zith")  # from any page, by the beginning of a word
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?**")
    assert shown(page.locator(".found .what")) == "sisters & <i>zithers</i>; promotes brother, brotherhood"
    page.click(".found .number a")
    page.wait_for_url(f"**{AT}/{SISTER}")
    page.click("button:has-text('Remove')")
    page.locator("h1", has_text=rule).wait_for()
    page.fill(".find input[type=search]", str(SISTER))
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{AT}/{SISTER}")


def test_a_slash_goes_to_the_search_box_from_anywhere_but_not_from_a_field(page: Page) -> None:
    page.goto(f"{AT}/{SISTER}")
    page.keyboard.press("/")
    page.keyboard.type("99999")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?**")
    assert "No feature 99999: this SAE has features 0 to 8191." in shown(page.locator("#results"))
    page.locator("h1").click()
    page.keyboard.press("/")  # the page's own box: what stands there is typed over, and in it a slash is a letter
    page.keyboard.type("money/")
    assert page.locator("form.search input[type=search]").input_value() == "money/"
    page.fill("form.search input[type=search]", "money")
    page.keyboard.press("Enter")
    page.locator(".understood", has_text="words of labels").wait_for()
    page.click(".understood a:has-text('the token')")
    page.wait_for_selector(".hits tbody tr")
    assert shown(page.locator(".tokens a[aria-current]")).startswith("·money")
    page.locator(".modes label", has_text="Anything").click()
    page.fill("form.search input[type=search]", str(SISTER))
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{AT}/{SISTER}")


def test_features_are_found_by_a_token_of_the_corpus(page: Page) -> None:
    page.goto(f"{AT}/search")
    page.locator(".modes label").get_by_text("Tokens", exact=True).click()
    page.fill("form.search input[type=search]", "sister")
    page.click("form.search button")
    page.wait_for_selector(".hits tbody tr")
    assert shown(page.locator(".hits td.index").first) == str(SISTER)
    assert "kind=token" in page.url
    page.locator(".tokens a", has_text="sisters").first.click()
    page.wait_for_url("**token=**")
    assert "sisters" in shown(page.locator(".tokens a[aria-current]"))


def test_features_are_found_by_a_text_on_which_they_fire(page: Page) -> None:
    page.goto(f"{AT}/search?kind=text")
    page.fill("form.search input[type=search]", "He has one sister.")
    page.click("form.search button")
    page.wait_for_selector(".looks li", timeout=LIVE)
    found = page.locator(".looks .number").all_text_contents()
    assert str(SISTER) in found
    assert page.locator(".looks mark").count() > 10


def test_a_prompt_shows_each_token_s_features_and_one_that_is_pinned(page: Page) -> None:
    page.goto(f"{AT}/prompt")
    page.fill("textarea", "She wrote to her sister in the morning.")
    page.click("button:has-text('Look')")
    page.wait_for_selector("table.look", timeout=LIVE)
    rows = page.locator("table.look tbody tr")
    assert shown(rows.nth(0)).startswith("She")
    assert rows.nth(0).get_attribute("class") == "uncounted"
    row = rows.filter(has=page.locator("th", has_text="sister"))
    assert str(SISTER) in row.locator(".fired a").all_text_contents()
    hint = row.locator(".fired li", has=page.locator(f"a[href$='/{SISTER}']")).locator(".label")
    assert shown(hint) == f"{label_of(SISTER)}; promotes brother, brotherhood"
    page.click(f"[aria-label='Pin feature {SISTER}']")
    page.wait_for_selector(".pinned mark")
    assert "sister" in shown(page.locator(".pinned mark.p"))
    assert f"pin={SISTER}" in page.url
    assert page.locator(".is-pinned").count() >= 1
    page.reload()  # what the address says is what is shown
    page.wait_for_selector(".pinned mark")
    page.click("text=Unpin")
    page.wait_for_selector(".pinned", state="detached")
    page.go_back()
    page.wait_for_selector(".pinned mark")


def test_the_causes_of_a_prediction_are_shown_beside_their_measured_effects(page: Page) -> None:
    page.goto(f"{AT}/prompt?text={quote('In the evening we sat by the fire, all of us: my father, my mother and my')}")
    looked(page)
    page.locator("table.look th button").last.click()
    causes = page.locator("section.causes")
    causes.wait_for(timeout=LIVE)
    page.wait_for_function("document.querySelector('.causes h2').getBoundingClientRect().top >= 0")  # it came into view
    assert page.evaluate("document.querySelector('.causes h2').getBoundingClientRect().bottom < innerHeight")
    assert "after ·my" in shown(causes.locator("h2"))
    rows = causes.locator("tbody tr")
    assert rows.count() == 12
    for row in rows.all():
        predicted, measured = (shown(cell) for cell in row.locator("td").all()[-2:])
        assert predicted
        assert measured not in ("", "—")
    assert "%" in shown(causes.locator("dd", has_text="SAE leaves out"))
    before = shown(causes.locator("h2"))
    causes.locator("[name=target]").first.fill(" sister")
    causes.locator("button", has_text="Explain").click()
    page.locator(".causes h2", has_text="·sister").wait_for(timeout=LIVE)
    assert shown(page.locator(".causes h2")) != before
    page.locator(".causes tbody a").first.click()
    page.wait_for_selector("article.feature")


def test_the_output_score_is_measured_when_it_is_asked_for(page: Page) -> None:
    page.goto(f"{AT}/{GREETINGS}")
    page.click(".effect button")
    page.locator(".effect", has_text="Output score").wait_for(timeout=LIVE)
    # tokens of its examples, and promoted ones: as measured, and by the direct path
    assert page.locator(".effect tbody tr").count() == 3


def test_the_choice_of_dark_is_remembered(page: Page) -> None:
    page.goto(f"{AT}/{SISTER}")

    def paper() -> str:
        return page.evaluate("getComputedStyle(document.documentElement).backgroundColor")

    light = paper()
    page.click("[data-theme-switch]")
    dark = paper()
    assert dark != light
    page.goto(f"{AT}/search")
    assert paper() == dark
    page.reload()
    assert paper() == dark
    page.click("[data-theme-switch]")
    assert paper() == light
    page.evaluate("localStorage.clear()")
    page.emulate_media(color_scheme="dark")
    page.reload()
    assert paper() == dark  # unless something was chosen, as the system has it


def test_a_walk_by_keyboard_alone(page: Page) -> None:
    page.goto(f"{AT}/{SISTER}")
    page.keyboard.press("Tab")
    assert shown(page.locator(":focus")) == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**{AT}/{SISTER + 1}")
    page.keyboard.press("k")
    page.wait_for_url(f"**{AT}/{SISTER}")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.localName") == "mark":
            break
    assert page.evaluate("document.activeElement.textContent") == strongest()
    assert page.locator("#token-tip").is_visible()
    page.locator(".examples .modes label", has_text="Full").click()
    strip = page.locator("token-strip").filter(has=page.locator("mark ~ mark")).first
    strip.locator("mark[tabindex='0']").focus()
    steps = strip.locator("mark").count() - 1
    for _ in range(steps):
        page.keyboard.press("ArrowLeft")
    assert strip.locator("mark").first.evaluate("one => one === document.activeElement")
    page.keyboard.press("ArrowRight")
    assert strip.locator("mark").nth(1).evaluate("one => one === document.activeElement")
    assert page.url.endswith(f"{AT}/{SISTER}")  # arrows inside a text turn no page
    page.keyboard.press("Tab")
    assert not strip.evaluate("one => one.contains(document.activeElement)")  # one stop for each text
    # Letters that are typed into a field turn none either.
    page.focus(".find input[type=search]")
    page.keyboard.type("jk")
    assert page.locator(".find input[type=search]").input_value() == "jk"
    assert page.url.endswith(f"{AT}/{SISTER}")


def test_without_scripts_the_pages_still_serve(chromium: Browser, served: str) -> None:
    with reading(chromium, served, base_url=served, java_script_enabled=False) as (page, _):
        page.goto(f"{AT}?order=density&descending=true")
        page.fill("[name=min_max]", "50")
        page.click("form.filters button")
        page.wait_for_url("**min_max=50**")
        page.goto(f"{AT}/22")
        assert page.locator("mark").count() > 20
        page.click("details.add summary")
        page.fill("form.add input", "water, plainly")
        page.click("form.add button")
        assert shown(page.locator("h1")) == "water, plainly"
        page.goto(f"{AT}/search?text=plainly")
        assert page.locator(".found li").count() == 1
        page.goto(f"{AT}/{GREETINGS}#steer")
        page.fill("[name=tokens]", "4")
        page.click("button.main", timeout=LIVE)
        page.wait_for_url("**/steer?**", timeout=LIVE)
        assert page.locator(".outcome token-strip").count() == 2
        page.goto(f"{AT}/22")
        page.click("button:has-text('Remove')")
        assert shown(page.locator("h1")) == label_of(22)


def test_a_token_in_the_address_lets_a_browser_in_and_is_not_kept_there(chromium: Browser, bundled: Path) -> None:
    with gs.serve(bundled, live=False, block=False, port=0, token="open-sesame") as server:
        with reading(chromium, server.url) as (page, watch):
            watch.expected = ["401"]
            assert page.goto(server.url).status == 401  # type: ignore[union-attr]
            page.goto(server.address)
            assert page.url == f"{server.url}/"
            page.click("text=Browse")
            assert page.locator("table.features").count() == 1
            page.click("td.index a >> nth=0")
            page.fill(".find input[type=search]", "7")
            page.keyboard.press("Enter")
            page.wait_for_url(f"**{AT}/7")
