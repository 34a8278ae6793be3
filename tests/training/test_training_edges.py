"""The trainer where it is easily wrong: nothing active, everything active, ties, settings at their limits."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dense import assert_equals_dense, random_weights
from gemscope.activations.site import Site
from gemscope.errors import InputError, NotFinite
from gemscope.features.sae import SAE
from gemscope.progress import silent
from gemscope.training.config import TrainConfig
from gemscope.training.fold import Scale
from gemscope.training.lesson import Lesson
from gemscope.training.objective import Terms, step
from gemscope.training.run import Run
from gemscope.training.train import train
from planted import Given, directions, strengths

SITE = (Site(3, "res"),)


def source(x: Tensor) -> Given:
    return Given(x, x, SITE, SITE, ((x.shape[1],), (x.shape[1],)))


def planted(count: int, features: int = 64, width: int = 32, active: float = 3.0) -> Tensor:
    return strengths(count, features, active, 0) @ directions(features, width, 1)


def trained(config: TrainConfig, x: Tensor, to: Path) -> SAE:
    made = train(source(x), config, to=to)
    assert isinstance(made, SAE)
    return made


# --- thresholds -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")  # many steps
def test_a_run_that_begins_with_half_of_its_features_on_still_comes_down_to_its_target(tmp_path: Path) -> None:
    """A warning says where the target is missed, and warnings are errors here."""
    config = TrainConfig(width=64, target_l0=6.4, rows=80_000, batch=128, lr=2e-3, anneal=0.3)
    assert config.target_at(0) == 32
    x = planted(20_000)
    assert trained(config, x, tmp_path).encode(x[:4000]).mean_l0 == pytest.approx(6.4, rel=0.05)


def test_the_window_around_thresholds_of_zero_stays_open() -> None:
    """They are 0, or nearly, while half of the features are on. Were ε to follow them there, none could ever rise."""
    x = planted(2000)
    run = Run(TrainConfig(width=64, target_l0=6.4, rows=25_600, batch=256), *(Scale.of(x, (32,)),) * 2, same=True)
    rows = run.x(x)
    run.begin(rows)
    run.weights.threshold.fill_(0.0)
    for _ in range(10):
        run.done += 24  # ε is steered in every 25th step
        run.weights.threshold.fill_(0.0)
        told = run.advance(rows[:256], rows[:256])
    z = rows @ run.weights.W_enc.T
    assert run.bandwidth > 0.1 * z.std()
    assert told.window > 0.5


def test_a_target_of_more_than_half_of_the_features_is_aimed_at(tmp_path: Path) -> None:
    config = TrainConfig(width=64, target_l0=40.0, rows=25_600, batch=256, architecture="topk")
    assert config.target_at(config.steps) == 40
    x = planted(5000)
    assert trained(config, x, tmp_path).encode(x[:2000]).mean_l0 > 33  # of 40, those that are positive


# --- counting gates -------------------------------------------------------------------------------------------------


def test_where_fewer_are_positive_than_may_fire_batchtopk_is_exported_without_a_threshold(tmp_path: Path) -> None:
    config = TrainConfig(width=40, target_l0=35.0, rows=10 * 256, batch=256, architecture="batchtopk")
    x = planted(2000)
    run = Run(config, *(Scale.of(x, (32,)),) * 2, same=True)
    rows = run.x(x[:256])
    run.begin(rows)
    run.weights.threshold.fill_(0.5)
    positive = int((rows @ run.weights.W_enc.T > 0).sum())
    assert positive < 35 * 256
    told = run.advance(rows, rows)
    assert told.firings.sum() == positive
    assert (run.weights.threshold == 0).all()
    run.weights.threshold.fill_(0.5)
    with pytest.warns(UserWarning, match=r"L0 .* at the end, 35 was aimed at"):
        sae = trained(config, x, tmp_path)
    assert sae.threshold is not None
    assert sae.encode(x).mean_l0 > 12


@pytest.mark.parametrize("wanted", [3.0, 0.001])
def test_ties_at_the_edge_of_a_batch_fire_together(wanted: float) -> None:
    weights = random_weights(30, 12, 3)
    weights.threshold.fill_(0.0)
    x = torch.randn(1, 12, generator=torch.Generator().manual_seed(5)).repeat(8, 1)
    told, grads = step(weights, x, x, Terms(gate="batchtopk", penalty="none", target=wanted))
    assert sorted(set(told.firings.tolist())) == [0, 8]
    assert told.firings.sum() == max(8, 8 * round(wanted))
    assert told.tau > 0
    assert all(grad.isfinite().all() for grad in grads.tensors().values())


def test_when_just_as_many_are_positive_as_may_fire_the_smallest_of_them_is_the_edge() -> None:
    weights = random_weights(30, 12, 3)
    weights.threshold.fill_(0.0)
    x = torch.randn(10, 12, generator=torch.Generator().manual_seed(5))
    z = x @ weights.W_enc.T + weights.b_enc
    count = int((z > 0).sum())
    told, _ = step(weights, x, x, Terms(gate="batchtopk", penalty="none", target=count / 10))
    assert told.firings.sum() == count
    written = z * weights.W_dec.norm(dim=-1)
    assert told.tau == pytest.approx(written[z > 0].min().item(), rel=1e-4)


# --- nothing and everything -----------------------------------------------------------------------------------------

EVERY: list[dict[str, Any]] = [
    {"penalty": "target", "bandwidth": 0.2},
    {"penalty": "quadratic", "bandwidth": 0.2},
    {"penalty": "tanh", "bandwidth": 0.2},
    {"gate": "relu", "penalty": "l1"},
    {"gate": "topk", "penalty": "none"},
    {"gate": "batchtopk", "penalty": "none"},
]


@pytest.mark.parametrize(
    "options", EVERY, ids=lambda options: f"{options.get('gate', 'jumprelu')} {options['penalty']}"
)
@pytest.mark.parametrize("bias", [-100.0, 100.0], ids=["nothing", "everything"])
def test_batches_with_nothing_or_everything_positive(options: dict[str, Any], bias: float) -> None:
    weights = random_weights(40, 12, 3)
    weights.b_enc.fill_(bias)
    weights.threshold.fill_(0.0)
    x = torch.randn(30, 12, generator=torch.Generator().manual_seed(2))
    for dense in (False, True):
        assert_equals_dense(weights, x, {"dense": dense}, target=5.0, prefixes=(1, 2, 40), **options)


def test_silent_features_learn_nothing_from_an_error_that_is_the_same_on_every_row() -> None:
    weights = random_weights(40, 12, 3)
    weights.b_enc.fill_(-100.0)
    x = torch.randn(1, 12, generator=torch.Generator().manual_seed(2)).repeat(5, 1)
    everything = torch.ones(40, dtype=torch.bool)
    told, grads = step(weights, x, x, Terms(gate="relu", penalty="l1", auxiliary=1 / 32), silent=everything)
    assert told.auxiliary == 0
    assert grads.W_enc.abs().max() == grads.W_dec.abs().max() == 0


def test_a_gradient_that_overflows_ends_the_run_and_spares_the_weights() -> None:
    """The loss is still finite there, and weights of NaN would let nothing fire, and no error be seen."""
    config = TrainConfig(width=40, target_l0=5.0, rows=2560, batch=256, architecture="topk")
    x = planted(256)
    run = Run(config, *(Scale.of(x, (32,)),) * 2, same=True)
    rows = run.x(x)
    run.begin(rows)
    run.weights.W_enc *= 1e-14
    run.weights.W_dec *= 1e31
    with pytest.raises(NotFinite, match=r"the gradient is (inf|nan) at step 0"):
        run.advance(rows, rows)
    assert all(tensor.isfinite().all() for tensor in run.weights.tensors().values())


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 100, "matryoshka": (0.001,)}, "each of at least one feature more"),
        ({"architecture": "topk", "target_l0": 0.4}, "k is a whole number"),
        ({"architecture": "topk", "target_l0": 2.5}, "k is a whole number"),
    ],
)
def test_settings_that_would_train_something_else_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(**{"target_l0": 5.0, **settings})


# --- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"architecture": "gated", "sparsity": 0.3, "skip": True}, "transcoder"),
        ({"architecture": "topk", "auxiliary": 1 / 32, "patience": 512, "matryoshka": (0.5,)}, "sae"),
        ({"architecture": "standard", "sparsity": 0.1, "resample": 2048, "patience": 512}, "crosscoder"),
        ({"architecture": "jumprelu", "penalty": "tanh", "sparsity": 0.1, "to_input": True}, "crosscoder"),
        ({"architecture": "batchtopk", "pre_bias": True, "unit_norm": True}, "sae"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["architecture"],
)
def test_every_kind_goes_on_as_if_it_had_not_been_cut_off(settings: dict[str, Any], kind: str, tmp_path: Path) -> None:
    x = planted(4000)
    sites = {"sae": (SITE, SITE, ((32,), (32,))), "transcoder": (SITE, (Site(4, "mlp"),), ((32,), (20,)))}
    sites["crosscoder"] = ((Site(3, "res"), Site(7, "res")),) * 2 + (((12, 20), (12, 20)),)
    given = Given(x, x[:, :20].abs() if kind == "transcoder" else x, *sites[kind])
    config = TrainConfig(
        width=48, target_l0=4.0, rows=30 * 256, batch=256, lr=2e-3, checkpoint_every=7, log_every=5, **settings
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a run so short misses its target
        train(given, config, to=tmp_path / "whole")
        lesson = Lesson(given, {"": config}, tmp_path / "cut", None, ())
        for _, number in zip(lesson.steps(silent), range(19), strict=False):
            assert number < 19
        train(given, config, to=tmp_path / "cut")
    for name in ("log.jsonl", "sae/sae_weights.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
