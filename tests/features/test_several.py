"""A pattern stands for the SAEs of the catalogue, or the folders here, that it matches."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gemscope.errors import SAENotFound
from gemscope.features.files.saving import save_sae
from gemscope.features.several import is_pattern, matching
from gemscope.testing import planted_sae


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("google/gemma-scope-2b-pt-res/layer_20/width_16k/*", 5),
        ("gemma-scope-2b-pt-res-canonical layer_20/*/canonical", 2),
        ("gemma-2-2b/2[01]-gemmascope-res-16k", 2),
    ],
)
def test_a_pattern_stands_for_the_saes_of_the_catalogue_that_it_matches(pattern: str, count: int) -> None:
    found = matching(pattern)
    assert is_pattern(pattern)
    assert len(found) == len(set(found)) >= count
    assert all(address.startswith("google/gemma-scope-2b-pt-res/layer_2") for address in found)
    numbers = [[int(number) for number in re.findall(r"\d+", address)] for address in found]
    if "width_16k" in pattern:
        assert numbers == sorted(numbers)  # 38 before 139


def test_a_pattern_stands_for_the_folders_here_that_hold_saes(tmp_path: Path) -> None:
    for name in ("l0_9", "l0_10", "l0_100"):
        save_sae(planted_sae().sae, tmp_path / name)
    (tmp_path / "l0_log").mkdir()
    (tmp_path / "l0_notes.txt").write_text("none")
    assert [Path(path).name for path in matching(f"{tmp_path}/l0_*")] == ["l0_9", "l0_10", "l0_100"]
    (tmp_path / "odd[1]").mkdir()
    assert not is_pattern(str(tmp_path / "odd[1]"))  # it is the name of a folder
    with pytest.raises(SAENotFound, match=r"no SAE matches .*nearest: google/gemma-scope"):
        matching("google/gemma-scope-2b-pt-res/layer_20/width_17k/*")
