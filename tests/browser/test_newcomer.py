"""A newcomer's walk through the pages, by pointer and by keyboard alone; two tabs and a slow model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from browsing import AT, GREETINGS, LIVE, SISTER, reading, shown, written
from served import Slow

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


@dataclass
class Hand:
    """How a reader gets at things: with a pointer, or by keys alone."""

    page: Page
    keys: bool

    def press(self, what: str) -> None:
        if not self.keys:
            return self.page.locator(what).first.click()
        self._reach(what)
        return self.page.keyboard.press("Enter")

    def type(self, what: str, text: str) -> None:
        if self.keys:
            self._reach(what)
            self.page.keyboard.press("Control+A")
        else:
            self.page.locator(what).first.click(click_count=3)
        self.page.keyboard.type(text)

    def _reach(self, what: str) -> None:
        """By Tab, around the page once if need be."""
        there = self.page.locator(what).first
        there.wait_for()
        for _ in range(400):
            if there.evaluate("one => one === document.activeElement"):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"{what} is not reached by Tab")


@pytest.fixture(autouse=True)
def lists(serving: Any) -> Iterator[Any]:
    """A reader's own, of which there are none at first."""
    made = serving.app.state.lists
    for one in made:
        made.delete(one.id)
    yield made
    for one in made:
        made.delete(one.id)


@pytest.mark.parametrize("keys", [False, True], ids=["pointer", "keys"])
def test_a_newcomer_gets_from_the_start_to_a_comparison(page: Page, lists: Any, keys: bool) -> None:
    hand = Hand(page, keys)
    page.goto("/")
    assert shown(page.locator("h1")) == "A microscope for language models"
    assert page.locator(".striking .found > li").count() == 5
    page.keyboard.press("/")
    page.keyboard.type("greetings")
    page.keyboard.press("Enter")
    page.wait_for_selector("#results .hits")

    hand.press(f"#results a[href='{AT}/{GREETINGS}']")
    page.wait_for_url(f"**{AT}/{GREETINGS}")
    assert page.locator(".examples mark").count() > 8

    hand.press(".test summary")
    hand.type(".test textarea", "Happy birthday, and good luck!")
    hand.press(".test button")
    page.wait_for_selector(f"#feature-{GREETINGS}-result mark", timeout=LIVE)

    hand.press("[data-part=steer] summary")
    hand.type("steer-panel [name=tokens]", "8")
    hand.press("steer-panel button.main")
    assert all(written(page))

    hand.press(".keep summary")
    hand.type(".keep [name=list]", "Kindness")
    hand.type(".keep [name=note]", "good wishes")
    hand.press(".keep button")
    page.wait_for_selector(".keep .entry")
    assert [one.index for one in lists["kindness"]] == [GREETINGS]
    hand.press(".keep .entry a")
    page.wait_for_url("**/lists/kindness")
    assert page.locator(".note textarea").input_value() == "good wishes"
    hand.press(f"a[href='{AT}/{GREETINGS}']")
    page.wait_for_url(f"**{AT}/{GREETINGS}")

    hand.press("nav a[href$='/map']")
    page.wait_for_url("**/map")
    if page.locator("feature-map").count():
        page.wait_for_selector("feature-map canvas")
        hand.type(".lighting [name=text]", "greetings")
        page.keyboard.press("Enter")
        page.wait_for_url("**/map?**")
        hand.press(f".found a[href='{AT}/{GREETINGS}']")
    else:  # an atlas of before
        assert "This atlas has no map yet" in shown(page.locator("main"))
        page.go_back()
    page.wait_for_url(f"**{AT}/{GREETINGS}")

    hand.press("a[href*='/compare?']")
    page.wait_for_url("**/compare?**")
    assert shown(page.locator("h1")) == "Two features side by side"
    assert page.locator(f"main a[href='{AT}/{GREETINGS}']").count()


