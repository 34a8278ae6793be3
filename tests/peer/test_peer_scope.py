"""SAELens opens every SAE of a scope by its folder, and computes the same with it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemscope.features.load import load_sae
from scopes import EIGHT, made

PEER = Path(__file__).parents[2] / ".venv-peer" / "bin" / "python"
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not PEER.exists(), reason="SAELens is not installed in .venv-peer: run `make peer`"),
    pytest.mark.filterwarnings("ignore:.*(aimed at|run away)"),
]
SCRIPT = """
import json, sys
from pathlib import Path
from safetensors.torch import load_file, save_file
from sae_lens import SAE
root = Path(sys.argv[1])
x = load_file(root / "x.safetensors")["x"]
found = {}
for place in json.loads((root / "scope" / "scope.json").read_text())["saes"]:
    sae = SAE.load_from_disk(str(root / "scope" / place["path"]), device="cpu")
    found[place["path"]] = sae.encode(x).detach().contiguous()
save_file(found, root / "answers.safetensors")
"""


def test_saelens_opens_every_sae_of_a_scope_and_finds_the_same_features(tmp_path: Path) -> None:
    table = made(tmp_path / "scope", EIGHT)
    torch.manual_seed(0)
    x = torch.randn(64, 32)
    save_file({"x": x}, tmp_path / "x.safetensors")
    offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [PEER, "-c", SCRIPT, tmp_path],
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | offline,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = load_file(tmp_path / "answers.safetensors")
    paths = [one["path"] for one in json.loads((tmp_path / "scope" / "scope.json").read_text())["saes"]]
    assert answers.keys() == set(paths)
    assert len(table.scope) == 32
    for path in paths:
        torch.testing.assert_close(
            load_sae(tmp_path / "scope" / path).encode_dense(x), answers[path], rtol=1e-4, atol=1e-4
        )
