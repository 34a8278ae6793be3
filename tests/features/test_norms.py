"""How long activations are: counts of lengths, and their median."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemscope.features.norms import Norms

LENGTHS = st.lists(st.floats(2**-30, 2**30, width=32), min_size=1, max_size=200)


@given(LENGTHS, st.integers(0, 200))
def test_the_median_is_numpys_to_within_the_width_of_a_part_however_the_text_was_cut(
    lengths: list[float], cut: int
) -> None:
    every = np.array(lengths, np.float32)
    whole, first, second = Norms(), Norms(), Norms()
    whole.add(every)
    first.add(every[:cut])
    second.add(every[cut:])
    second.merge(first)
    assert (second.counts == whole.counts).all()
    assert whole.seen == len(every)
    low, high = np.quantile(every, 0.5, method="lower"), np.quantile(every, 0.5, method="higher")
    assert low * (1 - 1 / 256) <= whole.median <= high * (1 + 1 / 256)


def test_of_much_text_the_median_is_right_to_a_thousandth() -> None:
    every = np.random.default_rng(0).lognormal(4, 0.4, 20_000).astype(np.float32)
    norms = Norms()
    norms.add(every)
    assert norms.median == pytest.approx(np.median(every), rel=1e-3)


def test_what_is_beyond_all_measure_is_counted_all_the_same() -> None:
    norms = Norms()
    norms.add(np.array([0, 1e-30, 1e30, np.inf], np.float32))
    assert norms.seen == 4
    assert norms.counts[0] == norms.counts[-1] == 2
    assert np.isnan(Norms().median)


def test_counts_that_cannot_be_are_refused() -> None:
    for wrong in (np.full(16384, -1), np.full(16384, 1)):
        with pytest.raises(ValueError, match="norms are not of its tokens"):
            Norms.of(wrong, 100)
