"""The few features that an atlas begins with."""

from __future__ import annotations

from pathlib import Path

import pytest

import gemscope as gs
from atlases import change_sql, manifest_of, planted_atlas, with_effect
from browsing import BUNDLED
from gemscope.atlas.reader import Atlas
from gemscope.atlas.striking import DENSEST, FIRINGS, KINDS, NEARLY
from gemscope.atlas.writer import Writer


def words(page: gs.Dashboard) -> set[str]:
    """The beginnings of the words on which its strongest examples fire."""
    return {one.tokens[one.peak].strip().casefold()[:3] for one in page.strongest} - {""}


def test_the_bundled_atlas_begins_with_rare_features_that_have_good_labels_in_words_and_are_not_alike() -> None:
    with gs.Atlas(BUNDLED) as atlas:
        chosen = [atlas[one.feature] for one in atlas.striking()]
        assert len(chosen) == 5
        assert atlas.striking() == atlas.striking(8)[:5]
        for page in chosen:
            best = page.explanations[0]
            assert best.method != "rule"
            assert (best.score or 0) >= NEARLY
            assert page.count >= FIRINGS
            assert page.density <= DENSEST
            assert len(words(page)) >= KINDS
        for index, page in enumerate(chosen):
            assert not any(words(page) & words(other) for other in chosen[:index])


def test_a_better_label_in_words_comes_before_a_rule_s_and_a_rule_s_before_none(tmp_path: Path) -> None:
    with planted_atlas(tmp_path / "atlas", labelled=0, rows=400, vocabulary=60) as atlas:
        before = [one.feature for one in atlas.striking(12)]
        assert len(before) == 12
        assert not any(atlas[feature].dead for feature in before)
        ruled, worded = before[-1], before[-2]
        atlas.explain(ruled, "a rule", method="rule")
        atlas.explain(worded, "words", method="read")
    scored = f"UPDATE explanation SET score = 1 WHERE feature IN ({ruled}, {worded})"
    change_sql(tmp_path / "atlas", scored, "UPDATE relabelled SET times = times + 1")
    with Atlas(tmp_path / "atlas") as atlas:
        assert [one.feature for one in atlas.striking(2)] == [worded, ruled]


def test_what_reads_and_writes_one_subject_comes_first_and_of_that_what_is_said_without_reserve(tmp_path: Path) -> None:
    with planted_atlas(tmp_path / "without", labelled=0, rows=400, vocabulary=60) as planted:
        with_effect(planted, tmp_path / "atlas").close()
    said = ["words", "`river`, `rivers` (in part)", "a river (in part)", "a river and what rivers do"]
    with Atlas(tmp_path / "atlas") as atlas:
        able = [one.feature for one in atlas.striking(12) if one.feature != 4][:4]  # 4 writes nothing
        for feature, label in zip(able, said, strict=True):
            atlas.explain(feature, label, method="read")
    changes = [
        "UPDATE written SET words = NULL",
        f"UPDATE feature SET count = {FIRINGS}",
        f"UPDATE written SET words = 'Riverside, <b>, rivers' WHERE id IN ({', '.join(map(str, able))})",
        f"UPDATE explanation SET score = 1 WHERE feature = {able[0]}",
        f"UPDATE explanation SET score = .92 WHERE feature <> {able[0]}",
        "UPDATE relabelled SET times = times + 1",
    ]
    change_sql(tmp_path / "atlas", *changes)
    with Atlas(tmp_path / "atlas") as atlas:
        assert [one.feature for one in atlas.striking(4)] == able[::-1]
    change_sql(tmp_path / "atlas", "UPDATE written SET words = 'Riverside, sun'")  # one word may be chance
    with Atlas(tmp_path / "atlas") as atlas:
        assert atlas.striking(1)[0].feature == able[0]


def test_where_hardly_anything_lives_there_are_as_many_as_live(tmp_path: Path) -> None:
    with planted_atlas(tmp_path / "few", features=3, labelled=0) as atlas:
        living = [page.index for page in atlas if not page.dead]
        assert sorted(one.feature for one in atlas.striking()) == living
    with Writer(tmp_path / "none") as writer:
        with writer.finish(manifest_of(4, 0, 8)) as atlas:
            assert atlas.striking() == []


@pytest.mark.parametrize("dense", [0, 3])
def test_what_fires_everywhere_comes_last(tmp_path: Path, dense: int) -> None:
    planted_atlas(tmp_path / "atlas", labelled=0).close()
    change_sql(tmp_path / "atlas", f"UPDATE feature SET count = 3000 WHERE id = {dense}")
    with Atlas(tmp_path / "atlas") as atlas:
        order = [one.feature for one in atlas.striking(40)]
        assert dense in order
        assert dense not in order[:5]
