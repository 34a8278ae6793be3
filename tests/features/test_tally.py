"""Running statistics against slow, obvious ones; and that batches, order and merging change no bit."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemscope.errors import Mismatch, NotFinite
from gemscope.features.activations import FeatureActivations
from gemscope.features.tally import BINS, NEVER, Tally

ANY = st.integers(0, 2**32 - 1)


def _firings(seed: int, tokens: int = 60, d_sae: int = 5, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    dense = torch.rand(tokens, d_sae, generator=random) * scale * 2.0 ** torch.arange(-3, d_sae - 3)
    dense = dense * (torch.rand(tokens, d_sae, generator=random) < torch.linspace(0, 0.7, d_sae))
    return dense, torch.rand(tokens, generator=random) < 0.8


def _tally(*batches: tuple[Tensor, Tensor]) -> Tally:
    tally = Tally(batches[0][0].shape[1])
    for dense, counted in batches:
        tally.add(FeatureActivations.from_dense(dense, counted))
    return tally


def _same(one: Tally, other: Tally) -> bool:
    theirs = other.state()
    return all(torch.equal(value, theirs[name]) for name, value in one.state().items())


@given(seed=ANY)
@settings(max_examples=30, deadline=None)
def test_every_figure_equals_the_obvious_one(seed: int) -> None:
    dense, counted = _firings(seed)
    tally = _tally((dense, counted))
    assert tally.tokens == int(counted.sum())
    for feature in range(dense.shape[1]):
        values = [value for value in dense[counted][:, feature].tolist() if value > 0]
        assert tally.counts[feature] == len(values)
        assert tally.max[feature] == max(values, default=0.0)
        if not values:
            assert tally.exponents[feature] == NEVER
            assert tally.steps[feature] == tally.means[feature] == 0
            continue
        assert tally.means[feature].item() == pytest.approx(math.fsum(values) / len(values), rel=1e-9, abs=2.0**-32)
        top = 2.0 ** math.floor(math.log2(max(values)) + 1)
        assert tally.steps[feature] == top / BINS
        counts = [0] * BINS
        for value in values:
            counts[int(Fraction(value) / Fraction(top) * BINS)] += 1
        assert tally.bins[feature].tolist() == counts


@given(seed=ANY, cut=st.integers(0, 60))
@settings(max_examples=30, deadline=None)
def test_neither_batches_nor_their_order_nor_merging_change_a_bit(seed: int, cut: int) -> None:
    dense, counted = _firings(seed)
    first, second = (dense[:cut], counted[:cut]), (dense[cut:] * 7, counted[cut:])
    whole = _tally((torch.cat([first[0], second[0]]), counted))
    assert _same(whole, _tally(first, second))
    assert _same(whole, _tally(second, first))
    merged = _tally(first)
    merged.merge(_tally(second))
    assert _same(whole, merged)


def test_a_maximum_that_is_a_power_of_two_lies_below_the_upper_edge() -> None:
    tally = _tally((torch.tensor([[1.0], [0.5], [0.015625]]), torch.ones(3, dtype=torch.bool)))
    assert tally.steps.item() == 2 / BINS
    assert tally.bins[0].nonzero().flatten().tolist() == [0, 16, 32]


def test_a_state_gives_the_tally_again() -> None:
    tally = _tally(_firings(1))
    again = Tally.of(tally.state())
    assert _same(tally, again)
    again.add(FeatureActivations.from_dense(*_firings(2)))
    assert not _same(tally, again)


def test_a_state_that_no_text_gives_is_refused() -> None:
    dense = torch.tensor([[1.5 * 2.0**30, 0.0, 2.0], [0.0, 1.0, 3.0]])
    tally = _tally((dense, torch.ones(2, dtype=torch.bool)))
    assert _same(tally, Tally.of(tally.state()))  # a maximum may be just below 2^31
    for name, feature, wrong in (
        ("max", 0, -1.0),
        ("max", 0, 2.0**31),
        ("max", 1, math.inf),
        ("max", 1, math.nan),
        ("counts", 2, 1),
    ):
        state = tally.state()
        state[name][feature] = wrong
        with pytest.raises(ValueError, match="no tally's"):
            Tally.of(state)
    state = tally.state()
    state["bins"][1, 3:5] = torch.tensor([1, -1])  # their sum is right
    with pytest.raises(ValueError, match="no tally's"):
        Tally.of(state)


def test_a_state_of_more_tokens_than_there_were_or_of_other_sums_is_refused() -> None:
    dense = torch.tensor([[1.5, 0.0, 2.0], [0.0, 1.0, 3.0]])
    tally = _tally((dense, torch.ones(2, dtype=torch.bool)))
    state = tally.state()
    state["counts"][2] += 1
    state["bins"][2, -1] += 1  # all else fits
    with pytest.raises(ValueError, match="counts and maxima are no tally's"):
        Tally.of(state)
    for part, feature, wrong in ((0, 0, -1), (1, 1, -1), (0, 0, 2)):  # a mean above the maximum
        state = tally.state()
        state["sums"][part, feature] = wrong
        with pytest.raises(ValueError, match="sums are no tally's"):
            Tally.of(state)


def test_sums_stay_exact_where_floats_would_not() -> None:
    values = torch.full((5000, 1), 1e-3)
    values[0] = 1e8
    tally = _tally((values, torch.ones(5000, dtype=torch.bool)))
    exact = float(sum(Fraction(value) for value in values.flatten().tolist()) / 5000)
    assert tally.means.item() == pytest.approx(exact, abs=2.0**-32)


def test_sums_are_of_whole_multiples_of_a_fraction_and_lose_none() -> None:
    """Odd multiples of 2^-32, with and without a whole part: their mean is a number of float64, and that number."""
    values = [(2**32 + 512) / 2**32, 3 / 2**32, (2**24 - 1) / 2**32, 1 - 2.0**-24, 0.25, 7.0, 5 / 2**32, 1 / 2**32]
    tally = _tally((torch.tensor(values, dtype=torch.float32)[:, None], torch.ones(8, dtype=torch.bool)))
    assert tally.means.item() == float(sum(map(Fraction, values)) / 8)
    small = _tally((torch.tensor([[3 / 2**32], [7 / 2**32]]), torch.ones(2, dtype=torch.bool)))
    assert small.means.item() == 5 / 2**32


def test_what_cannot_be_summed_is_refused() -> None:
    with pytest.raises(NotFinite, match="3e\\+09"):
        _tally((torch.tensor([[3e9]]), torch.tensor([True])))
    with pytest.raises(Mismatch, match="6 features cannot be added to one of 5"):
        _tally(_firings(0)).merge(Tally(6))
