"""Ranks that train one SAE together come to what one process comes to: gradients, firings, thresholds, curves, bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gemscope.activations.harvest import versions
from gemscope.activations.site import Site
from gemscope.errors import CorruptFile, GemscopeError, StorageFull
from gemscope.testing import tiny_model
from gemscope.text.corpus import Corpus
from gemscope.training import checkpoint, lesson
from gemscope.training import run as running
from gemscope.training.config import TrainConfig
from gemscope.training.deal import Deal
from gemscope.training.fold import Scale
from gemscope.training.gated import GatedWeights, gated_step
from gemscope.training.group import ALONE, Group
from gemscope.training.log import read
from gemscope.training.objective import Terms, step
from gemscope.training.source import StreamSource
from gemscope.training.train import train
from gemscope.training.weights import Weights, alike, lengths
from gemscope.world import World
from lessons import planted, store_of
from ranks import PATIENCE, together

B, D, D_OUT, F = 96, 60, 44, 70
"""Rows, their numbers, what is written, features: more than ranks divide."""
ONE_SITE: dict[str, dict[str, Any]] = {
    "jumprelu": {},
    "jumprelu, all at once": {"dense": True},
    "jumprelu, row by row": {"penalty": "quadratic", "target": 5.0},
    "jumprelu, row by row, all at once": {"penalty": "quadratic", "target": 5.0, "dense": True},
    "jumprelu, l0": {"penalty": "l0", "sparsity": 0.01},
    "jumprelu, tanh, into the input": {"penalty": "tanh", "sparsity": 0.02, "to_input": True},
    "jumprelu, not too often": {"frequency": 0.2, "frequency_limit": 0.02},
    "jumprelu, with silent features": {"auxiliary": 1 / 32},
    "jumprelu, with few silent features": {"auxiliary": 1 / 32, "few": True},
    "batchtopk": {"gate": "batchtopk", "penalty": "none"},
    "batchtopk, when too few are above the floor": {"gate": "batchtopk", "penalty": "none", "floor": 9.0},
    "batchtopk, matryoshka": {"gate": "batchtopk", "penalty": "none", "prefixes": (3, 17, F)},
    "topk": {"gate": "topk", "penalty": "none"},
    "topk, with silent features": {"gate": "topk", "penalty": "none", "auxiliary": 1 / 32},
    "standard": {"gate": "relu", "penalty": "l1", "sparsity": 0.02},
    "standard, all at once": {"gate": "relu", "penalty": "l1", "sparsity": 0.02, "dense": True},
    "matryoshka": {"prefixes": (3, 17, F)},
    "matryoshka, all at once": {"prefixes": (3, 17, F), "dense": True},
    "transcoder": {"transcoder": True},
    "transcoder, all at once": {"transcoder": True, "dense": True},
}
CANDIDATES = ("topk", "batchtopk")


def problem(kind: str) -> tuple[Weights, Tensor, Tensor, Terms, dict[str, Any]]:
    """Weights in the middle of training, rows, and what the loss is made of."""
    given = dict(ONE_SITE[kind])
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    written = D_OUT if given.pop("transcoder", False) else D
    x = normal(B, D) / D**0.5
    y = x if written == D else normal(B, written) / written**0.5
    weights = Weights(
        W_enc=normal(F, D) / D**0.5,
        b_enc=0.05 * normal(F),
        W_dec=normal(F, written) / written**0.5,
        b_dec=0.1 * normal(written),
        threshold=0.15 + 0.1 * torch.rand(F, generator=generator),
        W_skip=0.1 * normal(written, D) if written != D else None,
    )
    options: dict[str, Any] = {"dense": given.pop("dense", False if given.get("gate") != "topk" else None)}
    if given.get("gate") == "batchtopk":
        weights.threshold = given.pop("floor", 0.25) / lengths(weights)
    if given.get("auxiliary"):
        options["silent"] = torch.rand(F, generator=generator) < 0.7
        if given.pop("few", False):
            options["silent"] = torch.arange(F) % 40 == 4  # two of them, with one rank of two and one of four
    terms = Terms(**{"target": 4.0, "bandwidth": 0.1, **given})
    return weights, x, y, terms, options


def gradients(group: Group, folder: Path) -> None:
    """What a rank finds of each kind, and how much it sends."""
    for number, kind in enumerate(ONE_SITE):
        weights, x, y, terms, options = problem(kind)
        deal, before = Deal(F, group), group.sent
        mine = Weights(
            **{n: t if n in ("b_dec", "W_skip") else deal.mine(t).clone() for n, t in weights.tensors().items()}
        )
        if "silent" in options:
            options["silent"] = deal.mine(options["silent"]).clone()
        told, grads = step(mine, x, y, terms, deal=deal, **options)
        tensors = {name: tensor.contiguous() for name, tensor in grads.tensors().items()}
        numbers = [told.loss, told.error, told.l0, told.window, told.auxiliary, told.tau, told.penalty]
        said = torch.tensor([*numbers, group.sent - before], dtype=torch.float64)
        save_file({**tensors, "firings": told.firings, "said": said}, folder / f"{number}-{group.rank}.safetensors")
    for kind in GATED:
        weights, x, y, terms = gated(kind)
        deal, before = Deal(F, group), group.sent
        mine = GatedWeights(**{n: t if alike(n) else deal.mine(t).clone() for n, t in weights.tensors().items()})
        told, grads = gated_step(mine, x, y, terms, deal=deal)
        said = torch.tensor([told.loss, told.error, told.l0, told.penalty, group.sent - before], dtype=torch.float64)
        found = {**grads.tensors(), "firings": told.firings, "said": said}
        save_file({name: one.contiguous() for name, one in found.items()}, folder / f"{kind}-{group.rank}.safetensors")


GATED = ("gated", "gated transcoder")


def gated(kind: str) -> tuple[GatedWeights, Tensor, Tensor, Terms]:
    """The same of what is learned by autograd."""
    weights, x, y, _, _ = problem("transcoder" if "transcoder" in kind else "standard")
    generator = torch.Generator().manual_seed(8)
    found = GatedWeights.of(weights)
    found.r_mag, found.b_mag = (0.1 * torch.randn(F, generator=generator) for _ in range(2))
    return found, x, y, Terms(gate="relu", penalty="l1", sparsity=0.02, target=4.0)


@pytest.fixture(scope="module", params=[2, 4])
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Tensor]]]:
    size, folder = request.param, tmp_path_factory.mktemp("gradients")
    done = together(size, "training.test_ranks:gradients", folder)
    assert done.code == 0, done.stderr
    names = {kind: str(number) for number, kind in enumerate(ONE_SITE)} | {kind: kind for kind in GATED}
    return {
        kind: [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(size)] for kind, name in names.items()
    }


@pytest.mark.parametrize("kind", ONE_SITE)
def test_ranks_find_the_gradients_of_one_process(kind: str, found: dict[str, list[dict[str, Tensor]]]) -> None:
    weights, x, y, terms, options = problem(kind)
    told, grads = step(weights, x, y, terms, **options)
    every = found[kind]
    size = len(every)
    assert told.firings.sum() > 0
    for name, expected in {**grads.tensors(), "firings": told.firings}.items():
        for rank, one in enumerate(every):
            part = expected if name in ("b_dec", "W_skip") else expected[rank::size]
            # Thresholds' are above 1, where float32 itself is no finer than 1e-7.
            bound = 2e-7 * max(1.0, part.abs().max().item()) if name == "threshold" else 1e-7
            assert (one[name] - part).abs().max() <= (0 if name == "firings" else bound), name
    assert all(torch.equal(one["b_dec"], every[0]["b_dec"]) for one in every)
    wanted = [told.loss, told.error, told.l0, told.window, told.auxiliary, told.tau, told.penalty]
    for one in every:
        *numbers, sent = one["said"].tolist()
        assert numbers == pytest.approx(wanted, rel=1e-5, abs=1e-7)
        assert numbers == every[0]["said"].tolist()[:-1]
        # A sum of what each prefix makes of the rows; numbers, and the candidates of the gates that count, ride along.
        rows = B * y.shape[1] * 4 * max(1, len(terms.prefixes))
        if not terms.auxiliary:
            assert rows <= sent <= 1.1 * rows
    if terms.gate == "batchtopk":
        assert told.tau == numbers[5]
    if terms.auxiliary:
        assert told.auxiliary > 0


@pytest.mark.parametrize("kind", GATED)
def test_ranks_find_the_gradients_of_a_gated_sae(kind: str, found: dict[str, list[dict[str, Tensor]]]) -> None:
    weights, x, y, terms = gated(kind)
    told, grads = gated_step(weights, x, y, terms)
    every = found[kind]
    assert 0 < told.firings.sum() < told.firings.numel() * B
    for name, expected in {**grads.tensors(), "firings": told.firings}.items():
        for rank, one in enumerate(every):
            part = expected if alike(name) else expected[rank :: len(every)]
            assert (one[name] - part).abs().max() <= (
                0 if name == "firings" else 2e-7 * max(1.0, part.abs().max().item())
            ), name
            assert not alike(name) or torch.equal(one[name], every[0][name])
    for one in every:
        *numbers, sent = one["said"].tolist()
        assert numbers == pytest.approx([told.loss, told.error, told.l0, told.penalty], rel=1e-5)
        assert numbers == every[0]["said"].tolist()[:-1]
        assert sent <= 1.1 * 2 * B * y.shape[1] * 4  # what magnitudes write, and what gates do


@pytest.mark.parametrize("width", [5, 31, 37, 64, 101])
@pytest.mark.parametrize("d", [1, 7, 12])
def test_the_first_directions_are_the_same_dice_on_any_number_of_ranks(
    width: int, d: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_BLOCK", 16)  # as many numbers as torch throws at a time
    whole = torch.randn(width, d, generator=torch.Generator().manual_seed(3))
    config, scale = TrainConfig(width=width, target_l0=1, rows=64, batch=64), Scale.of(torch.randn(9, d), (d,))
    for size in (1, 3):
        for rank in range(size):
            run = running.Run(config, scale, scale, same=True, group=Group(World(rank, size)))
            generator = torch.Generator().manual_seed(3)
            assert torch.equal(run._thrown(d, generator), whole[rank::size])
            after = torch.Generator().manual_seed(3)
            torch.randn(width, d, generator=after)
            assert torch.equal(generator.get_state(), after.get_state())


# --- whole runs ---------------------------------------------------------------------------------------------------

BASE = TrainConfig(
    width=37, target_l0=4.0, rows=120 * 64, batch=64, lr=1e-3, checkpoint_every=40, log_every=40, keep=9, patience=640
)
RUNS: dict[str, dict[str, Any]] = {
    "jumprelu": {},
    "quadratic": {"penalty": "quadratic", "sparsity": 0.01, "frequency": 0.2, "unit_norm": True},
    "batchtopk": {"architecture": "batchtopk", "matryoshka": (0.1, 0.5), "pre_bias": True},
    "topk": {"architecture": "topk"},
    "standard": {"architecture": "standard", "sparsity": 1.5, "resample": 20 * 64, "patience": 64},
    "transcoder": {"skip": True, "architecture": "batchtopk", "matryoshka": (0.25,)},
    "crosscoder": {"architecture": "batchtopk"},
    "gated": {"architecture": "gated", "sparsity": 0.5},
}
SITES: dict[str, dict[str, Any]] = {
    "transcoder": {"site": "3.transcoder", "writes": "3.mlp"},
    "crosscoder": {"site": ["3.transcoder", "3.mlp"]},
}


def settings(kind: str) -> tuple[TrainConfig, dict[str, Any]]:
    return replace(BASE, **RUNS[kind]), SITES.get(kind, {"site": "3.transcoder"})


def curves(group: Group, folder: Path) -> None:
    """Runs of each kind, on the store in the folder."""
    for kind in RUNS:
        config, where = settings(kind)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(
                folder / "store",
                config,
                to=folder / f"{group.size}" / kind,
                held_out=folder / "store",
                **where,
                group=group,
            )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process and of two ranks, by their number and kind."""
    folder = tmp_path_factory.mktemp("runs")
    two_sites(folder / "store")
    done = together(2, "training.test_ranks:curves", folder)
    assert done.code == 0, done.stderr
    curves(ALONE, folder)
    return folder


