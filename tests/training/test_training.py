"""The trainer: what it exports, that it repeats itself exactly, that a run which was cut off loses nothing, and that
it finds features that were planted."""

from __future__ import annotations

import errno
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gemscope.activations.site import Site
from gemscope.activations.store import Store
from gemscope.checked import checksum_of
from gemscope.errors import CorruptFile, InputError, Mismatch, NotFinite, NotFound, StorageFull
from gemscope.features.kernels.plain import Plain
from gemscope.features.metrics import Variance
from gemscope.features.sae import SAE
from gemscope.progress import silent
from gemscope.training import checkpoint
from gemscope.training.config import TrainConfig
from gemscope.training.lesson import Lesson
from gemscope.training.train import train
from lessons import SITE, PowerCut, assert_same, cut_off_at, lesson_of, planted, store_of


def mmcs(found: Tensor, truth: Tensor) -> float:
    """Mean over the true directions of the best cosine that a learned one has with it."""
    return (truth @ (found / found.norm(dim=-1, keepdim=True)).T).max(dim=-1).values.mean().item()


SMALL = TrainConfig(width=48, target_l0=4.0, rows=60 * 256, batch=256, lr=2e-3, checkpoint_every=20, anneal=0.3, seed=5)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Store:
    rows, _ = planted(5_000, d=16, features=24, active=2, seed=0)
    return store_of(3 * rows + 2 * torch.arange(16), tmp_path_factory.mktemp("store") / "small")


# --- what it exports ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(small: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lesson, SAE]:
    lesson = lesson_of(small, SMALL, tmp_path_factory.mktemp("run") / "a")
    for _ in lesson.steps(silent):
        pass
    run = lesson.runs[""]
    # Nothing may be left to chance by values that happen to be near zero.
    generator = torch.Generator().manual_seed(9)
    run.weights.b_dec += 0.1 * torch.randn(16, generator=generator)
    run.weights.b_enc += 0.05 * torch.randn(48, generator=generator)
    run.weights.W_dec *= 0.3 + 2 * torch.rand(48, 1, generator=generator)
    run.weights.threshold *= 0.5 + torch.rand(48, generator=generator)
    return lesson, lesson.saes()[""]


def test_the_exported_sae_reads_raw_activations_as_training_read_scaled_ones(
    finished: tuple[Lesson, SAE], small: Store
) -> None:
    lesson, sae = finished
    x = small[SITE][slice(0, 700)]
    scaled = lesson.x(x)
    assert scaled.mean(0).abs().max() < 0.1
    assert scaled.pow(2).sum(-1).mean().item() == pytest.approx(1, abs=0.1)
    inside, counts = lesson.runs[""].reconstructed(scaled)
    outside = sae(x)
    raw = inside / lesson.x.factor + lesson.x.mean
    torch.testing.assert_close(outside, raw, rtol=1e-5, atol=1e-4)
    features = sae.encode(x)
    fired = torch.bincount(features.features.long(), minlength=48)
    assert (fired - counts).abs().sum() <= 2  # an entry at its threshold may fall either way


def test_the_exported_decoder_has_unit_rows(finished: tuple[Lesson, SAE]) -> None:
    torch.testing.assert_close(finished[1].W_dec.norm(dim=-1), torch.ones(48), rtol=0, atol=1e-6)


def test_thresholds_are_rescaled_to_meet_the_target(finished: tuple[Lesson, SAE], small: Store) -> None:
    _, sae = finished
    l0 = sae.encode(small[SITE][slice(0, 5000)]).mean_l0
    assert l0 == pytest.approx(4, rel=0.04)  # many rows are equal: it falls in steps
    assert sae.info.declared_l0 == pytest.approx(l0, rel=0.01)


