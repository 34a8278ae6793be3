"""A reader in front of a real browser, who watches what it fetches, and what is looked at in pages.

`GEMSCOPE_CHROMIUM` names the browser (default: the `chromium` on the path), `GEMSCOPE_SHOTS` the folder for pictures of
every page (default: tests/output).
"""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gemscope as gs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

BUNDLED = Path(gs.__file__).parent / "data" / "atlas"

AT = "/smollm2-135m-instruct/15-res-8k"

PLANTED = "/tiny-model/1-res-tiny"

SISTER = 3777
"""A feature of the bundled SAE that fires on the word, and weakly on brothers. It is labelled by a rule."""

GREETINGS = 5078
"""One that fires on good wishes, and is labelled."""

SHOTS = Path(os.environ.get("GEMSCOPE_SHOTS") or Path(__file__).parent / "output")

DESK, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 812}

HOST = '<!doctype html><html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,"><title>another page</title>'
"""How a page begins that is not ours."""

SEEN = {("light", "desk"), ("dark", "phone")}
"""Where axe looks: a second or so a time; each theme and each size once."""

LIVE = 90_000
"""Milliseconds for the first text: the model may still be on its way."""


def strongest() -> str:
    """The token of `SISTER`'s strongest example."""
    with gs.Atlas(BUNDLED) as atlas:
        one = atlas[SISTER].strongest[0]
    return one.tokens[one.peak]


class Watch:
    """Notes all that must not happen: requests to anywhere but the `allowed`, errors, dialogs, broken policies."""

    def __init__(self, context: Any, allowed: tuple[str, ...]) -> None:
        self.wrong: list[str] = []
        self.expected: list[str] = []
        """Parts of messages that are as they should be."""
        self.requests = 0
        self._allowed = (*allowed, "data:")
        context.on("request", self._requested)
        context.on("console", lambda said: self._note(said.text) if said.type == "error" else None)
        context.on("weberror", lambda raised: self._note(f"{raised.error}"))
        context.on("dialog", self._asked)
        # A policy that is broken says so on the page, too.
        context.add_init_script(
            "document.addEventListener('securitypolicyviolation', event => "
            "console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`))"
        )

    def _requested(self, request: Any) -> None:
        self.requests += 1
        if not request.url.startswith(self._allowed):
            self.wrong.append(f"asked for {request.url[:200]}")

    def _asked(self, dialog: Any) -> None:
        self.wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _note(self, text: str) -> None:
        if not any(part in text for part in self.expected):
            self.wrong.append(text)


@contextmanager
def reading(chromium: Browser, *allowed: str, **options: Any) -> Iterator[tuple[Page, Watch]]:
    """A reader with nothing remembered. When they are done, nothing may have gone wrong."""
    context = chromium.new_context(**{"viewport": DESK, "color_scheme": "light", **options})
    context.set_default_timeout(60_000)
    watch = Watch(context, allowed)
    try:
        yield context.new_page(), watch
        assert watch.wrong == []
        assert watch.requests > 0
    finally:
        context.close()


@contextmanager
def files_served(folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """A plain file server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer((host, 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def barriers(page: Page) -> list[str]:
    """What axe finds that keeps people out."""
    from axe_playwright_python.sync_playwright import Axe

    # It would fetch style sheets once more, which a file on the disk is not allowed to.
    found = Axe().run(page, options={"resultTypes": ["violations"], "preload": False}).response["violations"]
    return [f"{one['id']}: {one['help']} ({one['nodes'][0]['html'][:200]})" for one in found]


def shot(page: Page, name: str, *, whole: bool = True) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=whole, animations="disabled")


def spills(page: Page) -> list[str]:
    """What is wider than the screen."""
    return page.evaluate(
        """() => {
            const wide = document.documentElement.clientWidth;
            if (document.documentElement.scrollWidth <= wide) return [];
            const over = [...document.querySelectorAll("body *")].filter(one => one.getBoundingClientRect().right > wide + 1);
            return [`${document.documentElement.scrollWidth} > ${wide}`, ...over.slice(0, 5).map(one => one.outerHTML.slice(0, 120))];
        }"""
    )


def sound(page: Page, name: str) -> None:
    """No barrier and nothing that spills, in light and dark, on a desk and on a phone; pictures under this name."""
    for size, viewport in (("desk", DESK), ("phone", PHONE)):
        page.set_viewport_size(viewport)  # type: ignore[arg-type]
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme, reduced_motion="reduce")  # type: ignore[arg-type]
            page.wait_for_timeout(50)
            shot(page, f"{name}-{theme}-{size}")
            if (theme, size) in SEEN:
                assert barriers(page) == [], (theme, size)
        assert spills(page) == [], size


def shown(found: Locator) -> str:
    return " ".join((found.text_content() or "").split())


def harmless(page: Page, *, at: str = "") -> None:
    """No markup came out of tokens, labels or documents."""
    assert page.evaluate(
        "document.scripts.length && [...document.scripts].every(one => !/alert/.test(one.textContent))"
    )
    assert page.locator("img, main script, [onerror], [onclick], mark *:not(br)").count() == 0, at


def written(page: Page) -> list[str]:
    """The texts on a steer panel, once they are finished."""
    page.locator(".steering [role=status]", has_text="Done").wait_for(timeout=LIVE)
    return [shown(text) for text in page.locator(".outcome token-strip").all()]


def looked(page: Page) -> None:
    page.click("button:has-text('Look')")
    page.wait_for_selector("table.look", timeout=LIVE)