def two_sites(folder: Path, seed: int = 0) -> None:
    """A harvest of two sites, of which one is bent from the other."""
    rows, _ = planted(1500, d=16, features=24, active=2, seed=seed)
    x = 3 * rows + 2 * torch.arange(16)
    y = torch.relu(x @ torch.randn(16, 11, generator=torch.Generator().manual_seed(2))) + 1
    store_of({Site.parse("3.transcoder"): x, Site.parse("3.mlp"): y}, folder)


@pytest.mark.parametrize("kind", RUNS)
def test_two_ranks_train_as_one_process_does(kind: str, runs: Path) -> None:
    alone, two = (read(runs / size / kind / "log.jsonl") for size in ("1", "2"))
    assert [line["step"] for line in two] == [line["step"] for line in alone] == [40, 80, 120]
    for one, other in zip(alone, two, strict=True):
        assert (other.pop("world"), other.pop("held")) == (2, 19)
        for name, value in one.items():
            # One activation more or less within a window of some is much; of the loss it is nothing.
            near = 1e-4 if name in ("loss", "error", "fvu", "held_out_fvu") else 1e-2
            assert other[name] == pytest.approx(value, rel=near, abs=near), (name, one["step"])
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (runs / "2" / kind / "sae" / name).exists()
    one, other = (load_file(runs / size / kind / "sae" / "sae_weights.safetensors") for size in ("1", "2"))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.shape == other[name].shape
        assert (tensor - other[name]).norm() <= 1e-3 * tensor.norm(), name
    figures = [json.loads((runs / size / kind / "figures.json").read_text()) for size in ("1", "2")]
    assert [one.pop("world") for one in figures] == [1, 2]
    assert figures[1]["training"]["fvu"] == pytest.approx(figures[0]["training"]["fvu"], rel=1e-3)
    assert figures[1]["training"]["l0"] == pytest.approx(figures[0]["training"]["l0"], rel=1e-3)


