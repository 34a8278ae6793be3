"""Steering in a browser: the texts come while they are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import gemscope as gs
from browsing import AT, BUNDLED, GREETINGS, LIVE, SISTER, Watch, reading, shown, written

pytestmark = pytest.mark.browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def test_a_feature_is_steered_with_from_its_page_and_the_texts_come_as_they_are_written(page: Page) -> None:
    page.goto(f"{AT}/{GREETINGS}#steer")
    panel = page.locator("steer-panel")
    panel.scroll_into_view_if_needed()
    output = panel.locator(".strength output")
    slider = panel.locator(".strength input[type=range]")
    assert (slider.get_attribute("min"), slider.input_value(), slider.get_attribute("max")) == ("-1.0", "0.5", "1.0")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert panel.locator("[name=strength]").input_value() == "0.45norm"
    assert slider.get_attribute("aria-valuetext") == "0.45 × norm"
    page.keyboard.press("End")
    assert slider.get_attribute("aria-valuetext") == "1 × norm, where text breaks down"
    with gs.Atlas(BUNDLED) as atlas:
        most = atlas[GREETINGS].max
    panel.locator("[name=strength]").fill("2max")
    assert f"{2 * most:.3g} raw = 2 × max" in shown(output)
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
    assert "× median norm" in shown(output)
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

    page.goto(f"{AT}/{GREETINGS}#steer")
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
    page.fill("[name=add]", "greetings")
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
            "feature": [str(GREETINGS), str(SISTER)], "strength": ["0.5norm", "-1.5max"], "prompt": ["We met at noon & said"],
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


def test_a_chat_goes_on_each_side_in_its_own_words(page: Page) -> None:
    page.goto(f"{AT}/steer?feature={GREETINGS}&tokens=6&chat=true")
    for turn, words in enumerate(("What is the sea?", "And the sky?"), 1):
        page.fill("[name=prompt]", words)
        page.keyboard.press("Tab")
        page.click("button.main")
        page.locator("input[name=said]").nth(turn - 1).wait_for(state="attached", timeout=LIVE)
        assert page.locator("p.said").all_text_contents()[-1] == words
        assert page.locator(".outcome .texts").count() == turn
        assert page.locator("[name=prompt]").input_value() == ""
    assert "said=" not in page.url
    assert not page.locator("[name=n]").is_visible()
    page.click("[data-over]")
    assert page.locator(".outcome *").count() == 0


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
