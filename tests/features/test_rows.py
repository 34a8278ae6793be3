"""Sparse matrices by rows against their dense form, and orders against Python's own sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemscope.features.kernels.rows import Rows, below, beside, by_strength, empty, offsets_of, stable_order

quick = settings(max_examples=25, deadline=None)
ANY = st.integers(0, 2**32 - 1)


def sparse(seed: int, rows: int, columns: int, share: float = 0.4) -> tuple[Tensor, Rows]:
    """Few different values, so that many are equal."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randint(1, 5, (rows, columns), generator=generator).float()
    dense *= torch.rand(rows, columns, generator=generator) < share
    at = dense.nonzero()
    counts = torch.tensor([int((dense[row] != 0).sum()) for row in range(rows)], dtype=torch.int64)
    return dense, Rows(offsets_of(counts), at[:, 1].to(torch.int32), dense[dense != 0])


def assert_is(rows: Rows, dense: Tensor) -> None:
    assert rows.offsets.tolist() == [int((dense[:row] != 0).sum()) for row in range(len(dense) + 1)]
    assert rows.rows.tolist() == dense.nonzero()[:, 0].tolist()
    assert rows.ids.tolist() == dense.nonzero()[:, 1].tolist()
    assert rows.values.tolist() == dense[dense != 0].tolist()
    assert (rows.offsets.dtype, rows.ids.dtype, rows.values.dtype) == (torch.int64, torch.int32, torch.float32)


@quick
@given(seed=ANY, n_rows=st.integers(0, 6), columns=st.integers(1, 9))
def test_entries_are_kept_and_turned_as_those_of_the_dense_form(seed: int, n_rows: int, columns: int) -> None:
    dense, rows = sparse(seed, n_rows, columns)
    assert_is(rows, dense)
    assert_is(rows.where(rows.values > 2), dense * (dense > 2))
    turned, origin = rows.transposed(columns)
    assert_is(turned, dense.T)
    assert torch.equal(rows.values[origin], turned.values)


@quick
@given(seed=ANY, sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_pieces_go_together_as_dense_ones_do(seed: int, sizes: list[int]) -> None:
    pieces = [sparse(seed + nth, size, 6) for nth, size in enumerate(sizes)]
    assert_is(below([rows for _, rows in pieces]), torch.cat([dense for dense, _ in pieces]))
    pieces = [sparse(seed + nth, 6, size) for nth, size in enumerate(sizes)]
    assert_is(beside([rows for _, rows in pieces], sizes), torch.cat([dense for dense, _ in pieces], 1))


@quick
@given(seed=ANY, n_rows=st.integers(0, 6))
def test_entries_by_strength_are_in_the_order_of_a_stable_sort(seed: int, n_rows: int) -> None:
    _, rows = sparse(seed, n_rows, 40)  # above 16 entries torch's sort is stable only where it is asked to be
    order, rank = by_strength(rows.offsets, rows.rows, rows.values)
    keys = list(zip(rows.rows.tolist(), (-rows.values).tolist(), strict=True))
    expected = sorted(range(len(keys)), key=keys.__getitem__)
    assert order.tolist() == expected
    ranks = [nth for count in rows.offsets.diff().tolist() for nth in range(count)]
    assert rank.tolist() == ranks


@pytest.mark.parametrize("most", [3, 2**16 - 1, 2**16, 2**31 - 1, 2**32, 2**50])
def test_an_order_of_keys_is_that_of_a_stable_sort(most: int) -> None:
    keys = torch.randint(0, most + 1, (300,), generator=torch.Generator().manual_seed(most % 1000))
    keys[100:200] = keys[:100]  # equal ones, whatever their size
    keys[7] = most
    for some in (keys, keys[:1], keys[:0]):
        assert stable_order(some).tolist() == sorted(range(len(some)), key=some.tolist().__getitem__)


def test_rows_without_entries() -> None:
    assert_is(empty(3, torch.device("cpu")), torch.zeros(3, 5))
    assert_is(empty(0, torch.device("cpu")), torch.zeros(0, 5))