def test_a_checkpoint_of_ranks_says_what_each_holds_and_any_number_of_them_reads_it(runs: Path, tmp_path: Path) -> None:
    run = runs / "2" / "jumprelu"
    (folder,) = run.glob("state-00000120")
    assert sorted(path.name for path in folder.iterdir()) == [
        "state.json",
        "tensors-00001-of-00002.safetensors",
        "tensors-00002-of-00002.safetensors",
    ]
    parts = []
    for rank, path in enumerate(sorted(folder.glob("*.safetensors"))):
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"features": f"{rank}::2"}
        parts.append(load_file(path))
    whole, state = checkpoint.newest(run, Deal(37)) or pytest.fail("no checkpoint")
    assert state["step"] == 120
    assert "ranks" not in state
    for name, tensor in whole.items():
        if name in ("b_dec", "adam.b_dec.exp_avg", "adam.b_dec.exp_avg_sq") or name.endswith(".step"):
            assert torch.equal(tensor, parts[0][name])
            assert torch.equal(tensor, parts[1][name])
        else:
            assert len(tensor) == 37
            assert torch.equal(tensor[::2], parts[0][name])
            assert torch.equal(tensor[1::2], parts[1][name])
    for rank in range(3):
        mine, _ = checkpoint.newest(run, Deal(37, Group(World(rank, 3)))) or pytest.fail("no checkpoint")
        assert mine.keys() == whole.keys()
        for name, tensor in mine.items():
            assert torch.equal(
                tensor, whole[name] if len(tensor.shape) == 0 or "b_dec" in name else whole[name][rank::3]
            )


