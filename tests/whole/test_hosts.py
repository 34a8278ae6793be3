"""docs/cluster.md on two hosts: network namespaces that share a folder, one of which is cut off or dies in the middle,
and the other goes on. `make test-hosts` runs these.
"""

from __future__ import annotations

import json
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
from hosts import Host, running, surroundings, two_hosts, workers
from lessons import SITE, planted, store_of

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
    assert [ended(agent) for agent in agents] == [-signal.SIGKILL] * 2
    assert not Path("left").exists()
    assert ended(begun(one, "left")) == 0
    assert contents(Path("left")) == alone


# --- ranks that train one SAE ---------------------------------------------------------------------------------------

TIMEOUT = 15.0
"""Seconds that a rank waits for another."""
GRACE = 5.0
"""Seconds beyond that, in which a rank that has lost the others ends."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows") / "store"
    store_of(3 * planted(1500, d=12, features=20, active=2, seed=0)[0], folder)
    return folder


def training(rows: Path, to: Path, steps: int) -> list[str]:
    words = ["-m", "gemscope", "train", str(rows), "--site", str(SITE), "-o", str(to), "--device", "cpu"]
    settings = ("width=33", "target_l0=4", "batch=64", f"rows={64 * steps}", "checkpoint_every=4", "log_every=2")
    for setting in settings:
        words += ["--set", setting]
    return [*words, "--timeout", f"{TIMEOUT:g}"]


def torchrun(
    hosts: tuple[Host, Host], words: list[str], said: Path, *, port: int, restarts: int = 0, elastic: bool = False
) -> list[subprocess.Popen[bytes]]:
    """A rank on each host. The hosts find each other by c10d, or are told who they are, as by a scheduler."""
    agents = []
    for number, host in enumerate(hosts):
        meeting = ["--node-rank", str(number), "--master-addr", hosts[0].address, "--master-port", str(port)]
        if elastic:
            own = f"is_host={int(number == 0)}"  # neither finds its address by its name
            meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{hosts[0].address}:{port}"]
            meeting += ["--rdzv-id", str(port), "--rdzv-conf", own, "--local-addr", host.address]
        start = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        which = [*start, "--max-restarts", str(restarts), *meeting, *words]
        agents.append(host.start(sys.executable, *which, said=said.with_suffix(f".{number}")))
    return agents


def told(said: Path) -> list[str]:
    """By our own words, what each host's ranks said."""
    lines = [said.with_suffix(f".{number}").read_text().splitlines() for number in (0, 1)]
    return [line for each in lines for line in each if line.startswith("gemscope: ")]


def checkpoints(run: Path) -> set[int]:
    """The steps that can be gone on from."""
    return {int(path.name.removeprefix("state-")) for path in run.glob("state-*")}


@pytest.fixture(scope="module")
def undisturbed(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What two ranks of this machine make of 400 steps."""
    run = tmp_path_factory.mktemp("alone") / "run"
    command = [sys.executable, *training(rows, run, 400), "--ranks", "2"]
    environment = dict(surroundings()) | {"GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return contents(run / "sae")


def test_ranks_on_two_hosts_train_what_two_on_one_do_and_go_on_after_one_was_killed(
    hosts: tuple[Host, Host], rows: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """`torchrun --max-restarts` starts all again; they go on from the last checkpoint, to the same bytes."""
    run, said = tmp_path / "run", tmp_path / "said"
    agents = torchrun(hosts, training(rows, run, 400), said, port=29521, restarts=1, elastic=True)
    until(lambda: checkpoints(run), *agents, often=0.002)
    [rank] = workers(hosts[1])
    os.kill(rank, signal.SIGKILL)
    before = max(checkpoints(run))
    until((run / "figures.json").exists, often=0.2)
    for agent in agents:
        agent.wait(PATIENCE)
    figures = json.loads((run / "figures.json").read_text())
    assert figures["world"] == 2
    assert before < figures["steps"] == 400
    assert contents(run / "sae") == undisturbed


@pytest.mark.parametrize("by", ["a kill", "a cut"])
def test_ranks_that_lose_each_other_end_in_time_with_a_line_that_says_why(
    by: str,
    hosts: tuple[Host, Host],
    rows: Path,
    tmp_path: Path,
) -> None:
    """A kill is noticed at once, a link that is cut after the timeout: by both ends, each of which speaks for itself."""
    run, said = tmp_path / "run", tmp_path / "said"
    port = 29531 + len(by)
    agents = torchrun(hosts, training(rows, run, 1_000_000), said, port=port)
    until(lambda: checkpoints(run), *agents, often=0.05)
    [one], [other] = map(workers, hosts)
    since = time.monotonic()
    try:
        if by == "a kill":
            os.kill(other, signal.SIGKILL)
        else:
            hosts[1].cut()
        until(lambda: not any(map(alive, (one, other))), often=0.05)
        took = time.monotonic() - since
        assert took < (0 if by == "a kill" else TIMEOUT) + GRACE * slowness()
        for agent in agents:
            assert agent.wait(PATIENCE) == 1
    finally:
        hosts[1].mend()
    first, *others = told(said)
    assert first.startswith("gemscope: rank 1 of 2 is gone or does not answer (")
    assert first.endswith("): start all again, they go on from the last checkpoint")
    if by == "a kill":
        assert others == []
    else:
        [second] = others
        assert second.startswith("gemscope: rank 1 of 2 has lost the others (")
    assert checkpoints(run)


def alive(process: int) -> bool:
    """Whether it has not ended; one that nobody has asked after yet has."""
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def slowness() -> float:
    """How many times longer work takes here than on a machine that is idle."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
