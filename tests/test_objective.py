"""The loss and its gradients against a dense version by autograd, and against what a threshold's gradient is for: the
slope of the expected loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gemscope.features.kernels.plain import Plain
from gemscope.training import objective
from gemscope.training.objective import Weights, reconstruct, step

SPARSE: dict[str, Any] = {"kernels": Plain(torch.bfloat16), "dense": False}
WAYS = pytest.mark.parametrize(
    "way",
    [SPARSE, {"kernels": Plain(torch.float32), "dense": False}, {"dense": True}],
    ids=["bfloat16 search", "float32 search", "dense"],
)


# --- a dense version, of the formulas as the paper writes them ------------------------------------------------------


class Jump(torch.autograd.Function):
    """z · 1[z > θ] · 1[z > 0] with its pseudo-derivative in θ."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.width = width
        return z * (z > theta) * (z > 0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,), (z, theta) = grads, ctx.saved_tensors
        kernel = ((z - theta).abs() < ctx.width / 2) & (z > 0)
        return grad * ((z > theta) & (z > 0)), (-(theta / ctx.width) * kernel * grad).sum(0), None


class Count(torch.autograd.Function):
    """1[z > θ] · 1[z > 0] with its pseudo-derivative in θ, and none in z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.width = width
        return ((z > theta) & (z > 0)).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,), (z, theta) = grads, ctx.saved_tensors
        kernel = ((z - theta).abs() < ctx.width / 2) & (z > 0)
        return None, (-(1 / ctx.width) * kernel * grad).sum(0), None


def dense(
    weights: Weights, x: Tensor, *, bandwidth: float, target: float, sparsity: float
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """In float64, by autograd."""
    w = {name: tensor.double().requires_grad_() for name, tensor in weights.tensors().items()}
    x = x.double()
    z = x @ w["W_enc"].T + w["b_enc"]
    f = Jump.apply(z, w["threshold"], bandwidth)
    out = f @ w["W_dec"] + w["b_dec"]
    error = (x - out).pow(2).sum(-1).mean()
    l0 = Count.apply(z, w["threshold"], bandwidth).sum(-1).mean()
    loss = error + sparsity * (l0 / target - 1) ** 2
    loss.backward()
    near = ((z - w["threshold"]).abs() < bandwidth / 2) & (z > 0)
    told = {"loss": loss.item(), "error": error.item(), "l0": l0.item(), "window": near.sum(-1).double().mean().item()}
    return told, {name: tensor.grad for name, tensor in w.items() if tensor.grad is not None}


def random_weights(features: int, d: int, seed: int, *, theta: float = 0.3, spread: float = 0.3) -> Weights:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return Weights(
        W_enc=normal(features, d) / math.sqrt(d),
        b_enc=0.2 * normal(features),
        W_dec=normal(features, d) / math.sqrt(d),
        b_dec=0.1 * normal(d),
        threshold=(theta + spread * normal(features)).clamp(min=0),  # some 0, some below ε/2
    )


def assert_equals_dense(weights: Weights, x: Tensor, way: dict[str, Any], **options: float) -> None:
    expected, expected_grads = dense(weights, x, **options)
    told, grads = step(weights, x, **way, **options)
    for name, value in expected.items():
        assert getattr(told, name) == pytest.approx(value, rel=1e-5, abs=1e-7), name
    for name, grad in grads.tensors().items():
        wanted = expected_grads[name]
        assert (grad - wanted).norm() <= 1e-5 * wanted.norm() + 1e-12, name
        torch.testing.assert_close(grad.double(), wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item() + 1e-12)


@WAYS
@pytest.mark.parametrize("seed", range(4))
def test_gradients_equal_a_dense_version_by_autograd(seed: int, way: dict[str, Any]) -> None:
    weights = random_weights(96, 20, seed)
    x = torch.randn(64, 20, generator=torch.Generator().manual_seed(100 + seed))
    assert (weights.threshold < 0.1).any()
    assert (weights.threshold > 0.1).any()
    assert_equals_dense(weights, x, way, bandwidth=0.2, target=7.0, sparsity=1.5)


@WAYS
def test_gradients_are_right_below_half_a_bandwidth_where_the_window_reaches_below_zero(way: dict[str, Any]) -> None:
    weights = random_weights(64, 16, 7, theta=0.05, spread=0.02)
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    assert (weights.threshold < 0.4).all()
    assert_equals_dense(weights, x, way, bandwidth=0.8, target=3.0, sparsity=0.7)


@WAYS
def test_rows_without_a_feature_and_features_in_every_row(way: dict[str, Any]) -> None:
    weights = random_weights(40, 12, 3, theta=1.5, spread=0.1)
    weights.b_enc[5] = 50.0  # fires on every row
    weights.b_enc[6] = -50.0  # on none
    x = torch.randn(30, 12, generator=torch.Generator().manual_seed(2))
    told, grads = step(weights, x, bandwidth=0.3, target=2.0, sparsity=1.0, **way)
    assert told.firings[5] == 30
    assert told.firings[6] == 0
    assert grads.W_enc[6].abs().max() == grads.W_dec[6].abs().max() == grads.threshold[6] == 0
    assert_equals_dense(weights, x, way, bandwidth=0.3, target=2.0, sparsity=1.0)
    weights.b_enc[5] = -50.0
    lone = step(weights, 0.1 * x, bandwidth=0.3, target=2.0, sparsity=1.0, **way)[0]
    assert lone.l0 == lone.window == 0
    assert_equals_dense(weights, 0.1 * x, way, bandwidth=0.3, target=2.0, sparsity=1.0)  # nothing active anywhere


@WAYS
def test_the_edges_are_strict(way: dict[str, Any]) -> None:
    """z = θ is not active, |z − θ| = ε/2 is not in the window, z = 0 is neither: all exact in binary."""
    z = torch.tensor([[0.5, 0.75, 0.25, 0.5625, 0.0, -0.25, 1.0, 0.375]])
    weights = Weights(
        W_enc=torch.ones(8, 1),
        b_enc=z[0] - 1,
        W_dec=torch.ones(8, 1),
        b_dec=torch.zeros(1),
        threshold=torch.tensor([0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.5, 0.5]),
    )
    x = torch.ones(1, 1)
    told, grads = step(weights, x, bandwidth=0.5, target=1.0, sparsity=1.0, **way)
    assert told.firings.tolist() == [0, 1, 0, 1, 0, 0, 1, 0]
    assert told.window == 3  # 0.5, 0.5625 and 0.375; not 0.75, 0.25
    assert (grads.threshold != 0).tolist() == [True, False, False, True, False, False, False, True]
    assert_equals_dense(weights, x, way, bandwidth=0.5, target=1.0, sparsity=1.0)


def test_no_feature_leaves_the_decoder_bias_alone() -> None:
    weights = random_weights(10, 6, 0)
    weights.threshold += 1e3
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    told, _ = step(weights, x, bandwidth=0.1, target=2.0, sparsity=3.0)
    assert told.error == pytest.approx((x - weights.b_dec).pow(2).sum(-1).mean().item(), rel=1e-6)
    assert told.loss == pytest.approx(told.error + 3.0, rel=1e-6)
    out, counts = reconstruct(weights, x)
    assert torch.equal(out, weights.b_dec.expand(20, 6))
    assert counts.sum() == 0


def test_reconstruction_equals_the_dense_forward() -> None:
    weights = random_weights(96, 20, 5)
    x = torch.randn(64, 20, generator=torch.Generator().manual_seed(0))
    z = x @ weights.W_enc.T + weights.b_enc
    f = z * (z > weights.threshold) * (z > 0)
    out, counts = reconstruct(weights, x)
    torch.testing.assert_close(out, f @ weights.W_dec + weights.b_dec, rtol=1e-5, atol=1e-5)
    assert torch.equal(counts, (f > 0).sum(0))


# --- sparse or dense ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("theta", "expected"), [(0.01, "_dense_step"), (3.5, "_sparse_step")])
def test_the_batch_itself_says_whether_dense_products_are_cheaper(
    theta: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    for name in ("_dense_step", "_sparse_step"):
        original = getattr(objective, name)
        monkeypatch.setattr(
            objective, name, lambda *given, name=name, original=original: taken.append(name) or original(*given)
        )
    weights = random_weights(96, 20, 1, theta=theta, spread=0.01)
    x = torch.randn(64, 20, generator=torch.Generator().manual_seed(0))
    step(weights, x, bandwidth=0.01, target=5.0, sparsity=1.0)
    assert taken == [expected]


# --- what a threshold's gradient is for -----------------------------------------------------------------------------


def test_a_thresholds_gradient_is_the_slope_of_the_expected_loss() -> None:
    """Rajamanoharan et al. 2024, section 4: averaged over many samples, the pseudo-derivative estimates dE[loss]/dθ.

    The truth is a central difference of the loss itself, which falls in steps on any one sample.
    """
    d, features, count = 6, 8, 400_000
    generator = torch.Generator().manual_seed(0)
    weights = random_weights(features, d, 2)
    weights.threshold = torch.tensor([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    x = torch.randn(count, d, generator=generator)
    options = {"bandwidth": 0.1, "target": 1.2, "sparsity": 0.8}
    _, grads = step(weights, x, **options)

    def loss(threshold: Tensor) -> float:
        z = x @ weights.W_enc.T + weights.b_enc
        f = z * (z > threshold)
        error = (x - f @ weights.W_dec - weights.b_dec).pow(2).sum(-1).double().mean().item()
        l0 = (f > 0).double().sum(-1).mean().item()
        return error + 0.8 * (l0 / 1.2 - 1) ** 2

    slopes = []
    for feature in range(features):
        shift = torch.zeros(features)
        shift[feature] = 0.05
        slopes.append((loss(weights.threshold + shift) - loss(weights.threshold - shift)) / 0.1)
    scale = max(map(abs, slopes))
    assert scale > 0.05
    for estimated, slope in zip(grads.threshold.tolist(), slopes, strict=True):
        assert estimated == pytest.approx(slope, rel=0.04, abs=0.02 * scale)


def test_weights_gradients_are_slopes_of_the_loss() -> None:
    """Away from thresholds, an ordinary derivative: moving along −grad lowers the loss by |grad|² to first order."""
    weights = random_weights(64, 16, 4)
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(5))
    options = {"bandwidth": 1e-4, "target": 5.0, "sparsity": 0.0}
    _, grads = step(weights, x, **options)
    for name in ("W_dec", "b_dec"):
        grad = getattr(grads, name)
        rate = 1e-3

        def moved(sign: float, name: str = name, grad: Tensor = grad, rate: float = rate) -> float:
            return step(
                Weights(**{**weights.tensors(), name: getattr(weights, name) + sign * rate * grad}), x, **options
            )[0].error

        assert (moved(1) - moved(-1)) / (2 * rate) == pytest.approx(grad.pow(2).sum().item(), rel=1e-3)
