"""docs/cluster.md on two hosts: network namespaces that share a folder, one of which is cut off or dies in the middle,
and the other goes on. `make test-hosts` runs these.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clusters import ROWS, laid_out
from gemscope.cli.main import main
from harvested import contents
from hosts import Host, running, two_hosts, workers

pytestmark = pytest.mark.netns
PATIENCE = 240.0
"""Seconds for processes that import torch on a machine that is busy."""
DOCUMENTS = 600


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as both:
        yield both


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MODEL and texts/, which both hosts see."""
    return laid_out(tmp_path_factory.mktemp("hosts"), documents=DOCUMENTS)


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, bytes]:
    """What one process harvests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("OMP_NUM_THREADS", "1")
        assert main(harvesting("alone")) == 0
    return contents(place / "alone")


def harvesting(to: str) -> list[str]:
    return ["harvest", "MODEL", "texts/", "--sites", "1.res", "-o", to, *ROWS]


def begun(host: Host, to: str, **environment: str) -> subprocess.Popen[bytes]:
    """A worker there, told by its environment which one it is; what it says goes to `TO.txt`."""
    words = [sys.executable, "-m", "gemscope", *harvesting(to)]
    return host.start(*words, said=Path(f"{to}.txt"), **environment)


def pieces(to: str) -> set[int]:
    """Those that are done, until all are put together."""
    return {int(path.stem) for path in Path(f"{to}.partial", "pieces").glob("*.json*") if path.stem.isdigit()} | {
        int(path.stem) for path in Path(f"{to}.partial", "pieces").glob("*.safetensors") if path.stem.isdigit()
    }


def until(true: Callable[[], object], *others: subprocess.Popen[bytes], often: float = 0.01) -> None:
    """Waits for something, as long as these processes do not fail."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        assert not any(one.poll() for one in others)
        time.sleep(often)


def ended(one: subprocess.Popen[bytes]) -> int:
    return one.wait(PATIENCE)


def test_tasks_of_a_slurm_array_on_a_host_that_is_cut_off_are_done_by_the_other(
    hosts: tuple[Host, Host], alone: dict[str, bytes]
) -> None:
    """The host that was gone comes back when all is done, in the middle of a piece: it changes nothing."""
    one, other = hosts
    array = {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0"}
    there = [begun(other, "slurm", SLURM_ARRAY_TASK_ID=str(task), **array) for task in (2, 3)]
    until(lambda: pieces("slurm"), *there, often=0.001)
    other.cut()
    frozen = running(other)
    for process in frozen:
        os.kill(process, signal.SIGSTOP)
    done = pieces("slurm")
    assert {number % 4 for number in done} <= {2, 3}
    here = [begun(one, "slurm", SLURM_ARRAY_TASK_ID=str(task), **array) for task in (0, 1)]
    assert [ended(task) for task in here] == [0, 0]
    assert "others do the rest" in Path("slurm.txt").read_text()
    assert not Path("slurm").exists()
    again = [begun(one, "slurm", GEMSCOPE_SHARE=f"{task}/4") for task in (2, 3)]
    assert [ended(task) for task in again] == [0, 0]
    assert contents(Path("slurm")) == alone
    other.mend()
    for process in frozen:
        os.kill(process, signal.SIGCONT)
    assert [ended(task) for task in there] == [0, 0]
    assert contents(Path("slurm")) == alone
    assert not Path("slurm.partial").exists()


def test_a_pod_that_is_killed_begins_again_on_the_other_host(hosts: tuple[Host, Host], alone: dict[str, bytes]) -> None:
    one, other = hosts
    pods = [
        begun(host, "kube", GEMSCOPE_WORKERS="2", JOB_COMPLETION_INDEX=str(index))
        for index, host in enumerate((one, other))
    ]
    until(lambda: {number for number in pieces("kube") if number % 2}, *pods, often=0.001)
    os.killpg(pods[1].pid, signal.SIGKILL)
    assert ended(pods[1]) == -signal.SIGKILL
    until(lambda: not running(other))
    assert ended(pods[0]) == 0
    assert not Path("kube").exists()
    before = {path: path.stat().st_ino for path in Path("kube.partial", "pieces").iterdir() if path.is_file()}
    assert before
    again = begun(one, "kube", GEMSCOPE_WORKERS="2", JOB_COMPLETION_INDEX="1")
    assert ended(again) == 0
    assert contents(Path("kube")) == alone


def test_torchrun_on_two_hosts_harvests_the_same_bytes_and_one_of_them_goes_on_alone(
    hosts: tuple[Host, Host], alone: dict[str, bytes]
) -> None:
    one, other = hosts
    start = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-port", "29511"]

    def torchrun(to: str, number: int, host: Host) -> subprocess.Popen[bytes]:
        which = ["--node-rank", str(number), "--master-addr", one.address, "-m", "gemscope", *harvesting(to)]
        return host.start(sys.executable, *start, *which, said=Path(f"{to}.txt"))

    agents = [torchrun("torchrun", number, host) for number, host in enumerate(hosts)]
    assert [ended(agent) for agent in agents] == [0, 0]
    assert contents(Path("torchrun")) == alone

    agents = [torchrun("left", number, host) for number, host in enumerate(hosts)]
    until(lambda: {number for number in pieces("left") if number % 2}, *agents, often=0.001)
    os.killpg(agents[1].pid, signal.SIGKILL)
    for process in running(other):
        os.kill(process, signal.SIGKILL)
    until(lambda: not workers(one), often=0.2)  # its share is done; its torchrun may wait for the other's
    os.killpg(agents[0].pid, signal.SIGKILL)
    assert not Path("left").exists()
    assert ended(begun(one, "left")) == 0
    assert contents(Path("left")) == alone
