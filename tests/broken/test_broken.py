"""Broken files, every reader: nobody but we ourselves says what is wrong with one, in one line."""

import os
from pathlib import Path

import pytest

from .readers import READERS
from .trial import make_samples, trial

CASES = int(os.environ.get("BROKEN", "200"))
"""In all, evenly over the readers."""
_SKIPPED = {"model": "transformers reads it, and takes a tenth of a second each time: by hand"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    make_samples(folder)
    return folder


@pytest.mark.parametrize("reader", sorted(set(READERS) - set(_SKIPPED)))
def test_a_broken_file_ends_in_one_line_of_ours(reader: str, sound: Path) -> None:
    count = CASES // (len(READERS) - len(_SKIPPED))
    faults = [found for found in (trial(sound, seed, reader) for seed in range(count)) if found.fault]
    assert not faults, "\n".join(f"{found.case}: {found.ending}\n{found.fault}" for found in faults[:5])
