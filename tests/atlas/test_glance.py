"""Features at a glance: what lists show of them is what their pages say."""

from __future__ import annotations

from pathlib import Path

import pytest

import gemscope as gs
from atlases import PLAN, change_sql, planted_atlas
from browsing import BUNDLED
from gemscope.atlas.glance import AFTER, BEFORE
from gemscope.atlas.reader import Atlas
from gemscope.errors import CorruptFile


def test_a_glance_is_the_strongest_example_of_the_page_around_its_peak_and_its_histogram(planted: Atlas) -> None:
    found = planted.glances(range(PLAN.features))
    for page in planted:
        if not page.examples:
            assert page.index not in found or found[page.index].tokens == []
            continue
        one, seen = page.strongest[0], found[page.index]
        start = max(0, one.peak - BEFORE)
        assert seen.tokens == one.tokens[start : one.peak + AFTER + 1]
        assert seen.peak == one.peak - start
        assert seen.histogram == page.histogram


def test_of_all_features_of_the_bundled_atlas_they_are_those_of_the_pages() -> None:
    with gs.Atlas(BUNDLED) as atlas:
        some = range(0, len(atlas), 97)
        found = atlas.glances(some)
        for index in some:
            page, seen = atlas[index], found[index]
            assert "".join(seen.tokens) in "".join(page.strongest[0].tokens) if page.examples else not seen.tokens
            assert seen.histogram == page.histogram


def test_nothing_is_known_of_what_there_is_not(planted: Atlas) -> None:
    assert planted.glances([]) == {}
    assert planted.glances([10**6, 10**40, -1]) == {}


def test_a_damaged_page_is_said_to_be(tmp_path: Path) -> None:
    planted_atlas(tmp_path / "atlas").close()
    change_sql(tmp_path / "atlas", "UPDATE page SET packed = x'00112233' WHERE id = 3")
    with Atlas(tmp_path / "atlas") as atlas, pytest.raises(CorruptFile, match="feature 3"):
        atlas.glances([3])