@pytest.mark.parametrize("damage", ["a number", "the order", "a rank"])
def test_a_damaged_checkpoint_of_ranks_is_refused(damage: str, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "2" / "topk" / "state-00000120", tmp_path / "state-00000120")
    one, two = sorted(tmp_path.glob("*/*.safetensors"))
    if damage == "a number":
        data = bytearray(two.read_bytes())
        data[-3] ^= 1
        two.write_bytes(data)
    elif damage == "the order":
        one.rename(tmp_path / "aside")
        two.rename(one)
        (tmp_path / "aside").rename(two)
    else:
        two.unlink()
    with pytest.raises(CorruptFile, match="is damaged"):
        checkpoint.newest(tmp_path, Deal(37))


def go_on(group: Group, folder: Path) -> None:
    """A run that two ranks began, from its checkpoint after 40 steps."""
    to = folder / f"on {group.size}"
    if group.first:
        shutil.copytree(folder / "2" / "jumprelu", to)
        for step_ in (80, 120):
            shutil.rmtree(to / f"state-{step_:08d}")
    group.barrier()
    config, where = settings("jumprelu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(folder / "store", config, to=to, held_out=folder / "store", **where, group=group)


def test_what_two_ranks_began_goes_on_on_one_and_on_three(runs: Path) -> None:
    go_on(ALONE, runs)
    done = together(3, "training.test_ranks:go_on", runs)
    assert done.code == 0, done.stderr
    whole = read(runs / "2" / "jumprelu" / "log.jsonl")
    for size in (1, 3):
        found = read(runs / f"on {size}" / "log.jsonl")
        assert [line.get("world", 1) for line in found] == [2, size, size]
        for one, other in zip(whole, found, strict=True):
            assert other["step"] == one["step"]
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-4, abs=1e-4)
        names = {path.name for path in (runs / f"on {size}" / "state-00000120").iterdir()}
        assert len(names) == 1 + size


