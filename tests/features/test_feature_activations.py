"""The sparse type against its dense counterpart."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemscope.errors import InputError
from gemscope.features.activations import FeatureActivations


def sparse(*lead: int, features: int = 12, share: float = 0.3, seed: int = 0) -> tuple[Tensor, FeatureActivations]:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(*lead, features, generator=generator) + 0.1
    dense *= torch.rand(*lead, features, generator=generator) < share
    return dense, FeatureActivations.from_dense(dense)


@settings(max_examples=40, deadline=None)
@given(
    lead=st.lists(st.integers(0, 5), max_size=3),
    features=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 99),
)
def test_dense_to_sparse_and_back(lead: list[int], features: int, share: float, seed: int) -> None:
    dense, acts = sparse(*lead, features=features, share=share, seed=seed)
    assert torch.equal(acts.to_dense(), dense)
    assert acts.lead == tuple(lead)
    assert torch.equal(acts.l0, (dense > 0).sum(-1))
    assert acts.offsets[-1] == len(acts.values) == len(acts.features) == len(acts.tokens)
    flat = dense.reshape(-1, features)
    assert torch.equal(flat[acts.tokens, acts.features], acts.values)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 14))
def test_top_is_what_sorting_the_dense_form_gives(seed: int, k: int) -> None:
    dense, acts = sparse(2, 3, seed=seed)
    ids, strengths = acts.top(k)
    assert ids.shape == strengths.shape == (2, 3, k)
    for row in range(2):
        for token in range(3):
            found = dense[row, token]
            order = sorted(found.nonzero().flatten().tolist(), key=lambda i, found=found: -found[i])[:k]
            rest = k - len(order)
            assert ids[row, token].tolist() == order + [-1] * rest
            assert strengths[row, token].tolist() == found[order].tolist() + [0.0] * rest


def test_a_row_is_sorted_and_ties_go_by_feature() -> None:
    acts = FeatureActivations.from_dense(torch.tensor([[0.0, 2.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]]))
    features, strengths = acts.row(0)
    assert features.tolist() == [2, 1, 3]
    assert strengths.tolist() == [3, 2, 2]
    assert acts.row(1)[0].tolist() == acts.row(1)[1].tolist() == []


def test_every_row_is_what_sorting_its_dense_form_gives() -> None:
    dense, acts = sparse(4, 3)
    for token, found in enumerate(dense.reshape(12, -1)):
        features, strengths = acts.row(token)
        order = found.argsort(descending=True)[: int((found > 0).sum())]
        assert torch.equal(features, order)
        assert torch.equal(strengths, found[order])


def test_one_feature_on_every_token() -> None:
    dense, acts = sparse(3, 4)
    for feature in range(12):
        assert torch.equal(acts.of(feature), dense[..., feature])
    for wrong in (-1, 12):
        with pytest.raises(InputError, match="features 0 to 11"):
            acts.of(wrong)


def test_means_are_over_counted_tokens() -> None:
    dense, _ = sparse(3, 4)
    counted = torch.arange(12).reshape(3, 4) % 2 == 0
    acts = FeatureActivations.from_dense(dense, counted)
    l0 = (dense > 0).sum(-1).double()
    assert acts.mean_l0 == pytest.approx(l0[counted].mean().item())
    assert FeatureActivations.from_dense(dense).mean_l0 == pytest.approx(l0.mean().item())
    none = FeatureActivations.from_dense(dense, torch.zeros_like(counted))
    assert none.mean_l0 != none.mean_l0  # NaN


def test_no_tokens_at_all() -> None:
    _, acts = sparse(0)
    assert acts.n_tokens == 0
    assert acts.top(3)[0].shape == (0, 3)
    assert acts.of(2).shape == (0,)
    assert acts.to_dense().shape == (0, 12)
    assert acts.l0.shape == (0,)


def test_moving_keeps_everything() -> None:
    dense, _ = sparse(3, 4)
    counted = torch.ones(3, 4, dtype=torch.bool)
    acts = FeatureActivations.from_dense(dense, counted).to("cpu")
    assert torch.equal(acts.to_dense(), dense)
    assert acts.counted is not None


def test_parts_that_do_not_fit_are_refused() -> None:
    dense, acts = sparse(3, 4)
    with pytest.raises(InputError, match="row offsets"):
        FeatureActivations(acts.offsets[:-1], acts.features, acts.values, 12, (3, 4))
    with pytest.raises(InputError, match="mask of shape"):
        FeatureActivations.from_dense(dense, torch.ones(4, 3, dtype=torch.bool))
