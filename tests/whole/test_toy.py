"""Known directions found again: the benchmark's measures, and the bars of the default settings."""

import importlib
from itertools import permutations
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("toy")
    monkeypatch.setattr(module, "POOL", 2048)
    monkeypatch.setattr(module, "HELD_OUT", 1000)
    return module


def test_the_rows_are_sums_of_about_five_directions_of_size_about_one(toy: ModuleType) -> None:
    for variant in toy.VARIANTS:
        task = toy.planted(variant, 0)
        assert task.rows.shape == (3048, 64)
        assert task.on.sum(1).float().mean().item() == pytest.approx(5, abs=0.25)
        sizes = torch.linalg.lstsq(task.truth[task.on[0]].T, task.rows[2048]).solution
        torch.testing.assert_close(sizes @ task.truth[task.on[0]], task.rows[2048], rtol=0, atol=1e-4)
        assert ((sizes > 0.09) & (sizes < 2)).all()
    often = task.on.float().mean(0)
    assert often[:16].mean() > 3 * often[-128:].mean()


def test_the_truth_itself_scores_as_the_truth(toy: ModuleType) -> None:
    task = toy.planted("uniform", 0)

    def read(x: Tensor) -> tuple[Tensor, Tensor]:
        return task.on.flip(1), x  # all of these few rows at once

    found = toy.scores(toy.Found(3 * task.truth.flip(0), read), task)
    assert found["mmcs"] == pytest.approx(1)
    assert found["mcc"] == pytest.approx(1)
    assert found["fvu"] == 0
    assert found["f1"] == pytest.approx(1)
    assert found["dead"] == 0
    assert found["l0"] == pytest.approx(5, abs=0.25)


def test_one_direction_learned_twice_costs_mcc_and_not_mmcs_alone(toy: ModuleType) -> None:
    task = toy.planted("uniform", 0)
    twice = task.truth.clone()
    twice[:64] = twice[64]
    found = toy.scores(toy.Found(twice, lambda x: (torch.zeros(len(x), 256), torch.zeros_like(x))), task)
    assert found["mcc"] < found["mmcs"] < 0.9
    assert found["dead"] == 256
    assert found["f1"] == 0


def test_the_assignment_is_the_best_one(toy: ModuleType) -> None:
    similar = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    best = max(sum(similar[i, j].item() for i, j in enumerate(order)) for order in permutations(range(6))) / 6
    assert toy._assigned(similar) == pytest.approx(best)


def test_every_bar_that_is_missed_is_told(toy: ModuleType) -> None:
    row = {"impl": "gemscope", "arch": "jumprelu", "variant": "uniform", "seed": 0}
    good = row | {"mmcs": 0.95, "mcc": 0.93, "fvu": 0.2, "l0": 4.6, "dead": 12}
    assert toy.below_bars(good) == []
    for name, bad in {"mmcs": 0.93, "mcc": 0.9, "fvu": 0.22, "l0": 5.6, "dead": 13}.items():
        (line,) = toy.below_bars(good | {name: bad})
        assert f": {name} " in line
    assert len(toy.below_bars(good | {"fvu": float("nan")})) == 1
    peer = good | {"impl": "saelens", "mmcs": 0.96}
    assert len(toy.below_peer(good, [good, peer])) == 1
    assert toy.below_peer(good, [peer | {"mmcs": 0.9}, peer | {"seed": 1}]) == []


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["uniform", "zipf"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_default_meets_its_bars(toy: ModuleType, monkeypatch: pytest.MonkeyPatch, seed: int, variant: str) -> None:
    monkeypatch.undo()
    task = toy.planted(variant, seed)
    row = {"impl": "gemscope", "arch": "jumprelu", "variant": variant, "seed": seed}
    assert toy.below_bars(row | toy.scores(toy._gemscope("jumprelu", task, {}), task)) == []