# --- rows that a model computes on the way ------------------------------------------------------------------------

TEXTS = [f"the {n} and the {n + 1} sang, thinking of rivers and hours " * (2 + n % 3) for n in range(25)]


def from_a_stream(group: Group, folder: Path) -> None:
    """A run on rows of a model, of which ranks compute a share each, and all of what they were given."""
    for dtype in ("float16", "bfloat16"):
        source = StreamSource(
            tiny_model("llama"), Corpus.of(TEXTS), "2.res", buffer=200, length=24, rows=4, dtype=dtype
        )
        counted: list[int] = []
        capture = source.model.capture

        def counts(tokens: Any, *rest: Any, capture: Any = capture, counted: list[int] = counted) -> Any:
            counted.append(int(tokens.counted.sum()))
            return capture(tokens, *rest)

        source.model.capture = counts  # type: ignore[method-assign]
        read = torch.cat(list(source.among(group).read()))
        save_file({"rows": read}, folder / f"{dtype}-{group.size}-{group.rank}.safetensors")
        (folder / f"{dtype}-{group.size}-{group.rank}.json").write_text(json.dumps(counted))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = replace(BASE, rows=40 * 64, checkpoint_every=20, log_every=20)
            train(source, config, to=folder / f"{dtype} {group.size}", group=group)


