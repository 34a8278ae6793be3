"""Metrics against their formulas in one shot, in plain loops, and against torch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from gemscope.features.metrics import Variance, explained_variance, kl_divergence, next_token_loss


def pair(n: int, d: int, seed: int = 0, centre: float = 3.0, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) + centre
    return x, x + noise * torch.randn(n, d, generator=generator)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) > 1),
    seed=st.integers(0, 1000),
    centre=st.sampled_from([0.0, 3.0, 500.0]),
)
def test_running_sums_equal_the_closed_formula_however_the_tokens_are_split(
    sizes: list[int], seed: int, centre: float
) -> None:
    x, out = pair(sum(sizes), 5, seed, centre)
    sums = Variance()
    for part, back in zip(x.split(sizes), out.split(sizes), strict=True):
        sums.add(part, back)
    x, out = x.double(), out.double()
    fvu = ((x - out).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item()
    assert sums.n == sum(sizes)
    assert sums.fvu == pytest.approx(fvu, rel=1e-7)
    assert sums.explained_variance == pytest.approx(1 - fvu, rel=1e-7, abs=1e-7)
    assert sums.cosine == pytest.approx(functional.cosine_similarity(x, out, dim=-1).mean().item(), rel=1e-5)


def test_explained_variance_equals_a_loop_over_numbers() -> None:
    x, out = pair(7, 3)
    mean = [sum(row[j] for row in x.tolist()) / 7 for j in range(3)]
    error = sum(
        (a - b) ** 2
        for one, other in zip(x.tolist(), out.tolist(), strict=True)
        for a, b in zip(one, other, strict=True)
    )
    spread = sum((row[j] - mean[j]) ** 2 for row in x.tolist() for j in range(3))
    assert explained_variance(x, out) == pytest.approx(1 - error / spread, rel=1e-6)


def test_the_mean_is_over_all_tokens_and_per_number_not_per_batch() -> None:
    """Two batches that are constant within themselves: a per-batch mean would divide by 0, a scalar mean would not see
    that the numbers differ."""
    sums = Variance()
    for x in (torch.tensor([[0.0, 10.0]]).repeat(3, 1), torch.tensor([[2.0, 10.0]]).repeat(3, 1)):
        sums.add(x, x + 0.5)
    assert sums.fvu == pytest.approx((6 * 2 * 0.25) / 6)


def test_perfect_mean_and_worse_reconstructions() -> None:
    x, _ = pair(50, 4)
    assert explained_variance(x, x) == 1
    assert explained_variance(x, x.mean(0).expand(50, 4)) == pytest.approx(0, abs=1e-6)
    assert explained_variance(x, -x) < 0


def test_float16_activations_are_summed_in_float64() -> None:
    x, out = pair(2000, 8, centre=100.0)
    sums = Variance()
    sums.add(x.half(), out.half())
    exact = x.half().double(), out.half().double()
    fvu = ((exact[0] - exact[1]).pow(2).sum() / (exact[0] - exact[0].mean(0)).pow(2).sum()).item()
    assert sums.fvu == pytest.approx(fvu, rel=1e-9)


def test_too_few_tokens_give_no_number() -> None:
    empty, one = Variance(), Variance()
    empty.add(torch.zeros(0, 3), torch.zeros(0, 3))
    one.add(torch.ones(1, 3), torch.zeros(1, 3))
    for sums in (empty, one):
        assert math.isnan(sums.fvu)
        assert math.isnan(sums.explained_variance)
    assert math.isnan(empty.cosine)
    assert one.n == 1
    same = Variance()
    same.add(torch.ones(5, 3), torch.zeros(5, 3))
    assert math.isnan(same.fvu)  # nothing to explain


def test_next_token_loss_equals_torchs_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(3, 6, 11, generator=generator), torch.randint(0, 11, (3, 6), generator=generator)
    losses = next_token_loss(logits, ids)
    assert losses.shape == (3, 5)
    for row in range(3):
        for t in range(5):
            expected = -math.log(logits[row, t].double().softmax(-1)[ids[row, t + 1]].item())
            assert losses[row, t].item() == pytest.approx(expected, rel=1e-5)
    mean = functional.cross_entropy(logits[:, :-1].reshape(-1, 11), ids[:, 1:].reshape(-1))
    assert losses.mean().item() == pytest.approx(mean.item(), rel=1e-6)


def test_kl_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(2, 4, 9, generator=generator) for _ in range(2))
    assert kl_divergence(p, p).abs().max() == 0
    assert kl_divergence(p, p + 5).abs().max() < 1e-6  # the same distribution
    clean, other = p.double().softmax(-1), q.double().softmax(-1)
    expected = (clean * (clean / other).log()).sum(-1)
    torch.testing.assert_close(kl_divergence(p, q).double(), expected, rtol=1e-5, atol=1e-6)
    assert (kl_divergence(p, q) > 0).all()
    assert not torch.allclose(kl_divergence(p, q), kl_divergence(q, p))


def test_kl_divergence_of_a_vocabulary_with_tokens_ruled_out() -> None:
    """Some models set the logits of ids that they never say to −inf."""
    p, q = torch.randn(1, 2, 5), torch.randn(1, 2, 5)
    p[..., 4] = q[..., 4] = -math.inf
    torch.testing.assert_close(kl_divergence(p, q), kl_divergence(p[..., :4], q[..., :4]))
