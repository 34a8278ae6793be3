"""Training on another device than the processor: everything of a step lies there, and what comes of it is what the
processor makes of the same rows. On a GPU that is pretended (`tests/pretended.py`), and on one that is there.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gemscope.activations.store import Store
from gemscope.errors import InputError, NotFinite, OutOfMemory
from gemscope.features.kernels import choice, plain
from gemscope.features.kernels.plain import Plain
from gemscope.progress import silent
from gemscope.reports.training import training_report
from gemscope.testing import tiny_model
from gemscope.text.corpus import Corpus
from gemscope.training import delivery
from gemscope.training import train as training
from gemscope.training.config import TrainConfig
from gemscope.training.delivery import Delivered
from gemscope.training.lesson import Lesson
from gemscope.training.log import read
from gemscope.training.source import Source, StoreSource, StreamSource
from gemscope.training.train import place_of, sweep, train
from lessons import SITE, Pairs, PowerCut, cut_off_at, planted, store_of
from pretended import Traffic, _Device, _There, pretended


class Elsewhere(Plain):
    """Kernels in torch alone; sparse matrices of torch's cannot be of a device that is not there."""

    def dots(self, offsets: Tensor, ids: Tensor, left: Tensor, right: Tensor) -> Tensor:
        given: list[Any] = [offsets, ids, left, right]
        assert len({one.device for one in given}) == 1
        if left.device.type == "cpu":
            return super().dots(offsets, ids, left, right)
        return _There(super().dots(*(one.here for one in given)))


PLAIN = Elsewhere(torch.float32)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[torch.device, Traffic]]:
    """A device that is not there, for the thread that reads batches too."""
    monkeypatch.setenv("GEMSCOPE_KERNELS", "torch")
    monkeypatch.setattr(plain, "load", lambda: PLAIN)  # whatever this processor is quick at
    with pretended() as (device, traffic):

        def reader(workers: int, name: str) -> ThreadPoolExecutor:
            return ThreadPoolExecutor(workers, name, _Device(traffic).__enter__)

        monkeypatch.setattr(delivery, "ThreadPoolExecutor", reader)
        yield device, traffic


