"""Metrics against their formulas in one shot, in plain loops, and against torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from gemscope.features import metrics
from gemscope.features.metrics import (
    Firings,
    Predictions,
    Variance,
    explained_variance,
    recovered,
)
from gemscope.testing import planted_sae


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
    assert sums.l2_ratio == pytest.approx((out.norm(dim=-1) / x.norm(dim=-1)).mean().item(), rel=1e-7)
    assert sums.relative_bias == pytest.approx((out.pow(2).sum() / (x * out).sum()).item(), rel=1e-7)
    torch.testing.assert_close(sums.mean, x.mean(0))


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
    assert empty.spread == 0


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3, 7.7, 500.1])
def test_equal_tokens_leave_nothing_to_explain_however_their_sums_are_rounded(value: float) -> None:
    for n in (2, 5, 7, 50, 1000):
        same = Variance()
        same.add(torch.full((n, 3), value), torch.zeros(n, 3))
        assert math.isnan(same.fvu)
    close = Variance()  # a float32 can tell these apart, and so can the fraction
    x = torch.full((50, 3), value) * (1 + 2e-6 * torch.arange(50)[:, None]) + 1e-3 * torch.eye(50)[:, :3]
    close.add(x, x.double().mean(0).expand(50, 3).float())
    assert close.fvu == pytest.approx(1, abs=0.05)


def kl_divergence(clean: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    every = torch.ones(clean.shape[:2], dtype=torch.bool)
    return Predictions(clean, every).divergence(Predictions(other, every)).view(clean.shape[:2])


def test_next_token_loss_equals_torchs_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(3, 6, 11, generator=generator), torch.randint(0, 11, (3, 6), generator=generator)
    chosen = torch.ones(3, 6, dtype=torch.bool)
    chosen[:, -1] = False
    losses = Predictions(logits, chosen).loss(ids[:, 1:].flatten()).view(3, 5)
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


def test_relative_bias_is_the_factor_that_undoes_shrinkage() -> None:
    """x̂ / γ has the least error of all multiples of x̂ (arXiv 2404.16014, eq. 10), found here by trying them."""
    x, out = pair(400, 6)
    sums = Variance()
    sums.add(x, 0.6 * out)
    factors = torch.linspace(0.3, 1.2, 9001, dtype=torch.float64)
    errors = torch.stack([(0.6 * out.double() / factor - x).pow(2).sum() for factor in factors])
    assert sums.relative_bias == pytest.approx(factors[errors.argmin()].item(), abs=2e-4)
    assert sums.relative_bias < 0.7


def test_a_token_of_norm_0_has_no_direction_and_no_ratio() -> None:
    sums = Variance()
    sums.add(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
    assert sums.cosine == sums.l2_ratio == 0.5


def test_firings_are_counted_exactly_however_the_tokens_are_split() -> None:
    planted = planted_sae(8, 16, tokens=97, active=3)
    x = planted.x * (torch.arange(97) % 4 > 0)[:, None]  # another number of features fires on some
    f = planted.sae.encode(x[:60]).to_dense()
    f = torch.cat([f, planted.sae.encode(x[60:]).to_dense()])
    counted = Firings(16)
    for start, end in ((0, 1), (1, 40), (40, 97)):
        counted.add(planted.sae.encode(x[start:end]))
    l0, density = (f > 0).sum(-1).double(), (f > 0).double().mean(0)
    assert l0.std() > 0.5
    assert counted.n == 97
    assert counted.l0 == pytest.approx(l0.mean().item())
    assert counted.l0_std == pytest.approx(l0.std(correction=0).item())
    assert counted.dead == (density == 0).double().mean().item()
    assert counted.dense == (density > 0.1).double().mean().item()
    low, step, bins = counted.densities()
    assert sum(bins) == int((density > 0).sum())
    for feature in density[density > 0].tolist():
        place = min(len(bins) - 1, math.floor((math.log10(feature) - low) / step))
        assert bins[place] > 0
    assert low + step * len(bins) == pytest.approx(0)
    assert low <= math.log10(1 / 97)
    low, step, bins = counted.l0s(most=2)
    assert sum(bins) == 97
    assert [int(((l0 >= i * step) & (l0 < (i + 1) * step)).sum()) for i in range(len(bins))] == list(bins)


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.integers(0, 12), min_size=1, max_size=60), share=st.sampled_from([0.05, 0.5, 0.95, 1.0]))
def test_a_quantile_of_l0_is_the_least_value_that_so_many_do_not_exceed(values: list[int], share: float) -> None:
    counted = Firings(12)
    counted.n = len(values)
    counted.of_l0 = torch.bincount(torch.tensor(values), minlength=13)
    found = counted.l0_quantile(share)
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert found == 0 or sum(value <= found - 1 for value in values) < share * len(values)


def test_densities_of_features_that_fire_always_or_once() -> None:
    counted = Firings(3)
    counted.n, counted.of_feature = 1000, torch.tensor([1000, 1, 0])
    low, step, bins = counted.densities()
    assert (low, step, len(bins)) == (-3.25, 0.25, 13)
    assert [place for place, count in enumerate(bins) if count] == [1, 12]  # 10**-3 opens its bin, 1 closes the last


def test_of_no_tokens_there_are_no_densities() -> None:
    assert Firings(3).densities() == (0.0, 0.25, ())


def test_predictions_of_chosen_tokens_equal_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of the pieces, and in half precision too."""
    generator = torch.Generator().manual_seed(0)
    clean, other = (4 * torch.randn(3, 7, 33, generator=generator) for _ in range(2))
    where = torch.rand(3, 7, generator=generator) < 0.6
    ids = torch.randint(0, 33, (3, 7), generator=generator)
    for dtype in (torch.float32, torch.bfloat16):
        p, q = (logits.to(dtype)[where].double().log_softmax(-1) for logits in (clean, other))
        for piece in (1, 100, 1 << 20):
            monkeypatch.setattr(metrics, "_PIECE", piece)
            one, two = (Predictions(logits.to(dtype), where) for logits in (clean, other))
            expected = -q.gather(-1, ids[where][:, None]).squeeze(-1)
            torch.testing.assert_close(two.loss(ids[where]).double(), expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(one.divergence(two).double(), (p.exp() * (p - q)).sum(-1), rtol=1e-5, atol=1e-5)


def test_no_tokens_chosen_give_no_losses() -> None:
    nothing = Predictions(torch.randn(2, 3, 5), torch.zeros(2, 3, dtype=torch.bool))
    assert len(nothing) == len(nothing.loss(torch.zeros(0, dtype=torch.int64))) == len(nothing.divergence(nothing)) == 0


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        there = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in there:  # no view, nothing in place
                self.numbers = max(self.numbers, one.numel())
        return out


def test_losses_and_kl_copy_a_few_tokens_at_a_time_however_large_the_vocabulary() -> None:
    logits = torch.randn(1, 64, 200_000).bfloat16()
    where = torch.ones(1, 64, dtype=torch.bool)
    with Largest() as largest:
        clean, other = Predictions(logits, where), Predictions(logits, where)
        clean.divergence(other)
        clean.loss(torch.zeros(64, dtype=torch.int64))
    assert 200_000 <= largest.numbers <= metrics._PIECE
    with Largest() as largest:
        torch.log_softmax(logits.float(), -1)
    assert largest.numbers == logits.numel()  # what measuring so would see


def test_loss_recovered() -> None:
    assert recovered(clean=3.0, spliced=3.0, ablated=9.0) == 1
    assert recovered(clean=3.0, spliced=9.0, ablated=9.0) == 0
    assert recovered(clean=3.0, spliced=4.5, ablated=9.0) == pytest.approx(0.75)
    assert recovered(clean=3.0, spliced=12.0, ablated=9.0) == pytest.approx(-0.5)
    assert math.isnan(recovered(clean=3.0, spliced=3.0, ablated=3.0))