def test_ranks_share_the_reading_of_a_stream_and_train_as_one_process_does(tmp_path: Path) -> None:
    from_a_stream(ALONE, tmp_path)
    done = together(3, "training.test_ranks:from_a_stream", tmp_path)
    assert done.code == 0, done.stderr
    for dtype in ("float16", "bfloat16"):
        names = [f"{dtype}-1-0", *(f"{dtype}-3-{rank}" for rank in range(3))]
        alone, *ranks = (load_file(tmp_path / f"{name}.safetensors")["rows"] for name in names)
        assert alone.dtype == getattr(torch, dtype)
        assert len(alone) > 600
        assert all(torch.equal(one, alone) for one in ranks)
        whole, *shares = (json.loads((tmp_path / f"{name}.json").read_text()) for name in names)
        assert [shares[number % 3][number // 3] for number in range(len(whole))] == whole
        assert sum(map(len, shares)) == len(whole)
        logs = [read(tmp_path / f"{dtype} {size}" / "log.jsonl") for size in (1, 3)]
        for one, other in zip(*logs, strict=True):
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
            assert other["l0"] == pytest.approx(one["l0"], rel=1e-2)
        facts = [json.loads((tmp_path / f"{dtype} {size}" / "sae" / "cfg.json").read_text()) for size in (1, 3)]
        assert facts[0]["metadata"]["corpus_digest"] == facts[1]["metadata"]["corpus_digest"]


# --- what is refused, and what ends -------------------------------------------------------------------------------


def refusals(group: Group, folder: Path) -> None:
    """What ranks say to settings, rows and versions that are not the same, and to what they do not train."""
    said: dict[str, str] = {}
    other = group.rank == 1

    def tried(name: str, config: TrainConfig, store: Path = folder / "store", site: str = "3.transcoder") -> None:
        with pytest.raises(GemscopeError) as raised:
            train(store, config, to=folder / name, site=site, group=group)
        said[name] = str(raised.value)

    tried("settings", replace(BASE, target_l0=5.0 if other else 4.0))
    tried("rows", BASE, folder / ("other" if other else "store"))
    with pytest.MonkeyPatch.context() as patch:
        if other:
            patch.setattr(lesson, "versions", lambda: {**versions(), "torch": "1.0"})
        tried("versions", BASE)
    tried("narrow", replace(BASE, width=1, target_l0=0.5, architecture="jumprelu"))
    (folder / f"said-{group.rank}.json").write_text(json.dumps(said))


def test_ranks_with_other_settings_rows_or_versions_are_refused_before_the_first_step(tmp_path: Path) -> None:
    two_sites(tmp_path / "store")
    two_sites(tmp_path / "other", seed=1)
    done = together(2, "training.test_ranks:refusals", tmp_path)
    assert done.code == 0, done.stderr
    first, second = (json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["settings"] == (
        "rank 1 of 2 has other rows, settings or versions than rank 0 (target_l0 was 4.0 and is 5.0): start all with "
        "the same"
    )
    assert "files was" in first["rows"]
    assert "torch was" in first["versions"]
    assert "width=1 on 2 ranks" in first["narrow"]
    for name in first:
        assert not list((tmp_path / name).glob("**/*")), "something was written"


def ending(group: Group, folder: Path, how: str) -> None:
    """A run in which rank 1 ends in the middle."""
    taken, first = running.Run.advance, int(group.gather(torch.tensor([os.getpid()]))[0])

    def ends(self: running.Run, *rows: Tensor) -> object:
        if self.done == 60 and group.rank == 1:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif how == "silent":
                while Path(f"/proc/{first}").exists():
                    time.sleep(0.1)
            raise StorageFull("no room left on the disk for it")
        return taken(self, *rows)

    running.Run.advance = ends  # type: ignore[assignment, method-assign]
    config, where = settings("jumprelu")
    train(folder / "store", config, to=folder / "run", **where, group=group)


@pytest.mark.parametrize(
    ("how", "said", "codes"),
    [
        ("killed", "rank 1 of 2 is gone or does not answer", [3, -9]),
        ("failing", "rank 1 of 2: no room left on the disk for it", [3, 3]),
        ("silent", "rank 1 of 2 is gone or does not answer", [3, 3]),
    ],
)
def test_the_end_of_a_rank_is_the_end_of_all_in_one_line_that_names_it(
    how: str, said: str, codes: list[int], tmp_path: Path
) -> None:
    two_sites(tmp_path / "store")
    done = together(2, "training.test_ranks:ending", tmp_path, how, timeout=PATIENCE if how != "silent" else 8.0)
    assert json.loads(done.stdout.splitlines()[-1]) == codes
    lines = [line for line in done.stderr.splitlines() if line.startswith("said: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"said: {said}"), done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "run").glob("state-*")] == ["state-00000040"]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".run")], "what is claimed is let go"
