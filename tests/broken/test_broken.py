"""Broken files, every reader: nobody but we ourselves says what is wrong with one, in one line."""

import os
from pathlib import Path

import pytest

from .samples import SAMPLES
from .trial import make_samples, trial

CASES = int(os.environ.get("BROKEN", "2000"))
"""In all, were they spread evenly over the readers."""
LONG = {"anthropic", "describing", "gguf", "merging", "neuronpedia"}
"""Readers that take half of the time by themselves: they are given a third of the others' cases."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    make_samples(folder)
    return folder


@pytest.mark.parametrize("reader", sorted(SAMPLES))
def test_a_broken_file_ends_in_one_line_of_ours(reader: str, sound: Path) -> None:
    count = -(-CASES // (len(SAMPLES) * (3 if reader in LONG else 1)))
    faults = [found for found in (trial(sound, seed, reader) for seed in range(count)) if found.fault]
    assert not faults, "\n".join(f"{found.case}: {found.ending}\n{found.fault}" for found in faults[:5])
