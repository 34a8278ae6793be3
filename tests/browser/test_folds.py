"""What of a feature's page is seen before anybody scrolls, and what folds out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import gemscope as gs
from browsing import AT, BUNDLED, DESK, GREETINGS, SISTER, barriers, reading

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

TUTORIAL = "?embed=true&embedexplanation=true&embedplots=true&embedtest=true&height=300"
"""The parameters of the Gemma Scope tutorial's frames, which are 1200 by 600 pixels."""

WHOLE = """() => [...document.querySelectorAll(".examples .strips li")].filter(one => {
    const box = one.getBoundingClientRect();
    return box.height > 0 && box.top >= 0 && box.bottom <= innerHeight;
}).length"""
"""Examples that are seen from top to bottom."""


def _shown_at_once() -> list[int]:
    """Features with short labels, long ones and the longest, and one without any."""
    with gs.Atlas(BUNDLED) as atlas:
        every = [one for one in atlas.summaries(dead=False, limit=len(atlas)) if len(atlas[one.feature].strongest) >= 8]
    by_length = sorted(every, key=lambda one: len(one.label or ""))
    return [263, 8029, GREETINGS, *(by_length[place].feature for place in (0, len(every) // 2, -1))]


@pytest.mark.parametrize(
    ("size", "query", "least"),
    [
        ({"width": 1280, "height": 900}, "", 8),
        ({"width": 390, "height": 844}, "", 4),
        ({"width": 1200, "height": 600}, TUTORIAL, 5),
        ({"width": 600, "height": 600}, TUTORIAL, 5),
    ],
)
def test_examples_are_seen_without_scrolling(
    chromium: Browser, served: str, size: dict[str, int], query: str, least: int
) -> None:
    with reading(chromium, served, base_url=served, viewport=size) as (page, _):
        for feature in _shown_at_once():
            page.goto(f"{AT}/{feature}{query}")
            assert page.evaluate(WHOLE) >= least, feature
            assert page.locator("h1").bounding_box()["y"] >= 0  # type: ignore[index]
            assert page.locator(".figures dd").first.is_visible()


def test_lower_ranges_come_into_the_page_by_key_and_without_scripts_by_a_page_that_has_them(
    chromium: Browser, served: str
) -> None:
    def ranges(page: Page) -> list[str]:
        return page.locator(".ranges h3").all_inner_texts()

    with reading(chromium, served, base_url=served) as (page, _):
        page.goto(f"{AT}/{SISTER}")
        assert ranges(page) == []
        page.locator(".ranges a").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector(".ranges h3")
        found = ranges(page)
        assert len(found) > 2
        assert page.url == f"{served}{AT}/{SISTER}"
        assert page.evaluate("document.activeElement.closest('.ranges') !== null")  # who came by key goes on from there
        assert page.locator("h1").count() == 1
        assert barriers(page) == []
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.matches('.ranges mark')")
    with reading(chromium, served, base_url=served, java_script_enabled=False) as (page, _):
        page.goto(f"{AT}/{SISTER}")
        page.click(".ranges a")
        assert ranges(page) == found
        assert page.locator("h1").count() == 1


def test_a_text_and_steering_fold_out_where_the_address_says_so_with_scripts_and_without(
    chromium: Browser, served: str
) -> None:
    for scripts in (True, False):
        with reading(chromium, served, base_url=served, java_script_enabled=scripts) as (page, _):

            def open_at(address: str, page: Page = page) -> tuple[bool, bool]:
                page.goto("about:blank")
                page.goto(f"{AT}/{SISTER}{address}")
                return page.locator(".test textarea").is_visible(), page.locator("[name=prompt]").is_visible()

            assert open_at("") == (False, False)
            assert open_at("?text=A+sister") == (True, False)
            assert open_at("#steer") == (False, True)
            page.click(".fold:has(steer-panel) summary")
            assert not page.locator("[name=prompt]").is_visible()
            page.locator(".test summary").focus()
            page.keyboard.press("Enter")
            assert page.locator(".test textarea").is_visible()
            assert page.viewport_size == DESK
