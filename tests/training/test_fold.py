"""What is exported is what was trained: encoding and decoding activations as they are equals the training's own forward
on scaled ones, with every number that is folded away random and far from trivial."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gemscope.features.sae import SAE
from gemscope.training.config import TrainConfig
from gemscope.training.fold import Scale, folded
from gemscope.training.gated import GatedWeights
from gemscope.training.objective import Terms, step
from gemscope.training.run import Run
from gemscope.training.weights import Weights

F, D, OUT = 40, 12, 9


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scale_of(seed: int, width: int) -> Scale:
    return Scale(3 * normal(seed, width), (0.02 + normal(seed + 1, 1).abs()).expand(width).clone(), (width,))


def weights_of(out: int, *, skip: bool) -> Weights:
    return Weights(
        W_enc=normal(1, F, D) / D**0.5,
        b_enc=0.2 * normal(2, F),
        W_dec=(0.2 + 3 * normal(3, F, 1).abs()) * normal(4, F, out) / out**0.5,  # norms far from 1
        b_dec=0.3 * normal(5, out),
        threshold=0.4 * normal(6, F).abs(),
        W_skip=normal(7, out, D) / D if skip else None,
    )


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "jumprelu": {"architecture": "jumprelu"},
    "batchtopk": {"architecture": "batchtopk"},
    "matryoshka": {"architecture": "batchtopk", "matryoshka": (0.25, 0.5)},
    "standard": {"architecture": "standard"},
    "topk": {"architecture": "topk"},
    "gated": {"architecture": "gated"},
}


@pytest.mark.parametrize("transcoder", [False, True], ids=["SAE", "transcoder"])
@pytest.mark.parametrize("pre_bias", [False, True], ids=["", "pre-encoder bias"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_exported_weights_do_with_raw_rows_what_training_did_with_scaled_ones(
    name: str, pre_bias: bool, transcoder: bool
) -> None:
    if pre_bias and (transcoder or name == "gated"):
        return  # refused by name: test_train_config
    out = OUT if transcoder else D
    options = ARCHITECTURES[name] | {"pre_bias": pre_bias, "skip": transcoder}
    config = TrainConfig(width=F, target_l0=6.0, rows=1000, batch=100, anneal=0.0, **options)
    x_scale = scale_of(20, D)
    y_scale = scale_of(30, out) if transcoder else x_scale
    run = Run(config, x_scale, y_scale, same=not transcoder)
    run.weights = weights_of(out, skip=transcoder)
    if name == "gated":
        run.weights = replace(GatedWeights.of(run.weights), r_mag=0.3 * normal(8, F), b_mag=0.2 * normal(9, F))
    if name == "standard":
        run.weights.threshold.zero_()
    if name in ("batchtopk", "matryoshka"):
        run.weights.threshold.fill_(0.3)

    x = x_scale.mean + normal(10, 500, D) / x_scale.factor
    scaled = x_scale(x)
    inside, fired = run.reconstructed(scaled)
    gate = {"topk": "topk", "standard": "relu"}.get(name, "jumprelu")
    free = name != "topk"
    sae = SAE(D, F, out, gate=gate, k=6 if name == "topk" else None, skip=transcoder)  # type: ignore[arg-type]
    tensors = folded(run.ungated, x_scale, y_scale, pre_bias=pre_bias, free=free)
    if sae.threshold is None:
        del tensors["threshold"]
    sae.load_state_dict(tensors)

    features = sae.encode(x)
    outside = y_scale(sae.decode(features) if not transcoder else sae(x))
    assert 0 < int(fired.sum()) < 500 * F
    assert (torch.bincount(features.features.long(), minlength=F) - fired).abs().sum() <= 1  # one at its threshold
    error = (outside - inside).norm(dim=-1) / inside.norm(dim=-1)
    assert error.median() < 1e-5
    assert error.sort().values[-2] < 1e-5  # but for that one
    if free:
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(F), rtol=0, atol=1e-6)


def test_a_feature_is_counted_in_the_norm_that_it_writes() -> None:
    scale = scale_of(20, D)
    weights = weights_of(D, skip=False)
    out = folded(weights, scale, scale)
    x = scale.mean + normal(10, 50, D) / scale.factor
    z = scale(x).double() @ weights.W_enc.double().T + weights.b_enc.double()
    written = z * (weights.W_dec.double() / scale.factor.double()).norm(dim=-1)
    torch.testing.assert_close((x @ out["W_enc"] + out["b_enc"]).double(), written, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("widths", [(7,), (3, 5, 4)])
def test_each_of_several_sites_brings_an_equal_share_of_a_mean_squared_norm_of_one(
    widths: tuple[int, ...], centre: bool
) -> None:
    sizes = torch.tensor([11.0, 0.3, 70.0])
    x = torch.cat([size * (1 + normal(40 + i, 400, width)) for i, (size, width) in enumerate(zip(sizes, widths))], 1)  # noqa: B905
    scale = Scale.of(x, widths, centre=centre)
    left = x.double() - (x.double().mean(0) if centre else 0)
    torch.testing.assert_close(scale.mean.double(), x.double().mean(0) * centre, rtol=1e-6, atol=1e-6)
    for part, inside, length in zip(left.split(widths, 1), scale(x).split(widths, 1), scale.lengths, strict=True):
        squared = part.pow(2).sum(-1).mean().item()
        assert inside.double().pow(2).sum(-1).mean().item() == pytest.approx(1 / len(widths), rel=1e-5)
        assert length == pytest.approx(squared**0.5, rel=1e-5)


# --- identities of the loss -----------------------------------------------------------------------------------------


def equal(one: tuple[Any, Weights], other: tuple[Any, Weights]) -> None:
    assert one[0].loss == pytest.approx(other[0].loss, rel=1e-6)
    assert one[0].l0 == other[0].l0
    for name, grad in one[1].tensors().items():
        torch.testing.assert_close(grad, other[1].tensors()[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("gate", ["jumprelu", "topk", "batchtopk", "relu"])
def test_matryoshka_with_one_group_is_the_base(gate: Any) -> None:
    x, weights = normal(10, 200, D), weights_of(D, skip=False)
    penalty = {"jumprelu": "target", "relu": "l1"}.get(gate, "none")
    options: dict[str, Any] = {"gate": gate, "penalty": penalty, "target": 5.0, "sparsity": 0.5}
    options["bandwidth"] = 0.2 if gate == "jumprelu" else 0.0
    equal(step(weights, x, x, Terms(**options)), step(weights, x, x, Terms(**options, prefixes=(F,))))


def test_batchtopk_and_topk_that_let_all_through_are_relu() -> None:
    x, weights = normal(10, 200, D), weights_of(D, skip=False)
    weights.threshold.zero_()
    wanted = step(weights, x, x, Terms(gate="relu", penalty="none"))
    for gate in ("batchtopk", "topk"):
        equal(step(weights, x, x, Terms(gate=gate, penalty="none", target=float(F))), wanted)  # type: ignore[arg-type]


def test_thresholds_of_zero_are_relu() -> None:
    x, weights = normal(10, 200, D), weights_of(D, skip=False)
    weights.threshold.zero_()
    told, grads = step(weights, x, x, Terms(gate="jumprelu", penalty="none", bandwidth=1e-6))
    wanted, relu = step(weights, x, x, Terms(gate="relu", penalty="none"))
    assert told.loss == pytest.approx(wanted.loss, rel=1e-6)
    torch.testing.assert_close(grads.W_enc, relu.W_enc, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("penalty", ["target", "l0", "quadratic", "tanh"])
def test_without_a_feature_the_loss_is_the_distance_to_the_bias(penalty: Any) -> None:
    x, weights = normal(10, 200, D), weights_of(D, skip=False)
    weights.threshold += 1e6
    told, grads = step(weights, x, x, Terms(penalty=penalty, sparsity=0.5, target=4.0, bandwidth=0.1))
    assert told.l0 == 0
    assert told.error == pytest.approx((x - weights.b_dec).pow(2).sum(-1).mean().item(), rel=1e-6)
    assert told.penalty == pytest.approx({"target": 0.5, "quadratic": 0.5 * 2 * 4.0}.get(penalty, 0.0))
    assert told.loss == pytest.approx(told.error + told.penalty, rel=1e-6)
    assert grads.W_dec.abs().max() == 0


# --- rows of norm 1 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["jumprelu", "batchtopk", "standard", "gated"])
def test_rows_of_norm_1_stay_so_and_their_gradient_is_across_them(
    architecture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(
        width=F, target_l0=5.0, rows=30 * 200, batch=200, unit_norm=True, architecture=architecture, lr=1e-2
    )
    scale = Scale(torch.zeros(D), torch.ones(D), (D,))
    run = Run(config, scale, scale, same=True)
    x = normal(10, 200, D) / D**0.5
    run.begin(x)
    along = []
    taken = run.adam.step

    def looks(*args: Any, **kwargs: Any) -> Any:
        grad = run.weights.W_dec.grad
        assert grad is not None
        along.append(((grad * run.weights.W_dec).sum(-1).abs().max() / grad.norm(dim=-1).max()).item())
        return taken(*args, **kwargs)

    monkeypatch.setattr(run.adam, "step", looks)
    before = run.weights.W_dec.clone()
    for _ in range(30):
        run.advance(x, x)
        assert (run.weights.W_dec.norm(dim=-1) - 1).abs().max() < 1e-6
    assert len(along) == 30
    assert max(along) < 1e-6
    assert (run.weights.W_dec - before).norm(dim=-1).min() > 1e-3
