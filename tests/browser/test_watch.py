"""The watch sees what it is there to see."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from browsing import barriers, files_served, reading, spills

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser


def test_the_watch_sees_what_it_is_there_to_see(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        """<meta http-equiv="Content-Security-Policy" content="default-src 'unsafe-inline' http:; style-src 'none'">
        <img src="http://127.0.0.1:9/elsewhere.png"><p style="color: red">styled</p>
        <script>setTimeout(() => { alert("dialog"); console.error("said"); throw new Error("raised"); })</script>"""
    )
    with files_served(tmp_path) as base, reading(chromium, base) as (page, watch):
        page.goto(base)
        wanted = ["asked for http://127.0.0.1:9/elsewhere.png", "dialog: dialog", "said", "raised", "policy: "]
        for _ in range(1000):
            found = "\n".join(watch.wrong)
            if all(one in found for one in wanted):
                break
            page.wait_for_timeout(50)
        for one in wanted:
            assert one in found, found
        assert "image-alt" in "\n".join(barriers(page))
        assert not spills(page)
        page.evaluate("document.querySelector('img').width = 3000")
        assert spills(page)
        watch.wrong.clear()
