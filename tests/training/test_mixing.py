"""Batches out of a buffer, and orders of epochs, against lists that are gone through one by one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemscope.errors import InputError
from gemscope.training import mixing
from gemscope.training.mixing import Mixed
from gemscope.training.shuffle import Shuffle

ROWS = 70


def stream(piece: int, rows: int = ROWS) -> Iterator[Tensor]:
    """Rows [i, −i] in pieces."""
    every = torch.arange(rows).float()[:, None] * torch.tensor([1.0, -1.0])
    yield from torch.split(every, piece)


def obvious(buffer: int, batch: int, seed: int, steps: int) -> list[list[int]]:
    """Each batch takes rows by a draw of (seed, 1 + step), and what comes next takes their places, round and round."""
    arriving = (row for _ in range(10**6) for row in range(ROWS))
    held = [next(arriving) for _ in range(buffer)]
    batches, taken = [], []
    for step in range(steps):
        for place in taken:
            held[place] = next(arriving)
        taken = np.random.default_rng((seed, 1 + step)).choice(buffer, batch, replace=False).tolist()
        batches.append([held[place] for place in taken])
    return batches


def read(mixed: Mixed, step: int) -> list[int]:
    rows = mixed[step]
    assert torch.equal(rows[:, 0], -rows[:, 1])
    return rows[:, 0].int().tolist()


@settings(max_examples=30, deadline=None)
@given(
    piece=st.integers(1, 80),
    buffer=st.integers(1, ROWS),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
    order=st.lists(st.integers(0, 11), min_size=1, max_size=8),
)
def test_a_batch_is_a_function_of_seed_and_step_alone(
    piece: int, buffer: int, share: float, seed: int, order: list[int]
) -> None:
    """Whatever was read before it, and further back than is remembered."""
    batch = max(1, int(share * buffer))
    wanted = obvious(buffer, batch, seed, 12)
    mixed = Mixed(lambda: stream(piece), buffer=buffer, batch=batch, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixing, "_KEPT", 2 * batch)
        for step in order:
            assert read(mixed, step) == wanted[step]
            assert len(mixed._recent) <= 2


def test_a_sample_is_drawn_from_the_first_rows_and_filling_is_told() -> None:
    filled: list[int] = []
    mixed = Mixed(lambda: stream(16), buffer=40, batch=5, seed=3)
    found = mixed.sample(12, filled.append)[:, 0].int().tolist()
    assert found == np.random.default_rng((3, 0)).permutation(40)[:12].tolist()
    assert filled == [16, 16, 8]
    assert read(mixed, 0) == obvious(40, 5, 3, 1)[0]


def test_a_stream_that_is_shorter_than_the_buffer_comes_out_once_an_epoch() -> None:
    mixed = Mixed(lambda: stream(16), buffer=ROWS + 1, batch=20, seed=3)
    shuffle = Shuffle(ROWS, 20, 3)
    for step in (0, 5, 3, 40):
        assert read(mixed, step) == shuffle[step].tolist()
    rows = [row for step in range(7) for row in read(mixed, step)]
    assert sorted(rows[:ROWS]) == sorted(rows[ROWS:]) == list(range(ROWS))


def test_a_buffer_or_batch_that_cannot_be_is_refused() -> None:
    for buffer, batch, message in ((0, 1, "at least one row"), (1, 0, "at least one row"), (3, 4, "nothing could be")):
        with pytest.raises(InputError, match=message):
            Mixed(lambda: stream(1), buffer=buffer, batch=batch, seed=0)
    with pytest.raises(InputError, match="gave no rows"):
        Mixed(lambda: iter(()), buffer=2, batch=1, seed=0)[0]
    once = stream(7)
    mixed = Mixed(lambda: once, buffer=60, batch=10, seed=0)
    assert len(mixed[1]) == 10
    with pytest.raises(InputError, match="once and no more"):
        mixed[2]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 30), batch=st.integers(1, 70), seed=st.integers(0, 50), steps=st.permutations(range(6)))
def test_each_epoch_is_a_permutation_of_its_own(count: int, batch: int, seed: int, steps: list[int]) -> None:
    shuffle = Shuffle(count, batch, seed)
    batches = {step: shuffle[step].tolist() for step in steps}
    rows = [row for step in range(6) for row in batches[step]]
    for epoch in range(len(rows) // count + 1):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        whole = torch.randperm(count, generator=generator).tolist()
        assert rows[epoch * count : (epoch + 1) * count] == whole[: len(rows) - epoch * count]
