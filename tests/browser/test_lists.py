"""Lists of one's own in a browser: kept, put in order by mouse and by keyboard, annotated in two windows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import gemscope as gs
from browsing import AT, DESK, GREETINGS, PHONE, SEEN, SISTER, barriers, reading, shot, shown, spills

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


@pytest.fixture(autouse=True)
def lists(serving: Any, tmp_path: Path) -> gs.Lists:
    made: gs.Lists = serving.app.state.lists
    for one in made:
        made.delete(one.id)
    return made


def features(page: Page) -> list[int]:
    return [
        int((one.get_attribute("data-feature") or "").rpartition(":")[2])
        for one in page.locator("[data-feature]").all()
    ]


def filled(lists: gs.Lists, bundled: Path) -> None:
    with gs.Atlas(bundled) as atlas:
        lists.add("Kin", *(atlas[index] for index in (SISTER, GREETINGS, 22, 99)))


def test_a_feature_is_kept_from_its_page_by_keyboard_alone(page: Page, lists: gs.Lists) -> None:
    page.goto(f"{AT}/{SISTER}")
    page.locator(".keep summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type("Kin")
    page.keyboard.press("Tab")
    page.keyboard.type("and brothers")
    page.keyboard.press("Enter")
    page.wait_for_selector(".keep .entry")
    assert shown(page.locator(".keep .entry")) == "Kin: and brothers"
    assert [one.index for one in lists["kin"]] == [SISTER]
    page.click(".keep .entry a")
    assert page.title() == "Kin · list · gemscope"


def test_several_features_are_kept_at_once_by_keys_with_scripts_and_without(
    chromium: Browser, served: str, lists: gs.Lists
) -> None:
    for scripts in (True, False):
        with reading(chromium, served, base_url=served, java_script_enabled=scripts) as (page, _):
            page.goto(f"{AT}?text=sister")
            bar, boxes = page.locator("form.keeping"), page.locator("[form=keeping][type=checkbox]")
            assert boxes.count() > 1
            assert not bar.is_visible()
            for box in (boxes.nth(0), boxes.nth(1)):
                box.focus()
                page.keyboard.press("Space")
            assert bar.is_visible()
            kept = [int((box.get_attribute("value") or "").rpartition(":")[2]) for box in boxes.all()[:2]]
            if scripts:
                page.keyboard.press("Enter")  # from a box, without a way through all others
                page.locator("#kept a").wait_for()
                assert shown(page.locator("#kept")) == "2 features are in Bookmarks."
                assert boxes.nth(0).is_checked()
                for size, viewport in (("desk", DESK), ("phone", PHONE)):
                    page.set_viewport_size(viewport)  # type: ignore[arg-type]
                    shot(page, f"chosen-light-{size}")
                    assert barriers(page) == []
                    assert spills(page) == []
            else:
                page.fill("form.keeping [name=list]", "By hand")
                page.click("form.keeping button")
                page.wait_for_url("**/lists/by-hand")
            assert [one.index for one in lists["Bookmarks" if scripts else "By hand"]] == kept


def test_entries_are_put_in_order_by_keys_and_by_dragging(page: Page, lists: gs.Lists, bundled: Path) -> None:
    filled(lists, bundled)
    page.goto("/lists/kin")
    page.locator("#entry-1 [data-by='1']").focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("[data-moved]:has-text('place 2 of 4')", state="attached")
    page.keyboard.press("ArrowDown")  # the focus stays with the entry
    page.wait_for_selector("[data-moved]:has-text('place 3 of 4')", state="attached")
    assert features(page) == [GREETINGS, 22, SISTER, 99] == [one.index for one in lists["kin"]]
    grip, first = page.locator(".order").nth(3).bounding_box(), page.locator("[data-feature]").nth(0).bounding_box()
    assert grip
    assert first
    page.mouse.move(grip["x"] + 20, grip["y"] + 10)
    page.mouse.down()
    for y in (first["y"] + 90, first["y"] + 2):
        page.mouse.move(grip["x"] + 20, y, steps=4)
    page.mouse.up()
    page.wait_for_selector("[data-moved]:has-text('place 1 of 4')", state="attached")
    assert features(page) == [99, GREETINGS, 22, SISTER] == [one.index for one in lists["kin"]]
    page.reload()
    assert features(page) == [99, GREETINGS, 22, SISTER]


def test_two_windows_do_not_write_over_each_other(
    chromium: Browser, served: str, lists: gs.Lists, bundled: Path
) -> None:
    filled(lists, bundled)
    with (
        reading(chromium, served, base_url=served) as (one, watch),
        reading(chromium, served, base_url=served) as (two, _),
    ):
        watch.expected = ["409"]
        for page in (one, two):
            page.goto("/lists/kin")
        two.locator(".note textarea").nth(1).fill("from two")
        two.keyboard.press("Control+Enter")
        two.wait_for_selector(".said:has-text('saved')")
        two.locator("#entry-4 [data-by='-1']").click()
        two.wait_for_selector("[data-moved]:has-text('place 3 of 4')", state="attached")
        one.locator(".note textarea").nth(1).fill("from one")
        one.keyboard.press("Control+Enter")
        one.wait_for_selector(".said:has-text('from two')")  # it says what stands there now
        assert one.locator(".note textarea").nth(1).input_value() == "from one"
        one.locator("#entry-1 [data-by='1']").click()
        one.wait_for_selector("[data-moved]:has-text('place 2 of 4')", state="attached")
    assert [one.index for one in lists["kin"]] == [GREETINGS, 99, SISTER, 22]  # before 22, as it was put
    assert lists["kin"].features[0].note == "from two"


def test_without_scripts_everything_is_done_by_forms(
    chromium: Browser, served: str, lists: gs.Lists, bundled: Path
) -> None:
    filled(lists, bundled)
    with reading(chromium, served, base_url=served, java_script_enabled=False) as (page, _):
        page.goto(f"{AT}/500")
        page.click(".keep summary")
        page.fill(".keep [name=list]", "kin")
        page.click(".keep button")
        assert shown(page.locator(".keep summary")).endswith("Kin")
        page.goto("/lists/kin")
        page.locator("#entry-1 [data-by='1']").click()
        page.locator(".note textarea").nth(0).fill("first")
        page.locator(".note button").nth(0).click()
        page.locator("#entry-5 button:has-text('Remove')").click()
        assert features(page) == [GREETINGS, SISTER, 22, 99]
        page.goto("/lists")
        page.fill(".taking textarea", lists["kin"].to_json())
        page.fill(".taking [name=name]", "Again")
        page.click(".taking button")
        assert features(page) == [GREETINGS, SISTER, 22, 99]
        page.click("details.end summary")
        page.click("details.end button")
    assert [one.name for one in lists] == ["Kin"]
    assert lists["kin"].features[0].note == "first"


def test_a_list_is_shared_as_one_file_that_reads_by_itself(
    page: Page, lists: gs.Lists, bundled: Path, tmp_path: Path
) -> None:
    filled(lists, bundled)
    lists.annotate("kin", lists["kin"].features[0].key, "and brothers")
    page.goto("/lists/kin")
    with page.expect_download() as found:
        page.click("a:has-text('Share')")
    found.value.save_as(tmp_path / "kin.html")
    page.context.set_offline(True)
    text = (tmp_path / "kin.html").read_text()
    assert text.count("<article") == 4
    assert "and brothers" in text


@pytest.mark.parametrize("url", ["/lists", "/lists/kin", f"{AT}/{SISTER}"])
def test_pages_of_lists_are_sound(chromium: Browser, served: str, lists: gs.Lists, bundled: Path, url: str) -> None:
    filled(lists, bundled)
    with reading(chromium, served, base_url=served) as (page, _):
        page.goto(url)
        if page.locator(".keep summary").count():
            page.click(".keep summary")
        for size, viewport in (("desk", DESK), ("phone", PHONE)):
            page.set_viewport_size(viewport)
            for theme in ("light", "dark"):
                page.emulate_media(color_scheme=theme, reduced_motion="reduce")  # type: ignore[arg-type]
                shot(page, f"{url.strip('/').replace('/', '-')}-keeping-{theme}-{size}")
                if (theme, size) in SEEN:
                    assert barriers(page) == [], (theme, size)
            assert spills(page) == [], size
