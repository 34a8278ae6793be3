"""A model's SAEs by layer and kind of site: the best of each site, the fronts, and how both are shown."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemscope.activations.site import Site
from gemscope.errors import CorruptFile, InputError
from gemscope.features.files.saving import save_sae
from gemscope.features.listing import load_scope
from gemscope.features.scored import Figures, figures_of
from gemscope.reports.front import on_front
from gemscope.reports.grid import Grid, Placed, by_site, grid
from gemscope.reports.score import Score
from gemscope.testing import planted_sae
from html_tree import parse


def one(site: str, width: int = 2048, **figures: float) -> Placed:
    known = {"l0": 50.0, "fvu": None, "dead": 0.5} | figures if figures else None
    return Placed.of(Site.parse(site), width, f"{site}/{width}", scored=known and Figures(**known))  # type: ignore[arg-type]


@pytest.fixture
def whole() -> Grid:
    return by_site(
        "a <b>model</b>",
        [
            one("1.res", l0=40, fvu=0.2, delta_loss=0.1, dead=0.01),
            one("0.mlp", l0=30, fvu=0.4, dead=0.5),
            one("1.res", 4096, l0=80, fvu=0.1, delta_loss=0.2, dead=0.02),
            one("0.res", l0=20, fvu=0.3, delta_loss=-0.05, dead=0.0),
            one("2.mlp"),
        ],
    )


def test_each_site_shows_the_sae_whose_figure_is_lowest(whole: Grid) -> None:
    assert (whole.layers, whole.kinds) == ((0, 1, 2), ("mlp", "res"))

    def best(layer: int, kind: str, by: str) -> object:
        found = whole.best(layer, kind, by)  # type: ignore[arg-type]
        return found and (found.width, found.value(by))  # type: ignore[arg-type]

    assert best(1, "res", "fvu") == (4096, 0.1)
    assert best(1, "res", "delta_loss") == (2048, 0.1)
    assert best(1, "res", "l0") == (2048, 40)
    assert best(2, "mlp", "fvu") == (2048, None)
    assert best(2, "res", "fvu") is None
    assert [str(sae.site) for sae in whole.saes] == ["0.mlp", "0.res", "1.res", "1.res", "2.mlp"]


def test_one_width_can_be_looked_at_alone(whole: Grid) -> None:
    assert whole.widths == (2048, 4096)
    assert [sae.width for sae in whole.only(4096).saes] == [4096]
    with pytest.raises(InputError, match="no SAE of 7 features: there are 2,048, 4,096"):
        whole.only(7)
    with pytest.raises(InputError, match="no SAEs given"):
        by_site("none", [])


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_on_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    numbered = [(place, float(a), float(b)) for place, (a, b) in enumerate(points)]
    plainly = tuple(
        place for place, a, b in numbered if not any(x <= a and y <= b and (x, y) != (a, b) for _, x, y in numbered)
    )
    assert on_front(numbered) == plainly


def test_fronts_are_of_all_sites_or_of_a_kind(whole: Grid) -> None:
    def sites(places: tuple[int, ...]) -> list[str]:
        return [whole.saes[place].name for place in places]

    assert sites(whole.fronts("fvu")) == ["0.res/2048", "1.res/2048", "1.res/4096"]
    assert sites(whole.fronts("fvu", "mlp")) == ["0.mlp/2048"]
    assert whole.to_dict()["pareto"] == {"fvu": [1, 2, 3], "delta_loss": [1]}


def test_it_prints_a_table_for_each_figure_that_was_measured(whole: Grid) -> None:
    text = str(whole)
    rows = [line.split() for line in text.splitlines()]
    start = next(place for place, line in enumerate(rows) if line[:1] == ["FVU,"])
    assert rows[start + 1 : start + 5] == [["layer", "mlp", "res"], ["0", "0.400", "0.300"], ["1", "0.100"], ["2", "—"]]
    assert "On the front of L0 and FVU: 0.res 2k" in text
    json.dumps(whole.to_dict(), allow_nan=False)


def test_a_notebook_shows_the_table_in_colours_and_the_plots(whole: Grid) -> None:
    page = parse(whole.to_html())
    table = page.all("table", class_="grid")[0]
    boxes = {box.text: box.attributes.get("class") for box in table.all("td") if box.text}
    assert boxes == {"0.400": "a0", "0.300": "a4", "0.100 of 2": "a9", "—": None}
    assert [one.text for one in page.all("h2")] == ["FVU", "delta loss", "dead", "L0"]
    assert [one.text for one in page.all("h3")] == ["all sites"] * 2 + ["res"] * 2  # of the MLPs one alone is scored
    assert "<b>model</b>" not in whole.to_html()


def test_where_all_are_equal_no_colour_stands_out() -> None:
    page = parse(by_site("m", [one("0.res", fvu=0.2), one("1.res", fvu=0.2)]).to_html())
    assert {box.attributes.get("class") for box in page.all("table", class_="grid")[0].all("td")} == {"a5"}


def test_figures_come_from_a_score_on_disk(tmp_path: Path, score: Score) -> None:
    (tmp_path / "score.json").write_text(json.dumps(score.to_dict()))
    found = figures_of(tmp_path / "score.json")
    assert (found.l0, found.fvu, found.delta_loss, found.dead) == (score.l0, score.fvu, score.delta_loss, score.dead)
    assert (found.digest, found.corpus, found.tokens) == (score.digest, score.corpus, score.tokens)
    (tmp_path / "score.json").write_text(json.dumps(score.to_dict() | {"l0": 77}))
    assert figures_of(tmp_path / "score.json").l0 == 77  # read anew


def test_a_folder_of_saes_is_a_grid(tmp_path: Path) -> None:
    for layer in (0, 1, 11):
        folder = tmp_path / "res" / f"layer_{layer}" / "width_64" / f"average_l0_{layer}"
        save_sae(planted_sae(site=f"{layer}.res").sae, folder)
        if layer:
            (folder / "score.json").write_text(json.dumps({"l0": layer, "fvu": 0.5 / layer, "dead": 0.0}))
    found = grid(tmp_path)
    assert found.layers == (0, 1, 11)
    assert [sae.fvu for sae in found.saes] == [None, 0.5, 0.5 / 11]
    assert found.saes == grid(load_scope(tmp_path)).saes
    assert {sae.width for sae in found.saes} == {64}


@pytest.mark.parametrize("content", ["[]", '{"l0": "many"}', '{"dead": 7}', "{", '{"fvu": 1e99}'])
def test_a_damaged_score_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "score.json").write_text(content)
    with pytest.raises(CorruptFile, match="score the SAE again"):
        figures_of(tmp_path / "score.json")


@pytest.fixture(scope="module")
def score() -> Score:
    from gemscope.reports.scoring import score
    from gemscope.testing import planted_sae, tiny_model
    from gemscope.text.corpus import Corpus

    return score(
        tiny_model(), planted_sae().sae, Corpus.of(["the cat and the sun " * 9]), tokens=60, loss_tokens=20, length=32
    )
