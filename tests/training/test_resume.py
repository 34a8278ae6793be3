"""A run that was cut off ends as one that was not, bit for bit, whatever it trains: weights, moments, thresholds, who fired
when, every line of the log, the list of checkpoints."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file

from gemscope.activations.store import Store
from gemscope.errors import InputError, MissingDependency
from gemscope.training import checkpoint
from gemscope.training import run as running
from gemscope.training.config import TrainConfig
from gemscope.training.log import Log, read
from gemscope.training.source import Source
from gemscope.training.train import sweep, train
from lessons import SITE, Pairs, PowerCut, assert_same, cut_off_at, planted, store_of

BASE = TrainConfig(
    width=32,
    target_l0=4.0,
    rows=30 * 64,
    batch=64,
    lr=3e-3,
    checkpoint_every=8,
    log_every=3,
    keep=2,
    anneal=0.3,
    seed=5,
)
KINDS: dict[str, dict[str, Any]] = {
    "jumprelu target": {},
    "jumprelu l0": {"penalty": "l0", "sparsity": 0.01, "sparsity_warmup": 0.5},
    "jumprelu quadratic": {"penalty": "quadratic", "sparsity": 0.01},
    "jumprelu tanh": {"penalty": "tanh", "sparsity": 0.02},
    "into the input": {"to_input": True},
    "topk": {"architecture": "topk"},
    "topk with auxiliary": {"architecture": "topk", "auxiliary": 1 / 32, "patience": 128},
    "batchtopk": {"architecture": "batchtopk"},
    "batchtopk with auxiliary": {"architecture": "batchtopk", "auxiliary": 1 / 32, "patience": 128},
    "matryoshka": {"matryoshka": (0.25, 0.5)},
    "matryoshka batchtopk": {"architecture": "batchtopk", "matryoshka": (0.25, 0.5)},
    "gated": {"architecture": "gated", "sparsity": 0.05},
    "standard resampled": {"architecture": "standard", "sparsity": 1.5, "resample": 5 * 64, "patience": 64},
    "rows of norm 1": {"unit_norm": True, "beta1": 0.0, "warmup_shape": "cosine", "warmup": 0.3},
    "pre-encoder bias": {"pre_bias": True},
    "silent features": {"patience": 64},
    "transcoder": {"skip": True},
    "transcoder topped": {"skip": True, "architecture": "batchtopk", "matryoshka": (0.5,)},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    rows, _ = planted(1500, d=12, features=20, active=2, seed=0)
    return store_of(3 * rows + 2 * torch.arange(12), tmp_path_factory.mktemp("store") / "small")


@pytest.fixture(scope="module")
def pairs(store: Store) -> Pairs:
    x = store[SITE][slice(0, 1500)]
    bent = torch.relu(x @ torch.randn(12, 9, generator=torch.Generator().manual_seed(2)))
    return Pairs(x, bent + 1)


def contents(run: Path) -> dict[str, bytes]:
    """All that lies in a run's folder, but for the clock's share and the run's own name."""
    found = {str(path.relative_to(run)): path for path in sorted(run.rglob("*")) if path.is_file()}
    assert "times.jsonl" in found
    return {
        name: path.read_bytes().replace(str(run).encode(), b"RUN")
        for name, path in found.items()
        if name != "times.jsonl"
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*was aimed at")
def test_a_run_that_was_cut_off_twice_leaves_what_one_leaves_that_was_not(
    kind: str, store: Store, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(BASE, **KINDS[kind])
    source: Source | Store = pairs if config.skip else store
    options: dict[str, Any] = {} if config.skip else {"held_out": store}
    train(source, config, to=tmp_path / "whole", **options)
    for step in (3, 13, 20):  # before the first checkpoint, and twice between two
        with monkeypatch.context() as patch:
            cut_off_at(step, patch)
            with pytest.raises(PowerCut):
                train(source, config, to=tmp_path / "resumed", **options)
    train(source, config, to=tmp_path / "resumed", **options)
    whole, resumed = contents(tmp_path / "whole"), contents(tmp_path / "resumed")
    assert resumed.keys() == whole.keys()
    assert [name for name in whole if resumed[name] != whole[name]] == []
    assert sorted(path.name for path in (tmp_path / "whole").glob("state-*")) == ["state-00000024", "state-00000030"]
    state = load_file(tmp_path / "whole" / "state-00000030" / "tensors.safetensors")
    assert {"W_enc", "adam.W_dec.exp_avg_sq", "threshold", "fired_at"} <= state.keys()
    if kind == "standard resampled":
        assert resampled(store, config, tmp_path, monkeypatch) > 0
    assert [line["step"] for line in read(tmp_path / "resumed" / "times.jsonl")] == list(range(3, 31, 3))


def resampled(store: Store, config: TrainConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many features a run begins anew."""
    counted = []
    begin = running.Run._begin_anew
    monkeypatch.setattr(
        running.Run, "_begin_anew", lambda self, x, y: (counted.append(int(self.silent.sum())), begin(self, x, y))
    )
    train(store, config, to=folder / "counted")
    return sum(counted)


def test_what_was_begun_anew_has_no_memory(store: Store, tmp_path: Path) -> None:
    from gemscope.training.lesson import Lesson
    from gemscope.training.source import StoreSource

    config = replace(BASE, architecture="standard", sparsity=0.3, resample=64 * 10_000, patience=64)
    lesson = Lesson(StoreSource(store, SITE), {"": config}, tmp_path)
    run = lesson.runs[""]
    x = lesson.x(lesson.batches[0][0])
    for _ in range(4):
        run.advance(x, x)
    run.fired_at[:3] = -10
    run._begin_anew(x, x)
    living = run.weights.W_enc[3:].norm(dim=-1).mean()
    torch.testing.assert_close(run.weights.W_enc[:3].norm(dim=-1), (0.2 * living).expand(3))
    for name in ("W_enc", "W_dec", "b_enc"):
        memory = run.adam.state[run.weights.tensors()[name]]
        assert memory["exp_avg"][:3].abs().max() == memory["exp_avg_sq"][:3].abs().max() == 0
        assert memory["exp_avg"][3:].abs().max() > 0
    assert (run.fired_at[:3] == run.done).all()


@pytest.mark.parametrize("step", [9, 18])
def test_a_sweep_goes_on_where_one_of_its_runs_is_a_checkpoint_ahead(
    step: int, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = {"a": BASE, "b": replace(BASE, target_l0=2.0), "c": replace(BASE, architecture="batchtopk", width=40)}
    sweep(store, configs, to=tmp_path / "whole")
    saved = checkpoint.save

    def dies(run: Path, at: int, *given: Any, **options: Any) -> None:
        if run.name == "b" and at >= step:  # a has saved this step, b and c have not
            raise PowerCut
        saved(run, at, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", dies)
        with pytest.raises(PowerCut):
            sweep(store, configs, to=tmp_path / "resumed")
    newest = {name: max(path.name for path in (tmp_path / "resumed" / name).glob("state-*")) for name in ("a", "b")}
    assert newest["a"] > newest["b"]
    sweep(store, configs, to=tmp_path / "resumed")
    for name in configs:
        assert contents(tmp_path / "resumed" / name) == contents(tmp_path / "whole" / name)


def test_each_of_a_sweep_is_what_it_would_be_alone(store: Store, tmp_path: Path) -> None:
    configs = {"a": BASE, "b": replace(BASE, target_l0=2.0)}
    sweep(store, configs, to=tmp_path)
    train(store, configs["b"], to=tmp_path / "alone")
    assert_same(
        load_file(tmp_path / "b" / "sae" / "sae_weights.safetensors"),
        load_file(tmp_path / "alone" / "sae" / "sae_weights.safetensors"),
    )


@pytest.mark.parametrize("differs", [{"batch": 32}, {"seed": 1}, {"rows": 6400}, {"centre": False}])
def test_a_sweep_shares_what_its_reading_hangs_on(differs: dict[str, Any], store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(differs))} differs"):
        sweep(store, {"a": BASE, "b": replace(BASE, **differs)}, to=tmp_path)


def test_a_crash_before_old_checkpoints_are_gone_leaves_none_too_many(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(store, BASE, to=tmp_path / "whole")

    def dies(run: Path, keep: int) -> None:
        if len(list(run.glob("state-*"))) > keep:
            raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "rotate", dies)
        with pytest.raises(PowerCut):
            train(store, BASE, to=tmp_path / "run")
    (tmp_path / "run" / ".state-00000025").mkdir()  # half of one that was being written
    assert len(list((tmp_path / "run").glob("state-*"))) == 3
    train(store, BASE, to=tmp_path / "run")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


# --- the log --------------------------------------------------------------------------------------------------------


def test_a_line_says_how_loss_thresholds_and_gradient_are(store: Store, tmp_path: Path) -> None:
    seen = []
    config = replace(BASE, clip=0.02)
    train(store, config, to=tmp_path, held_out=store, watch=lambda name, line: seen.append(dict(line)))
    lines = read(tmp_path / "log.jsonl")
    assert [line["step"] for line in lines] == [line["step"] for line in seen] == list(range(3, 31, 3))
    for line in lines:
        assert line["loss"] == pytest.approx(line["error"] + line["penalty"], rel=1e-5)
        assert line["penalty"] == pytest.approx(
            (line["l0"] / config.target_at(int(line["step"]) - 1) - 1) ** 2, rel=1e-4
        )
        assert line["fvu"] == pytest.approx(line["error"], rel=1e-5)
        assert 0 < line["spread"] < 1
        assert line["window"] > 0
        assert line["bandwidth"] > 0
        assert line["grad_norm"] > 0
        assert 0 <= line["clipped"] <= 1
        assert not {"time", "rows_per_second"} & line.keys()
    assert lines[-1]["clipped"] > 0.5
    assert {"held_out_fvu", "held_out_l0", "held_out_dead", "held_out_dense"} <= lines[-1].keys()
    times = read(tmp_path / "times.jsonl")
    assert [line["rows_per_second"] > 0 for line in times] == [True] * 10
    assert all("rows_per_second" in line for line in seen)


def test_unexplained_variance_is_a_share_of_the_variance_where_the_mean_was_left_in(
    store: Store, tmp_path: Path
) -> None:
    config = replace(BASE, centre=False, architecture="batchtopk")
    train(store, config, to=tmp_path, held_out=store)
    last = read(tmp_path / "log.jsonl")[-1]
    assert last["fvu"] > 3 * last["error"]  # these rows lie far from zero
    assert last["fvu"] == pytest.approx(last["held_out_fvu"], rel=0.3)


def test_the_spread_is_that_of_what_features_would_write() -> None:
    from gemscope.training.fold import Scale

    scale = Scale(torch.zeros(12), torch.ones(12), (12,))
    run = running.Run(BASE, scale, scale, same=True)
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    run.begin(x)
    written = (x @ run.weights.W_enc.T) * run.weights.W_dec.norm(dim=-1)
    assert run.spread(x) == pytest.approx(written.var(0, correction=0).mean().sqrt().item(), rel=1e-6)
    run.weights.b_enc += torch.randn(32)
    run.weights.W_enc *= 5
    run.weights.W_dec /= 5  # the same function
    assert run.spread(x) == pytest.approx(written.var(0, correction=0).mean().sqrt().item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*was aimed at")
def test_an_encoder_that_runs_away_is_said_once(store: Store, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="run away") as said:
        train(
            store,
            replace(BASE, lr=0.7, to_input=True, decay=0.0, threshold_lr=8.0, auxiliary=0.0, patience=256_000),
            to=tmp_path,
        )
    told = [str(one.message) for one in said if "run away" in str(one.message)]
    assert len(told) == 1
    assert "try a lower lr, or to_input=false" in told[0]


def test_only_the_weights_gradient_is_clipped(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thresholds' is far larger: with it inside, hardly anything would be left of the weights'."""
    seen = []
    step = torch.optim.Adam.step

    def looks(self: Any, *given: Any, **options: Any) -> Any:
        groups = [[one.grad.norm().item() for one in group["params"]] for group in self.param_groups]
        seen.append((sum(norm * norm for norm in groups[0]) ** 0.5, groups[1][0]))
        return step(self, *given, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", looks)
    train(store, replace(BASE, clip=0.01), to=tmp_path / "clipped")
    assert max(weights for weights, _ in seen) == pytest.approx(0.01, rel=1e-3)
    assert max(threshold for _, threshold in seen) > 0.1
    seen.clear()
    train(store, replace(BASE, clip=1e9), to=tmp_path / "free")
    assert max(weights for weights, _ in seen) > 0.1
    assert read(tmp_path / "free" / "log.jsonl")[-1]["clipped"] == 0


# --- other loggers --------------------------------------------------------------------------------------------------


class Board:
    """What TensorBoard's writer is asked to do."""

    made: ClassVar[list[Board]] = []

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.scalars, self.closed = folder, purge_step, [], False
        Board.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def test_tensorboard_gets_every_line_and_a_resumed_run_takes_back_what_it_repeats(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Board.made.clear()
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Board  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with monkeypatch.context() as patch:
        cut_off_at(13, patch)
        with pytest.raises(PowerCut):
            train(store, BASE, to=tmp_path / "run", log=["tensorboard"])
    train(store, BASE, to=tmp_path / "run", log=["tensorboard"])
    first, second = Board.made
    assert first.folder == str(tmp_path / "run" / "tensorboard")
    assert (first.purge_step, second.purge_step) == (1, 9)
    assert [step for name, _, step in second.scalars if name == "fvu"] == list(range(9, 31, 3))
    assert ("l0", pytest.approx(read(tmp_path / "run" / "log.jsonl")[-1]["l0"], rel=1e-5), 30) in second.scalars
    assert {name for name, _, _ in second.scalars} >= {"loss", "rows_per_second", "spread"}
    assert second.closed


def test_weights_and_biases_gets_every_line_of_a_run_known_by_its_place(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Any]] = []
    lines: list[tuple[int, dict[str, float]]] = []
    finished: list[bool] = []
    module = types.ModuleType("wandb")
    run = types.SimpleNamespace(log=lambda line, step: lines.append((step, line)), finish=lambda: finished.append(True))
    module.init = lambda **options: begun.append(options) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    for place in ("one", "one", "two"):
        train(store, BASE, to=tmp_path / place / "a", log=["wandb"])
    assert [one["name"] for one in begun] == ["a"] * 3
    assert begun[0]["id"] == begun[1]["id"] != begun[2]["id"]
    assert begun[0]["resume"] == "allow"
    assert [step for step, _ in lines] == [*range(3, 31, 3), *range(3, 31, 3)]  # the second run had nothing left to do
    assert lines[0][1]["loss"] > 0
    assert len(finished) == 3


def test_a_logger_that_is_not_there_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for name in ("wandb", "tensorboard"):
        with pytest.raises(MissingDependency, match=f"pip install {name}"):
            Log(tmp_path, 0, also=[name])
    with pytest.raises(InputError, match="no logger 'mlflow': known are tensorboard and wandb"):
        Log(tmp_path, 0, also=["mlflow"])


def test_a_log_that_was_cut_off_in_a_line_is_whole_again(tmp_path: Path) -> None:
    for name in ("log.jsonl", "times.jsonl"):
        lines = [json.dumps({"step": step, "rows": step}) for step in (1, 2, 3)]
        (tmp_path / name).write_text("\n".join(lines) + '\n{"step": 4, "ro')
    log = Log(tmp_path, 2)
    log.write({"step": 3, "rows": 3, "loss": 0.1234567891})
    assert read(tmp_path / "log.jsonl") == [
        *({"step": n, "rows": n} for n in (1, 2)),
        {"step": 3, "rows": 3, "loss": 0.1234568},
    ]
    assert [line["step"] for line in read(tmp_path / "times.jsonl")] == [1, 2, 3]
