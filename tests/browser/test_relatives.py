"""Relatives at other sites on a feature's page, as a reader has them: every size and theme, by keys, without scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

import gemscope as gs
from browsing import DESK, PHONE, barriers, reading, shot, spills
from kinships import chain

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser

AT = "/tiny-model/1-res-tiny"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folders = chain(tmp_path_factory.mktemp("chain"))
    with gs.serve(*folders, live=False, block=False, port=0) as served:
        yield served.url


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("size", "viewport"), [("desk", DESK), ("phone", PHONE)])
def test_a_page_with_relatives_is_sound(
    chromium: Browser, server: str, theme: str, size: str, viewport: dict[str, int]
) -> None:
    with reading(chromium, server, base_url=server, color_scheme=theme, viewport=viewport) as (page, _):
        page.goto(f"{AT}/39")  # whose relative has a label that means harm
        assert page.locator("h2", has_text="Above: 2.res").count() == 1
        assert spills(page) == []
        assert barriers(page) == []
        shot(page, f"relatives-{theme}-{size}")


def test_a_relative_is_reached_by_keys_and_leads_on_and_back_without_scripts(chromium: Browser, server: str) -> None:
    with reading(chromium, server, base_url=server, java_script_enabled=False) as (page, _):
        page.goto(f"{AT}/4")
        page.locator("section", has_text="Above: 2.res").locator("td a").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/2-res-tiny/5")
        assert page.locator("h2", has_text="Below: 1.res").count() == 1
