"""Training on a CUDA device beside the processor: the same rows to float tolerance, and, cut off, to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from gemscope.activations.store import Store
from gemscope.testing import tiny_model
from gemscope.text.corpus import Corpus
from gemscope.training.config import TrainConfig
from gemscope.training.log import read
from gemscope.training.source import StreamSource
from gemscope.training.train import train
from lessons import PowerCut, cut_off_at, planted, store_of

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:.*was aimed at")]

BASE = TrainConfig(
    width=1024,
    target_l0=16.0,
    rows=200 * 512,
    batch=512,
    checkpoint_every=40,
    log_every=10,
    patience=20 * 512,
    seed=5,
)
KINDS: dict[str, dict[str, Any]] = {
    "jumprelu": {},
    "frequency and prefixes": {"frequency": 0.2, "matryoshka": (0.125, 0.5)},
    "as Gemma Scope has it": {"unit_norm": True, "pre_bias": True, "centre": False, "penalty": "quadratic"},
    "batchtopk": {"architecture": "batchtopk"},
    "topk": {"architecture": "topk"},
    "standard": {"architecture": "standard", "sparsity": 0.3, "resample": 40 * 512},
    "gated": {"architecture": "gated", "sparsity": 0.05},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    rows, _ = planted(20_000, d=128, features=512, active=12, seed=0)
    return store_of(3 * rows + 2, tmp_path_factory.mktemp("store") / "acts")


@pytest.mark.parametrize("kind", KINDS)
def test_the_processor_and_the_gpu_agree_over_200_steps(kind: str, store: Store, tmp_path: Path) -> None:
    config = replace(BASE, **KINDS[kind])
    for device in ("cpu", "cuda"):
        train(store, config, to=tmp_path / device, held_out=store, device=device)
    here, there = (read(tmp_path / device / "log.jsonl") for device in ("cpu", "cuda"))
    assert len(here) == len(there) == 20
    for one, other in zip(here, there, strict=True):
        # Roundings decide which features just fire, and steps amplify that; figures of all of them hardly move.
        assert other["fvu"] == pytest.approx(one["fvu"], rel=0.01)
        assert other["l0"] == pytest.approx(one["l0"], rel=0.02)
    assert there[0]["loss"] == pytest.approx(here[0]["loss"], rel=1e-3)
    weights = [load_file(tmp_path / device / "sae" / "sae_weights.safetensors") for device in ("cpu", "cuda")]
    apart = (weights[0]["W_dec"] - weights[1]["W_dec"]).norm() / weights[0]["W_dec"].norm()
    assert apart < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_on_one_device_the_same_seed_gives_the_same_bytes_cut_off_or_not(
    kind: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(BASE, **KINDS[kind])
    train(store, config, to=tmp_path / "whole", device="cuda")
    for step in (3, 50, 130):
        with monkeypatch.context() as patch:
            cut_off_at(step, patch)
            with pytest.raises(PowerCut):
                train(store, config, to=tmp_path / "resumed", device="cuda")
    train(store, config, to=tmp_path / "resumed", device="cuda")
    for name in ("log.jsonl", "sae/sae_weights.safetensors", "state-00000200/tensors.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes(), name


def test_products_in_bfloat16_end_where_those_in_float32_do(store: Store, tmp_path: Path) -> None:
    for products in ("float32", "bfloat16"):
        train(store, replace(BASE, products=products), to=tmp_path / products, device="cuda")
    exact, rough = (read(tmp_path / products / "log.jsonl")[-1] for products in ("float32", "bfloat16"))
    assert rough["fvu"] == pytest.approx(exact["fvu"], rel=0.05)
    assert rough["loss"] != exact["loss"]


def test_a_model_on_the_device_computes_rows_that_are_trained_on_there(tmp_path: Path) -> None:
    text = Corpus.of([f"text number {number} of several" for number in range(200)])
    config = replace(BASE, width=64, target_l0=8.0, batch=64, rows=40 * 64)
    for name, device in (("here", "cpu"), ("there", "cuda")):
        model = tiny_model("llama")
        model.hf.to(device)
        train(StreamSource(model, text, "1.res", buffer=512, length=16, rows=8), config, to=tmp_path / name)
    here, there = (read(tmp_path / name / "log.jsonl") for name in ("here", "there"))
    assert there[-1]["fvu"] == pytest.approx(here[-1]["fvu"], rel=0.02)
