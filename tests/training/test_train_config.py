"""The numbers of a run: what is refused and how, what the schedules do, and that the recipes are what they say and train."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gemscope.activations.store import Store
from gemscope.errors import InputError
from gemscope.training.config import TrainConfig
from gemscope.training.log import read
from gemscope.training.train import train
from lessons import SITE, Pairs, lesson_of, planted, store_of

ROOT = Path(__file__).parents[2]
RECIPES = sorted({*(ROOT / "recipes").glob("*.toml")} - {*(ROOT / "recipes").glob("scope-*")})
"""Of one run each; those of scopes are tests/scope's."""


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("targetl0", "target_l0"),
        ("learning_rate", None),
        ("treshold_lr", "threshold_lr"),
        ("anneal_form", "anneal_from"),
    ],
)
def test_an_unknown_setting_names_the_nearest_real_one(wrong: str, near: str | None, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f"[train]\n{wrong} = 1\n")
    with pytest.raises(InputError) as raised:
        TrainConfig.read(path)
    said = str(raised.value)
    assert said.startswith(f"{path} has no meaning for {wrong!r}")
    assert (f"did you mean {near!r}?" in said) if near else ("known are" in said and "batch" in said)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("options", "both"),
    [
        ({"target_l0": 6144.0}, ("target_l0", "width")),
        ({"rows": 100}, ("rows", "batch")),
        ({"warmup": 0.8, "decay": 0.3}, ("warmup", "decay")),
        ({"architecture": "topk", "penalty": "l0"}, ("penalty", "architecture")),
        ({"architecture": "standard", "penalty": "target"}, ("penalty", "architecture")),
        ({"penalty": "l1"}, ("penalty", "architecture")),
        ({"architecture": "batchtopk", "to_input": True}, ("to_input", "architecture")),
        ({"architecture": "topk", "bandwidth": 0.1}, ("bandwidth", "architecture")),
        ({"architecture": "gated", "threshold_init": 0.1}, ("threshold_init", "architecture")),
        ({"resample": 1000}, ("resample", "architecture")),
        ({"architecture": "gated", "matryoshka": (0.5,)}, ("matryoshka", "architecture")),
        ({"architecture": "gated", "pre_bias": True}, ("pre_bias", "architecture")),
        ({"architecture": "gated", "auxiliary": 0.1}, ("auxiliary", "architecture")),
        ({"matryoshka": (0.5, 0.25)}, ("matryoshka", "width")),
        ({"matryoshka": (0.5, 0.50001)}, ("matryoshka", "width")),
    ],
)
def test_what_cannot_go_together_is_refused_naming_both(options: dict[str, Any], both: tuple[str, str]) -> None:
    with pytest.raises(InputError) as raised:
        TrainConfig(**options)
    for name in both:
        assert name in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"architecture": "jumprele"},
        {"penalty": "targets"},
        {"warmup_shape": "cosin"},
        {"beta2": 1.0},
        {"matryoshka": ["a"]},
        {"matryoshka": [0.5, 1]},
        {"matryoshka": [math.nan]},
        {"lr": math.inf},
        {"clip": 10**400},
        {"width": True},
        {"skip": 1},
        {"architecture": 3},
        {"keep": 0},
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        TrainConfig.of(wrong)


def test_settings_that_a_program_makes_are_held_to_the_same_bounds() -> None:
    for wrong in ({"width": 0}, {"lr": math.nan}, {"warmup": 1.5}, {"matryoshka": (0.5, math.nan)}, {"seed": 2**60}):
        with pytest.raises(InputError, match=f'field "{next(iter(wrong))}.*expected a'):
            TrainConfig(**wrong)  # type: ignore[arg-type]


def test_a_recipe_says_what_it_is() -> None:
    config = TrainConfig(width=64, matryoshka=(0.25, 0.5), target_l0=4.0)
    assert TrainConfig.of(config.to_dict()) == config
    assert config.prefixes == (16, 32, 64)
    assert config.changed({"matryoshka": 0.5}).prefixes == (32, 64)
    assert config.changed({"width": 32}).prefixes == (8, 16, 32)


