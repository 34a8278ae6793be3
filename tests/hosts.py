"""Two hosts on one machine: network namespaces with names of their own, joined by a cable that can be cut. They share
folders, processor and process numbers. For tests that are marked `netns`, by who may make namespaces.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]


class Host(NamedTuple):
    """One of them."""

    name: str
    """Of the namespace, and what it calls itself."""
    address: str
    link: str
    """Its end of the cable."""

    def start(self, *words: str, said: Path, **environment: str) -> subprocess.Popen[bytes]:
        """A command there, in a group of processes of its own; what it says goes to a file."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        with said.open("ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *named, *words],
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=surroundings() | {"GLOO_SOCKET_IFNAME": self.link} | environment,
            )

    def cut(self) -> None:
        """The cable has no end here any more: nothing comes, and nothing is said of that."""
        _ip("-n", self.name, "link", "set", self.link, "down")

    def mend(self) -> None:
        """It has again."""
        _ip("-n", self.name, "link", "set", self.link, "up")


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """They are gone in the end, with all that runs there. Skips the test where nobody may make them."""
    if why := unable():
        pytest.skip(why)
    mark = f"gs{os.getpid() % 100_000}"
    hosts = tuple(Host(f"{mark}{end}", f"10.77.0.{n}", f"{mark}v{n}") for n, end in ((1, "a"), (2, "b")))
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
        first, second = hosts
        _ip("-n", first.name, "link", "add", first.link, "type", "veth", "peer", "name", second.link)
        _ip("-n", first.name, "link", "set", second.link, "netns", second.name)
        for host in hosts:
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.link)
            for link in ("lo", host.link):
                _ip("-n", host.name, "link", "set", link, "up")
        yield first, second
    finally:
        for host in hosts:
            for one in running(host):
                with suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", host.name], capture_output=True, check=False)


def unable() -> str:
    """Why there can be no two hosts here; "" where there can."""
    if sys.platform != "linux" or not all(map(shutil.which, ("ip", "unshare", "hostname"))):
        return "network namespaces are Linux's, made by `ip netns`, `unshare` and `hostname`"
    probe = f"gs{os.getpid() % 100_000}p"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no right to make network namespaces: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", probe], capture_output=True, check=False)
    return ""


def running(host: Host) -> list[int]:
    """Processes on it."""
    found = subprocess.run(["ip", "netns", "pids", host.name], capture_output=True, text=True, check=False)
    return [int(one) for one in found.stdout.split()]


def workers(host: Host, *, rank: int | None = None) -> list[int]:
    """Those of its processes that torchrun started, of one rank or of all."""
    found = []
    for one in running(host):
        with suppress(OSError):
            said = (Path("/proc") / str(one) / "environ").read_bytes().split(b"\0")
            known = dict(each.split(b"=", 1) for each in said if b"=" in each)
            mine = known.get(b"RANK")
            if mine is not None and rank in (None, int(mine)):
                found.append(one)
    return found


def surroundings() -> Mapping[str, str]:
    """Of a process that imports the same package as the tests do, and has one thread."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
