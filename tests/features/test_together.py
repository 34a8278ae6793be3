"""Features of two SAEs on the same rows, against sets of tokens counted one by one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemscope.features.pool import Pool, codes
from gemscope.features.together import LEAST, Together

LENGTH = 8
Planted = Mapping[int, Mapping[tuple[int, int], float]]
"""By feature: row, column and activation."""


def pool(ids: np.ndarray, planted: Planted, counted: np.ndarray | None = None) -> Pool:
    def firings(feature: int) -> tuple[np.ndarray, np.ndarray]:
        mine = sorted((row * LENGTH + column, value) for (row, column), value in planted.get(feature, {}).items())
        places = np.array([place for place, _ in mine], np.int64)
        return places, codes(np.array([value for _, value in mine], np.float32)).astype(np.int64)

    every = np.ones(ids.shape, np.bool_) if counted is None else counted
    return Pool(ids, every, np.arange(len(ids)) * LENGTH, firings)


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, (count, LENGTH))


def test_rows_are_found_again_in_another_order_and_among_others() -> None:
    ids = rows(5)
    one = pool(ids[:4], {0: {(1, 2): 4.0, (3, 0): 2.0, (0, 5): 1.0}})
    other = pool(
        np.concatenate([rows(2, 9), ids[[4, 3, 1]]]), {7: {(3, 0): 0.5, (4, 2): 8.0, (2, 2): 8.0, (0, 0): 1.0}}
    )
    both = Together(one, other)
    assert both.ids.tolist() == ids[[1, 3]].tolist()
    assert both.tokens == 2 * LENGTH
    places, values = both.firings(0, 0)
    assert (places.tolist(), values.tolist()) == ([2, LENGTH], [4.0, 2.0])
    places, values = both.firings(1, 7)
    assert (places.tolist(), values.tolist()) == ([2, LENGTH], [8.0, 0.5])
    there, back = both.matched(1, 8)
    assert (there.ids.tolist(), there.values.tolist()) == ([7], [1.0])
    assert back.ids.tolist() == [-1] * 7 + [0]


def test_a_token_that_does_not_count_for_both_is_in_neither() -> None:
    ids = rows(1)
    counted = np.ones(ids.shape, np.bool_)
    counted[0, 3] = False
    both = Together(pool(ids, {0: {(0, 3): 1.0, (0, 4): 1.0}}), pool(ids, {}, counted))
    assert both.tokens == LENGTH - 1
    assert both.firings(0, 0)[0].tolist() == [4]


def test_rows_of_other_lengths_have_nothing_in_common() -> None:
    ids = rows(2)
    short = Pool(ids[:, :4], np.ones((2, 4), np.bool_), np.arange(2) * 4, lambda _: (np.zeros(0, np.int64),) * 2)
    assert Together(pool(ids, {}), short).tokens == 0


@given(st.integers(0, 10**6))
def test_best_matches_are_those_of_every_pair(seed: int) -> None:
    chance = np.random.default_rng(seed)
    ids = rows(3)
    planted: list[Planted] = [
        {
            feature: {
                (int(place) // LENGTH, int(place) % LENGTH): 1.0
                for place in chance.choice(3 * LENGTH, chance.integers(0, 9), replace=False)
            }
            for feature in range(count)
        }
        for count in (4, 6)
    ]
    there, back = Together(pool(ids, planted[0]), pool(ids, planted[1])).matched(4, 6)
    jaccard = np.zeros((4, 6), np.float32)
    for one, mine in planted[0].items():
        for other, theirs in planted[1].items():
            both = len(mine.keys() & theirs.keys())
            if both >= LEAST:
                jaccard[one, other] = both / len(mine.keys() | theirs.keys())
    for found, table in ((there, jaccard), (back, jaccard.T)):
        assert found.values.tolist() == pytest.approx(table.max(1).tolist())
        for row, best in zip(table, found.ids.tolist(), strict=True):
            assert best == (int(row.argmax()) if row.max() > 0 else -1)
