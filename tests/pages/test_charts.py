"""Charts say in words what they show, and hold what they were given."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemscope.features.histogram import Histogram
from gemscope.pages.charts.axes import WIDE
from gemscope.pages.charts.histogram import histogram
from gemscope.pages.charts.scatter import gathered, scatter
from gemscope.pages.numbers import figure, short
from html_tree import Element, parse


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (12.345, "12.3"),
        (-0.5, "−0.5"),
        (999.7, "1,000"),
        (123456.0, "123,456"),
        (1e-7, "1e-07"),
        (float("nan"), "—"),
        (float("-inf"), "−∞"),
    ],
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert figure(value) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0"), (0.53, "0.53"), (950, "950"), (999.4, "999"), (999.6, "1k"), (12_345, "12.3k"), (999_499, "999k"),
        (999_600, "1M"), (3_400_000, "3.4M"), (999_999_999, "1G"), (5e11, "500G"),
    ],
)  # fmt: skip
def test_counts_are_short_also_where_they_round_to_the_next_letter(count: float, shown: str) -> None:
    assert short(count) == shown


def test_a_histogram_says_in_words_what_it_shows() -> None:
    svg = parse(
        histogram(Histogram(0.0, 2.0, [4, 3, 0, 1]), title="Its <activations>", across="activation", things="firings")
    )
    drawn = svg.one("svg")
    assert drawn.attributes["role"] == "img"
    assert drawn.children[0].text == "Its <activations>"  # type: ignore[union-attr]
    said = svg.one("desc").text
    assert said == "8 firings with activation from 0 to 8, half of them below about 1; the fullest of 4 bins holds 4."
    bars = svg.one("path", class_="bars").attributes["d"]
    assert bars.count("M") == 3
    assert "log" not in svg.text


def test_bars_are_as_high_as_their_counts_and_logarithms_are_said() -> None:
    def heights(counts: list[int]) -> tuple[list[float], str]:
        svg = parse(histogram(Histogram(0.0, 1.0, counts), title="t", across="a", things="b"))
        bars = re.findall(r"M\S+ (\S+)V(\S+)h", svg.one("path", class_="bars").attributes["d"])
        return [float(floor) - float(top) for floor, top in bars], svg.text

    plain, text = heights([10, 20, 40])
    np.testing.assert_allclose(np.array(plain) / plain[-1], [0.25, 0.5, 1], atol=0.01)
    assert "log scale" not in text
    logarithmic, text = heights([9, 99, 999])
    np.testing.assert_allclose(np.array(logarithmic) / logarithmic[-1], [1 / 3, 2 / 3, 1], atol=0.01)
    assert "log scale" in text


@pytest.mark.parametrize(
    "data", [Histogram(0.0, 1.0, []), Histogram(0.0, 1.0, [0, 0]), Histogram(0.0, 0.0, [3]), Histogram(1e9, 1e-9, [3])]
)
def test_a_histogram_of_nothing_is_nothing(data: Histogram) -> None:
    assert histogram(data, title="t", across="a", things="b") == ""


@settings(max_examples=60, deadline=None)
@given(
    low=st.floats(-1e6, 1e6), step=st.floats(1e-6, 1e5), counts=st.lists(st.integers(0, 10**9), min_size=1, max_size=60)
)
def test_any_histogram_can_be_drawn(low: float, step: float, counts: list[int]) -> None:
    made = histogram(Histogram(low, step, counts), title="t", across="a", things="b")
    assert bool(made) == any(counts)
    numbers = re.findall(r"-?\d+\.\d+", " ".join(re.findall(r'd="([^"]+)"', made)))
    assert all(-1 <= float(number) <= WIDE for number in numbers)
    assert len(parse(made).all("text")) < 24


def test_a_scatter_holds_every_living_feature_in_its_cell() -> None:
    rng = np.random.default_rng(0)
    ids = np.arange(0, 9000, 3)
    densities, maxima = 10 ** rng.uniform(-6, -0.5, 3000), rng.lognormal(2, 1, 3000)
    densities[7], maxima[8] = 0.0, np.inf
    tree = parse(scatter((ids, densities, maxima), feature="/m/s/0", browse="/m/s")).one("feature-scatter")
    cells, counts, ones = _cells(tree)
    assert counts.sum() == 2998
    assert len(set(ones.tolist())) == len(ones)
    left, right, low, high = map(float, tree.attributes["data-extent"].split())
    columns, rows = map(int, tree.attributes["data-grid"].split())
    at = ones // 3
    across = (np.log10(densities[at]) - left) / (right - left) * columns
    up = (np.log10(maxima[at]) - low) / (high - low) * rows
    assert (np.abs(across - 0.5 - cells % columns) < 0.51).all()
    assert (np.abs(up - 0.5 - cells // columns) < 0.51).all()
    assert "2,998 living features" in tree.one("caption").text


def test_a_scatter_of_very_many_features_stays_small() -> None:
    rng = np.random.default_rng(0)
    many = 131_072
    points = gathered(np.arange(many), 10 ** rng.normal(-3, 0.7, many), rng.lognormal(2.5, 0.5, many))
    assert points is not None
    assert len(scatter(points, feature="/m/s/0", browse="/m/s")) < 150_000
    assert scatter((np.zeros(0, int), np.zeros(0), np.zeros(0)), feature="", browse="") == ""


def _cells(tree: Element) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    triples = [[int(part) for part in cell.split(",")] for cell in tree.attributes["data-cells"].split()]
    gaps, counts, ones = np.array(triples).T
    return np.cumsum(gaps), counts, ones
