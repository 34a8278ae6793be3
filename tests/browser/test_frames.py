"""Our pages within other people's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

import gemscope as gs
from browsing import AT, HOST, LIVE, SISTER, files_served, reading, shot, shown, strongest
from gemscope.text.printable import visible

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("where", ["http", "file"])
def test_a_frame_on_another_site_shows_the_parts_that_its_address_asks_for(
    chromium: Browser, served: str, tmp_path: Path, where: str
) -> None:
    text = quote("My sister and I.")
    query = f"embed=true&embedplots=false&embedlink=false&defaulttesttext={text}"
    (tmp_path / "host.html").write_text(
        f'{HOST}<iframe width="700" height="500" src="{served}{AT}/{SISTER}?{query}"></iframe>'
    )
    with files_served(tmp_path, "localhost") as host:
        base = host if where == "http" else tmp_path.as_uri()
        with reading(chromium, served, base) as (page, _):
            page.goto(f"{base}/host.html")
            frame = page.frame_locator("iframe")
            assert frame.locator(".test textarea").input_value() == "My sister and I."
            _vouched(frame)
            frame.locator(".test button").click()
            frame.locator(".test mark").first.wait_for(timeout=LIVE)
            assert "sister" in shown(frame.locator(".test mark.p"))
            assert frame.locator("header.top, footer, [data-part=plots], .beyond").count() == 0
            assert frame.locator("[data-part=activations] li").count() > 5
            assert frame.locator("article a[target=_blank]").count() == 0
            frame.locator("[data-part=activations] mark.p[tabindex]").first.hover()
            assert frame.locator("#token-tip").is_visible()
            shot(page, f"framed-{where}-light-desk", whole=False)


CARRIED = (
    f"{SISTER}?embed=true&embedsteer=true&defaulttesttext=A+sister",
    f"{SISTER}?embed=true&embedtestfield=false&defaulttesttext=A+sister",
    f"{SISTER}?defaulttesttext=A+sister",
    "prompt?text=A+sister&pin=22",
    "search?kind=text&text=A+sister",
    "attribute?text=A+sister+of",
    f"{SISTER}/output-score",
    f"steer?feature={SISTER}&prompt=A+sister&tokens=4&run=true",
    f"steer.json?feature={SISTER}&prompt=A+sister&tokens=4&run=true",
    f"steer/stream?feature={SISTER}&prompt=A+sister&tokens=4",
    f"steer/units.json?feature={SISTER}",
)
"""Addresses that carry work."""


def test_no_foreign_page_sets_the_model_to_work_by_frames_links_or_windows(
    chromium: Browser, served: str, tmp_path: Path, jobs: list[Any]
) -> None:
    urls = [f"{served}{AT}/{one}" for one in CARRIED]
    (tmp_path / "host.html").write_text(
        HOST
        + "".join(f'<iframe width="600" height="3000" src="{url}"></iframe><a href="{url}">go</a>' for url in urls)
        + "".join(f'<link rel="prefetch" href="{url}"><img alt="" src="{url}">' for url in urls)
    )
    with files_served(tmp_path, "localhost") as host, reading(chromium, served, host) as (page, watch):
        watch.expected = ["frame-ancestors", "chrome-error", "403", "X-Frame-Options", "ERR_BLOCKED"]
        page.goto(f"{host}/host.html")
        page.frame_locator("iframe >> nth=0").locator("steer-panel").wait_for(state="attached")
        page.frame_locator("iframe >> nth=1").locator(".test button").wait_for()
        page.wait_for_load_state("networkidle")
        page.mouse.wheel(0, 20_000)
        page.wait_for_load_state("networkidle")
        for place in range(len(CARRIED)):
            page.goto(f"{host}/host.html")
            page.locator("a").nth(place).click()
            page.wait_for_load_state("networkidle")
        with page.expect_popup() as opened:
            page.goto(f"{host}/host.html")
            page.evaluate("url => { window.open(url) }", urls[2])
        opened.value.wait_for_load_state("networkidle")
        opened.value.locator("section.examples").first.scroll_into_view_if_needed()
        assert jobs == []


def test_a_press_in_a_frame_counts_where_the_frame_can_be_seen(
    chromium: Browser, served: str, tmp_path: Path, jobs: list[Any]
) -> None:
    url = f"{served}{AT}/{SISTER}?embed=true&embedsteer=true&defaulttesttext=A+sister"
    bait = "<style>iframe { position: absolute; left: 0; top: 0 }</style><button>Win a prize</button>"
    (tmp_path / "host.html").write_text(
        f'{HOST}{bait}<iframe width="700" height="900" style="opacity: 0.01" src="{url}"></iframe>'
    )
    with files_served(tmp_path, "localhost") as host, reading(chromium, served, host) as (page, _):
        page.goto(f"{host}/host.html")
        frame = page.frame_locator("iframe")
        frame.locator("summary", has_text="Steer").click()
        for button, filled in ((".test button", ".test textarea"), ("steer-panel button.main", "[name=prompt]")):
            _vouched(frame, sound=False)
            with page.context.expect_page() as opened:
                frame.locator(button).click()
            carried = frame.locator(filled).input_value()
            opened.value.wait_for_selector("main")
            assert opened.value.locator(filled).input_value() == carried  # there it can be pressed in plain sight
            assert opened.value.url.startswith(f"{served}{AT}/")
            opened.value.close()
        assert jobs == []
        page.evaluate("document.querySelector('iframe').style.opacity = 1")
        _vouched(frame)
        frame.locator(".test button").click()
        frame.locator(".test mark").first.wait_for(timeout=LIVE)
        assert len(jobs) == 1


def _vouched(frame: Any, *, sound: bool = True) -> None:
    """Waits for the browser to have said whether the frame can be seen. Our script asks it in the same way."""
    frame.locator(".test button").scroll_into_view_if_needed()
    frame.locator("body").evaluate(
        """(body, sound) => new Promise(done => new IntersectionObserver(
            (found, watch) => found.some(one => one.isVisible === sound) && (watch.disconnect(), setTimeout(done, 150)),
            {trackVisibility: true, delay: 100}).observe(body.querySelector(".test button")))""",
        sound,
    )


def test_a_page_that_is_not_meant_for_frames_is_not_shown_in_one(
    chromium: Browser, served: str, tmp_path: Path
) -> None:
    (tmp_path / "host.html").write_text(f'{HOST}<iframe src="{served}{AT}/{SISTER}"></iframe>')
    with files_served(tmp_path, "localhost") as host, reading(chromium, served, host) as (page, watch):
        watch.expected = ["frame-ancestors", "chrome-error"]
        with page.expect_console_message(lambda one: "frame-ancestors" in one.text):
            page.goto(f"{host}/host.html")
        assert page.frame_locator("iframe").locator("article").count() == 0


def test_a_feature_shows_itself_in_a_notebook(chromium: Browser, tmp_path: Path, bundled: Path) -> None:
    with gs.Atlas(bundled) as atlas:
        cell = atlas[SISTER]._repr_html_()
    (tmp_path / "notebook.html").write_text(f"{HOST}<h1>In [1]</h1>{cell}")
    with files_served(tmp_path) as base, reading(chromium, base) as (page, watch):
        page.goto(f"{base}/notebook.html")
        frame = page.frame_locator("iframe")
        frame.locator("mark.p[tabindex]").first.hover()  # which it has once the scripts ran
        assert visible(strongest()) in shown(frame.locator("#token-tip"))
        frame.locator(".modes label", has_text="Full").first.click()
        assert frame.locator(".f").first.is_visible()
        assert watch.requests == 1
        shot(page, "notebook-light-desk")
