"""A text through several SAEs in one pass: the same at each site as a look there alone."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import gemscope as gs
from gemscope.activations.site import Site, blocks
from gemscope.atlas.reader import Atlas
from gemscope.errors import EmptyText, InputError
from gemscope.features.sae import SAE
from gemscope.reports.looks import Looks, look_through
from gemscope.testing import planted_sae, tiny_model
from html_tree import parse
from served import planted

TEXT = "the cat and the sun"
MODEL = tiny_model()
SAES = {
    Site.parse(site): planted_sae(site=site, seed=seed).sae for seed, site in enumerate(("1.res", "0.res", "1.mlp"))
}


def dicts(looks: Looks) -> list[dict[str, Any]]:
    return [one.to_dict() for one in looks]


def test_at_each_site_it_sees_what_a_look_there_alone_sees() -> None:
    found = look_through(MODEL, SAES, TEXT, k=4)
    assert [one.site for one in found] == ["0.res", "1.mlp", "1.res"]
    assert dicts(found) == [gs.look(MODEL, SAES[Site.parse(one.site)], TEXT, k=4).to_dict() for one in found]
    assert found["1.mlp"] == found.looks[1]
    assert dicts(look_through(MODEL, list(SAES.values()), TEXT, k=4)) == dicts(found)


def test_the_model_is_run_once_for_all_sites() -> None:
    passes = []
    hook = blocks(MODEL.hf)[0].register_forward_pre_hook(lambda *_: passes.append(1))  # type: ignore[index]
    try:
        look_through(MODEL, SAES, TEXT)
    finally:
        hook.remove()
    assert len(passes) == 1


def test_labels_come_from_the_atlas_of_each_site(tmp_path: Path) -> None:
    folder = planted(tmp_path / "atlas")
    sae = planted_sae().sae
    saes = {Site(1, "res"): sae, Site(0, "res"): SAES[Site(0, "res")]}
    found = look_through(MODEL, saes, TEXT, atlases={Site(1, "res"): folder}, order=None)
    assert found["1.res"] == gs.look(MODEL, sae, TEXT, k=3, atlas=folder)
    assert found["0.res"].order == "activation"
    assert found["1.res"].order == "telling"
    with Atlas(folder) as atlas:
        again = look_through(MODEL, saes, TEXT, atlases={Site(1, "res"): atlas})
    assert dicts(again) == dicts(found)


def test_of_saes_that_are_loaded_when_they_are_asked_for_one_is_held_at_a_time() -> None:
    asked: list[Site] = []

    class Lazy(Mapping[Site, SAE]):
        def __getitem__(self, site: Site) -> SAE:
            asked.append(site)
            return SAES[site]

        def __iter__(self) -> Iterator[Site]:
            return iter(SAES)

        def __len__(self) -> int:
            return len(SAES)

    assert dicts(look_through(MODEL, Lazy(), TEXT)) == dicts(look_through(MODEL, SAES, TEXT))
    assert asked[-2 * len(SAES) :] == [*SAES, *SAES]


def test_it_ends_where_its_check_says_so() -> None:
    class Enough(Exception):
        pass

    def check() -> None:
        raise Enough

    with pytest.raises(Enough):
        look_through(MODEL, SAES, TEXT, check=check)


def test_what_cannot_be_read_is_one_line() -> None:
    with pytest.raises(InputError, match="no SAEs given"):
        look_through(MODEL, {}, TEXT)
    with pytest.raises(InputError, match="k=0"):
        look_through(MODEL, SAES, TEXT, k=0)
    with pytest.raises(EmptyText):
        look_through(MODEL, SAES, "")
    found = look_through(MODEL, SAES, TEXT)
    with pytest.raises(InputError, match=r"nothing was read at 7.res: there are 0.res, 1.mlp, 1.res"):
        found["7.res"]
    with pytest.raises(InputError, match="no token 99"):
        found.at(99)


def test_it_prints_each_site_and_the_first_feature_of_each_token() -> None:
    found = look_through(MODEL, SAES, TEXT)
    text = str(found)
    for one in found:
        assert f"{1 - one.explained_variance:.3g}" in text
    counted = [token for token in found["1.res"].tokens if token.counted and token.features]
    assert str(counted[0].features[0].feature) in text
    one = found.at(counted[0].position)
    assert {str(row[1]) for row in one.rows} >= {str(each.feature) for each in counted[0].features}  # type: ignore[index]
    said = found.to_dict()
    json.dumps(said, allow_nan=False)
    assert [site["fvu"] for site in said["sites"]] == [1 - one.explained_variance for one in found]  # type: ignore[index]


def test_a_notebook_shows_tokens_by_layers_and_nothing_of_a_text_breaks_out() -> None:
    text = "<script>alert(1)</script> & the sun"
    found = look_through(MODEL, SAES, text)
    page = parse(found.to_html())
    table = page.one("table", class_="layers")
    assert [row.one("th").text.split()[0] for row in table.one("tbody").all("tr")] == ["0.res", "1.mlp", "1.res"]
    assert len(table.one("thead").all("th")) == 1 + len(found.tokens)
    assert "<script>alert" not in found.to_html()
