"""Pages that need no server."""

import json
import os
import re
import shutil
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlases import HOSTILE_LABEL, SOURCE
from gemscope.atlas.exchange.verbs import export
from gemscope.atlas.files.manifest import Mapped
from gemscope.atlas.reader import Atlas
from gemscope.errors import InputError
from gemscope.text.printable import readable


def _harmless(html: str) -> None:
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert "\u202e" not in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "https://" not in html


def test_one_file_holds_chosen_features_and_nothing_from_elsewhere(atlas: Atlas, tmp_path: Path) -> None:
    html = export(atlas, tmp_path / "some.html", format="html", features=[0, 6, 3]).read_text()
    _harmless(html)
    assert html.count('<article class="feature"') == 3
    assert html.index('id="feature-0"') < html.index('id="feature-3"') < html.index('id="feature-6"')
    assert 'href="#feature-6"' in html
    assert 'href="#feature-1"' not in html
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html


def test_too_many_features_for_one_file_are_refused(atlas: Atlas, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("gemscope.atlas.exchange.html._MANY", 39)
    with pytest.raises(InputError, match="40 features are too many for one file: choose up to 39, or make a site"):
        export(atlas, tmp_path / "all.html", format="html")


def test_every_link_of_a_static_site_leads_to_a_file_of_it(atlas: Atlas, tmp_path: Path) -> None:
    import re
    from urllib.parse import unquote

    site = export(atlas, tmp_path / "site", format="site")
    pages = list(site.rglob("*.html"))
    assert len(pages) == 2 + len(atlas)
    assert (site / SOURCE / "17" / "index.html").exists()
    for page in pages:
        html = page.read_text()
        _harmless(html)
        for url in re.findall(r'(?:href|src)="([^"]*)"', html):
            if not url.startswith("#"):
                assert (page.parent / unquote(url.partition("?")[0])).resolve().is_file(), (page, url)
    data = json.loads((site / SOURCE / "0" / "index.json").read_text())
    assert data["explanations"][0]["description"] == HOSTILE_LABEL
    text = (site / SOURCE / "labels" / "0.js").read_text()
    labels = json.loads(text.removeprefix("gemscopeLabels(0,").removesuffix(");\n"))
    assert labels["of"] == 1
    assert labels["features"][0][:2] == [0, readable(HOSTILE_LABEL)]


def test_a_site_of_all_features_has_their_map_in_scripts_that_a_page_from_the_disk_may_load(
    atlas: Atlas, tmp_path: Path
) -> None:
    assert "map.html" not in {
        path.name for path in (export(atlas, tmp_path / "flat", format="site") / SOURCE).iterdir()
    }
    with Atlas(shutil.copytree(atlas.folder, tmp_path / "own")) as own:
        _the_site_has_the_map(own, tmp_path)


def _the_site_has_the_map(atlas: Atlas, tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    places = dice.integers(0, 65_536, (len(atlas), 2)).astype(np.uint16)
    atlas.put_places(places, Mapped(method="dice", kept=0.5))
    place = export(atlas, tmp_path / "site", format="site") / SOURCE
    some = export(atlas, tmp_path / "some", format="site", features=[2, 5]) / SOURCE
    assert not (some / "map.html").exists()  # where most could not be opened
    page = (place / "map.html").read_text()
    _harmless(page)
    assert 'href="../../tiny-model/1-res-tiny/map.html"' in (place / "index.html").read_text()
    assert "map.html?feature=3" in (place / "3" / "index.html").read_text()
    drawn = (place / "map" / "points.js").read_text()
    data = b64decode(drawn.removeprefix('gemscopeMap("points","').removesuffix('");\n'))
    assert len(data) == 8 * len(atlas)
    assert np.array_equal(np.frombuffer(data[: 4 * len(atlas)], "<u2").reshape(2, -1).T, places)
    labels: dict[str, str] = {}
    for path in (place / "map" / "tiles").iterdir():
        tile = json.loads(path.read_text().removeprefix(f'gemscopeMap("{path.stem}",').removesuffix(");\n"))
        labels |= tile["labels"]
        for one in (*tile["labels"], *tile["tokens"]):
            x, y = places[int(one)].tolist()
            assert int(path.stem) == y // 4096 * 16 + x // 4096
    assert labels == {str(one): readable(label) for one, label in atlas.labels(range(len(atlas))).items()}
    assert {int(one) for one in re.findall(r'data-feature="(\d+)"', page)} <= set(range(len(atlas)))


def test_a_site_of_some_features_links_to_no_others(atlas: Atlas, tmp_path: Path) -> None:
    import re

    site = export(atlas, tmp_path / "site", format="site", features=[2, 5])
    assert {path.name for path in (site / SOURCE).iterdir()} == {"2", "5", "index.html", "labels"}
    assert "<h1>2 of 40 features</h1>" in (site / SOURCE / "index.html").read_text()
    home = (site / "index.html").read_text()
    assert "2 of them with a page" in home
    assert f"<dt>Living</dt><dd>{atlas.count(dead=False)}</dd>" in home
    html = (site / SOURCE / "2" / "index.html").read_text()
    others = [url for url in re.findall(r'href="([^"]*)"', html) if re.search(r"/\d+/index", url)]
    assert {re.findall(r"/(\d+)/index", url)[0] for url in others} <= {"2", "5"}


@pytest.mark.browser
@pytest.mark.parametrize("where", ["http", "file"])
def test_a_browser_searches_a_static_site_and_shows_a_frame_of_it(atlas: Atlas, tmp_path: Path, where: str) -> None:
    """From a file server and from the disk; nothing is fetched from anywhere else."""
    import functools
    import http.server
    import threading

    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    site = export(atlas, tmp_path / "site", format="site")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}" if where == "http" else site.as_uri()
    try:
        with sync.sync_playwright() as play:
            path = os.environ.get("GEMSCOPE_CHROMIUM") or shutil.which("chromium")
            browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
            page = browser.new_page()
            wrong: list[str] = []
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
            page.on("request", lambda request: None if request.url.startswith(base) else wrong.append(request.url))
            page.on("dialog", lambda dialog: wrong.append(dialog.message))
            page.goto(f"{base}/{SOURCE}/index.html")
            page.fill("input[type=search]", "alert label")
            page.wait_for_selector("ol.found li")
            assert page.locator("ol.found li").count() == 1
            assert "<script>" in (page.locator("ol.found .what").text_content() or "")
            page.click("ol.found a")
            page.wait_for_selector("article.feature")
            assert page.locator("header.top").count() == 1
            page.goto(f"{base}/{SOURCE}/3/index.html?embed=true&embedplots=false&height=300")
            page.wait_for_selector("body.embed")
            assert page.locator("header.top, footer, [data-part=plots], .beyond").count() == 0
            assert page.locator("[data-part=activations]").count() == 1
            assert wrong == []
            browser.close()
    finally:
        server.shutdown()
        server.server_close()
