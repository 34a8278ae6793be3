"""Rows that are held out: chosen by their text alone, so that batches, order and merging change nothing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemscope.features.examples import Firings
from gemscope.features.held_out import ONE_IN, HeldOut, hashes, is_held_out
from gemscope.features.pool import activations, codes

Array = np.ndarray[Any, np.dtype[Any]]
LENGTH, FEATURES = 6, 5


def text(seed: int, rows: int) -> tuple[Array, Array, Array]:
    """ids [R, T], counted [R, T], activations [R, T, F]: some rows stand there twice."""
    chance = np.random.default_rng(seed)
    ids = chance.integers(0, 9, (rows, LENGTH))
    ids[rows // 2 :: 3] = ids[: len(ids[rows // 2 :: 3])]
    counted = np.arange(LENGTH) > 0
    counted = np.broadcast_to(counted, ids.shape) & (ids > 0)
    fires = (np.random.default_rng(0).random((9, FEATURES)) < 0.4)[ids] & counted[..., None]
    # By the text alone, as activations are.
    values = (np.random.default_rng(1).random((9, FEATURES)) * 50 + 0.01)[ids] * fires
    return ids, counted, values.astype(np.float32)


def gathered(parts: list[tuple[Array, Array, Array]], room: int, first: int = 0) -> HeldOut:
    held = HeldOut(FEATURES, LENGTH, room)
    for ids, counted, values in parts:
        tokens, features = np.nonzero(values.reshape(-1, FEATURES))
        found = values.reshape(-1, FEATURES)[tokens, features]
        firings = Firings(features, found, tokens, np.zeros(len(tokens), np.int64), first, len(ids), LENGTH, FEATURES)
        chosen = held.add(ids, counted, firings)
        assert (chosen == is_held_out(hashes(ids, counted)) & counted.any(1)).all()
        first += ids.size
    return held


def same(one: HeldOut, other: HeldOut) -> bool:
    mine, theirs = one.state(), other.state()
    return mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)


@given(st.integers(0, 99), st.integers(1, 12), st.lists(st.integers(0, 300), max_size=4))
@settings(max_examples=40, deadline=None)
def test_batches_merging_and_storing_change_nothing(seed: int, room: int, cuts: list[int]) -> None:
    whole = text(seed, 300)
    bounds = [0, *sorted(cuts), 300]
    parts = [tuple(one[a:b] for one in whole) for a, b in pairwise(bounds) if b > a]
    once = gathered([whole], room)
    assert same(gathered(parts, room), once)  # type: ignore[arg-type]
    merged, shift = HeldOut(FEATURES, LENGTH, room), 0
    for part in parts:
        merged.merge(gathered([part], room), shift)  # type: ignore[list-item]
        shift += part[0].size
    assert same(merged, once)
    again = HeldOut(FEATURES, LENGTH, room)
    again.restore(once.state(), 300 * LENGTH)
    assert same(again, once)
    kept = HeldOut(FEATURES, LENGTH, room)
    kept.keep(once.pool())
    assert same(kept, once)


def test_a_pool_is_what_is_in_those_rows_each_text_once() -> None:
    ids, counted, values = text(3, 2000)
    pool = gathered([(ids, counted, values)], 10**6).pool()
    rows = pool.positions // LENGTH
    held = np.flatnonzero(is_held_out(hashes(ids, counted)) & counted.any(1))
    assert set(rows) <= set(held)
    masked = np.where(counted, ids, -1)
    texts = [masked[row].tobytes() for row in held]
    assert [masked[row].tobytes() for row in rows] == list(dict.fromkeys(texts))  # the first of each
    assert len(rows) < len(held)
    assert np.array_equal(pool.ids, ids[rows])
    assert np.array_equal(pool.counted, counted[rows])
    for feature in range(FEATURES):
        places, coded = pool.firings(feature)
        dense = values[rows, :, feature].reshape(-1)
        assert np.array_equal(places, np.flatnonzero(dense))
        assert (activations(coded) <= dense[places]).all()
        assert (activations(coded) * 1.125 >= dense[places]).all()


def test_one_row_in_so_many_is_held_out() -> None:
    ids = np.random.default_rng(0).integers(0, 50_000, (20_000, 32))
    share = is_held_out(hashes(ids, ids >= 0)).mean()
    assert share == pytest.approx(1 / ONE_IN, rel=0.1)


def test_tokens_that_do_not_count_decide_nothing() -> None:
    ids = np.random.default_rng(0).integers(1, 50, (64, 8))
    counted = np.arange(8) > 0
    holed = np.where(counted, ids, -1)
    assert np.array_equal(hashes(ids, np.broadcast_to(counted, ids.shape)), hashes(holed, holed >= 0))


@given(st.floats(2**-90, 2**90, width=32), st.floats(2**-90, 2**90, width=32))
def test_codes_keep_the_order_and_half_of_a_number_is_eight_below_it(one: float, other: float) -> None:
    coded = codes(np.array([one, other], np.float32))
    assert (coded[0] <= coded[1]) == (one <= other) or coded[0] == coded[1]
    assert codes(np.array([one / 2], np.float32))[0] == coded[0] - 8


DAMAGES = {
    "a row of another text": ("ids", lambda ids: ids + 1),
    "beyond the text": ("positions", lambda at: at + 10**9),
    "between rows": ("positions", lambda at: at + 1),
    "a feature too many": ("features", lambda features: features + FEATURES),
    "no activation": ("codes", lambda coded: coded * 0),
    "a column too many": ("counted", lambda columns: columns + LENGTH),
    "more firings": ("firings", lambda sizes: sizes + 1),
    "fewer tokens": ("tokens", lambda sizes: sizes - 1),
    "firings out of order": ("columns", lambda columns: columns[::-1]),
    "the same rows twice": ("positions", lambda at: np.concatenate([at, at])),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_never_held_out_is_refused(damage: str) -> None:
    state = gathered([text(1, 300)], 8).state()
    name, change = DAMAGES[damage]
    with pytest.raises(ValueError, match=r"hold|holds out"):
        HeldOut(FEATURES, LENGTH, 8).restore(state | {name: change(state[name])}, 300 * LENGTH)
