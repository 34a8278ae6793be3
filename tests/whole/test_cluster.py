"""docs/cluster.md, as far as one machine can: `--workers` and torchrun in processes of their own; a Slurm array and a
Kubernetes job by the variables that they set."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusters import ROWS, SMALL, laid_out
from gemscope.atlas.reader import Atlas
from gemscope.cli.main import main
from harvested import contents, tree

DOCS = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
ATLAS = ["--before", "4", "--after", "3", "--effect-tokens", "0", "--no-map", *ROWS]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MODEL, SAE and texts/, as the page names them."""
    return laid_out(tmp_path_factory.mktemp("cluster"), documents=16)


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(place)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return


def told(begins: str, **other: str) -> list[str]:
    """A command of the page, by how it begins; with what stands in the place of some of its words."""
    found = re.search(rf"^ *({re.escape(begins)}.*)$", DOCS, re.M)
    assert found, f"docs/cluster.md has no command that begins with {begins}"
    return [other.get(word, word) for word in shlex.split(found[1])]


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, bytes]:
    """What one process harvests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["harvest", "MODEL", "texts/", "--sites", "1.res", "-o", "alone", *ROWS]) == 0
    return contents(place / "alone")


def test_workers_that_are_started_here_harvest_the_same_bytes(
    place: Path, alone: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    words = told("gemscope harvest", **{"4": "2", "acts": "two", "15.res": "1.res"})
    assert words[-2:] == ["--workers", "2"]
    assert main([*words[1:], *ROWS]) == 0
    assert capsys.readouterr().out.startswith("two: ")
    assert contents(place / "two") == alone
    assert not (place / "two.partial").exists()


def test_workers_that_are_started_here_score_the_same_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["score", "MODEL", "SAE", "texts/", "--json", "--loss-tokens", "300", *SMALL]
    assert main(words) == 0
    one = capsys.readouterr().out
    assert main([*words, "--workers", "3"]) == 0
    assert capsys.readouterr().out == one
    assert json.loads(one)["loss_tokens"] > 100


def test_torchrun_starts_workers_that_describe_the_same_bytes(place: Path) -> None:
    words = told("torchrun", **{"4": "2"})
    assert words[0] == "torchrun"
    # Its module, and not the script: that may be of another Python.
    at = words.index("--no-python")
    command = [sys.executable, "-m", "torch.distributed.run", *words[1:at], "-m", *words[at + 1 :], *ATLAS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert main(["describe", "MODEL", "SAE", "texts/", "-o", "alone.atlas", *ATLAS]) == 0
    assert contents(place / "mine.atlas") == contents(place / "alone.atlas")
    with Atlas(place / "mine.atlas") as atlas:
        assert atlas.manifest.documents == 16


def test_the_tasks_of_a_slurm_array_harvest_the_same_bytes_whenever_they_begin(
    place: Path, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, last = map(int, re.findall(r"--array=(\d+)-(\d+)", DOCS)[0])
    command = told(
        "gemscope harvest MODEL texts/ --sites 15.res -o acts\n".strip(), **{"acts": "slurm", "15.res": "1.res"}
    )
    assert (first, last) == (0, 15)
    for task in (2, 0, 1):  # of three
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
        monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "0")
        assert main([*without_workers(command), *ROWS]) == 0
        if task != 1:
            assert "pieces are done; others do the rest" in capsys.readouterr().out
    assert contents(place / "slurm") == alone


def test_the_pods_of_a_kubernetes_job_harvest_the_same_bytes(
    place: Path, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pods, said = re.search(r"completions: (\d+)", DOCS), re.search(r"GEMSCOPE_WORKERS, value: \"(\d+)\"", DOCS)
    command = re.search(r"command: \[(.*)\]", DOCS)
    assert pods
    assert said
    assert command
    assert pods[1] == said[1]
    words = [{"15.res": "1.res", "/data/acts": "kube"}.get(word, word) for word in command[1].split(", ")]
    monkeypatch.setenv("GEMSCOPE_WORKERS", pods[1])
    for pod in range(int(pods[1])):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(pod))
        assert main([*words[1:], *ROWS]) == 0
    assert contents(place / "kube") == alone


def test_shares_that_are_named_score_in_a_folder_that_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    share, *words = told("GEMSCOPE_SHARE=2/8 gemscope score")
    assert share == "GEMSCOPE_SHARE=2/8"
    for rank in range(8):
        monkeypatch.setenv("GEMSCOPE_SHARE", f"{rank}/8")
        assert main([*words[1:], "--json", "--loss-tokens", "300", *SMALL]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    monkeypatch.delenv("GEMSCOPE_SHARE")
    assert main(["score", "MODEL", "SAE", "texts/", "--json", "--loss-tokens", "300", *SMALL]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(last)
    assert tree(place / "scoring") >= {"pieces/00000.safetensors"}


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["--workers", "0"], {}, "--workers 0: expected how many processes, 1 or more"),
        (["--workers", "2"], {"RANK": "1", "WORLD_SIZE": "2"}, "--workers 2 within worker 1 of 2: leave it out"),
        ([], {"RANK": "1"}, "RANK is set and WORLD_SIZE is not"),
        ([], {"GEMSCOPE_SHARE": "0/2"}, "worker 0 of 2 without `pieces`: name the folder that all share"),
    ],
)
def test_workers_that_cannot_be_are_one_line(
    words: list[str],
    environment: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["score", "MODEL", "SAE", "texts/", *SMALL, *words]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def without_workers(words: list[str]) -> list[str]:
    at = words.index("--workers") if "--workers" in words else len(words)
    return words[1:at]