def test_the_target_is_met_from_far_away(small: Store, tmp_path: Path) -> None:
    lesson = lesson_of(small, replace(SMALL, anneal_from=3.0), tmp_path)  # not one step: 3 times too dense
    run, x = lesson.runs[""], lesson.x(lesson.batches[0][0])
    assert run.l0(x) > 11
    sae = lesson.saes()[""]
    assert sae.encode(small[SITE][slice(0, 5000)]).mean_l0 == pytest.approx(4, rel=0.02)
    run.weights.threshold *= 3  # too sparse
    assert run.l0(x) < 1
    assert lesson.saes()[""].encode(small[SITE][slice(0, 5000)]).mean_l0 == pytest.approx(4, rel=0.02)


def test_what_it_was_made_for_travels_with_the_sae(finished: tuple[Lesson, SAE]) -> None:
    sae = finished[1]
    assert sae.site == SITE
    assert sae.info.model == "planted"
    assert sae.info.metadata["training"]["seed"] == 5  # type: ignore[index]
    assert sae.info.metadata["rows_harvested"] == 5000


# --- it repeats itself ----------------------------------------------------------------------------------------------


def weights_in(run: Path) -> dict[str, Tensor]:
    return load_file(run / "sae" / "sae_weights.safetensors")


def log_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(small: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "whole"
    train(small, SMALL, to=run)
    return run


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(small: Store, whole: Path, tmp_path: Path) -> None:
    train(small, SMALL, to=tmp_path / "again")
    train(small, replace(SMALL, seed=6), to=tmp_path / "other")
    first = (whole / "sae" / "sae_weights.safetensors").read_bytes()
    assert (tmp_path / "again" / "sae" / "sae_weights.safetensors").read_bytes() == first
    assert (tmp_path / "other" / "sae" / "sae_weights.safetensors").read_bytes() != first


def test_the_searchs_number_format_changes_no_bit(
    small: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for place in ("objective", "weights"):
            monkeypatch.setattr(f"gemscope.training.{place}.choose", lambda _, dtype=dtype: Plain(dtype))
        train(small, SMALL, to=tmp_path / str(dtype))
    assert_same(weights_in(tmp_path / "torch.float32"), weights_in(tmp_path / "torch.bfloat16"))


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(
    small: Store, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    for step in (35, 52):  # the second crash comes before the checkpoint that would cover it
        with monkeypatch.context() as patch:
            cut_off_at(step, patch)
            with pytest.raises(PowerCut):
                train(small, SMALL, to=run)
    assert [path.name for path in run.glob("state-*")] == ["state-00000040"]
    train(small, SMALL, to=run)
    assert_same(weights_in(run), weights_in(whole))
    names = [f"state-{60:08d}/tensors.safetensors"]
    for name in names:  # Adam's moments and the record of who fired when, too
        assert_same(load_file(run / name), load_file(whole / name))
    states = [json.loads((path / "state-00000060" / "state.json").read_text()) for path in (run, whole)]
    assert states[0] == states[1]
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_the_log_of_a_resumed_run_has_every_line_once(
    small: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, log_every=5)
    train(small, config, to=tmp_path / "whole", held_out=small)
    with monkeypatch.context() as patch:
        cut_off_at(37, patch)
        with pytest.raises(PowerCut):
            train(small, config, to=tmp_path / "run", held_out=small)
    assert log_of(tmp_path / "run")[-1]["step"] == 35
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"step": 36, "lo')  # the power went in the middle of a line
    train(small, config, to=tmp_path / "run", held_out=small)
    resumed, straight = log_of(tmp_path / "run"), log_of(tmp_path / "whole")
    assert resumed == straight
    assert [line["step"] for line in resumed] == list(range(5, 61, 5))
    assert {"held_out_fvu", "held_out_l0"} <= straight[-1].keys()


def test_a_finished_run_started_again_exports_the_same(small: Store, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "sae")
    train(small, SMALL, to=tmp_path / "run")
    assert_same(weights_in(tmp_path / "run"), weights_in(whole))


def test_a_run_with_other_settings_is_refused(small: Store, whole: Path) -> None:
    with pytest.raises(Mismatch, match="other settings or data"):
        train(small, replace(SMALL, lr=1e-3), to=whole)


def test_a_run_on_other_data_is_refused(whole: Path, tmp_path: Path) -> None:
    rows, _ = planted(4_000, d=16, features=24, active=2, seed=1)
    with pytest.raises(Mismatch, match="other settings or data"):
        train(store_of(rows, tmp_path / "other"), SMALL, to=whole)


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: truncate(state / "tensors.safetensors"),
        lambda state: truncate(state / "state.json"),
        lambda state: (state / "state.json").write_text("[]"),
        lambda state: (state / "tensors.safetensors").unlink(),
        lambda state: drop(state / "tensors.safetensors", "adam.b_enc.exp_avg"),
        lambda state: drop(state / "tensors.safetensors", "threshold"),
    ],
)
def test_a_damaged_checkpoint_is_one_clear_line(damage, small: Store, whole: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(whole, tmp_path / "run")
    damage(tmp_path / "run" / "state-00000060")
    with pytest.raises(CorruptFile, match="remove it to start over") as raised:
        train(small, SMALL, to=tmp_path / "run")
    assert "\n" not in str(raised.value)


FORGED: dict[str, dict[str, Any]] = {
    "there is no b_enc": {"b_enc": None},
    "W_dec is float32 of shape": {"W_dec": torch.zeros(())},
    "W_enc is float64": {"W_enc": torch.zeros(48, 16).double()},
    "threshold is float32 of shape": {"threshold": torch.zeros(47)},
    "adam.b_dec.exp_avg_sq is float32 of shape": {"adam.b_dec.exp_avg_sq": torch.zeros(1)},
    "adam.W_enc.exp_avg holds NaN": {"adam.W_enc.exp_avg": torch.full((48, 16), math.nan)},
    "adam.b_enc.exp_avg_sq holds numbers": {"adam.b_enc.exp_avg_sq": torch.full((48,), -1.0)},
    "adam.threshold.step holds numbers": {"adam.threshold.step": torch.tensor(-1.0)},
    "threshold holds numbers": {"threshold": torch.full((48,), -1.0)},
    "fired_at holds numbers": {"fired_at": torch.full((48,), 61)},
    "fired_at is float32": {"fired_at": torch.zeros(48)},
    '"r_mag" is not known': {"r_mag": torch.zeros(48)},
    "at step 61 of 60": {"step": 61},
    "1000 of them clipped": {"clipped": 1000},
    'field "step" is -1': {"step": -1},
    'field "clipped" is -1': {"clipped": -1},
    'field "bandwidth" is -0.5': {"bandwidth": -0.5},
    'field "bandwidth" is 1e\\+300': {"bandwidth": 1e300},
    'field "identity" is an empty list': {"identity": []},
}
"""What is said of a checkpoint in which that stands, None for what is not there."""


@pytest.mark.parametrize("told", FORGED)
def test_a_checkpoint_that_passes_its_checksum_and_cannot_be_is_one_clear_line(
    told: str, small: Store, whole: Path, tmp_path: Path
) -> None:
    """Shapes that no check stopped went on to write beyond their memory."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    state = run / "state-00000060"
    tensors = {name: tensor.clone() for name, tensor in load_file(state / "tensors.safetensors").items()}
    said = json.loads((state / "state.json").read_text())
    del said["checksum"]
    for name, value in FORGED[told].items():
        where = tensors if name in tensors or isinstance(value, Tensor) else said
        where[name] = value
        if value is None:
            del where[name]
    save_file(tensors, state / "tensors.safetensors")
    (state / "state.json").write_text(json.dumps({**said, "checksum": checksum_of(tensors, said)}))
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    with pytest.raises(CorruptFile, match=f"state-00000060 is damaged: .*{told}.*; remove it to start over"):
        train(small, SMALL, to=run)
    assert {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()} == before


def test_a_checkpoint_of_other_settings_whatever_they_are_is_named_as_such(
    small: Store, whole: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    state = run / "state-00000060"
    said = json.loads((state / "state.json").read_text())
    said["identity"]["config"] = [5]
    del said["checksum"]
    tensors = load_file(state / "tensors.safetensors")
    (state / "state.json").write_text(json.dumps({**said, "checksum": checksum_of(tensors, said)}))
    with pytest.raises(Mismatch, match="other settings or data"):
        train(small, SMALL, to=run)


@pytest.mark.filterwarnings("ignore:.*was aimed at")
@pytest.mark.parametrize("lr", [1e37, 1e38, 1e300])
def test_weights_that_ran_away_in_the_last_step_are_no_sae(lr: float, small: Store, tmp_path: Path) -> None:
    """No loss is computed after it: it wrote an SAE of NaN, and said nothing."""
    with pytest.raises(NotFinite, match="try a lower lr"):
        train(small, replace(SMALL, lr=lr, rows=SMALL.batch, warmup=0.0), to=tmp_path / "run")
    assert not (tmp_path / "run" / "sae").exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop(path: Path, name: str) -> None:
    tensors = {key: value.clone() for key, value in load_file(path).items() if key != name}
    save_file(tensors, path)


def test_a_crash_while_writing_a_checkpoint_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, 1, {"a": torch.ones(3)}, {"told": 1})
    for place in ("gemscope.training.checkpoint.save_file", "os.replace"):

        def dies(*args: object, place: str = place, **kwargs: object) -> None:
            raise PowerCut

        with monkeypatch.context() as patch:
            patch.setattr(place, dies)
            with pytest.raises(PowerCut):
                checkpoint.save(tmp_path, 2, {"a": torch.zeros(3)}, {"told": 2})
        found = checkpoint.newest(tmp_path)
        assert found is not None
        assert torch.equal(found[0]["a"], torch.ones(3))
        assert found[1] == {"step": 1, "told": 1}
    checkpoint.save(tmp_path, 2, {"a": torch.zeros(3)}, {"told": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["state-00000002"]


def test_a_crash_before_the_old_checkpoint_is_gone_leaves_the_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, 999, {"a": torch.ones(3)}, {})
    real = shutil.rmtree

    def dies(path: Path, **kwargs: Any) -> None:
        if path.name == "state-00000999":
            raise PowerCut
        real(path, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", dies)
        with pytest.raises(PowerCut):
            checkpoint.save(tmp_path, 1000, {"a": torch.zeros(3)}, {})
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found[1]["step"] == 1000


def test_a_full_disk_keeps_the_last_checkpoint_and_nothing_half_written(
    small: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def fills(tensors: dict[str, Tensor], path: Path, facts: None = None) -> None:
        if written:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", fills)
    with pytest.raises(StorageFull, match="can go on from its last checkpoint"):
        train(small, SMALL, to=tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir() if "state" in path.name] == ["state-00000020"]
    monkeypatch.undo()
    train(small, SMALL, to=tmp_path / "run")


# --- settings and input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"target_l0": 6144.0},
        {"rows": 100},
        {"lr": -1.0},
        {"lr": math.nan},
        {"lr": "fast"},
        {"width": 10.5},
        {"seed": True},
        {"warmup": 0.9},
        {"decay": 1.5},
        {"anneal": -0.1},
        {"sparsity": -1},
        {"breadth": 3},
    ],
)
def test_impossible_settings_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        TrainConfig.of(wrong)


def test_a_recipe_is_a_toml_table(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[train]\nwidth = 128\ntarget_l0 = 9\nlr = 1e-3\n")
    assert TrainConfig.read(path) == TrainConfig(width=128, target_l0=9.0, lr=1e-3)
    path.write_text("width = 128\n")
    with pytest.raises(InputError, match=r"\[train\]"):
        TrainConfig.read(path)
    path.write_text("[train\n")
    with pytest.raises(CorruptFile, match="not TOML"):
        TrainConfig.read(path)
    with pytest.raises(NotFound):
        TrainConfig.read(tmp_path / "none.toml")


def test_schedules_begin_and_end_where_they_should() -> None:
    config = TrainConfig(rows=2048 * 1000, batch=2048, lr=1.0, target_l0=50.0, anneal=0.2)
    rates = [config.lr_at(step) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 20)
    assert rates[19:751] == pytest.approx([1.0] * 732)
    assert rates[875] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.005
    assert config.threshold_lr_at(100, 576) == pytest.approx(8)
    assert config.threshold_lr_at(400, 576) == pytest.approx(1)
    assert config.threshold_lr_at(100, 4) == pytest.approx(1)
    assert replace(config, threshold_lr=5.0).threshold_lr_at(100, 576) == pytest.approx(5)
    assert config.target_at(0) == 500
    assert config.target_at(100) == pytest.approx(50 * 10**0.5)
    assert config.target_at(200) == config.target_at(999) == 50


def test_rows_that_do_not_vary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="do not vary"):
        train(store_of(torch.ones(500, 8), tmp_path / "store"), SMALL, to=tmp_path / "run")


def test_a_run_that_explodes_says_so(small: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFinite, match="lower lr"):
        train(small, replace(SMALL, lr=1e18, clip=1e30), to=tmp_path / "run")


def test_several_sites_need_a_choice(tmp_path: Path, small: Store) -> None:
    shutil.copytree(small.folder, tmp_path / "store")
    shutil.copytree(small.folder / "3.res", tmp_path / "store" / "7.mlp")
    facts = json.loads((tmp_path / "store" / "manifest.json").read_text())
    facts["sites"]["7.mlp"] = 5000
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"holds 3\.res, 7\.mlp: say which"):
        train(tmp_path / "store", SMALL, to=tmp_path / "run")
    with pytest.raises(NotFound, match=r"no 9\.att"):
        train(tmp_path / "store", SMALL, to=tmp_path / "run", site="9.att")
    assert train(tmp_path / "store", SMALL, to=tmp_path / "run", site="7.mlp").site == Site(7, "mlp")


def test_held_out_rows_of_another_width_are_refused(tmp_path: Path, small: Store) -> None:
    narrow = store_of(torch.randn(300, 8), tmp_path / "narrow")
    with pytest.raises(Mismatch, match=r"widths \(\(8,\), \(8,\)\)"):
        train(small, SMALL, to=tmp_path / "run", held_out=narrow)


# --- planted features -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")  # many steps
def test_planted_features_are_found(tmp_path: Path) -> None:
    """The bars lie between what is reached (.945, FVU .083, none dead) and what a trainer reaches that lacks one
    gradient: .65 and .53 without W_enc's, .39 and .70 without W_dec's, an L0 of 45 without the thresholds'."""
    rows, truth = planted(25_000, d=32, features=48, active=2, seed=0)
    config = TrainConfig(
        width=48, target_l0=2.0, rows=128_000, batch=128, lr=3e-3, anneal=0.5, threshold_lr=2.0, checkpoint_every=500
    )
    sae = train(store_of(rows[:20_000], tmp_path / "store"), config, to=tmp_path / "run")
    test = rows[20_000:]
    features = sae.encode(test)
    variance = Variance()
    variance.add(test, sae.decode(features))
    by_chance = mmcs(torch.randn(48, 32, generator=torch.Generator().manual_seed(0)), truth)
    assert by_chance < 0.45
    assert mmcs(sae.W_dec, truth) > 0.9
    assert variance.fvu < 0.13
    assert features.mean_l0 == pytest.approx(2, rel=0.1)
    assert (torch.bincount(features.features.long(), minlength=48) == 0).sum() <= 4


@pytest.mark.usefixtures("unchecked")  # many steps
@pytest.mark.parametrize("patience", [10 * SMALL.batch, 10**9], ids=["revived", "left alone"])
def test_a_feature_that_fell_silent_is_brought_back(small: Store, tmp_path: Path, patience: int) -> None:
    lesson = lesson_of(small, replace(SMALL, patience=patience, rows=400 * SMALL.batch), tmp_path)
    run = lesson.runs[""]
    run.weights.threshold[:5] = 1.0  # far above anything that these rows give at first
    for _ in lesson.steps(silent):
        pass
    assert bool((run.fired_at[:5] > 0).all()) == (patience < 10**9)
    assert bool((run.fired_at[:5] > 0).any()) == (patience < 10**9)
