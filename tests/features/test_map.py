"""Features on a plane: those whose directions are alike lie near each other."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from gemscope.errors import InputError, MissingDependency
from gemscope.features.map import FULL, plane


def clusters(count: int = 150, groups: int = 5, width: int = 16, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Directions around a few, of any length, and which each is around."""
    dice = torch.Generator().manual_seed(seed)
    middles = torch.nn.functional.normalize(torch.randn(groups, width, generator=dice), dim=-1)
    group = torch.arange(count) % groups
    noise = 0.12 * torch.randn(count, width, generator=dice)
    return (middles[group] + noise) * (0.5 + 3 * torch.rand(count, 1, generator=dice)), group.numpy()


def test_what_is_planted_together_lies_together() -> None:
    W_dec, group = clusters()
    found = plane(W_dec)
    assert found.places.shape == (150, 2)
    assert found.places.dtype == np.uint16
    points = found.places.astype(float)
    far = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(far, np.inf)
    for nearest in far.argsort(1)[:, :5].T:
        assert (group[nearest] == group).mean() > 0.97
    assert found.kept > 0.8
    assert found.method.startswith("t-SNE of decoder cosines, perplexity 30, scikit-learn ")
    assert found.places.max() == FULL
    assert found.places.min() == 0


def test_the_share_that_is_kept_is_that_of_a_slow_and_obvious_count() -> None:
    W_dec, _ = clusters(count=60)
    found = plane(W_dec)
    unit = torch.nn.functional.normalize(W_dec, dim=-1)
    cosines = (unit @ unit.T).fill_diagonal_(-2)
    points = found.places.astype(float)
    shares = []
    for feature in range(60):
        by_cosine = [
            one for one in cosines[feature].argsort(descending=True)[:10].tolist() if cosines[feature, one] > 0
        ]
        far = ((points - points[feature]) ** 2).sum(1)
        on_map = set(far.argsort()[:51].tolist())
        shares.append(len(on_map.intersection(by_cosine)) / len(by_cosine))
    assert found.kept == pytest.approx(np.mean(shares), abs=0.01)


def test_the_same_weights_give_the_same_map_and_length_does_not_count() -> None:
    W_dec, _ = clusters(count=120)
    first = plane(W_dec)
    assert (plane(W_dec).places == first.places).all()
    assert (plane(W_dec * 4).places == first.places).all()
    assert not (plane(W_dec, seed=1).places == first.places).all() or first.kept > 0


def test_features_without_a_direction_and_without_neighbours_have_a_place_too() -> None:
    W_dec, _ = clusters(count=120)
    W_dec[3] = 0
    W_dec[7] = W_dec[8]
    assert len(plane(W_dec).places) == 120
    assert len(plane(torch.eye(120)).places) == 120
    assert len(plane(torch.zeros(120, 4)).places) == 120


@pytest.mark.parametrize("count", [2, 3, 7, 99])
def test_few_features_need_no_scikit_learn(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    found = plane(clusters(count=count)[0])
    assert found.method == "two principal components of the decoder's directions"
    assert found.places.shape == (count, 2)
    assert len(plane(torch.ones(count, 1)).places) == count


def test_without_scikit_learn_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingDependency, match=r"gemscope\[map\]"):
        plane(clusters()[0])
    with pytest.raises(InputError, match="at least two"):
        plane(torch.ones(1, 4))
