"""Labels of many atlases at once, none of which is opened for it."""

from pathlib import Path

import pytest

from atlases import change_sql, planted_atlas
from gemscope.atlas.labels.across import across
from gemscope.atlas.reader import Atlas


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("some")
    for number in range(3):
        planted_atlas(root / f"{number}", seed=number, source_id=f"{number}-res").close()
    with Atlas(root / "1") as atlas:
        atlas.explain(5, "rivers that run to the sea")
        atlas.explain(5, "river banks", method="other")
    return [root / f"{number}" for number in range(3)]


def test_each_atlas_finds_what_it_finds_alone(folders: list[Path]) -> None:
    found = across(folders, "words", limit=100)
    for place, folder in enumerate(folders):
        with Atlas(folder) as atlas:
            assert found.counts[place] == atlas.count(text="words") > 0
            alone = {one.feature: one for one in atlas.search("words", limit=100)}
        mine = {one.feature: one for one in found.hits if one.place == place}
        assert mine.keys() == alone.keys()
        for feature, one in mine.items():
            assert (one.label, one.promotes, one.count, one.max) == (
                alone[feature].label,
                alone[feature].promotes,
                alone[feature].count,
                alone[feature].max,
            )
    assert len(found.hits) == found.total


def test_pages_of_what_is_found_follow_one_another(folders: list[Path]) -> None:
    whole = across(folders, "words", limit=100).hits
    parts = [one for start in range(0, len(whole), 4) for one in across(folders, "words", limit=4, offset=start).hits]
    assert parts == list(whole)


def test_an_open_atlas_may_stand_for_its_folder(folders: list[Path]) -> None:
    with Atlas(folders[1]) as atlas:
        assert across([folders[0], atlas, folders[2]], "river") == across(folders, "river")


def test_how_far_a_label_is_right_comes_along(folders: list[Path], tmp_path: Path) -> None:
    planted_atlas(tmp_path / "atlas").close()
    change_sql(tmp_path / "atlas", "UPDATE explanation SET score = 0.75 WHERE feature = 3")
    (one,) = [one for one in across([tmp_path / "atlas"], "words").hits if one.feature == 3]
    assert one.score == 0.75


def test_what_cannot_be_read_is_passed_over_and_said(folders: list[Path], tmp_path: Path) -> None:
    planted_atlas(tmp_path / "damaged").close()
    (tmp_path / "damaged" / "atlas.sqlite").write_bytes(b"nothing of ours" * 100)
    found = across([tmp_path / "damaged", tmp_path / "gone", *folders], "river")
    assert found.amiss == (0, 1)
    assert found.counts[2:] == across(folders, "river").counts


@pytest.mark.parametrize("text", ["", "   ", "***", '"', "\0", "nosuchword"])
def test_what_is_no_word_finds_nothing(folders: list[Path], text: str) -> None:
    assert across(folders, text).hits == ()