BASE = TrainConfig(
    width=32,
    target_l0=4.0,
    rows=18 * 64,
    batch=64,
    lr=3e-3,
    checkpoint_every=8,
    log_every=3,
    anneal=0.3,
    seed=5,
)
KINDS: dict[str, dict[str, Any]] = {
    "jumprelu": {"patience": 64, "frequency": 0.2},
    "quadratic": {"penalty": "quadratic", "sparsity": 0.01, "matryoshka": (0.25, 0.5)},
    "tanh": {"penalty": "tanh", "sparsity": 0.02},
    "into the input": {"to_input": True},
    "topk": {"architecture": "topk", "auxiliary": 1 / 32, "patience": 128},
    "batchtopk": {"architecture": "batchtopk", "auxiliary": 1 / 32, "patience": 128, "matryoshka": (0.25, 0.5)},
    "gated": {"architecture": "gated", "sparsity": 0.05},
    "standard resampled": {"architecture": "standard", "sparsity": 1.5, "resample": 5 * 64, "patience": 64},
    "as Gemma Scope has it": {"unit_norm": True, "pre_bias": True, "centre": False, "beta1": 0.0},
    "transcoder": {"skip": True},
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
    found = {str(path.relative_to(run)): path for path in sorted(run.rglob("*")) if path.is_file()}
    return {
        name: path.read_bytes()
        .replace(str(run).encode(), b"RUN")
        .replace(b'"device": "pretended:0"', b'"device": "cpu"')
        for name, path in found.items()
        if name != "times.jsonl"
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*was aimed at")
def test_no_step_mixes_devices_and_the_run_is_the_processors_wherever_it_goes_on(
    kind: str,
    store: Store,
    pairs: Pairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: tuple[torch.device, Traffic],
) -> None:
    config = replace(BASE, **KINDS[kind])
    source: Source | Store = pairs if config.skip else store
    options: dict[str, Any] = {} if config.skip else {"held_out": store}
    device, _ = there
    train(source, config, to=tmp_path / "here", device="cpu", **options)
    sae = train(source, config, to=tmp_path / "there", device=device, **options)
    assert sae.W_enc.device == device
    for step, where in ((3, device), (11, "cpu"), (14, device)):
        with monkeypatch.context() as patch:
            cut_off_at(step, patch)
            with pytest.raises(PowerCut):
                train(source, config, to=tmp_path / "resumed", device=where, **options)
    train(source, config, to=tmp_path / "resumed", device=device, **options)
    assert training_report(tmp_path / "there").device == "pretended:0"
    assert "on `cpu`." in training_report(tmp_path / "here").to_card()
    processors = contents(tmp_path / "here")
    for name in ("there", "resumed"):
        found = contents(tmp_path / name)
        assert found.keys() == processors.keys()
        assert [path for path in found if found[path] != processors[path]] == []


@pytest.mark.parametrize(("kind", "most"), [("plain", 20), ("jumprelu", 20), ("batchtopk", 36), ("topk", 8)])
def test_a_step_waits_for_the_device_a_few_times_whatever_its_size(
    kind: str,
    most: int,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: tuple[torch.device, Traffic],
) -> None:
    """A search says how many entries it has found (torch's own a dozen times), masks how many they keep; the loss and the
    gradient's length are looked at; nothing else is.
    """
    device, traffic = there
    waits = []
    monkeypatch.setattr(plain, "load", lambda: replace(PLAIN, sparse_below=1.0))
    for batch in (32, 64):
        config = replace(
            BASE, batch=batch, rows=30 * batch, checkpoint_every=1000, log_every=1000, **KINDS.get(kind, {})
        )
        lesson = Lesson(StoreSource(store, SITE), {"": config}, tmp_path / str(batch), device=device)
        steps = lesson.steps(silent)
        for _ in range(24):  # the first are dense
            next(steps)
        before = traffic.waits
        for _ in range(2):
            next(steps)
        waits.append((traffic.waits - before) / 2)
        lesson.batches.close()
    assert max(waits) <= most, traffic


# --- how batches get there ------------------------------------------------------------------------------------------


class Noted:
    """Batches that remember which were asked for, and in which thread."""

    def __init__(self, last: int = 1000) -> None:
        self.asked: list[int] = []
        self.threads: set[str] = set()
        self.last = last

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        self.asked.append(step)
        self.threads.add(threading.current_thread().name)
        if step > self.last:
            raise NotFinite(f"NaN among the rows of step {step}")
        x = torch.full((2, 3), float(step), dtype=torch.float16)
        return x, x

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        return self[0]


def test_the_next_batch_is_read_while_one_is_worked_on_and_none_beyond_the_last(
    there: tuple[torch.device, Traffic],
) -> None:
    batches, (device, _) = Noted(), there
    delivered = Delivered(batches, device, end=4)
    for step in (0, 0, 1, 2, 3):
        x, y = delivered[step]
        assert y is x
        assert (x.device, x.dtype, x[0, 0].item()) == (device, torch.float32, step)
    delivered.close()
    assert batches.asked == [0, 1, 2, 3]
    assert threading.current_thread().name not in batches.threads
    delivered = Delivered(batches, device, end=4)
    assert [delivered[step][0][0, 0].item() for step in (2, 0, 3)] == [2, 0, 3]  # whatever the order
    delivered.close()
    assert batches.asked[4:] == [2, 3, 0, 1, 3]


def test_a_batch_that_cannot_be_read_says_so_when_its_turn_comes(there: tuple[torch.device, Traffic]) -> None:
    delivered = Delivered(Noted(last=1), there[0], end=9)
    for step in (0, 1):
        assert delivered[step][0][0, 0].item() == step
    with pytest.raises(NotFinite, match="step 2"):
        delivered[2]
    delivered.close()


def test_on_the_processor_batches_are_read_when_they_are_asked_for() -> None:
    batches = Noted()
    delivered = Delivered(batches, torch.device("cpu"), end=9)
    x, y = delivered[3]
    assert y is x
    assert x.dtype == torch.float32
    assert batches.asked == [3]
    assert batches.threads == {threading.current_thread().name}
    delivered.close()


# --- which device ---------------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_or_that_nothing_is_trained_on_is_one_line(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asked in ("cuda:99", "gpu", "xpu"):
        with pytest.raises(InputError, match=f"^device '{asked}' cannot be used: .*here there is .*cpu$"):
            train(store, BASE, to=tmp_path / "run", device=asked)
    monkeypatch.setattr(choice, "device_of", torch.device)
    with pytest.raises(
        InputError, match=r"^device 'mps' has no sparse products: SAEs are trained on cuda and cpu; take"
    ):
        train(store, BASE, to=tmp_path / "run", device="mps")
    assert not list(tmp_path.rglob("state-*"))


def test_what_finds_no_room_is_one_line_that_says_what_would_fit(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: tuple[torch.device, Traffic]
) -> None:
    device, traffic = there
    wide = replace(BASE, width=512)
    of = r"training 512 features with batch=64, of which weights, gradients and Adam's memory take 196.6 kB \("
    traffic.room = 150_000
    with pytest.raises(
        OutOfMemory, match=rf"^pretended:0 has no room for {of}.* more were asked for\): take fewer rows"
    ):
        train(store, wide, to=tmp_path / "run", device=device)
    monkeypatch.setattr(training, "free_on", lambda device: 150_000)
    with pytest.raises(OutOfMemory, match=r": about 312 features fit \(width=312\); or another device \(.*cpu\)$"):
        train(store, wide, to=tmp_path / "run", device=device)
    with pytest.raises(OutOfMemory, match=r"training 300 and 290 features .*: train fewer SAEs from one reading; or"):
        sweep(store, {str(n): replace(BASE, width=n) for n in (300, 290)}, to=tmp_path / "runs", device=device)
    gc.collect()
    assert traffic.room == 150_000  # all is given back
    assert not list(tmp_path.rglob("state-*"))


def test_rows_of_a_model_are_trained_on_beside_it_unless_another_device_is_named(
    store: Store, monkeypatch: pytest.MonkeyPatch, there: tuple[torch.device, Traffic]
) -> None:
    device, _ = there
    monkeypatch.setattr(choice, "device_of", lambda asked: device if asked == "auto" else torch.device(asked))
    monkeypatch.setattr(choice, "_SPARSE", ("cpu", device.type))
    source = StreamSource(tiny_model("llama"), Corpus.of(["some text"]), "1.res")
    assert place_of("auto", StoreSource(store, SITE)) == device
    assert place_of(None, StoreSource(store, SITE)) == device
    assert place_of("auto", source) == torch.device("cpu")  # where that model is
    assert place_of(str(device), source) == device


@pytest.mark.parametrize(
    ("reads_there", "sites"),
    [(False, "1.res"), (True, "1.res"), (True, ["0.res", "2.res"])],
    ids=["the model elsewhere", "on one device", "a crosscoder"],
)
@pytest.mark.filterwarnings("ignore:.*was aimed at")
def test_rows_are_trained_on_beside_the_model_that_computes_them_or_on_another_device(
    reads_there: bool, sites: str | list[str], tmp_path: Path, there: tuple[torch.device, Traffic]
) -> None:
    """The model reads in another thread then, as far ahead as one batch."""
    device, _ = there
    text = Corpus.of([f"text number {number} of several" for number in range(40)])
    config = replace(BASE, batch=16, rows=20 * 16)
    if len(sites) == 2:
        config = replace(config, architecture="standard", sparsity=0.05)  # whose penalty weighs sites

    def source(place: torch.device | str) -> StreamSource:
        model = tiny_model("llama")
        model.hf.to(place)
        return StreamSource(model, text, sites, buffer=64, length=16, rows=4)

    train(source("cpu"), config, to=tmp_path / "here", device="cpu")
    train(source(device if reads_there else "cpu"), config, to=tmp_path / "there", device=device)
    here, found = (read(tmp_path / name / "log.jsonl") for name in ("here", "there"))
    assert len(here) == len(found) == 7
    for one, other in zip(here, found, strict=True):  # attention there is another of torch's
        assert other == pytest.approx(one, rel=1e-4)
