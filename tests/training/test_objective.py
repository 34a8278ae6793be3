"""The loss and its gradients against a dense version by autograd, and against what a threshold's gradient is for: the
slope of the expected loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dense import assert_equals_dense, random_weights
from gemscope.features.kernels.plain import Plain
from gemscope.training import objective
from gemscope.training.gated import GatedWeights, gated_step
from gemscope.training.objective import Gate, Penalty, Terms, step
from gemscope.training.products import Products
from gemscope.training.weights import Weights, reconstruct

SPARSE: dict[str, Any] = {"kernels": Plain(torch.bfloat16), "dense": False}
WAYS = pytest.mark.parametrize(
    "way",
    [SPARSE, {"kernels": Plain(torch.float32), "dense": False}, {"dense": True}],
    ids=["bfloat16 search", "float32 search", "dense"],
)


# --- a dense version, of the formulas as the papers write them -------------------------------------------------------


KINDS: list[tuple[Gate, Penalty]] = [
    ("jumprelu", "target"),
    ("jumprelu", "l0"),
    ("jumprelu", "quadratic"),
    ("jumprelu", "tanh"),
    ("relu", "l1"),
    ("relu", "tanh"),
    ("topk", "none"),
    ("batchtopk", "none"),
]


@WAYS
@pytest.mark.parametrize("nested", [(), (20, 50, 96)], ids=["plain", "Matryoshka"])
@pytest.mark.parametrize(("gate", "of"), KINDS, ids=[f"{gate} {of}" for gate, of in KINDS])
def test_every_kind_equals_a_dense_version_by_autograd(
    gate: Gate, of: Penalty, nested: tuple[int, ...], way: dict[str, Any]
) -> None:
    """Alone, and as a transcoder with an affine skip and silent features of which some are to be revived."""
    x = torch.randn(700, 20, generator=torch.Generator().manual_seed(5))  # more rows than a dense step holds at a time
    y = torch.randn(700, 17, generator=torch.Generator().manual_seed(6))
    silent = torch.zeros(96, dtype=torch.bool)
    silent[5:25] = True
    options = {"gate": gate, "penalty": of, "sparsity": 0.7, "target": 7.0, "prefixes": nested}
    options["bandwidth"] = 0.2 if gate == "jumprelu" else 0.0
    for out in (None, 17):
        weights = random_weights(96, 20, 3, out=out)
        if gate != "jumprelu":
            weights.threshold.fill_(0.5 if gate == "batchtopk" else 0.0)
        if out is None:
            assert_equals_dense(weights, x, way, **options)
        else:
            assert_equals_dense(weights, x, way, y=y, silent=silent, auxiliary=0.3, **options)


@pytest.mark.parametrize("nested", [(), (20, 50, 96)], ids=["plain", "Matryoshka"])
@pytest.mark.parametrize("of", ["target", "l0", "quadratic", "tanh"])
def test_pseudo_derivatives_flow_into_the_encoder_where_asked_for(of: Penalty, nested: tuple[int, ...]) -> None:
    x = torch.randn(64, 20, generator=torch.Generator().manual_seed(5))
    assert_equals_dense(
        random_weights(96, 20, 3), x, {}, penalty=of, target=7.0, bandwidth=0.3, prefixes=nested, to_input=True
    )


@WAYS
@pytest.mark.parametrize(("gate", "of"), [("jumprelu", "tanh"), ("relu", "l1"), ("relu", "tanh")])
def test_a_crosscoders_features_are_weighed_by_the_norms_at_its_sites_together(
    gate: Gate, of: Penalty, way: dict[str, Any]
) -> None:
    weights = random_weights(96, 20, 3)
    weights.W_dec[7, :5] = 0  # a feature that one site has nothing of
    x = torch.randn(700, 20, generator=torch.Generator().manual_seed(5))
    options: dict[str, Any] = {"gate": gate, "penalty": of, "sparsity": 0.7, "target": 7.0, "parts": (5, 3, 12)}
    options["bandwidth"] = 0.2 if gate == "jumprelu" else 0.0
    if gate == "relu":
        weights.threshold.fill_(0.0)
    assert_equals_dense(weights, x, way, **options)
    together = step(weights, x, x, Terms(**options), **way)[0].loss
    assert together > step(weights, x, x, Terms(**{**options, "parts": (20,)}), **way)[0].loss


@WAYS
@pytest.mark.parametrize("nested", [(), (20, 50, 96)], ids=["plain", "Matryoshka"])
def test_features_that_fire_on_too_many_rows_are_held_back(nested: tuple[int, ...], way: dict[str, Any]) -> None:
    weights = random_weights(96, 20, 3)
    x = torch.randn(700, 20, generator=torch.Generator().manual_seed(5))
    options: dict[str, Any] = {"bandwidth": 0.2, "target": 7.0, "sparsity": 0.7, "prefixes": nested}
    hinge = {"frequency": 3.0, "frequency_limit": 0.3}
    assert_equals_dense(weights, x, way, **options, **hinge)
    (told, plain), (_, held) = (step(weights, x, x, Terms(**options, **more), **way) for more in ({}, hinge))
    often = told.firings > 0.3 * 700
    assert 0 < often.sum() < 96
    assert (held.threshold < plain.threshold)[often].all()  # downhill is up
    assert torch.equal(held.threshold[~often], plain.threshold[~often])


@WAYS
@pytest.mark.parametrize("nested", [(), (20, 50, 96)], ids=["plain", "Matryoshka"])
@pytest.mark.parametrize(
    ("gate", "of"), [("jumprelu", "target"), ("relu", "l1"), ("topk", "none"), ("batchtopk", "none")]
)
def test_products_of_bfloat16_differ_by_its_rounding_and_sums_stay_in_float32(
    gate: Gate, of: Penalty, nested: tuple[int, ...], way: dict[str, Any]
) -> None:
    weights = random_weights(96, 20, 3)
    if gate != "jumprelu":
        weights.threshold.fill_(0.5 if gate == "batchtopk" else 0.0)
    x = torch.randn(700, 20, generator=torch.Generator().manual_seed(5))
    options: dict[str, Any] = {"gate": gate, "penalty": of, "sparsity": 0.7, "target": 7.0, "prefixes": nested}
    options["bandwidth"] = 0.2 if gate == "jumprelu" else 0.0
    told, exact = step(weights, x, x, Terms(**options), **way)
    close, rough = step(weights, x, x, Terms(**options, products=Products(torch.bfloat16)), **way)
    assert close.loss == pytest.approx(told.loss, rel=2e-2)
    assert close.loss != told.loss
    for name, gradient in rough.tensors().items():
        wanted = exact.tensors()[name]
        assert gradient.dtype == torch.float32
        assert (gradient - wanted).norm() <= 0.05 * wanted.norm() + 1e-12, name
    assert not torch.equal(rough.W_dec, rough.W_dec.bfloat16().float())


@WAYS
def test_what_bfloat16_holds_exactly_is_multiplied_as_in_float32(way: dict[str, Any]) -> None:
    weights = random_weights(96, 20, 3)
    x = torch.randn(700, 20, generator=torch.Generator().manual_seed(5)).bfloat16().float()
    for name in ("W_enc", "W_dec"):
        setattr(weights, name, getattr(weights, name).bfloat16().float())
    (told, _), (close, _) = (
        step(weights, x, x, Terms(bandwidth=0.2, target=7.0, products=Products(of)), **way)
        for of in (torch.float32, torch.bfloat16)
    )
    assert close.l0 == told.l0
    # f is rounded where it multiplies, of a dense step.
    assert close.error == pytest.approx(told.error, rel=1e-6 if way.get("dense") is False else 1e-3)


@pytest.mark.parametrize("guess", [0.0, 0.4, 5.0], ids=["too low", "near", "too high"])
def test_the_k_largest_of_a_batch_do_not_hang_on_where_they_were_looked_for(guess: float) -> None:
    weights = random_weights(96, 20, 3)
    weights.threshold.fill_(guess)
    x = torch.randn(64, 20, generator=torch.Generator().manual_seed(5))
    assert_equals_dense(weights, x, {}, gate="batchtopk", penalty="none", target=7.0)
    told, _ = step(weights, x, x, Terms(gate="batchtopk", penalty="none", target=7.0))
    assert told.firings.sum() == 7 * 64
    written = torch.relu(x @ weights.W_enc.T + weights.b_enc) * weights.W_dec.norm(dim=-1)
    assert told.tau == pytest.approx(written.flatten().topk(7 * 64).values[-1].item(), rel=1e-5)


def test_where_fewer_are_positive_than_may_fire_all_of_them_do() -> None:
    weights = random_weights(30, 12, 3)
    weights.b_enc -= 2.0
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(5))
    positive = int(((x @ weights.W_enc.T + weights.b_enc) > 0).sum())
    for gate in ("topk", "batchtopk"):
        weights.threshold.fill_(1.0)
        told, _ = step(weights, x, x, Terms(gate=gate, penalty="none", target=29.0))
        assert told.firings.sum() == positive
        assert told.tau == 0
        assert told.window == 0  # no threshold is learned


def test_gated_equals_its_formula_and_the_jumprelu_that_it_is_exported_as() -> None:
    plain = random_weights(40, 12, 3)
    held = GatedWeights.of(plain)
    generator = torch.Generator().manual_seed(1)
    held.r_mag, held.b_mag = (0.3 * torch.randn(40, generator=generator) for _ in range(2))
    x = torch.randn(700, 12, generator=generator)
    terms = Terms(gate="relu", penalty="l1", sparsity=0.4)
    told, grads = gated_step(held, x, x, terms)
    w = {name: one.double().requires_grad_() for name, one in held.tensors().items()}
    raw = x.double() @ w["W_enc"].T
    gate = raw + w["b_enc"]
    f = (gate > 0) * torch.relu(w["r_mag"].exp() * raw + w["b_mag"])
    error = (x - f @ w["W_dec"] - w["b_dec"]).pow(2).sum(-1).mean()
    rare = 0.4 * (torch.relu(gate) * w["W_dec"].detach().norm(dim=-1)).sum(-1).mean()
    frozen = (x - torch.relu(gate) @ w["W_dec"].detach() - w["b_dec"].detach()).pow(2).sum(-1).mean()
    (error + rare + frozen).backward()
    assert told.loss == pytest.approx((error + rare + frozen).item(), rel=1e-5)
    assert told.error == pytest.approx(error.item(), rel=1e-5)
    assert told.penalty == pytest.approx(rare.item(), rel=1e-5)
    assert told.l0 == pytest.approx((f > 0).sum(-1).double().mean().item(), rel=1e-9)
    assert torch.equal(told.firings, (f > 0).sum(0))  # an open gate with nothing behind it is no firing
    for name, grad in grads.tensors().items():
        if name != "threshold":
            torch.testing.assert_close(grad.double(), w[name].grad, rtol=1e-4, atol=1e-6)
    out, counts = reconstruct(held.as_jumprelu(), x)
    torch.testing.assert_close(out.double(), (f @ w["W_dec"] + w["b_dec"]).detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(counts, (f > 0).sum(0))


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
    told, grads = step(weights, x, x, Terms(bandwidth=0.3, target=2.0), **way)
    assert told.firings[5] == 30
    assert told.firings[6] == 0
    assert grads.W_enc[6].abs().max() == grads.W_dec[6].abs().max() == grads.threshold[6] == 0
    assert_equals_dense(weights, x, way, bandwidth=0.3, target=2.0, sparsity=1.0)
    weights.b_enc[5] = -50.0
    lone = step(weights, 0.1 * x, 0.1 * x, Terms(bandwidth=0.3, target=2.0), **way)[0]
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
    told, grads = step(weights, x, x, Terms(bandwidth=0.5, target=1.0), **way)
    assert told.firings.tolist() == [0, 1, 0, 1, 0, 0, 1, 0]
    assert told.window == 3  # 0.5, 0.5625 and 0.375; not 0.75, 0.25
    assert (grads.threshold != 0).tolist() == [True, False, False, True, False, False, False, True]
    assert_equals_dense(weights, x, way, bandwidth=0.5, target=1.0, sparsity=1.0)


def test_no_feature_leaves_the_decoder_bias_alone() -> None:
    weights = random_weights(10, 6, 0)
    weights.threshold += 1e3
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    told, _ = step(weights, x, x, Terms(bandwidth=0.1, target=2.0, sparsity=3.0))
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


@pytest.mark.parametrize(("theta", "expected"), [(0.01, "densely"), (3.5, "sparsely")])
def test_the_batch_itself_says_whether_dense_products_are_cheaper(
    theta: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    for name in ("densely", "sparsely"):
        original = getattr(objective._Pass, name)
        monkeypatch.setattr(
            objective._Pass, name, lambda *given, name=name, original=original: taken.append(name) or original(*given)
        )
    weights = random_weights(96, 20, 1, theta=theta, spread=0.01)
    x = torch.randn(64, 20, generator=torch.Generator().manual_seed(0))
    step(weights, x, x, Terms(bandwidth=0.01, target=5.0))
    assert taken == [expected]


# --- what a threshold's gradient is for -----------------------------------------------------------------------------


def test_a_thresholds_gradient_is_the_slope_of_the_expected_loss() -> None:
    """Rajamanoharan et al. 2024, section 4: averaged over many samples, the pseudo-derivative estimates dE[loss]/dθ.

    The truth is a central difference of the loss itself, which falls in steps on any one sample.
    """
    d, features, count = 6, 8, 1_000_000
    generator = torch.Generator().manual_seed(0)
    weights = random_weights(features, d, 2)
    weights.threshold = torch.tensor([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    x = torch.randn(count, d, generator=generator)
    _, grads = step(weights, x, x, Terms(bandwidth=0.04, target=1.2, sparsity=0.8))

    def loss(threshold: Tensor) -> float:
        z = x @ weights.W_enc.T + weights.b_enc
        f = z * (z > threshold)
        error = (x - f @ weights.W_dec - weights.b_dec).pow(2).sum(-1).double().mean().item()
        l0 = (f > 0).double().sum(-1).mean().item()
        return error + 0.8 * (l0 / 1.2 - 1) ** 2

    slopes = []
    for feature in range(features):
        shift = torch.zeros(features)
        shift[feature] = 0.02
        slopes.append((loss(weights.threshold + shift) - loss(weights.threshold - shift)) / 0.04)
    scale = max(map(abs, slopes))
    assert scale > 0.05
    for estimated, slope in zip(grads.threshold.tolist(), slopes, strict=True):
        assert estimated == pytest.approx(slope, rel=0.02)


def test_weights_gradients_are_slopes_of_the_loss() -> None:
    """Away from thresholds, an ordinary derivative: moving along −grad lowers the loss by |grad|² to first order."""
    weights = random_weights(64, 16, 4)
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(5))
    terms = Terms(bandwidth=1e-4, target=5.0, sparsity=0.0)
    _, grads = step(weights, x, x, terms)
    for name in ("W_dec", "b_dec"):
        grad = getattr(grads, name)
        rate = 1e-3

        def moved(sign: float, name: str = name, grad: Tensor = grad, rate: float = rate) -> float:
            pushed = Weights(**{**weights.tensors(), name: getattr(weights, name) + sign * rate * grad})
            return step(pushed, x, x, terms)[0].error

        assert (moved(1) - moved(-1)) / (2 * rate) == pytest.approx(grad.pow(2).sum().item(), rel=1e-3)
