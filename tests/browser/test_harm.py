"""Text and addresses that mean harm."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from atlases import HOSTILE_LABEL
from browsing import AT, LIVE, PLANTED, SISTER, harmless, looked, reading, shown, written

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


def test_text_that_means_harm_stays_text(page: Page) -> None:
    for feature in (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12):
        page.goto(f"{PLANTED}/{feature}")
        page.wait_for_selector("article.feature")
        page.locator(".modes label", has_text="Full").click() if page.locator(".modes").count() else None
        page.locator("label.check").click() if page.locator("label.check").count() else None
        harmless(page, at=page.url)
        for mark in page.locator("token-strip mark").all()[:3]:
            mark.focus()
            assert page.locator("#token-tip :not(bdi)").count() == 0
    page.goto(f"{PLANTED}/0")
    assert HOSTILE_LABEL.split()[0] in shown(page.locator("h1"))
    page.goto(PLANTED)
    harmless(page)
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}\u202e"
    for kind in ("label", "token", "text"):
        page.goto(f"{PLANTED}/search?kind={kind}&text={quote(evil)}")
        assert page.locator("form.search input[type=search]").input_value() == evil
        harmless(page)
    page.goto(f"{AT}/prompt?text={quote(evil)}")
    looked(page)
    assert page.locator("textarea").input_value() == evil
    harmless(page)
    page.goto(f"{AT}/{SISTER}?defaulttesttext={quote(evil)}")
    page.click(".test button")
    page.wait_for_selector(".verdict", timeout=LIVE)
    harmless(page)
    page.goto(f"{AT}/steer?feature={SISTER}&tokens=3&temperature=0&prompt={quote(evil)}")
    assert page.locator("[name=prompt]").input_value() == evil
    page.click("button.main")
    written(page)
    harmless(page)
    page.goto(f"{AT}/attribute?text={quote(evil)}")
    page.click("button:has-text('Explain')")
    page.wait_for_selector("section.causes", timeout=LIVE)
    harmless(page)


def test_an_address_that_means_harm_is_answered_with_text(chromium: Browser, served: str) -> None:
    with reading(chromium, served, base_url=served) as (page, watch):
        watch.expected = ["status of 404", "status of 400"]
        for path in ("/<script>alert(1)<%2Fscript>", f"{AT}/%22%3E%3Cimg%20src=x%20onerror=alert(1)%3E"):
            page.goto(path)
            page.wait_for_selector(".error")
            harmless(page)
        page.goto(f"{AT}?order=%3Cscript%3Ealert(1)%3C/script%3E")
        page.wait_for_selector(".error")
        harmless(page)
