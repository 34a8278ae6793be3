"""`gemscope train --ranks`: the ranks that torchrun starts, from the shell and at their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gemscope.cli.main import main
from gemscope.training.log import read
from lessons import SITE, planted, store_of

PATIENCE = 240.0
"""Seconds until processes that import torch are at their first checkpoint, on a machine that is busy."""


def worker(launcher: int, rank: int) -> int | None:
    """The process of a rank."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == launcher and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    return int(folder.name)
            except (OSError, ValueError):  # it has just ended
                continue
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="a rank is found in /proc")
def test_a_killed_rank_ends_the_command_with_one_line_and_the_run_goes_on_in_one_process(tmp_path: Path) -> None:
    store_of(3 * planted(1500, d=12, features=20, active=2, seed=0)[0], tmp_path / "store")
    words = ["train", str(tmp_path / "store"), "--site", str(SITE), "-o", str(tmp_path / "run"), "--device", "cpu"]
    for setting in ("width=33", "target_l0=4", "batch=64", "rows=6_400_000", "checkpoint_every=4", "log_every=2"):
        words += ["--set", setting]
    command = [sys.executable, "-m", "gemscope", *words, "--ranks", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
        try:
            end = time.monotonic() + PATIENCE
            while not list((tmp_path / "run").glob("state-*")) and time.monotonic() < end:
                assert launcher.poll() is None, launcher.stderr and launcher.stderr.read()
                time.sleep(0.1)
            killed = worker(launcher.pid, 1)
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            out, said = launcher.communicate(timeout=PATIENCE)
        finally:
            launcher.kill()
    assert (out, launcher.returncode) == ("", 1)
    assert said == (
        "gemscope: rank 1 of 2 was ended by SIGKILL: start all again, they go on from the last checkpoint\n"
    )
    (state,) = (tmp_path / "run").glob("state-*")
    assert len(list(state.glob("tensors-0000?-of-00002.safetensors"))) == 2
    assert {line["world"] for line in read(tmp_path / "run" / "log.jsonl")} == {2}


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["--ranks", "0"], {}, "--ranks 0: expected a number from 1"),
        (["--timeout", "0"], {}, "--timeout 0: expected seconds"),
        (["--ranks", "3"], {"RANK": "1", "WORLD_SIZE": "2"}, "--ranks 3 under torchrun, which started 2: leave it"),
    ],
)
def test_ranks_that_cannot_be_are_refused(
    words: list[str],
    environment: dict[str, str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"MASTER_ADDR": "localhost", **environment}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", str(tmp_path / "store"), "-o", str(tmp_path / "run"), *words]) == 1
    assert capsys.readouterr().err == f"gemscope: {said}\n"