@pytest.fixture
def done(serving: Any, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of all that the model does meanwhile, as it is finished: whether it was patient."""
    worker, finished = serving.app.state.worker, list[bool]()
    submit = worker.submit

    def submitted(work: Any, **how: Any) -> Any:
        job = submit(work, **how)
        job.outcome.add_done_callback(lambda _: finished.append(job.patient))
        return job

    monkeypatch.setattr(worker, "submit", submitted)
    return finished


def _loaded(serving: Any, page: Page) -> Any:
    """The model, once it is there."""
    page.goto(f"{AT}/{SISTER}")
    page.click(".test summary")
    page.fill(".test textarea", "A sister")
    page.click(".test button")
    page.wait_for_selector(".test mark", timeout=LIVE)
    return next(one.live._pair[0] for one in serving.app.state.shelf if one.links.source() == AT)


READ = (
    "/",
    AT,
    f"{AT}/{GREETINGS}",
    f"{AT}/search?text=sister",
    f"{AT}/search?kind=token&text=sister",
    "/lists",
    f"{AT}/map",
)


def _reads(page: Page) -> None:
    """Pages, a search from the box and a list, all while the model is busy."""
    for url in READ:
        assert page.goto(url).status == 200  # type: ignore[union-attr]
    page.goto(f"{AT}/{SISTER}")
    page.keyboard.press("/")
    page.keyboard.type("sister")
    page.keyboard.press("Enter")
    page.wait_for_selector(".found li")
    page.goto(f"{AT}/{SISTER}")
    page.click(".keep summary")
    page.fill(".keep [name=list]", "Meanwhile")
    page.click(".keep button")
    page.wait_for_selector(".keep .entry")


def _generates(page: Page) -> None:
    page.goto(f"{AT}/{GREETINGS}#steer")
    page.fill("steer-panel [name=tokens]", "4")
    page.click("steer-panel button.main")


def test_who_asks_goes_before_a_measure_and_nobody_who_reads_waits_for_a_slow_model(
    chromium: Browser, served: str, serving: Any, done: list[bool], page: Page
) -> None:
    model, slow = _loaded(serving, page), Slow()
    page.goto(f"{AT}/{GREETINGS}")
    done.clear()
    with reading(chromium, served, base_url=served) as (other, _), slow.of(model):
        page.click(".effect button")  # a measure of some seconds: whoever asks for it is patient
        assert slow.begun.wait(120)
        _reads(other)
        assert not done  # and none of these pages has asked the model for anything
        other.goto(f"{AT}/prompt")
        other.fill("form.prompt [name=text]", "My sister came")
        other.click("form.prompt button[type=submit]")
        other.locator(".busy", has_text="waiting, 1 before you").wait_for()
        _generates(other)
        other.locator(".steering [role=status]", has_text="Waiting: 1 before you.").wait_for()
        slow.over.set()
        assert all(written(other))
        page.locator(".effect", has_text="Output score").wait_for(timeout=LIVE)
    assert done == [False, False, True]  # the first was left by its reader, who went to another page


def test_who_asks_while_another_s_text_is_written_is_told_the_place_in_the_line(
    chromium: Browser, served: str, serving: Any, done: list[bool], page: Page
) -> None:
    model, slow = _loaded(serving, page), Slow()
    done.clear()
    with reading(chromium, served, base_url=served) as (other, _), slow.of(model):
        _generates(page)
        assert slow.begun.wait(120)
        _reads(other)
        _generates(other)
        other.locator(".steering [role=status]", has_text="Waiting: 1 before you.").wait_for()
        assert not done
        slow.over.set()
        first, second = written(page), written(other)
        assert first == second  # the same dice
    assert done == [False, False]


STILL = {
    "/lists": "Lists",
    f"/compare?a={AT[1:]}/{GREETINGS}&b={AT[1:]}/{SISTER}": "Two features side by side",
    f"/compare?a={AT[1:]}&b={AT[1:]}": "Two SAEs side by side",
    f"{AT}/compare": "Two texts side by side",
    f"{AT}/map": "Map of 8,192 features",
    f"{AT}/search?kind=promoted&text=sister": "Search",
    f"{AT}/steer?feature={GREETINGS}": "Steer",
    f"{AT}/prompt": "What the model sees in a text",
}


@pytest.mark.parametrize("url", STILL)
def test_without_scripts_a_page_says_what_it_has(chromium: Browser, served: str, url: str) -> None:
    with reading(chromium, served, base_url=served, java_script_enabled=False) as (page, _):
        assert page.goto(url).status == 200  # type: ignore[union-attr]
        assert re.search(re.escape(STILL[url]), shown(page.locator("h1")))
        assert len(shown(page.locator("main"))) > 60


@pytest.mark.parametrize("width", [1280, 860, 700, 600, 561, 390, 375])
def test_on_every_width_the_ways_stand_in_a_line_and_what_unfolds_stays_on_the_page(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    for url in ("/", AT, f"{AT}/search?text=sister", f"{AT}/{SISTER}"):
        page.goto(url)
        ways = page.locator(".top nav a")
        tops = {round(one.bounding_box()["y"]) for one in ways.all()}  # type: ignore[index]
        assert len(tops) == 1, url
        assert max(one.bounding_box()["height"] for one in ways.all()) < 40, url  # type: ignore[index]
    page.click(".keep summary")
    panel = page.locator(".keep .panel").bounding_box()
    assert panel
    assert panel["x"] >= 0
    assert panel["x"] + panel["width"] <= width
    page.goto(f"{AT}?text=sister")
    label = page.locator("table.features td.label").first.bounding_box()
    assert label
    assert label["width"] > 230
