"""sparsify and circuit-tracer load what `save_sae` writes for them, and compute the same with it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gemscope as gs

REPOSITORY = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "exported.py"
PEERS = {
    "sparsify": REPOSITORY / ".venv-peer-sparsify" / "bin" / "python",
    "circuit-tracer": REPOSITORY / ".venv-peer-circuits" / "bin" / "python",
}

pytestmark = pytest.mark.peer

D, F = 16, 48
MODEL = gs.SAEInfo(model="meta-llama/Llama-3.2-1B")
THROUGH = {"site": "0.transcoder", "site_out": "0.mlp"}

SPARSIFY: dict[str, dict[str, Any]] = {
    "sae": {"gate": "topk", "k": 6, "site": "3.res"},
    "relu": {"gate": "relu", "site": "3.res"},
    "bfloat16": {"gate": "topk", "k": 6, "site": "3.mlp"},
    "transcoder": {"gate": "topk", "k": 6, **THROUGH},
    "skip": {"gate": "topk", "k": 6, "skip": True, **THROUGH},
}
CIRCUITS: dict[str, list[dict[str, Any]]] = {
    "relu": [{"gate": "relu", **THROUGH}],
    "jumprelu": [THROUGH],
    "skip": [{"skip": True, **THROUGH}],
    "bfloat16": [THROUGH],
    "set": [{"gate": "relu", "site": f"{layer}.transcoder", "site_out": f"{layer}.mlp"} for layer in range(3)],
}


def drawn(options: dict[str, Any], seed: int) -> gs.SAE:
    sae = gs.SAE(D, F, info=MODEL, **options)
    draw = torch.Generator().manual_seed(seed)
    for name, weight in sae.named_parameters():
        weight.copy_(torch.randn(weight.shape, generator=draw) * (0.4 if weight.ndim == 1 else 0.25))
        if name == "W_dec":
            weight.mul_(torch.rand(F, 1, generator=draw) + 0.5)
    return sae


def answers(tool: str, root: Path) -> None:
    python = PEERS[tool]
    if not python.exists():
        pytest.skip(f"{tool} is not installed in {python.parts[-3]}: run `make peer`")
    draw = torch.Generator().manual_seed(9)
    save_file({"x": torch.randn(200, D, generator=draw) + 0.3}, root / "x.safetensors")
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [python, SCRIPT, tool, root], check=False, capture_output=True, text=True, timeout=280, env=os.environ | offline
    )
    assert done.returncode == 0, done.stderr[-3000:]


def assert_same(sae: gs.SAE, x: torch.Tensor, features: torch.Tensor, out: torch.Tensor) -> None:
    z = x @ sae.W_enc.float() + sae.b_enc
    edge = sae.threshold.clamp(min=0) if sae.threshold is not None else torch.zeros(F)
    if sae.k is not None and sae.k < F:
        edge = z.sort(descending=True).values[:, sae.k - 1 : sae.k + 1].mean(-1, keepdim=True)
    apart = ((z - edge).abs() > 1e-4).all(-1)  # rounding decides the others
    assert apart.sum() > 100
    found = sae.encode(x).to_dense()
    torch.testing.assert_close(found[apart], features[apart], rtol=1e-4, atol=1e-5)
    assert 0.5 < (found > 0).sum(-1).float().mean() < F - 1
    torch.testing.assert_close(sae(x)[apart], out[apart], rtol=1e-4, atol=2e-5)


def test_sparsify_reads_its_folders_and_computes_the_same(tmp_path: Path) -> None:
    saes = {}
    for seed, (name, options) in enumerate(SPARSIFY.items()):
        dtype = torch.bfloat16 if name == "bfloat16" else None
        folder = gs.save_sae(drawn(options, seed), tmp_path / "saved" / name, format="sparsify", dtype=dtype)
        saes[name] = gs.load_sae(folder)
    answers("sparsify", tmp_path)
    x = load_file(tmp_path / "x.safetensors")["x"]
    for name, sae in saes.items():
        answer = load_file(tmp_path / "answers" / f"{name}.safetensors")
        if name == "bfloat16":  # its products are of bfloat16, and some features are others for that
            assert 0 < (sae(x) - answer["out"]).norm() < 0.1 * sae(x).norm()
        else:
            assert_same(sae, x, answer["features"], answer["out"])


def test_circuit_tracer_reads_its_sets_and_computes_the_same(tmp_path: Path) -> None:
    saes: dict[str, list[gs.SAE]] = {}
    for name, layers in CIRCUITS.items():
        saes[name] = [drawn(options, seed) for seed, options in enumerate(layers)]
        for sae in saes[name]:
            dtype = torch.bfloat16 if name == "bfloat16" else None
            gs.save_sae(sae, tmp_path / "saved" / name, format="circuit-tracer", dtype=dtype)
    answers("circuit-tracer", tmp_path)
    x = load_file(tmp_path / "x.safetensors")["x"]
    for name, layers in saes.items():
        answer = load_file(tmp_path / "answers" / f"{name}.safetensors")
        for layer, sae in enumerate(layers):
            if name == "bfloat16":
                for matrix in (sae.W_enc, sae.W_dec):
                    matrix.copy_(matrix.bfloat16().float())
            assert_same(sae, x, answer["features"][layer], answer["out"][layer])
