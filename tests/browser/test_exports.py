"""What was exported opens from the disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import gemscope as gs
from atlases import HOSTILE_LABEL
from browsing import (
    DESK,
    PHONE,
    PLANTED,
    SEEN,
    SISTER,
    barriers,
    files_served,
    harmless,
    reading,
    shot,
    shown,
    spills,
    strongest,
)
from gemscope.atlas.files.manifest import Mapped
from gemscope.text.printable import visible

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, bundled: Path, planted: Path) -> Path:
    """One file and a site of the bundled atlas's, and of one that is full of harm."""
    folder = tmp_path_factory.mktemp("exported")
    gs.export(bundled, folder / "some.html", format="html", features=[22, 4830, SISTER])
    gs.export(bundled, folder / "site", format="site", features=range(120))
    gs.export(planted, folder / "harm.html", format="html", features=range(12))
    with gs.Atlas(planted) as atlas:
        places = np.random.default_rng(0).integers(4000, 60_000, (len(atlas), 2)).astype(np.uint16)
        atlas.put_places(places, Mapped(method="dice", kept=0.0))
    gs.export(planted, folder / "harm", format="site")
    return folder


def test_one_file_opens_from_the_disk_and_needs_nothing_else(chromium: Browser, exported: Path) -> None:
    url = (exported / "some.html").as_uri()
    with reading(chromium, url) as (page, watch):
        page.goto(url)
        page.click(f"nav a[href='#feature-{SISTER}']")
        article = page.locator(f"#feature-{SISTER}")
        article.locator("mark.p").first.hover()
        assert visible(strongest()) in shown(page.locator("#token-tip"))
        article.locator(".modes label", has_text="Full").click()
        assert article.locator(".f").first.is_visible()
        page.mouse.move(0, 0)
        for size, viewport in (("desk", DESK), ("phone", PHONE)):
            page.set_viewport_size(viewport)
            for theme in ("light", "dark"):
                page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
                shot(page, f"one-file-{theme}-{size}", whole=False)
                if (theme, size) in SEEN:
                    assert barriers(page) == []
            assert spills(page) == []
        assert watch.requests == 1
    url = (exported / "harm.html").as_uri()
    with reading(chromium, url) as (page, _):
        page.goto(url)
        assert HOSTILE_LABEL.split()[0] in shown(page.locator("h1").first)
        harmless(page)
        assert barriers(page) == []


@pytest.mark.parametrize("where", ["http", "file"])
def test_a_static_site_is_walked_from_the_disk_and_from_a_file_server(
    chromium: Browser, exported: Path, where: str
) -> None:
    with files_served(exported) as host:
        base = host if where == "http" else exported.as_uri()
        with reading(chromium, base) as (page, _):
            page.goto(f"{base}/site/index.html")
            page.click("text=Browse")
            assert page.locator("table.features tbody tr").count() == 100
            with page.expect_navigation():
                page.click("a[rel=next]")
            assert page.locator("table.features tbody tr").count() == 20
            with page.expect_navigation():
                page.click("td.index a >> nth=0")
            assert page.locator("mark.p").count() > 5
            page.locator("mark.p").first.hover()
            assert page.locator("#token-tip").is_visible()
            page.keyboard.press("j")
            page.wait_for_url("**/101/index.html")
            page.click("[data-theme-switch]")
            page.keyboard.press("ArrowLeft")
            page.wait_for_url("**/100/index.html")
            assert page.evaluate("document.documentElement.dataset.theme") == "dark"
            page.mouse.move(0, 0)
            for size, viewport in (("desk", DESK), ("phone", PHONE)):
                page.set_viewport_size(viewport)
                shot(page, f"site-{where}-dark-{size}")
                assert barriers(page) == []
                assert spills(page) == []
            # The one that is full of harm, with its scatter and its search.
            page.set_viewport_size(DESK)
            page.goto(f"{base}/harm{PLANTED}/index.html")
            page.wait_for_selector("feature-scatter canvas")
            harmless(page)
            assert barriers(page) == []
            shot(page, f"site-table-{where}-dark-desk")
            page.click("nav >> text=Map")
            canvas = page.locator("feature-map canvas")
            canvas.wait_for()
            canvas.focus()
            page.keyboard.press("ArrowRight")
            told = page.locator("feature-map .told", has_text=re.compile(r"^\d+: "))
            told.wait_for()
            harmless(page)
            for size, viewport in (("phone", PHONE), ("desk", DESK)):
                page.set_viewport_size(viewport)
                shot(page, f"site-map-{where}-dark-{size}")
                assert barriers(page) == []
                assert spills(page) == []
            at = int(shown(told).split(":")[0])
            page.keyboard.press("Enter")
            page.wait_for_url(f"**/{at}/index.html")
            page.click("text=on the map")
            page.locator("feature-map .told", has_text=f"{at}").wait_for()
            page.goto(f"{base}/harm{PLANTED}/index.html")
            page.fill("input[type=search]", "alert label")
            page.click("ol.found a")
            page.wait_for_selector("article.feature")
            harmless(page)
