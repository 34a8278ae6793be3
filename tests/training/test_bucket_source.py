"""Training on a harvest that lies in a bucket: the same SAE as from a folder here, each shard fetched once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gemscope.activations.store import Store
from gemscope.cli.main import main
from gemscope.training.config import TrainConfig
from gemscope.training.train import train
from harvested import contents
from lessons import planted, store_of
from s3_server import S3

CONFIG = TrainConfig(width=32, target_l0=4.0, rows=20 * 64, batch=64)


@pytest.fixture
def here(tmp_path: Path, s3: S3) -> Store:
    store = store_of(planted(1500, d=12, features=20, active=2, seed=0)[0], tmp_path / "rows")
    s3.objects |= {f"bucket/rows/{name}": data for name, data in contents(tmp_path / "rows").items()}
    return store


def test_an_sae_trained_on_a_bucket_is_the_one_of_a_folder(here: Store, s3: S3, tmp_path: Path) -> None:
    near = train(here, CONFIG, to=tmp_path / "near")
    s3.fault = lambda request: "cut" if request.number == 1 and request.method == "GET" else None
    far = train("s3://bucket/rows", CONFIG, to=tmp_path / "far")
    for name in ("W_enc", "b_enc", "threshold", "W_dec", "b_dec"):
        assert torch.equal(getattr(near, name), getattr(far, name)), name
    [shard] = [key for key in s3.objects if key.endswith(".safetensors")]
    assert (
        sum(len(one.headers.get("range", "")) == 0 for one in s3.asked if one.key == shard and one.method == "GET") <= 1
    )


def test_the_shell_trains_on_a_site_in_a_bucket(
    here: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], s3: S3
) -> None:
    [site] = map(str, here.sites)
    words = [
        "-o",
        str(tmp_path / "run"),
        "--set",
        "width=16",
        "--set",
        "target_l0=4",
        "--set",
        "rows=128",
        "--set",
        "batch=64",
    ]
    assert main(["train", f"s3://bucket/rows/{site}", *words]) == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "sae" / "cfg.json").exists()
    assert main(["train", "s3://bucket/nothing", *words]) == 1
    assert "no harvest in s3://bucket/nothing: it has no manifest.json" in capsys.readouterr().err
