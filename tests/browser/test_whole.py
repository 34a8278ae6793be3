"""A whole model in a browser: its grid, a search over all labels, a text through all layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import gemscope as gs
from atlases import change_json, planted_atlas
from browsing import LIVE, PHONE, reading, sound
from gemscope.testing import planted_sae
from served import MODEL, TEXT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
SITES = ("0.res", "1.res", "2.res", "0.mlp", "1.mlp")


@pytest.fixture(scope="module")
def scope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scope of five sites, with labels that mean harm; at one there are two SAEs."""
    root = tmp_path_factory.mktemp("scope")
    for number, (site, l0) in enumerate([*((site, 4) for site in SITES), ("1.res", 9)]):
        layer, kind = site.split(".")
        folder = root / kind / f"layer_{layer}" / "width_64" / f"average_l0_{l0}"
        sae = planted_sae(site=site, seed=number).sae
        gs.save_sae(sae, folder)
        planted_atlas(folder / "atlas", features=sae.d_sae, seed=number, source_id=f"{layer}-{kind}-64").close()
        change_json(folder / "atlas", site=site, site_out=site, sae_digest=sae.digest)
        score = {"digest": sae.digest, "l0": l0 + number, "fvu": 0.1 + 0.07 * number, "dead": 0.1, "delta_loss": 0.02}
        (folder / "score.json").write_text(json.dumps(score))
    return root


@pytest.fixture(scope="module")
def serving(scope: Path) -> Iterator[Any]:
    with gs.serve(scope, model=MODEL, block=False, port=0) as server:
        yield server


def _through(page: Page) -> None:
    page.click("#prompt button[type=submit]")
    page.wait_for_selector("table.layers", timeout=LIVE)


def _one_token(page: Page) -> None:
    _through(page)
    page.locator("table.layers thead button").nth(3).click()
    page.wait_for_selector(".token-through", timeout=LIVE)
    page.locator(".token-through button").first.click()
    page.wait_for_selector("section.pinned", timeout=LIVE)


def _matched(page: Page) -> None:
    page.click("main button:has-text('Match')")
    page.wait_for_selector(".matches", timeout=LIVE)


PAGES: dict[str, tuple[str, Callable[[Page], object]]] = {
    "grid": ("/", lambda page: page.wait_for_selector("table.grid")),
    "grid-site": ("/tiny-model?by=l0&site=1.res", lambda page: page.wait_for_selector("#site table")),
    "everywhere": ("/search?text=words", lambda page: page.wait_for_selector(".hits")),
    "everywhere-none": ("/search?text=nosuchword", lambda page: None),
    "layers-empty": ("/tiny-model/prompt", lambda page: None),
    "layers": (f"/tiny-model/prompt?text={TEXT}", _through),
    "layers-token": (f"/tiny-model/prompt?text={TEXT}", _one_token),
    "compare-two": (
        "/compare?a=tiny-model/1-res-64&b=tiny-model/1-res-64__l0-9&match=true",
        _matched,
    ),
}


@pytest.mark.parametrize("name", PAGES)
def test_every_page_of_a_whole_model_is_sound_in_light_and_dark_on_a_desk_and_on_a_phone(
    chromium: Browser, served: str, name: str
) -> None:
    url, ready = PAGES[name]
    with reading(chromium, served, base_url=served) as (page, _):
        page.goto(url)
        ready(page)
        page.mouse.move(0, 0)
        sound(page, name)


def test_from_the_grid_to_a_feature_and_a_text_with_the_keyboard_alone(page: Page) -> None:
    page.goto("/")
    page.locator("table.grid a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/tiny-model/0-mlp-64")
    page.go_back()
    page.locator(".tries input").focus()
    page.keyboard.type("the sun")
    page.keyboard.press("Enter")
    page.wait_for_selector("table.layers", timeout=LIVE)
    assert page.url.endswith("/tiny-model/prompt?text=the+sun")
    page.locator("table.layers thead button").nth(2).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".token-through", timeout=LIVE)
    page.locator("table.layers td a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("article.feature", timeout=LIVE)


def test_layers_and_tokens_stay_in_sight_while_the_table_is_moved(page: Page) -> None:
    page.set_viewport_size(PHONE)
    page.goto(f"/tiny-model/prompt?text={'the cat and the sun ' * 4}")
    _through(page)
    moved = page.locator(".through")
    moved.evaluate("box => box.scrollTo(400, 60)")
    place, layer = moved.bounding_box(), page.locator("table.layers tbody th").last.bounding_box()
    head = page.locator("table.layers thead th").nth(6).bounding_box()
    assert place is not None
    assert layer is not None
    assert head is not None
    assert abs(layer["x"] - place["x"]) < 6
    assert abs(head["y"] - place["y"]) < 6


def test_the_token_that_is_chosen_stays_in_sight(page: Page) -> None:
    page.set_viewport_size(PHONE)
    page.goto(f"/tiny-model/prompt?text={'the cat and the sun ' * 4}")
    _through(page)
    token = page.locator("table.layers thead button").nth(16)
    token.click()
    page.wait_for_selector(".token-through", timeout=LIVE)
    place, chosen = page.locator(".through").bounding_box(), page.locator("thead .chosen").bounding_box()
    assert place is not None
    assert chosen is not None
    assert place["x"] <= chosen["x"] <= place["x"] + place["width"] - chosen["width"]


def test_without_scripts_all_of_it_is_there(chromium: Browser, served: str) -> None:
    with reading(chromium, served, base_url=served, java_script_enabled=False) as (page, _):
        page.goto("/")
        assert page.locator("table.grid td a").count() == 6
        page.fill(".tries input", TEXT)
        page.click(".tries button")
        page.wait_for_selector("table.layers", timeout=LIVE)
        page.locator("table.layers thead button").nth(3).click()
        page.wait_for_selector(".token-through", timeout=LIVE)
        page.locator(".token-through button").first.click()
        page.wait_for_selector("section.pinned", timeout=LIVE)
        assert page.locator(".token-through").count() == 1
        page.click("section.pinned button")
        page.wait_for_selector("section.pinned", state="detached", timeout=LIVE)
