"""Histograms of other tools."""

import numpy as np
import pytest

from gemscope.atlas.exchange.counted import from_zero


def test_a_histogram_that_does_not_begin_at_0_moves_by_half_a_bin_at_most() -> None:
    step, counts = from_zero([0.35, 0.45, 0.55], np.array([3, 2, 1]))
    assert step == pytest.approx(0.1)
    assert counts.tolist() == [0, 0, 0, 3, 2, 1]
    assert from_zero([0.1, 0.2, 0.9], np.array([1, 1, 1]))[0] == 0
    assert from_zero([100.0, 100.001], np.array([1, 1]))[0] == 0