# --- schedules ------------------------------------------------------------------------------------------------------


def test_a_cosine_warm_up_rises_from_a_tenth() -> None:
    config = TrainConfig(rows=2048 * 1000, batch=2048, lr=1.0, warmup=0.1, warmup_shape="cosine", decay=0.2)
    rates = [config.lr_at(step) for step in range(1000)]
    for step in range(100):
        rise = (step + 1) / 100
        assert rates[step] == pytest.approx(0.1 + 0.9 * (1 - math.cos(math.pi * rise)) / 2)
    assert rates[0] < 0.11
    assert rates[49] == pytest.approx(0.55)
    assert rates[99:800] == pytest.approx([1.0] * 701)
    assert rates[900] == pytest.approx(0.5)


def test_schedules_are_lines_between_their_corners() -> None:
    """By interpolation between the points that the docstrings name."""
    config = TrainConfig(rows=2048 * 1000, batch=2048, lr=2.0, warmup=0.1, decay=0.25, target_l0=20.0, width=4096,
                         anneal=0.5, anneal_from=8.0)  # fmt: skip
    assert config.steps == 1000
    for step in (0, 1, 50, 98, 99, 100, 249, 250, 300, 399, 400, 500, 700, 750, 751, 900, 999):
        done = step / 1000
        rate = 2 * min(np.interp((step + 1) / 1000, [0, 0.1], [0, 1]), np.interp(done, [0.75, 1], [1, 0]))
        assert config.lr_at(step) == pytest.approx(rate)
        for d in (4, 576):
            own = np.interp(done, [0.25, 0.4], [max(1, d**0.5 / 3), 1])
            assert config.threshold_lr_at(step, d) == pytest.approx(rate * own)
        assert replace(config, threshold_lr=5.0).threshold_lr_at(step, 4) == pytest.approx(
            rate * np.interp(done, [0.25, 0.4], [5, 1])
        )
        target = math.exp(np.interp(done, [0, 0.5], [math.log(160), math.log(20)]))
        assert config.target_at(step) == pytest.approx(target)
        assert config.frequency_limit_at(step) == pytest.approx(min(1, config.frequency_limit * target / 20))
    assert replace(config, width=100).target_at(0) == 50  # half of all features at most
    assert replace(config, width=30).target_at(0) == 20  # but never below the last one


def test_sparsity_rises_from_nothing_over_its_share() -> None:
    config = TrainConfig(rows=2048 * 1000, batch=2048, sparsity=0.5, sparsity_warmup=0.25)
    assert config.sparsity_at(0) == pytest.approx(0.5 / 250)
    assert config.sparsity_at(124) == pytest.approx(0.25)
    assert config.sparsity_at(249) == config.sparsity_at(999) == 0.5
    assert replace(config, sparsity_warmup=0.0).sparsity_at(0) == 0.5


def test_without_warm_up_decay_and_anneal_everything_is_constant() -> None:
    config = TrainConfig(rows=2048 * 100, batch=2048, warmup=0.0, decay=0.0, anneal=0.0, lr=1.0, threshold_lr=1.0)
    for step in (0, 50, 99):
        assert (config.lr_at(step), config.threshold_lr_at(step, 576), config.target_at(step)) == (1.0, 1.0, 50.0)


# --- the target -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    generator = torch.Generator().manual_seed(0)
    rows = planted(3000, d=16, features=24, active=3, seed=0)[0] + 0.1 * torch.randn(3000, 16, generator=generator)
    return store_of(rows, tmp_path_factory.mktemp("store") / "small")


SMALL = TrainConfig(width=48, target_l0=4.0, rows=60 * 64, batch=64, lr=3e-3, anneal=0.3)


