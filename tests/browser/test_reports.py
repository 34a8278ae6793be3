"""Reports as files: each opens from the disk, stays on the screen and keeps nobody out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import gemscope as gs
from browsing import DESK, PHONE, barriers, reading, shot, spills
from gemscope.atlas.notes.share import shared
from gemscope.pages.standalone import sheet
from gemscope.testing import planted_sae, tiny_model
from lessons import SITE, planted, store_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from gemscope.activations.model import LanguageModel

pytestmark = pytest.mark.browser

TEXTS = [f"the {word} and the {word} sang of {word * 2}" for word in ("sea", "sun", "rain", "night")]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model()


def _score(model: LanguageModel, folder: Path) -> str:
    return gs.score(model, planted_sae().sae, gs.Corpus.of(TEXTS), length=24).to_html()


def _scores(model: LanguageModel, folder: Path) -> str:
    saes = [planted_sae().sae, planted_sae().sae]
    return gs.compare(model, saes, gs.Corpus.of(TEXTS), length=24).to_html()


def _training(model: LanguageModel, folder: Path) -> str:
    rows, _ = planted(4000, d=16, features=24, active=3.0, seed=1)
    config = gs.TrainConfig(width=24, target_l0=3.0, rows=4000, batch=64, log_every=1)
    gs.train(store_of(rows, folder / "store", SITE), config, to=folder / "run")
    return gs.training_report(folder / "run").to_html()


def _probe(model: LanguageModel, folder: Path) -> str:
    labelled = [(f"{text} {turn}", place) for turn in range(6) for place, text in enumerate(TEXTS)]
    return gs.sparse_probe(model, planted_sae().sae, labelled, k=(1, 2)).to_html()


def _notebook(model: LanguageModel, folder: Path) -> str:
    sae = planted_sae().sae
    parts = [
        gs.look(model, sae, TEXTS[0]),
        gs.attribute(model, sae, TEXTS[0]),
        gs.steer(model, TEXTS[0], [gs.Steer(sae, 3, 2.0)], max_new_tokens=6),
    ]
    return sheet([one._repr_html_() for one in parts], ["a note"], title="what a notebook shows")


def _shared(model: LanguageModel, folder: Path) -> str:
    from browsing import BUNDLED

    with gs.Atlas(BUNDLED) as atlas:
        kept = gs.Lists(folder / "lists").add("Some", atlas[22], atlas[99])
        return shared(kept, lambda one: (atlas[one.index], atlas.manifest))


REPORTS: dict[str, Callable[[LanguageModel, Path], str]] = {
    "score": _score,
    "scores": _scores,
    "training": _training,
    "probe": _probe,
    "notebook": _notebook,
    "shared-list": _shared,
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_is_sound_in_light_and_dark_on_a_desk_and_on_a_phone(
    chromium: Browser, tmp_path: Path, model: LanguageModel, name: str
) -> None:
    (tmp_path / "page.html").write_text(REPORTS[name](model, tmp_path), encoding="utf-8", errors="replace")
    url = (tmp_path / "page.html").as_uri()
    with reading(chromium, url) as (page, watch):
        page.goto(url)
        assert page.locator("main h1").count() >= 1
        for size, viewport in (("desk", DESK), ("phone", PHONE)):
            page.set_viewport_size(viewport)  # type: ignore[arg-type]
            for theme in ("light", "dark"):
                page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
                shot(page, f"report-{name}-{theme}-{size}")
                assert barriers(page) == [], (theme, size)
            assert spills(page) == [], size
        assert watch.requests == 1
