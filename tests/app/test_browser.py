"""A real browser walks through the pages, served and exported: what readers do works, nothing is fetched from elsewhere.

`GEMSCOPE_CHROMIUM` names the browser (default: the `chromium` on the path), `GEMSCOPE_SHOTS` the folder for pictures of
every page (default: tests/output).
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

import gemscope as gs
from atlases import HOSTILE_LABEL, planted_atlas

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser

BUNDLED = Path(gs.__file__).parent / "data" / "atlas"
AT = "/smollm2-135m-instruct/15-res-8k"
PLANTED = "/tiny-model/1-res-tiny"
SISTER = 3777
"""A feature of the bundled SAE that fires on the word, and weakly on brothers. It has no label."""
GREETINGS = 5078
"""One that fires on good wishes, and is labelled."""
SHOTS = Path(os.environ.get("GEMSCOPE_SHOTS") or Path(__file__).parents[1] / "output")
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 812}
HOST = '<!doctype html><html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,"><title>another page</title>'
"""How a page begins that is not ours."""
SEEN = {("light", "desk"), ("dark", "phone")}
"""Where axe looks: a second or so a time; each theme and each size once."""
LIVE = 90_000
"""Milliseconds for the first text: the model may still be on its way."""


# --- a browser, and somebody who watches it ---------------------------------------------------------------------------


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
    context.set_default_timeout(15_000)
    watch = Watch(context, allowed)
    try:
        yield context.new_page(), watch
        assert watch.wrong == []
        assert watch.requests > 0
    finally:
        context.close()


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


def shown(found: Locator) -> str:
    return " ".join((found.text_content() or "").split())


# --- the watch itself -------------------------------------------------------------------------------------------------


def test_the_watch_sees_what_it_is_there_to_see(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        """<meta http-equiv="Content-Security-Policy" content="default-src 'unsafe-inline' http:; style-src 'none'">
        <img src="http://127.0.0.1:9/elsewhere.png"><p style="color: red">styled</p>
        <script>setTimeout(() => { alert("dialog"); console.error("said"); throw new Error("raised"); })</script>"""
    )
    with files_served(tmp_path) as base, reading(chromium, base) as (page, watch):
        page.goto(base)
        page.wait_for_timeout(300)
        found = "\n".join(watch.wrong)
        for one in ("asked for http://127.0.0.1:9/elsewhere.png", "dialog: dialog", "said", "raised", "policy: "):
            assert one in found, found
        assert "image-alt" in "\n".join(barriers(page))
        assert not spills(page)
        page.evaluate("document.querySelector('img').width = 3000")
        assert spills(page)
        watch.wrong.clear()


# --- what a reader does -----------------------------------------------------------------------------------------------


def test_a_reader_goes_from_the_atlases_to_a_feature_by_sorting_and_filtering(page: Page) -> None:
    page.goto("/")
    page.click(f"a[href='{AT}'] >> nth=0")
    assert page.locator("table.features tbody tr").count() == 100
    page.click("th.max a")
    maxima = [float(text.replace(",", "")) for text in page.locator("td.max").all_text_contents()]
    assert maxima == sorted(maxima, reverse=True)
    assert page.locator("th.max").get_attribute("aria-sort") == "descending"
    everything = shown(page.locator(".count"))
    assert everything == "1–100 of 8,192 features"
    page.fill("[name=min_density]", "0.01")
    page.fill("[name=max_density]", "0.02")
    page.wait_for_url("**max_density=0.02**")
    page.locator(".count", has_not_text=everything).wait_for()
    densities = [float(text.removesuffix(" %")) for text in page.locator("td.density").all_text_contents()]
    assert densities
    assert all(1 <= density <= 2 for density in densities)
    assert "min_density=0.01" in page.url  # the choice can be kept as a bookmark
    assert "order=max" in page.url
    chosen = shown(page.locator("td.index a").first)
    page.click("td.index a >> nth=0")
    page.wait_for_url(f"**{AT}/{chosen}")
    page.go_back()
    assert page.locator("[name=min_density]").input_value() == "0.01"
    page.select_option("[name=dead]", "true")
    page.click("text=Clear")
    page.select_option("[name=dead]", "true")
    with gs.Atlas(BUNDLED) as atlas:
        dead = atlas.count(dead=True)
    page.locator(".count", has_text=f"{dead} features").wait_for()
    assert page.locator("table.features tbody tr").count() == dead < 100


def test_cells_of_the_scatter_lead_to_a_feature_or_to_a_table_of_them(page: Page) -> None:
    place = """wanted => {
        const plot = document.querySelector("feature-scatter");
        const cells = [...plot.cells].filter(([, cell]) => (cell.count > 1) === wanted);
        const [cell, {count, one}] = cells[cells.length >> 1];
        const [x, y] = plot.corner(cell);
        plot.scrollIntoView();
        const box = plot.canvas.getBoundingClientRect();
        return {x: box.x + x + 1, y: box.y + y + 1, count, one};
    }"""
    for several in (False, True):
        page.goto(AT)
        page.wait_for_selector("feature-scatter canvas")
        cell = page.evaluate(place, several)
        page.mouse.move(cell["x"], cell["y"])
        said = shown(page.locator("feature-scatter .under"))
        page.mouse.click(cell["x"], cell["y"])
        if several:
            page.wait_for_url("**min_max=**")
            assert said.startswith(f"{cell['count']} features, {cell['one']} among them")
            assert shown(page.locator(".count")) == f"{cell['count']} features"
        else:
            page.wait_for_url(f"**{AT}/{cell['one']}")
            assert said.startswith(f"Feature {cell['one']}: density about ")


def test_a_mark_says_its_value_when_pointed_at_and_when_focused(page: Page) -> None:
    page.goto(f"{AT}/{SISTER}")
    strip = page.locator("token-strip").first
    value = shown(page.locator(".strips .value").first)
    mark = strip.locator("mark.p")
    assert mark.get_attribute("title") == value
    tip = page.locator("#token-tip")
    mark.hover()
    assert (tip.text_content() or "").split() == [value, "·sister"]
    shot(page, "tip-light-desk", whole=False)
    page.mouse.move(2, 2)
    assert tip.is_hidden()
    mark.focus()
    assert (tip.text_content() or "").split() == [value, "·sister"]
    assert mark.get_attribute("aria-describedby") == "token-tip"
    page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_a_reader_chooses_how_much_of_each_text_to_see_and_it_is_remembered(page: Page) -> None:
    page.goto(f"{AT}/{SISTER}")
    strip = page.locator("token-strip", has=page.locator(".f")).first
    far = strip.locator(".f").first
    height = {}
    for mode, seen in (("Stacked", False), ("Snippet", False), ("Full", True)):
        page.locator(".examples .modes label", has_text=mode).click()
        assert far.is_visible() == seen
        height[mode] = strip.bounding_box()["height"]  # type: ignore[index]
    assert height["Stacked"] < height["Full"]
    # Stacked: the firing tokens of all texts begin at one place.
    page.locator(".examples .modes label", has_text="Stacked").click()
    lefts = {round(mark.bounding_box()["x"]) for mark in page.locator(".examples mark.p").all()[:10]}  # type: ignore[index]
    assert len(lefts) == 1
    page.locator(".examples .modes label", has_text="Full").click()
    page.goto(f"{AT}/{SISTER - 1}")
    assert page.locator("input.full").is_checked()
    assert not page.locator("br >> nth=0").is_visible()


def test_a_text_of_the_reader_s_own_is_marked_where_the_feature_fires(watched: tuple[Page, Watch]) -> None:
    page, watch = watched
    page.goto(f"{AT}/{SISTER}")
    page.fill(".test textarea", "Her younger sister <b>Mary</b> went home.")
    page.click(".test button")
    result = page.locator(f"#feature-{SISTER}-result")
    result.locator("mark").first.wait_for(timeout=LIVE)
    assert "sister" in shown(result.locator("mark.p"))
    assert "at its strongest" in shown(result.locator(".verdict"))
    assert "<b>Mary</b>" in shown(result.locator("token-strip"))
    assert result.locator("b").count() == 0
    result.locator("mark.p").hover()
    assert page.locator("#token-tip").is_visible()
    watch.expected = ["status of 400"]
    page.fill(".test textarea", "x " * 5_001)
    page.click(".test button")
    result.get_by_text("at most 10,000 are read").wait_for()


def test_a_label_is_added_found_by_search_and_taken_away(page: Page, served: str) -> None:
    page.goto(f"{AT}/{SISTER}")
    assert shown(page.locator("h1")) == f"Feature {SISTER} has no label yet"
    page.click("details.add summary")
    page.fill("form.add input", "sisters & <i>brothers</i>")
    page.click("form.add button")
    page.locator("h1", has_text="sisters & <i>brothers</i>").wait_for()
    assert page.locator("h1 i").count() == 0
    page.fill(".find input[type=search]", "broth")  # from any page, by the beginning of a word
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?**")
    assert shown(page.locator(".found .what")) == "sisters & <i>brothers</i>"
    page.click(".found a.number")
    page.wait_for_url(f"**{AT}/{SISTER}")
    page.click("button:has-text('Remove')")
    page.locator("h1", has_text="has no label yet").wait_for()
    page.fill(".find input[type=search]", str(SISTER))
    page.keyboard.press("Enter")
    page.click(f"a:has-text('feature {SISTER}')")
    page.wait_for_url(f"**{AT}/{SISTER}")


def test_features_are_found_by_a_token_of_the_corpus(page: Page) -> None:
    page.goto(f"{AT}/search")
    page.locator(".modes label", has_text="Tokens").click()
    page.fill("form.search input[type=search]", "sister")
    page.click("form.search button")
    page.wait_for_selector(".hits tbody tr")
    assert shown(page.locator(".hits td.index").first) == str(SISTER)
    assert "kind=token" in page.url
    page.locator(".tokens a", has_text="sisters").first.click()
    page.wait_for_url("**token=**")
    assert "sisters" in shown(page.locator(".tokens a[aria-current]"))


def test_features_are_found_by_a_text_on_which_they_fire(page: Page) -> None:
    page.goto(f"{AT}/search?kind=text")
    page.fill("form.search input[type=search]", "He has one sister.")
    page.click("form.search button")
    page.wait_for_selector(".looks li", timeout=LIVE)
    found = page.locator(".looks .number").all_text_contents()
    assert str(SISTER) in found
    assert page.locator(".looks mark").count() > 10


def test_a_prompt_shows_each_token_s_features_and_one_that_is_pinned(page: Page) -> None:
    page.goto(f"{AT}/prompt")
    page.fill("textarea", "She wrote to her sister in the morning.")
    page.click("button:has-text('Look')")
    page.wait_for_selector("table.look", timeout=LIVE)
    rows = page.locator("table.look tbody tr")
    assert shown(rows.nth(0)).startswith("She")
    assert rows.nth(0).get_attribute("class") == "uncounted"
    row = rows.filter(has=page.locator("th", has_text="sister"))
    assert str(SISTER) in row.locator(".fired a").all_text_contents()
    # A feature without a label still says something: the token that it fires on most.
    hint = row.locator(".fired li", has=page.locator(f"a[href$='/{SISTER}']")).locator(".label")
    assert "sister" in shown(hint)
    page.click(f"[aria-label='Pin feature {SISTER}']")
    page.wait_for_selector(".pinned mark")
    assert "sister" in shown(page.locator(".pinned mark.p"))
    assert f"pin={SISTER}" in page.url
    assert page.locator(".is-pinned").count() >= 1
    page.reload()  # what the address says is what is shown
    page.wait_for_selector(".pinned mark")
    page.click("text=Unpin")
    page.wait_for_selector(".pinned", state="detached")
    page.go_back()
    page.wait_for_selector(".pinned mark")


def written(page: Page) -> list[str]:
    """The texts on a steer panel, once they are finished."""
    page.locator(".steering [role=status]", has_text="Done").wait_for(timeout=LIVE)
    return [shown(text) for text in page.locator(".outcome token-strip").all()]


def test_a_feature_is_steered_with_from_its_page_and_the_texts_come_as_they_are_written(page: Page) -> None:
    page.goto(f"{AT}/{GREETINGS}")
    panel = page.locator("steer-panel")
    panel.scroll_into_view_if_needed()
    output = panel.locator(".strength output")
    with gs.Atlas(BUNDLED) as atlas:
        most = atlas[GREETINGS].max
    assert f"{most:.3g} raw = 1 × max" in shown(output)
    panel.locator(".strength input[type=range]").focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert panel.locator("[name=strength]").input_value() == "2max"
    assert f"{2 * most:.3g} raw = 2 × max" in shown(output)
    output.filter(has_text="× median norm").wait_for(timeout=LIVE)
    assert "strength=2max" in (panel.locator("[data-open]").get_attribute("href") or "")
    panel.locator("[name=tokens]").fill("10")
    # What the two columns hold, each time they change.
    page.evaluate(
        """() => {
            window.seen = [];
            const outcome = document.querySelector(".outcome");
            new MutationObserver(() => {
                const texts = [...outcome.querySelectorAll("p.whole")].map(one => one.textContent);
                if (texts.length) window.seen.push(texts);
            }).observe(outcome, {subtree: true, childList: true, characterData: true});
        }"""
    )
    panel.locator("button.main").click()
    panel.locator("[data-cancel]").wait_for()
    alone, steered = written(page)
    assert alone
    assert steered != alone
    seen = page.evaluate("window.seen")
    lengths = [len(texts[-1]) for texts in seen]
    assert len({texts[-1] for texts in seen}) > 3, seen  # word by word, not at once
    assert lengths == sorted(lengths)
    assert seen[-1][0] != seen[-1][1]
    assert not panel.locator("[data-cancel]").is_visible()
    mark = panel.locator(".text.steered mark").first
    mark.hover()
    assert " nats: " in (page.locator("#token-tip").text_content() or "")
    # The same dice: again, and the same texts.
    panel.locator("button.main").click()
    page.locator(".steering [role=status]", has_text="Done").wait_for(state="detached", timeout=LIVE)
    assert written(page) == [alone, steered]
    panel.locator("[data-open]").click()
    page.wait_for_url("**/steer?**")
    assert page.locator("[name=strength]").input_value() == "2max"
    assert page.locator("[name=tokens]").input_value() == "10"
    assert page.locator(".outcome *").count() == 0


def test_a_text_that_nobody_wants_any_more_is_cancelled(page: Page) -> None:
    def running() -> bool:
        return bool(page.request.get("/health").json()["queue"]["running"])

    page.goto(f"{AT}/{GREETINGS}")
    page.fill("[name=tokens]", "256")
    page.click("steer-panel button.main")
    page.wait_for_selector(".outcome p.whole", timeout=LIVE)
    assert running()
    page.click("[data-cancel]")
    page.locator(".steering [role=status]", has_text="Cancelled").wait_for()
    page.wait_for_function("async () => !(await (await fetch('/health')).json()).queue.running", timeout=LIVE)
    assert shown(page.locator(".outcome p.whole").first)  # what was written stays
    assert not page.locator("[data-cancel]").is_visible()
    # Who goes away ends it as well.
    page.click("steer-panel button.main")
    page.locator(".outcome p.whole", has_text=" ").first.wait_for(timeout=LIVE)
    page.goto("/")
    page.wait_for_function("async () => !(await (await fetch('/health')).json()).queue.running", timeout=LIVE)


def test_two_features_are_steered_with_and_the_address_opens_with_all_of_it(
    chromium: Browser, served: str, page: Page
) -> None:
    page.goto(f"{AT}/steer")
    page.fill("[name=add]", "farewells")
    page.keyboard.press("Enter")
    page.click(f".suggestions button[value='{GREETINGS}']")
    page.wait_for_selector(f".dial[data-feature='{GREETINGS}']")
    page.fill("[name=add]", str(SISTER))
    page.click("[data-add]")
    second = page.locator(f".dial[data-feature='{SISTER}']")
    second.wait_for()
    assert page.locator(":focus").get_attribute("type") == "range"
    second.locator("[name=strength]").fill("-1.5max")
    page.fill("[name=prompt]", "We met at noon & said")
    page.select_option("[name=at]", "generated")
    page.fill("[name=temperature]", "0.8")
    page.fill("[name=seed]", "7")
    page.fill("[name=tokens]", "8")
    page.fill("[name=n]", "2")
    page.check("[name=random]")
    page.click("button.main")
    texts = written(page)
    assert len(texts) == 2 * 3  # two samples: alone, steered, the control
    assert page.locator(".text.random").count() == 2
    url = page.url
    with reading(chromium, served, base_url=served) as (other, _):
        other.goto(url)
        assert other.locator(".outcome *").count() == 0  # a link shows what to write, and does not write it
        state = {
            name: [one.input_value() for one in other.locator(f"[name={name}]").all()]
            for name in ("feature", "strength", "prompt", "how", "at", "temperature", "seed", "tokens", "n")
        }
        assert state == {
            "feature": [str(GREETINGS), str(SISTER)], "strength": ["1max", "-1.5max"], "prompt": ["We met at noon & said"],
            "how": ["add"], "at": ["generated"], "temperature": ["0.8"], "seed": ["7"], "tokens": ["8"], "n": ["2"],
        }  # fmt: skip
        assert other.locator("[name=random]").is_checked()
        assert not other.locator("[name=noise]").is_checked()
        other.click("button.main")
        assert written(other) == texts
        # The method decides what is set: a factor, a strength, or nothing.
        other.select_option("[name=how]", "scale")
        assert other.locator("[name=factor] >> nth=0").is_visible()
        assert not other.locator("[name=strength] >> nth=0").is_visible()
        other.select_option("[name=how]", "ablate")
        assert not other.locator("[name=factor] >> nth=0").is_visible()
        other.click(f"[aria-label='Remove feature {GREETINGS}']")
        assert other.locator(".dial").count() == 1
        assert f"feature={GREETINGS}" not in other.url


def test_what_cannot_be_written_is_said_on_the_panel(watched: tuple[Page, Watch]) -> None:
    page, watch = watched
    watch.expected = ["status of 400"]
    page.goto(f"{AT}/steer?feature={GREETINGS}")
    page.evaluate("document.querySelector('[name=prompt]').required = false")
    page.click("button.main")
    page.get_by_text("prompt is empty").wait_for()
    page.fill("[name=prompt]", "Hello")
    page.evaluate("document.querySelector('form.steering').noValidate = true")
    page.fill("[name=temperature]", "9")
    page.click("button.main")
    page.get_by_text("expected a number from 0 to 2").wait_for()
    assert not page.locator("[data-cancel]").is_visible()


def test_the_causes_of_a_prediction_are_shown_beside_their_measured_effects(page: Page) -> None:
    page.goto(f"{AT}/prompt?text={quote('In the evening we sat by the fire, all of us: my father, my mother and my')}")
    _look(page)
    page.locator("table.look th a").last.click()
    causes = page.locator("section.causes")
    causes.wait_for(timeout=LIVE)
    page.wait_for_function("document.querySelector('.causes h2').getBoundingClientRect().top >= 0")  # it came into view
    assert page.evaluate("document.querySelector('.causes h2').getBoundingClientRect().bottom < innerHeight")
    assert "after ·my" in shown(causes.locator("h2"))
    rows = causes.locator("tbody tr")
    assert rows.count() == 12
    for row in rows.all():
        predicted, measured = (shown(cell) for cell in row.locator("td").all()[-2:])
        assert predicted
        assert measured not in ("", "—")
    assert "%" in shown(causes.locator("dd", has_text="SAE leaves out"))
    before = shown(causes.locator("h2"))
    causes.locator("[name=target]").first.fill(" sister")
    causes.locator("button", has_text="Explain").click()
    page.locator(".causes h2", has_text="·sister").wait_for(timeout=LIVE)
    assert shown(page.locator(".causes h2")) != before
    page.locator(".causes tbody a").first.click()
    page.wait_for_selector("article.feature")


def test_the_output_score_is_measured_when_it_is_asked_for(page: Page) -> None:
    page.goto(f"{AT}/{GREETINGS}")
    page.click(".effect button")
    page.locator(".effect", has_text="Output score").wait_for(timeout=LIVE)
    assert page.locator(".effect tbody tr").count() == 2  # tokens of its examples, and promoted ones


def test_the_choice_of_dark_is_remembered(page: Page) -> None:
    page.goto(f"{AT}/{SISTER}")

    def paper() -> str:
        return page.evaluate("getComputedStyle(document.documentElement).backgroundColor")

    light = paper()
    page.click("[data-theme-switch]")
    dark = paper()
    assert dark != light
    page.goto(f"{AT}/search")
    assert paper() == dark
    page.reload()
    assert paper() == dark
    page.click("[data-theme-switch]")
    assert paper() == light
    page.evaluate("localStorage.clear()")
    page.emulate_media(color_scheme="dark")
    page.reload()
    assert paper() == dark  # unless something was chosen, as the system has it


def test_a_walk_by_keyboard_alone(page: Page) -> None:
    page.goto(f"{AT}/{SISTER}")
    page.keyboard.press("Tab")
    assert shown(page.locator(":focus")) == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**{AT}/{SISTER + 1}")
    page.keyboard.press("k")
    page.wait_for_url(f"**{AT}/{SISTER}")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.localName") == "mark":
            break
    first = page.evaluate("document.activeElement.textContent")
    assert "sister" in first
    assert page.locator("#token-tip").is_visible()
    page.locator(".examples .modes label", has_text="Full").click()
    strip = page.locator("token-strip").filter(has=page.locator("mark ~ mark")).first
    strip.locator("mark[tabindex='0']").focus()
    steps = strip.locator("mark").count() - 1
    for _ in range(steps):
        page.keyboard.press("ArrowLeft")
    assert strip.locator("mark").first.evaluate("one => one === document.activeElement")
    page.keyboard.press("ArrowRight")
    assert strip.locator("mark").nth(1).evaluate("one => one === document.activeElement")
    assert page.url.endswith(f"{AT}/{SISTER}")  # arrows inside a text turn no page
    page.keyboard.press("Tab")
    assert not strip.evaluate("one => one.contains(document.activeElement)")  # one stop for each text
    # Letters that are typed into a field turn none either.
    page.focus(".find input[type=search]")
    page.keyboard.type("jk")
    assert page.locator(".find input[type=search]").input_value() == "jk"
    assert page.url.endswith(f"{AT}/{SISTER}")


def test_without_scripts_the_pages_still_serve(chromium: Browser, served: str) -> None:
    with reading(chromium, served, base_url=served, java_script_enabled=False) as (page, _):
        page.goto(f"{AT}?order=density&descending=true")
        page.fill("[name=min_max]", "50")
        page.click("form.filters button")
        page.wait_for_url("**min_max=50**")
        page.goto(f"{AT}/22")
        assert page.locator("mark").count() > 20
        page.click("details.add summary")
        page.fill("form.add input", "water, plainly")
        page.click("form.add button")
        assert shown(page.locator("h1")) == "water, plainly"
        page.goto(f"{AT}/search?text=plainly")
        assert page.locator(".found li").count() == 1
        page.goto(f"{AT}/{GREETINGS}")
        page.fill("[name=tokens]", "4")
        page.click("button.main", timeout=LIVE)
        page.wait_for_url("**/steer?**", timeout=LIVE)
        assert page.locator(".outcome token-strip").count() == 2
        page.goto(f"{AT}/22")
        page.click("button:has-text('Remove')")
        assert shown(page.locator("h1")) == "Feature 22 has no label yet"


def test_a_token_in_the_address_lets_a_browser_in_and_is_not_kept_there(chromium: Browser, bundled: Path) -> None:
    with gs.serve(bundled, live=False, block=False, port=0, token="open-sesame") as server:
        with reading(chromium, server.url) as (page, watch):
            watch.expected = ["401"]
            assert page.goto(server.url).status == 401  # type: ignore[union-attr]
            page.goto(server.address)
            assert page.url == f"{server.url}/"
            page.click("text=Browse")
            assert page.locator("table.features").count() == 1
            page.click("td.index a >> nth=0")
            page.fill(".find input[type=search]", "7")
            page.keyboard.press("Enter")
            page.wait_for_selector("a:has-text('feature 7')")


# --- in the pages of others -------------------------------------------------------------------------------------------


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
            assert frame.locator("header.top, footer, [data-part=plots], .column.last").count() == 0
            assert frame.locator("[data-part=activations] li").count() > 5
            assert frame.locator("article a[target=_blank]").count() == 0
            frame.locator("[data-part=activations] mark.p[tabindex]").first.hover()
            assert frame.locator("#token-tip").is_visible()
            shot(page, f"framed-{where}-light-desk", whole=False)


CARRIED = (
    f"{SISTER}?embed=true&defaulttesttext=A+sister",
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
        page.frame_locator("iframe >> nth=0").locator("steer-panel").wait_for()
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
        opened.value.locator("section.examples").scroll_into_view_if_needed()
        assert jobs == []


def test_a_press_in_a_frame_counts_where_the_frame_can_be_seen(
    chromium: Browser, served: str, tmp_path: Path, jobs: list[Any]
) -> None:
    url = f"{served}{AT}/{SISTER}?embed=true&defaulttesttext=A+sister"
    bait = "<style>iframe { position: absolute; left: 0; top: 0 }</style><button>Win a prize</button>"
    (tmp_path / "host.html").write_text(
        f'{HOST}{bait}<iframe width="700" height="900" style="opacity: 0.01" src="{url}"></iframe>'
    )
    with files_served(tmp_path, "localhost") as host, reading(chromium, served, host) as (page, _):
        page.goto(f"{host}/host.html")
        frame = page.frame_locator("iframe")
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
        page.goto(f"{host}/host.html")
        page.wait_for_timeout(300)
        assert page.frame_locator("iframe").locator("article").count() == 0


def test_a_feature_shows_itself_in_a_notebook(chromium: Browser, tmp_path: Path, bundled: Path) -> None:
    with gs.Atlas(bundled) as atlas:
        cell = atlas[SISTER]._repr_html_()
    (tmp_path / "notebook.html").write_text(f"{HOST}<h1>In [1]</h1>{cell}")
    with files_served(tmp_path) as base, reading(chromium, base) as (page, watch):
        page.goto(f"{base}/notebook.html")
        frame = page.frame_locator("iframe")
        frame.locator("mark.p[tabindex]").first.hover()  # which it has once the scripts ran
        assert "sister" in shown(frame.locator("#token-tip"))
        frame.locator(".modes label", has_text="Full").first.click()
        assert frame.locator(".f").first.is_visible()
        assert watch.requests == 1
        shot(page, "notebook-light-desk")


# --- every page, light and dark, on a desk and on a phone -------------------------------------------------------------


def _look(page: Page) -> None:
    page.click("button:has-text('Look')")
    page.wait_for_selector("table.look", timeout=LIVE)


def _pinned(page: Page) -> None:
    _look(page)
    page.wait_for_selector(".pinned mark", timeout=LIVE)


def _written(page: Page) -> None:
    page.click("button.main")
    written(page)


def _explained(page: Page) -> None:
    _look(page)
    page.locator("table.look th a").last.click()
    page.wait_for_selector("section.causes", timeout=LIVE)


def _searched(page: Page) -> None:
    page.click("form.search button")
    page.wait_for_selector(".looks li", timeout=LIVE)


def _tested(page: Page) -> None:
    page.click(".test button")
    page.wait_for_selector(".test mark", timeout=LIVE)


def _tried(page: Page) -> None:
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
    "feature": (f"{AT}/{SISTER}", _tried),
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
    "steer-off": (f"{PLANTED}/steer", lambda page: None),
    "causes": (f"{AT}/prompt?text={quote('My mother and my')}", _explained),
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
        for size, viewport in (("desk", DESK), ("phone", PHONE)):
            page.set_viewport_size(viewport)
            for theme in ("light", "dark"):
                page.emulate_media(color_scheme=theme, reduced_motion="reduce")  # type: ignore[arg-type]
                page.wait_for_timeout(50)
                shot(page, f"{name}-{theme}-{size}")
                if (theme, size) in SEEN:
                    assert barriers(page) == [], (theme, size)
            assert spills(page) == [], size


# --- harm -------------------------------------------------------------------------------------------------------------


def harmless(page: Page, *, at: str = "") -> None:
    """No markup came out of tokens, labels or documents."""
    assert page.evaluate(
        "document.scripts.length && [...document.scripts].every(one => !/alert/.test(one.textContent))"
    )
    assert page.locator("img, main script, [onerror], [onclick], mark *:not(br)").count() == 0, at


def test_text_that_means_harm_stays_text(page: Page) -> None:
    for feature in (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12):
        page.goto(f"{PLANTED}/{feature}")
        page.wait_for_selector("article.feature")
        page.locator(".modes label", has_text="Full").click() if page.locator(".modes").count() else None
        page.locator("label.check").click() if page.locator("label.check").count() else None
        harmless(page, at=page.url)
        for mark in page.locator("token-strip mark").all()[:3]:
            mark.focus()
            assert page.locator("#token-tip *").count() == 0
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
    _look(page)
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


# --- exports ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, bundled: Path, planted: Path) -> Path:
    """One file and a site of the bundled atlas's, and of one that is full of harm."""
    folder = tmp_path_factory.mktemp("exported")
    gs.export(bundled, folder / "some.html", format="html", features=[22, 4830, SISTER])
    gs.export(bundled, folder / "site", format="site", features=range(120))
    gs.export(planted, folder / "harm.html", format="html", features=range(12))
    gs.export(planted, folder / "harm", format="site")
    return folder


def test_one_file_opens_from_the_disk_and_needs_nothing_else(chromium: Browser, exported: Path) -> None:
    url = (exported / "some.html").as_uri()
    with reading(chromium, url) as (page, watch):
        page.goto(url)
        page.click(f"nav a[href='#feature-{SISTER}']")
        article = page.locator(f"#feature-{SISTER}")
        article.locator("mark.p").first.hover()
        assert "sister" in shown(page.locator("#token-tip"))
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
            page.fill("input[type=search]", "alert label")
            page.click("ol.found a")
            page.wait_for_selector("article.feature")
            harmless(page)