@pytest.mark.parametrize("target", [2.0, 3.7, 9.0])
def test_batchtopk_is_calibrated_to_its_target_exactly(target: float, store: Store, tmp_path: Path) -> None:
    lesson = lesson_of(store, replace(SMALL, architecture="batchtopk", target_l0=target), tmp_path)
    run = lesson.runs[""]
    x = lesson.x(store[SITE][slice(0, 3000)])
    for step in range(20):
        run.advance(lesson.x(lesson.batches[step][0]), lesson.x(lesson.batches[step][0]))
    assert run.meet_target(x) == round(target * 3000) / 3000
    z = x.double() @ run.weights.W_enc.double().T + run.weights.b_enc.double()
    assert ((z > run.weights.threshold.double()) & (z > 0)).sum().item() == pytest.approx(target * 3000, abs=2)


def test_while_the_target_is_annealed_firing_often_costs_nothing(store: Store, tmp_path: Path) -> None:
    penalties = []
    for weight in (0.0, 5.0):
        lesson = lesson_of(store, replace(SMALL, frequency=weight, frequency_limit=0.1), tmp_path / str(weight))
        rows = lesson.x(lesson.batches[0][0])
        penalties.append([lesson.runs[""].advance(rows, rows).penalty for _ in range(60)])
    plain, hinged = penalties
    assert hinged[0] == plain[0]  # L0 is 24 of 48 features: each of them fires on half of the rows
    assert max(hinged[20:40]) > 2 * max(plain[20:40])


def test_features_that_lie_below_zero_on_every_row_come_back(store: Store, tmp_path: Path) -> None:
    lesson = lesson_of(store, replace(SMALL, rows=120 * 64, patience=5 * 64), tmp_path)
    run = lesson.runs[""]
    run.weights.b_enc[:6] = -0.2
    firings = torch.zeros(48, dtype=torch.int64)
    for step in range(120):
        rows = lesson.x(lesson.batches[step][0])
        if step < 5:
            assert not ((rows @ run.weights.W_enc[:6].T + run.weights.b_enc[:6]) > 0).any()  # no threshold would do
        firings += run.advance(rows, rows).firings
    assert (firings[:6] > 0).all()


def test_batchtopk_ranks_by_what_a_feature_writes_and_is_exported_with_one_threshold(
    store: Store, tmp_path: Path
) -> None:
    sae = train(store, replace(SMALL, architecture="batchtopk"), to=tmp_path)
    assert sae.threshold is not None
    torch.testing.assert_close(sae.threshold, sae.threshold[:1].expand(48), rtol=1e-5, atol=0)


def test_an_l0_far_from_its_target_is_said(store: Store, tmp_path: Path) -> None:
    config = replace(
        SMALL, threshold_init=1e-12, rows=64, target_l0=2.0, lr=1e-15
    )  # no factor up to 64 makes much of that
    with pytest.warns(UserWarning, match=r"L0 \d+\.\d at the end, 2 was aimed at"):
        train(store, config, to=tmp_path)


def test_a_penalty_that_knows_no_target_is_not_held_to_it(store: Store, tmp_path: Path) -> None:
    sae = train(store, replace(SMALL, penalty="l0", sparsity=1e-5), to=tmp_path)
    assert sae.info.declared_l0 is not None
    assert sae.info.declared_l0 > 1.15 * 4


@pytest.mark.usefixtures("unchecked")  # many steps
@pytest.mark.parametrize("penalty", ["target", "quadratic"])
def test_two_hundred_steps_are_enough_for_an_l0_near_the_target(penalty: Any, store: Store, tmp_path: Path) -> None:
    sae = train(store, replace(SMALL, penalty=penalty, rows=200 * 64), to=tmp_path)
    assert sae.encode(store[SITE][slice(0, 3000)]).mean_l0 == pytest.approx(4, rel=0.1)


def test_the_keys_of_the_log_are_those_that_the_page_explains(store: Store, tmp_path: Path) -> None:
    train(store, replace(SMALL, rows=10 * 64), to=tmp_path, held_out=store)
    written = {key for line in read(tmp_path / "log.jsonl") for key in line} - {"step", "rows"}
    rows = (ROOT / "docs" / "training.md").read_text().partition("| key | it is |")[2].partition("\n\n**")[0]
    named = {key for row in rows.splitlines() for key in re.findall(r"`(\w+)`", row[: row.find("|", 2)])}
    named -= {"_l0", "_dead", "_dense"}  # after held_out_fvu
    assert named | {"held_out_l0", "held_out_dead", "held_out_dense"} == written


