"""The map in a browser: by keys, by pointer, by touch, and without a script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import gemscope as gs
from browsing import AT, DESK, PHONE, SEEN, SISTER, barriers, reading, shot, shown, spills
from gemscope.atlas.files.manifest import Mapped

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def places(bundled: Path) -> np.ndarray:
    """Put into the copy that is served: made by dice, for t-SNE of so many takes a while."""
    dice = np.random.default_rng(0)
    with gs.Atlas(bundled) as atlas:
        middles = dice.integers(9000, 56_000, (30, 2))
        found = (middles[np.arange(len(atlas)) % 30] + dice.normal(0, 2500, (len(atlas), 2))).clip(0, 65535)
        atlas.put_places(found.astype(np.uint16), Mapped(method="dice", kept=0.0))
    return found.astype(np.uint16)


@pytest.fixture
def served_map(chromium: Browser, bundled: Path, places: np.ndarray) -> Iterator[str]:
    with gs.serve(bundled, block=False, port=0, live=False) as server:
        yield str(server.url)


def opened(page: Page, query: str = "") -> Any:
    page.goto(f"{AT}/map{query}")
    canvas = page.locator("feature-map canvas")
    canvas.wait_for()
    return canvas


def chosen(page: Page) -> int:
    found = re.match(r"\d+", shown(page.locator("feature-map .told")))
    assert found
    return int(found[0])


def test_arrow_keys_go_to_the_nearest_in_a_direction_and_enter_opens_it(
    chromium: Browser, served_map: str, places: np.ndarray
) -> None:
    with reading(chromium, served_map, base_url=served_map) as (page, _):
        canvas = opened(page, f"?feature={SISTER}")
        page.locator("feature-map .told", has_text=f"{SISTER}: ").wait_for()
        canvas.focus()
        for key, way in (("ArrowRight", (1, 0)), ("ArrowUp", (0, 1)), ("ArrowLeft", (-1, 0)), ("ArrowDown", (0, -1))):
            before = chosen(page)
            page.keyboard.press(key)
            after = chosen(page)
            x, y = (places.astype(int) - places[before].astype(int)).T
            ahead, aside = x * way[0] + y * way[1], np.abs(x * way[1]) + np.abs(y * way[0])
            away = np.where((ahead > 0) & (aside <= 1.2 * ahead), ahead + 2 * aside, np.inf)
            assert away[after] == away.min()
        last = chosen(page)
        page.keyboard.press("Enter")
        page.wait_for_url(f"**{AT}/{last}")


def test_a_pointer_finds_drags_zooms_and_opens(chromium: Browser, served_map: str) -> None:
    with reading(chromium, served_map, base_url=served_map) as (page, _):
        canvas = opened(page, f"?feature={SISTER}")
        box = canvas.bounding_box()
        assert box
        at = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(at[0] + 200, at[1] + 100)
        page.mouse.move(*at)
        assert chosen(page) == SISTER
        page.mouse.wheel(0, -240)  # it stays under the pointer
        page.mouse.move(at[0] + 1, at[1])
        assert chosen(page) == SISTER
        page.mouse.down()
        page.mouse.move(at[0] + 80, at[1] + 40, steps=4)
        page.mouse.up()  # moved, not opened
        assert "/map" in page.url
        page.mouse.move(at[0] + 300, at[1] - 90)
        page.mouse.move(at[0] + 79, at[1] + 40)
        assert chosen(page) == SISTER
        page.mouse.click(at[0] + 79, at[1] + 40)
        page.wait_for_url(f"**{AT}/{SISTER}")


def test_a_first_touch_says_what_it_is_and_a_second_goes_there(chromium: Browser, served_map: str) -> None:
    with reading(chromium, served_map, base_url=served_map, viewport=PHONE, has_touch=True) as (page, _):
        canvas = opened(page, f"?feature={SISTER}")
        canvas.focus()
        page.keyboard.press("Escape")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box
        at = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.touchscreen.tap(*at)
        page.locator("feature-map .told", has_text=f"{SISTER}: ").wait_for()
        assert "/map" in page.url
        page.touchscreen.tap(*at)
        page.wait_for_url(f"**{AT}/{SISTER}")


def test_what_is_lit_up_is_gone_through_by_a_key(chromium: Browser, served_map: str) -> None:
    with reading(chromium, served_map, base_url=served_map) as (page, _):
        canvas = opened(page, "?text=sister")
        found = [int(one) for one in (page.locator("feature-map").get_attribute("data-lit") or "").split()]
        assert len(found) > 1
        canvas.focus()
        for one in (*found, found[0]):
            page.keyboard.press("n")
            assert chosen(page) == one


def test_the_map_is_sound_with_scripts_and_without(chromium: Browser, served_map: str) -> None:
    for scripts in (True, False):
        with reading(chromium, served_map, base_url=served_map, java_script_enabled=scripts) as (page, _):
            page.goto(f"{AT}/map?text=sister")
            page.wait_for_selector("feature-map canvas" if scripts else "feature-map svg")
            for size, viewport in (("desk", DESK), ("phone", PHONE)):
                page.set_viewport_size(viewport)
                for theme in ("light", "dark"):
                    page.emulate_media(color_scheme=theme, reduced_motion="reduce")  # type: ignore[arg-type]
                    page.wait_for_timeout(50)
                    shot(page, f"map-{'live' if scripts else 'still'}-{theme}-{size}")
                    if scripts and (theme, size) in SEEN:
                        assert barriers(page) == [], (theme, size)
                if scripts:
                    assert spills(page) == [], size
            if not scripts:
                page.locator("feature-map svg a").first.click(force=True)
                assert re.search(r"/15-res-8k/\d+$", page.url)
