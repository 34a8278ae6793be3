"""Writing that is not Latin: characters where a model has bytes, and text that runs from right to left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from browsing import AT, LIVE, SISTER, shown

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

TEXT = "Hello 😂🎉, 日本の東京, مرحبا بالعالم, שלום"


def test_emoji_arabic_and_chinese_are_characters_with_their_bytes_one_hover_away(page: Page) -> None:
    page.goto(f"{AT}/{SISTER}?text={TEXT}")
    page.click(".test button")
    strip = page.locator(f"#feature-{SISTER}-result token-strip")
    strip.wait_for(timeout=LIVE)
    assert (strip.text_content() or "").strip() == TEXT
    mark = strip.locator("mark", has_text="😂").first
    assert (mark.get_attribute("title") or "").startswith("f0 9f")
    mark.hover()
    page.locator("#token-tip", has_text="f0 9f").wait_for()
    page.goto(f"{AT}/search?kind=text&text={TEXT}")
    page.click("form.search button")
    page.wait_for_selector(".looks li", timeout=LIVE)
    assert TEXT in shown(page.locator(".looks token-strip").first)
    page.goto(f"{AT}/prompt?text={TEXT}")
    page.click("button:has-text('Look')")
    page.wait_for_selector("table.look", timeout=LIVE)
    rows = page.locator("table.look th[scope=row]").all_text_contents()
    assert any("😂" in row for row in rows)
    assert any("\\xf0\\x9f" in row for row in rows)  # a token by itself, as bytes
    assert "\ufffd" not in page.content()


def test_text_from_right_to_left_leaves_the_rest_of_the_page_where_it_is(page: Page) -> None:
    page.goto(f"{AT}/{SISTER}")

    def places() -> list[tuple[float, float]]:
        found = page.locator(".strips .value, .strips .at, .origin > *, .figures dd").all()
        return [(box["x"], box["width"]) for box in (one.bounding_box() for one in found) if box]

    before = places()
    page.evaluate(
        """() => {
            document.querySelector("h1 bdi").textContent = "كلمات عن الأسرة (1) ";
            for (const bdi of document.querySelectorAll(".beyond bdi")) bdi.textContent = "مرحبا (2)";
            for (const mark of document.querySelectorAll(".strips mark.p")) mark.textContent = "مرحبا";
        }"""
    )
    assert places() == before
    name = page.locator(".relatives td").first.evaluate(
        """one => [one.querySelector("a").getBoundingClientRect().right, one.querySelector("bdi").getBoundingClientRect().left]"""
    )
    assert name[0] <= name[1]  # the number stays in front of its label