# --- recipes --------------------------------------------------------------------------------------------------------


def test_the_recipes_are_these() -> None:
    assert [path.stem for path in RECIPES] == [
        "batchtopk", "gemma-scope-1", "gemma-scope-2", "jumprelu", "matryoshka", "smollm2-15-res", "transcoder",
    ]  # fmt: skip


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:.*was aimed at")
def test_every_recipe_trains(path: Path, store: Store, tmp_path: Path) -> None:
    """Scaled down in size alone."""
    small = {"width": 64, "rows": 20 * 64, "batch": 64, "target_l0": 5.0, "checkpoint_every": 10, "log_every": 5}
    config = TrainConfig.read(path).changed(small)
    options: dict[str, Any] = {}
    if config.skip:
        x = store[SITE][slice(0, 1000)]
        source: Any = Pairs(x, torch.relu(x))
    else:
        source, options = store, {"held_out": store}
    sae = train(source, config, to=tmp_path, **options)
    lines = read(tmp_path / "log.jsonl")
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert sae.gate == "jumprelu"
    assert (sae.W_skip is not None) == config.skip
    assert sae.info.metadata["training"] == config.to_dict()


def test_gemma_scope_s_constants_are_the_papers() -> None:
    first = TrainConfig.read(next(path for path in RECIPES if path.stem == "gemma-scope-1"))
    second = TrainConfig.read(next(path for path in RECIPES if path.stem == "gemma-scope-2"))
    for one in (first, second):
        assert (one.lr, one.beta1, one.beta2, one.batch) == (7e-5, 0.0, 0.999, 4096)
        assert (one.threshold_init, one.bandwidth, one.unit_norm, one.centre) == (0.001, 0.001, True, False)
        assert one.lr_at(0) == pytest.approx(7e-6, rel=0.01)  # a tenth
        assert one.lr_at(1000) == one.lr_at(one.steps - 1) == 7e-5
        assert one.threshold_lr_at(500_000, 2304) == 7e-5
        assert one.lr_at(300) < 7e-5
    assert first.penalised == "l0"
    assert first.sparsity == 6e-4
    assert first.sparsity_at(10_000) == pytest.approx(6e-4)
    assert first.sparsity_at(4_999) == pytest.approx(3e-4, rel=0.03)
    assert second.penalised == "quadratic"
    assert second.sparsity_at(24_999) == pytest.approx(3e-4, rel=0.03)
    assert second.prefixes == (1024, 2048, 4096, 8192, 16384)
    assert (second.frequency > 0, second.frequency_limit_at(0)) == (True, 0.1)


def test_a_feature_may_fire_as_many_times_more_as_the_target_is_above_the_last_one() -> None:
    config = TrainConfig(rows=100_000, batch=100, anneal=0.2, anneal_from=4, frequency=1, frequency_limit=0.1)
    assert config.frequency_limit_at(0) == pytest.approx(0.4)
    assert config.frequency_limit_at(100) == pytest.approx(0.2)
    assert config.frequency_limit_at(200) == config.frequency_limit_at(999) == 0.1
    assert replace(config, anneal_from=50).frequency_limit_at(0) == 1.0


def test_the_recipe_of_the_default_sae_keeps_its_schedule() -> None:
    config = TrainConfig.read(next(path for path in RECIPES if path.stem == "smollm2-15-res"))
    assert config.steps == config.rows // config.batch
    assert config.lr_at(config.steps // 4) == config.lr
    assert config.lr_at(config.steps * 5 // 8) == pytest.approx(config.lr / 2, rel=1e-3)
    assert config.target_at(0) == config.anneal_from * config.target_l0
    assert config.target_at(config.steps) == config.target_l0
    assert config.threshold_lr_at(config.steps // 10, 576) == pytest.approx(8 * config.lr)
    assert (config.anneal, config.patience) == (0.1, 256_000)
    assert config.threshold_lr_at(config.steps // 2, 576) == config.lr_at(config.steps // 2)
