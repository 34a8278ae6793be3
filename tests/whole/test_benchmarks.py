"""The benchmarks' own ground: SAEs that are what they claim to be, and a check that lets no wrong result through."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import gemscope as gs

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
D_MODEL, D_SAE, L0 = 128, 4096, 24.0


@pytest.fixture
def realistic(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("realistic")


@pytest.fixture
def encode(realistic: ModuleType) -> ModuleType:
    return importlib.import_module("encode")


@pytest.fixture
def folder(realistic: ModuleType, tmp_path: Path) -> Path:
    return realistic.sae_folder(D_MODEL, D_SAE, l0=L0, cache=tmp_path)


@pytest.fixture
def weights(realistic: ModuleType, folder: Path) -> dict[str, Tensor]:
    return realistic.mapped(folder)


@pytest.fixture
def x(realistic: ModuleType, weights: dict[str, Tensor]) -> Tensor:
    return realistic.activations(weights["W_dec"], 300, l0=L0)


def test_a_realistic_sae_is_one_that_load_sae_reads_and_meets_its_l0(folder: Path, x: Tensor) -> None:
    sae = gs.load_sae(folder)
    assert (sae.d_in, sae.d_sae) == (D_MODEL, D_SAE)
    assert sae.encode(x).mean_l0 == pytest.approx(L0, rel=0.15)


def test_realistic_weights_have_unit_directions_and_a_mean_that_the_encoder_takes_out(
    weights: dict[str, Tensor], x: Tensor
) -> None:
    assert torch.allclose(weights["W_enc"].norm(dim=0), torch.ones(D_SAE), atol=1e-5)
    assert torch.allclose(weights["W_dec"].norm(dim=1), torch.ones(D_SAE), atol=1e-5)
    assert torch.allclose(x.mean(0), weights["b_dec"], atol=1.5)
    assert weights["b_dec"].norm() > 10
    assert weights["b_dec"].abs().topk(6).values.square().sum() > 0.8 * weights["b_dec"].square().sum()
    assert torch.allclose(weights["b_enc"], -weights["b_dec"] @ weights["W_enc"], atol=1e-4)


def test_a_realistic_sae_has_entries_near_its_thresholds_and_more_candidates_than_features(
    realistic: ModuleType, weights: dict[str, Tensor], x: Tensor
) -> None:
    near = realistic.near(weights, x)
    assert near["within_0.01"] > 0.5
    assert near["l0"] < near["bf16_candidates"] < 2 * near["l0"]


def test_the_same_seed_makes_the_same_sae(realistic: ModuleType, weights: dict[str, Tensor], tmp_path: Path) -> None:
    again = realistic.mapped(realistic.sae_folder(D_MODEL, D_SAE, l0=L0, cache=tmp_path / "again"))
    other = realistic.mapped(realistic.sae_folder(D_MODEL, D_SAE, l0=L0, seed=1, cache=tmp_path / "other"))
    assert all(torch.equal(part, again[name]) for name, part in weights.items())
    assert not torch.equal(weights["W_enc"], other["W_enc"])


@pytest.mark.parametrize("name", ["tutorial", "float32-torch", "gemscope", "gemscope-torch"])
def test_every_implementation_measured_passes_the_check(
    encode: ModuleType, weights: dict[str, Tensor], x: Tensor, name: str
) -> None:
    with torch.no_grad():
        dense = encode.MADE["tutorial"](weights).encode(x)
        one = encode.MADE[name](weights)
        encode.check(name, one, weights, x, dense=dense, encoded=one.encode(x))


def _missing(dense: Tensor) -> Tensor:
    wrong = dense.clone()
    wrong[7, dense[7].argmax()] = 0
    return wrong


def _added(dense: Tensor) -> Tensor:
    wrong = dense.clone()
    wrong[7, (dense[7] == 0).nonzero()[0]] = 1.0
    return wrong


def _rounded(dense: Tensor) -> Tensor:
    return dense.bfloat16().float()


@pytest.mark.parametrize("spoilt", [_missing, _added, _rounded])
def test_the_check_ends_the_benchmark_on_wrong_features(
    encode: ModuleType, weights: dict[str, Tensor], x: Tensor, spoilt: object
) -> None:
    with torch.no_grad():
        one = encode.MADE["tutorial"](weights)
        dense = one.encode(x)
        with pytest.raises(SystemExit, match="bad: "):
            encode.check("bad", one, weights, x, dense=dense, encoded=spoilt(dense))


def test_the_check_ends_the_benchmark_on_plain_bfloat16(
    encode: ModuleType, weights: dict[str, Tensor], x: Tensor
) -> None:
    with torch.no_grad():
        one = encode.MADE["tutorial"](weights)
        pre = (x.bfloat16() @ weights["W_enc"].bfloat16()).float() + weights["b_enc"]
        low = pre * (pre > weights["threshold"])
        with pytest.raises(SystemExit, match="bad: "):
            encode.check("bad", one, weights, x, dense=one.encode(x), encoded=low)


def test_the_check_ends_the_benchmark_on_a_wrong_reconstruction(
    encode: ModuleType, weights: dict[str, Tensor], x: Tensor
) -> None:
    with torch.no_grad():
        one = encode.MADE["tutorial"](weights)
        dense = one.encode(x)
        wrong = replace(one, decode=lambda features: 1.0001 * one.decode(features))
        with pytest.raises(SystemExit, match="decode is off"):
            encode.check("bad", wrong, weights, x, dense=dense, encoded=dense)
