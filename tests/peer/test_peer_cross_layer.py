"""What circuit-tracer writes of a cross-layer transcoder is read, and finds and writes what it does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gemscope as gs

REPOSITORY = Path(__file__).parents[2]
PYTHON = REPOSITORY / ".venv-peer-circuits" / "bin" / "python"

pytestmark = pytest.mark.peer


def test_circuit_tracers_cross_layer_transcoders_are_read_and_compute_the_same(tmp_path: Path) -> None:
    if not PYTHON.exists():
        pytest.skip(f"circuit-tracer is not installed in {PYTHON.parts[-3]}: run `make peer`")
    subprocess.run([PYTHON, Path(__file__).parent / "cross_layer.py", tmp_path], check=True)
    for gate in ("relu", "jump_relu"):
        clt = gs.load_clt(tmp_path / gate)
        told = load_file(tmp_path / f"{gate}.safetensors")
        assert len(clt) == len(told["x"])
        features, out = clt.read({site: told["x"][layer] for layer, site in enumerate(clt.sites)})
        for layer, (site, to) in enumerate(zip(clt.sites, clt.sites_out, strict=True)):
            dense = features[site].to_dense()
            assert torch.equal(dense != 0, told["features"][layer] != 0)
            torch.testing.assert_close(dense, told["features"][layer], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(out[to], told["recon"][layer], rtol=1e-5, atol=1e-5)
