"""Pictures of a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemscope.features.histogram import Histogram
from gemscope.pages.blocks import spark
from gemscope.pages.feature import axis


def test_heights_are_shares_of_the_fullest_bin() -> None:
    assert spark(Histogram(0.0, 1.0, [8, 4, 0, 1, 0, 0]), 64) == ("█▄ ▁", 4.0, False)


def test_many_bins_share_a_sign_and_a_sign_counts_all_of_them() -> None:
    assert spark(Histogram(2.0, 0.5, [1, 1, 4, 4, 2, 2]), 3) == ("▂█▄", 5.0, False)
    # Five bins on two signs: the last sign is wider than what is left.
    assert spark(Histogram(0.0, 1.0, [1, 1, 1, 3, 3]), 2) == ("▄█", 6.0, False)


def test_a_rare_bin_beside_a_full_one_is_seen() -> None:
    line, _, logarithmic = spark(Histogram(0.0, 1.0, [0, 1000, 30, 1]), 64)
    # ln 31 / ln 1001 = .497 and ln 2 / ln 1001 = .100, in eighths.
    assert (line, logarithmic) == (" █▄▁", True)


def test_two_histograms_can_have_one_axis() -> None:
    assert spark(Histogram(0.0, 1.0, [2, 2]), 64, high=4.0) == ("██  ", 4.0, False)


def test_nothing_is_drawn_of_nothing() -> None:
    assert spark(Histogram(0.0, 1.0, [0, 0]), 64)[0] == ""


@given(st.lists(st.integers(0, 10**9), max_size=80), st.integers(1, 70))
def test_a_line_fits_and_shows_whatever_is_there(counts: list[int], room: int) -> None:
    line, high, _ = spark(Histogram(0.0, 1.0, counts), room)
    assert len(line) <= room
    assert high >= max((index for index, count in enumerate(counts, 1) if count), default=0)
    assert (not line.strip()) == (not any(counts))


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2.0), (0.6, 3.0), (0.9, 3.0), (1.0, 5.0)])
def test_where_a_share_of_all_values_ends(share: float, expected: float) -> None:
    assert Histogram(1.0, 1.0, [5, 4, 0, 1]).below(share) == expected


def test_an_axis_says_where_it_ends_and_of_what_it_is() -> None:
    assert axis(0, 36.7, 30, "activation") == "0       activation        36.7"
    assert axis(0, 36.7, 10, "activation") == "0     36.7  activation"
