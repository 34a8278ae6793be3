"""A browser, a server of the bundled atlas and of one that is full of harm, and a reader."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import gemscope as gs
from atlases import planted_atlas
from browsing import BUNDLED, Watch, reading

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("GEMSCOPE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium: install it, or name it in GEMSCOPE_CHROMIUM")
    with sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundled atlas, which labels may be added to."""
    return Path(shutil.copytree(BUNDLED, tmp_path_factory.mktemp("bundled") / "bundled.atlas"))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas that is full of harm."""
    folder = tmp_path_factory.mktemp("planted") / "planted.atlas"
    planted_atlas(folder).close()
    return folder


@pytest.fixture(scope="module")
def serving(bundled: Path, planted: Path) -> Iterator[Any]:
    """Both, with the bundled one's model."""
    with gs.serve(bundled, planted, block=False, port=0) as server:
        yield server


@pytest.fixture
def jobs(serving: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All that the model is given to do meanwhile."""
    worker, given = serving.app.state.worker, []
    submit = worker.submit
    monkeypatch.setattr(worker, "submit", lambda work, **how: given.append(work) or submit(work, **how))
    return given


@pytest.fixture(scope="module")
def served(serving: Any) -> str:
    """Where they are."""
    return str(serving.url)


@pytest.fixture
def watched(chromium: Browser, served: str) -> Iterator[tuple[Page, Watch]]:
    """A reader of that server."""
    with reading(chromium, served, base_url=served) as found:
        yield found


@pytest.fixture
def page(watched: tuple[Page, Watch]) -> Page:
    """Their page."""
    return watched[0]
