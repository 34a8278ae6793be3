"""A recipe names what a scope is to hold; what it says wrongly is told in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemscope.errors import CorruptFile, GemscopeError, InputError, NotFound, SiteNotFound
from gemscope.scope.recipe import ScopeRecipe, sites_of
from gemscope.testing import tiny_model
from scopes import EIGHT, TWO, model

RECIPES = Path(__file__).parents[2] / "recipes"
PART = '[[saes]]\nsites = ["1.res"]\nwidths = [64]\nl0s = [4]\n'


def test_patterns_name_sites_and_each_has_every_width_and_l0() -> None:
    aims = ScopeRecipe.of(EIGHT).aims(model())
    assert len(aims) == len({aim.key for aim in aims}) == 32
    assert {str(aim.site) for aim in aims} == {
        *(f"{layer}.{kind}" for layer in range(3) for kind in ("res", "mlp")),
        "0.transcoder",
        "1.transcoder",
    }
    assert {(aim.config.width, aim.config.target_l0) for aim in aims} == {(48, 4), (48, 8), (64, 4), (64, 8)}
    assert all(aim.config.rows == 384 for aim in aims)
    assert [aim.site for aim in aims] == sorted(aim.site for aim in aims)


def test_a_transcoder_writes_what_the_mlp_of_its_layer_adds_and_has_settings_of_its_own() -> None:
    for aim in ScopeRecipe.of(EIGHT).aims(model()):
        transcoder = aim.site.kind == "transcoder"
        assert str(aim.site_out) == (f"{aim.site.layer}.mlp" if transcoder else str(aim.site))
        assert aim.config.skip is transcoder


def test_the_sites_of_a_model_are_those_of_its_family_by_depth() -> None:
    kinds = [str(site) for site in sites_of(tiny_model("llama", layers=1))]
    assert kinds == ["embed", "0.att", "0.att_out", "0.mid", "0.transcoder", "0.transcoder_nogain", "0.mlp", "0.res"]
    assert "0.mlp_raw" in map(str, sites_of(tiny_model("gemma2", layers=1)))


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("[train]\nrows = 5", InputError, "has no [[saes]]: expected at least one table"),
        (PART + "[trian]", InputError, "no meaning for 'trian': did you mean 'train'?"),
        (PART + "widht = 3", InputError, "no meaning for 'widht'"),
        (PART.replace("[64]", "[0]"), InputError, '"widths[0]" is 0, expected a whole number from 1'),
        (PART.replace("[64]", "64"), InputError, '"widths" is 64, expected a list of at least 1'),
        (PART.replace('["1.res"]', "[]"), InputError, '"sites" has length 0'),
        (PART.replace("l0s = [4]\n", ""), InputError, '"l0s" is missing'),
        (PART + "[text]\nheld_out = 1.5", InputError, '"held_out" is 1.5'),
        (PART + '[text]\nstored = "int8"', InputError, '"stored" is "int8"'),
        (PART + "[score]\ntoken = 5", InputError, "no meaning for 'token': did you mean 'tokens'?"),
        (PART + "[describe]\ntopp = 5", InputError, "no meaning for 'topp': did you mean 'top'?"),
        ("train = 3\n" + PART, InputError, "is 3, expected an object"),
        ("[[saes]\n", CorruptFile, "is not TOML"),
    ],
)
def test_what_a_recipe_says_wrongly_is_told_in_one_line(text: str, error: type[GemscopeError], said: str) -> None:
    with pytest.raises(error) as raised:
        ScopeRecipe.of(text)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (
            PART.replace("1.res", "*.nothing"),
            SiteNotFound,
            "no site of tiny-llama is called *.nothing: there are embed",
        ),
        (PART.replace("1.res", "7.res"), SiteNotFound, "no site of tiny-llama is called 7.res"),
        (PART + PART, InputError, "asks twice for 1.res, 64 features, L0 4: name it once"),
        (PART + "[train]\nrowz = 5", InputError, "[train] has no meaning for 'rowz': did you mean 'rows'?"),
        (PART.replace("[4]", "[64]"), InputError, "target_l0=64.0 and width=64"),
        (PART + 'train = { lr = "high" }', InputError, '"lr" is "high", expected a number'),
    ],
)
def test_what_does_not_go_with_the_model_is_told_before_anything_is_made(
    text: str, error: type[GemscopeError], said: str
) -> None:
    with pytest.raises(error) as raised:
        ScopeRecipe.of(text).aims(model())
    assert said in str(raised.value)


def test_a_recipe_is_read_from_a_file_and_keeps_its_text(tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(TWO)
    assert ScopeRecipe.read(tmp_path / "two.toml").text == TWO
    with pytest.raises(NotFound, match=r"no file .*other\.toml"):
        ScopeRecipe.read(tmp_path / "other.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(CorruptFile, match="not text in UTF-8"):
        ScopeRecipe.read(tmp_path / "bytes.toml")


def test_the_recipe_of_the_bundled_model_s_scope_has_four_saes_a_layer() -> None:
    aims = ScopeRecipe.read(RECIPES / "scope-small.toml").aims(tiny_model("llama", layers=30))
    assert {str(aim.site) for aim in aims} == {
        f"{layer}.{kind}" for layer in range(30) for kind in ("res", "mlp", "att", "transcoder")
    }
    assert len(aims) == 120
    assert {aim.site.kind for aim in aims if aim.config.skip} == {"transcoder"}


def test_atlases_are_made_where_a_recipe_asks_for_them_with_the_settings_that_describe_has() -> None:
    assert ScopeRecipe.of(PART).describing is None
    asked = ScopeRecipe.of(PART + "[describe]\ntokens = 1000\ntop = 5\n").describing
    assert asked is not None
    assert (asked.tokens, asked.map, asked.config.top) == (1000, False, 5)
