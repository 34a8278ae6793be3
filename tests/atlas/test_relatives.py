"""Relatives across sites beside an atlas: put there, read with its features, and refused where they are another's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from atlases import HOSTILE_LABEL
from gemscope.atlas.describe.relatives import add_relatives
from gemscope.atlas.exchange.html import export_html, export_site
from gemscope.atlas.files.whole import RELATIVES
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.errors import CorruptFile, Mismatch, NotFound
from html_tree import parse
from kinships import chain, made_up, renamed


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """For reading alone."""
    return chain(tmp_path_factory.mktemp("chain"))


def test_a_feature_knows_its_relatives_before_and_behind_it(folders: list[Path]) -> None:
    with Atlas(folders[1]) as atlas, Atlas(folders[2]) as later:
        assert atlas.relatives is not None
        page = atlas[4]
        assert [(one.site, one.later, one.source) for one in page.related] == [
            ("0.res", False, "tiny-model/0-res-tiny"),
            ("2.res", True, "tiny-model/2-res-tiny"),
        ]
        first, *others = page.related[1].features
        assert (first.feature, first.nearest, first.both) == (5, True, 200)
        assert first.cosine == pytest.approx(0.9)
        assert [one.effect for one in others] == [0.5, -0.75]
        assert others[0].label == later.meanings([6])[6]
        assert page.life is not None
        assert (page.life.born, page.life.gone) == ("0.res", "2.res")
        assert atlas[5].life is not None
        assert (atlas[5].life.born, atlas[5].life.gone) == ("1.res", "1.res")
        assert not any(one.nearest for one in atlas[5].related[0].features)


def test_it_is_in_the_data_of_the_page_and_all_of_it_is_json(folders: list[Path]) -> None:
    with Atlas(folders[0]) as atlas:
        told = json.loads(json.dumps(atlas[39].to_dict(), allow_nan=False))
    (related,) = told["relatives"]
    assert related["site"] == "1.res"
    assert related["features"][0]["index"] == 0  # whose label means harm, and is told as it is
    assert related["features"][0]["label"] == HOSTILE_LABEL
    assert told["life"] == {"born": "0.res", "gone": "0.res", "chain": ["0.res", "1.res", "2.res"]}


def test_an_atlas_without_has_none(planted: Atlas) -> None:
    assert planted.relatives is None
    assert planted[0].related == []
    assert planted[0].life is None
    assert planted[0].to_dict()["relatives"] == []


def test_relations_to_further_saes_stay_when_others_are_put_in(tmp_path: Path) -> None:
    folders = chain(tmp_path)
    kin = made_up(folders)
    above = [
        replace(one, relations=tuple(some for some in one.relations if some.about.later), lives=None) for one in kin
    ]
    (path,) = add_relatives([folders[1]], above)
    with Atlas(folders[1]) as atlas:
        assert [one.site for one in atlas[0].related] == ["0.res", "2.res"]
        assert atlas[2].related[0].features[0].label is not None  # as it was put in before
        assert atlas[2].related[1].features[0].label is None  # this time without the other's atlas
        assert atlas[0].life is not None
    assert path.stat().st_mode == (folders[1] / "corpus.npy").stat().st_mode


def test_relatives_of_another_sae_or_model_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    folders = chain(tmp_path)
    kin = made_up(folders)
    before = (folders[0] / RELATIVES).read_bytes()
    with pytest.raises(NotFound, match="no relatives of tiny/1"):
        add_relatives(folders[:2], [kin[0], kin[2]])
    with pytest.raises(Mismatch, match="was found in another/model"):
        add_relatives(folders, [replace(one, model="another/model") for one in kin])
    assert (folders[0] / RELATIVES).read_bytes() == before
    renamed(folders[0], "9" * 64)
    with Atlas(folders[0]) as atlas, pytest.raises(Mismatch, match="is of tiny/0") as caught:
        _ = atlas[0]
    assert "\n" not in str(caught.value)
    assert any("is of tiny/0" in problem for problem in verify(folders[0]))


def test_damage_is_told_by_verify_and_on_reading(tmp_path: Path) -> None:
    folders = chain(tmp_path)
    assert verify(folders[1]) == []
    path = folders[1] / RELATIVES
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x40
    path.write_bytes(data)
    assert len(verify(folders[1])) == 1
    with Atlas(folders[1]) as atlas, pytest.raises(CorruptFile, match="find the relatives again"):
        _ = atlas[0]


def test_a_folder_and_a_file_of_pages_have_them_with_labels_and_without_links(
    folders: list[Path], tmp_path: Path
) -> None:
    with Atlas(folders[0]) as atlas:
        export_site(atlas, tmp_path / "site", features=[38, 39])
        export_html(atlas, tmp_path / "one.html", features=[39])
    page = (tmp_path / "site" / "tiny-model" / "0-res-tiny" / "39" / "index.html").read_text()
    data = json.loads((tmp_path / "site" / "tiny-model" / "0-res-tiny" / "39" / "index.json").read_text())
    assert data["relatives"][0]["features"][0]["label"] == HOSTILE_LABEL
    for html in (page, (tmp_path / "one.html").read_text()):
        assert "<script>alert(" not in html
        assert "&lt;script&gt;alert(&#39;label" in html
        assert "Above: 1.res" in html
        assert "<b>sample</b>" not in html
        tables = [one for one in parse(html).all("table", class_="relatives") if "correlation" in one.text]
        assert len(tables) == 1
        assert not tables[0].all("a")


def test_a_terminal_has_the_nearest_of_each_site(folders: list[Path]) -> None:
    with Atlas(folders[1]) as atlas:
        told = str(atlas[4])
    assert told.index("above 2.res") < told.index("below 0.res") < told.index("there from 0.res to 2.res")
    assert "+1.25" in told
