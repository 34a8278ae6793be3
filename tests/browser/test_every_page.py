"""Every page, light and dark, on a desk and on a phone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from browsing import (
    AT,
    GREETINGS,
    LIVE,
    PLANTED,
    SISTER,
    looked,
    reading,
    sound,
    written,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


def _pinned(page: Page) -> None:
    looked(page)
    page.wait_for_selector(".pinned mark", timeout=LIVE)


def _written(page: Page) -> None:
    page.click("button.main")
    written(page)


def _chatted(page: Page) -> None:
    for turn, words in enumerate(("What is the sea?", "And the sky?")):
        page.fill("[name=prompt]", words)
        page.click("button.main")
        page.locator("input[name=said]").nth(turn).wait_for(state="attached", timeout=LIVE)
    assert page.locator("p.said").last.bounding_box()["y"] < page.locator("[name=prompt]").bounding_box()["y"]  # type: ignore[index]


def _explained(page: Page) -> None:
    looked(page)
    page.locator("table.look th button").last.click()
    page.wait_for_selector("section.causes", timeout=LIVE)


def _searched(page: Page) -> None:
    page.click("form.search button")
    page.wait_for_selector(".looks li", timeout=LIVE)


def _tested(page: Page) -> None:
    page.click(".test button")
    page.wait_for_selector(".test mark", timeout=LIVE)


def _compared(page: Page) -> None:
    page.click("form.texts button")
    page.wait_for_selector(".aligned", timeout=LIVE)


def _tried(page: Page) -> None:
    page.click(".test summary")
    page.fill(".test textarea", "Her sister is here.")
    _tested(page)
    page.click(".effect button")
    page.wait_for_selector(".effect table", timeout=LIVE)
    page.fill("[name=tokens]", "10")
    _written(page)


PROMPT = quote("Would you be able to travel through time using a wormhole?")

PAGES: dict[str, tuple[str, Callable[[Page], object]]] = {
    "home": ("/", lambda page: None),
    "browse": (AT, lambda page: page.wait_for_selector("feature-scatter canvas")),
    "browse-few": (f"{AT}?order=max&descending=true&min_density=0.01&limit=8", lambda page: None),
    "feature": (f"{AT}/{SISTER}#steer", _tried),
    "feature-full": (f"{AT}/22", lambda page: page.locator(".modes label", has_text="Full").click()),
    "feature-dead": (f"{AT}/{{dead}}", lambda page: page.wait_for_selector("text=Dead:")),
    "feature-labelled": (f"{PLANTED}/3", lambda page: page.click("details.add summary")),
    "search": (f"{AT}/search", lambda page: None),
    "search-label": (f"{PLANTED}/search?text=words", lambda page: page.wait_for_selector(".found li")),
    "search-token": (f"{AT}/search?kind=token&text=water", lambda page: page.wait_for_selector(".hits")),
    "search-text": (f"{AT}/search?kind=text&text={PROMPT}", _searched),
    "search-link": (f"{AT}/search?kind=text&text={PROMPT}", lambda page: page.wait_for_selector("text=Press Search")),
    "prompt-link": (f"{AT}/prompt?text={PROMPT}", lambda page: page.wait_for_selector("text=Press Look")),
    "prompt": (f"{AT}/prompt?pin=6837&text={PROMPT}", _pinned),
    "steer-empty": (f"{AT}/steer", lambda page: None),
    "steer": (
        f"{AT}/steer?feature={GREETINGS}&feature={SISTER}&strength=2max&strength=-1max&tokens=10&n=2&prompt=I+think+that&noise=true",
        _written,
    ),
    "steer-found": (f"{AT}/steer?add=words&feature=22", lambda page: page.wait_for_selector(".suggestions")),
    "steer-chat": (f"{AT}/steer?feature={GREETINGS}&tokens=6&chat=true", _chatted),
    "steer-off": (f"{PLANTED}/steer", lambda page: None),
    "causes": (f"{AT}/prompt?text={quote('My mother and my')}", _explained),
    "compare": (f"/compare?a={AT[1:]}/{SISTER}&b={AT[1:]}/{GREETINGS}", lambda page: None),
    "map": (f"{AT}/map?text=water", lambda page: page.wait_for_selector("feature-map canvas")),
    "lists": ("/lists", lambda page: None),
    "compare-which": ("/compare", lambda page: None),
    "compare-saes": (f"/compare?a={AT[1:]}&b={PLANTED[1:]}", lambda page: None),
    "compare-texts": (
        f"{AT}/compare?text={quote('The bank of the river')}&other={quote('The bank of England')}",
        _compared,
    ),
    "prompt-off": (f"{PLANTED}/prompt", lambda page: None),
    "embed": (f"{AT}/{SISTER}?embed=true&defaulttesttext=A+sister", _tested),
    "embed-fixed": (f"{AT}/{SISTER}?embed=true&embedtestfield=false&defaulttesttext=A+sister", lambda page: None),
    "missing": (f"{AT}/99999", lambda page: page.wait_for_selector(".error")),
    "harm": (f"{PLANTED}/0", lambda page: None),
}


@pytest.mark.parametrize("name", PAGES)
def test_every_page_is_sound_in_light_and_dark_on_a_desk_and_on_a_phone(
    chromium: Browser, served: str, name: str
) -> None:
    url, ready = PAGES[name]
    with reading(chromium, served, base_url=served) as (page, watch):
        watch.expected = ["404"] if name == "missing" else []
        if "{dead}" in url:
            dead = page.request.get(f"{AT}.json?dead=true&limit=1").json()["features"][0]["index"]
            url = url.format(dead=dead)
        page.goto(url)
        ready(page)
        page.mouse.move(0, 0)
        sound(page, name)
