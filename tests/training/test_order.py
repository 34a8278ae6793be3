"""The order in which rows come: each once an epoch, spread over batches, a function of seed and step alone."""

from __future__ import annotations

import torch

from gemscope.training.shuffle import Shuffle


def test_every_row_comes_once_an_epoch_and_each_epoch_in_its_own_order() -> None:
    shuffle = Shuffle(103, 10, seed=3)
    read = torch.cat([shuffle[step] for step in range(31)])
    for epoch in range(3):
        assert read[103 * epoch : 103 * (epoch + 1)].sort().values.tolist() == list(range(103))
    assert not torch.equal(read[:103], read[103:206])


def test_a_batch_is_a_function_of_seed_and_step_alone() -> None:
    onward, jumping = Shuffle(103, 10, seed=3), Shuffle(103, 10, seed=3)
    expected = [onward[step] for step in range(25)]
    for step in (24, 3, 10, 11, 0, 20):
        assert torch.equal(jumping[step], expected[step])
    assert not torch.equal(Shuffle(103, 10, seed=4)[0], expected[0])


def test_neighbours_in_the_text_are_spread_over_batches() -> None:
    """A batch holds as many documents as rows drawn at random would."""
    documents = torch.arange(40_000) // 200
    batch = documents[Shuffle(40_000, 256, seed=0)[3]]
    expected = 200 * (1 - (1 - 1 / 200) ** 256)
    assert len(batch.unique()) >= 0.9 * expected
