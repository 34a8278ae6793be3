"""Processes that are killed at any moment, and several that write the same thing at once: what is there is whole or not
there at all, and nothing is left lying about."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="gguf, which reads the bundled model's weights, is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")
if not hasattr(os, "fork"):
    pytest.skip("this system does not fork", allow_module_level=True)

GO_ON = ("harvest", "describe", "train", "scope", "train a crosscoder")
"""Jobs that are gone on from: what they leave has a name that stays."""
JOBS = [*GO_ON[:4], "import", "export site", "export parquet", "convert", "unpack", "save"]
"""One of each way of writing."""
OTHERS = [
    *("train a crosscoder", "merge", "import anthropic", "import gemma-scope-2", "export html", "export csv"),
    *("export anthropic", "export neuronpedia", "export neuronpedia-upload"),
]
REPEATED = (
    "train",
    "train a crosscoder",
    "scope",
    "save",
    "convert",
    "unpack",
    "export csv",
    "export html",
    "export parquet",
)
"""Jobs that may be done again where they are done already."""
MOMENTS = 20


class Nursery:
    """Begins jobs, and says how they ended."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self._ask(None) == "ready"

    def _ask(self, asked: dict[str, object] | None) -> str:
        talk, listen = self._process.stdin, self._process.stdout
        assert talk is not None
        assert listen is not None
        if asked is not None:
            print(json.dumps(asked), file=talk, flush=True)
        return listen.readline().strip()

    def begin(self, job: str, to: Path, **asked: str | int) -> int:
        to.parent.mkdir(parents=True, exist_ok=True)
        self.said = to.parent.parent / f"said-{time.monotonic_ns()}"
        plain = {"kill": None, "after": 0, "longest": None, "share": None}
        return int(self._ask({**plain, **asked, "job": job, "to": str(to), "said": str(self.said)}))

    def end(self, child: int) -> int:
        return int(self._ask({"wait": child}))

    def do(self, job: str, to: Path, **asked: str | int) -> int:
        return self.end(self.begin(job, to, **asked))


@dataclass
class Whole:
    """What a job makes when it is left alone, and how long that takes."""

    contents: dict[str, bytes]
    seconds: float


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    made = tmp_path_factory.mktemp("made")
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).parents[1] / "killable.py"), str(made)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        yield Nursery(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def wholes() -> dict[str, Whole]:
    return {}


def whole_of(job: str, nursery: Nursery, wholes: dict[str, Whole], tmp_path: Path) -> Whole:
    if job not in wholes:
        to = tmp_path / "whole" / "out"
        since = time.monotonic()
        assert nursery.do(job, to) == 0, nursery.said.read_text()
        wholes[job] = Whole(contents(to), time.monotonic() - since)
        assert wholes[job].contents
    return wholes[job]


def contents(to: Path) -> dict[str, bytes]:
    """All that lies where a job wrote, hidden or not, but for clocks and the place's own name."""
    found = {path.relative_to(to.parent).as_posix(): path for path in to.parent.rglob("*") if not path.is_dir()}
    return {
        name: path.read_bytes().replace(str(to).encode(), b"TO")
        for name, path in found.items()
        if not name.endswith("times.jsonl")
    }


def left(to: Path) -> list[str]:
    """What is hidden where a job wrote."""
    return [path.relative_to(to.parent).as_posix() for path in to.parent.rglob(".*")]


def gone_on(job: str, to: Path, nursery: Nursery, whole: Whole) -> None:
    """Done once more, it is as if it had been left alone."""
    done = nursery.do(job, to)
    if done == 1 and job not in REPEATED:
        assert f"{to} exists" in nursery.said.read_text()
    else:
        assert done == 0, nursery.said.read_text()
    found = contents(to)
    if job == "harvest":  # killed with all but the last word said
        found = {name: content for name, content in found.items() if not name.startswith("out/pieces/")}
    assert left(to) == []
    assert found == whole.contents


def is_sound(job: str, to: Path, whole: Whole) -> bool:
    """Whether what lies there in between is whole, or nobody takes it for something."""
    found = {name: content for name, content in contents(to).items() if "/." not in f"/{name}"}
    if job == "save" and not (to / "cfg.json").exists():
        return True
    if job in ("harvest", "describe") and not to.exists():
        return all(name.startswith("out.partial/") for name in found)
    if job == "harvest":
        found = {name: content for name, content in found.items() if not name.startswith("out/pieces/")}
    if job == "describe" and (to.parent / "out.partial").exists():  # it is being taken away
        found = {name: content for name, content in found.items() if not name.startswith("out.partial/")}
    if job == "scope":  # SAEs get into their places one by one
        found = {name: content for name, content in found.items() if not name.startswith("out.partial/")}
        return found.items() <= whole.contents.items()
    if job == "train":  # the log has lines beyond the checkpoint
        found = {name: content for name, content in found.items() if name in whole.contents and "log" not in name}
        return found.items() <= whole.contents.items()
    return not found or found == whole.contents


@pytest.mark.parametrize("job", JOBS)
def test_killed_when_all_is_written_it_is_done_again_and_nothing_stays(
    job: str, nursery: Nursery, wholes: dict[str, Whole], tmp_path: Path
) -> None:
    whole = whole_of(job, nursery, wholes, tmp_path)
    to = tmp_path / "killed" / "out"
    assert nursery.do(job, to, kill=signal.SIGKILL) == -signal.SIGKILL
    assert left(to)
    assert is_sound(job, to, whole)
    gone_on(job, to, nursery, whole)


@pytest.mark.parametrize("job", JOBS)
def test_told_to_end_when_all_is_written_it_takes_everything_away(
    job: str, nursery: Nursery, wholes: dict[str, Whole], tmp_path: Path
) -> None:
    whole = whole_of(job, nursery, wholes, tmp_path)
    to = tmp_path / "ended" / "out"
    assert nursery.do(job, to, kill=signal.SIGTERM) == 128 + signal.SIGTERM
    assert nursery.said.read_text() == "gemscope: ended by SIGTERM\n"
    assert left(to) == []
    assert job in GO_ON or list(to.parent.iterdir()) == []
    gone_on(job, to, nursery, whole)


def weights_in(to: Path) -> dict[str, int]:
    """Which files the SAEs of a scope are: one that is written anew is another."""
    return {str(path.relative_to(to)): path.stat().st_ino for path in to.rglob("sae_weights.safetensors")}


def test_a_scope_of_many_saes_killed_at_five_moments_is_gone_on_with_to_the_same_bytes(
    nursery: Nursery, wholes: dict[str, Whole], tmp_path: Path
) -> None:
    """At moments that hang on no clock, when the so-many-th thing is about to get its name: of its rows, the first time,
    and of its runs and SAEs.
    """
    whole = whole_of("large scope", nursery, wholes, tmp_path)
    assert sum(name.endswith("sae_weights.safetensors") for name in whole.contents) == 32
    to, dice, there = tmp_path / "killed" / "out", random.Random(5), dict[str, int]()
    for low, high in ((0, 90), (105, 125), (5, 50), (5, 50), (5, 50)):
        assert nursery.do("large scope", to, kill=signal.SIGKILL, after=dice.randrange(low, high)) == -signal.SIGKILL
        assert not (to / "scope.json").exists()
        assert there.items() <= weights_in(to).items()
        there = weights_in(to)
    assert 0 < len(there) < 32
    gone_on("large scope", to, nursery, whole)
    assert there.items() <= weights_in(to).items()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_any_number_of_workers_makes_the_same_scope(
    size: int, nursery: Nursery, wholes: dict[str, Whole], tmp_path: Path
) -> None:
    whole = whole_of("scope", nursery, wholes, tmp_path)
    to = tmp_path / "shared" / "out"
    children = [nursery.begin("scope", to, share=f"{rank}/{size}") for rank in range(size)]
    assert [nursery.end(child) for child in children] == [0] * size
    assert contents(to) == whole.contents
    assert left(to) == []


def test_a_scope_whose_workers_die_is_finished_by_those_that_live_and_by_another_number(
    nursery: Nursery, wholes: dict[str, Whole], tmp_path: Path
) -> None:
    whole = whole_of("scope", nursery, wholes, tmp_path)
    to, moments = tmp_path / "shared" / "out", (2, 3, 4)  # fewer, together, than there is to name
    children = [
        nursery.begin("scope", to, share=f"{rank}/3", kill=signal.SIGKILL, after=after)
        for rank, after in enumerate(moments)
    ]
    assert [nursery.end(child) for child in children] == [-signal.SIGKILL] * 3
    dying = nursery.begin("scope", to, share="0/2", kill=signal.SIGKILL, after=2)
    living = nursery.begin("scope", to, share="1/2")
    assert nursery.end(dying) in (0, -signal.SIGKILL)  # the other may have been quicker
    assert nursery.end(living) == 0
    gone_on("scope", to, nursery, whole)


def several_at_once(job: str, number: int, nursery: Nursery, whole: Whole, to: Path) -> int:
    """Begins some together; how many did it."""
    began = [(nursery.begin(job, to), nursery.said) for _ in range(number)]
    ended = [(nursery.end(child), said.read_text()) for child, said in began]
    for code, said in ended:
        assert code in (0, 1), said
        if code:
            assert said.count("\n") == 1
            assert "is being written by another process" in said or "exists" in said
    assert contents(to) == whole.contents
    assert left(to) == []
    return sum(code == 0 for code, _ in ended)


@pytest.mark.parametrize("job", JOBS)
def test_of_two_at_once_one_does_it_and_the_other_is_told(
    job: str, nursery: Nursery, wholes: dict[str, Whole], tmp_path: Path
) -> None:
    whole = whole_of(job, nursery, wholes, tmp_path)
    assert several_at_once(job, 2, nursery, whole, tmp_path / "two" / "out") >= 1


@pytest.mark.parametrize("job", [*JOBS, *OTHERS])
def test_a_file_that_may_grow_no_more_is_a_full_disk_and_nothing_half_written_stays(
    job: str, nursery: Nursery, wholes: dict[str, Whole], tmp_path: Path
) -> None:
    whole = whole_of(job, nursery, wholes, tmp_path)
    if job in JOBS:  # the others write in one of these ways
        assert full_at(0, job, nursery, whole, tmp_path / "0" / "out")
    full_at(20_000, job, nursery, whole, tmp_path / "20000" / "out")


def full_at(longest: int, job: str, nursery: Nursery, whole: Whole, to: Path) -> bool:
    """Does a job where no file may be longer; whether that was too little."""
    code, said = nursery.do(job, to, longest=longest), nursery.said.read_text()
    assert code in (0, 1), said
    if code:
        assert re.fullmatch(r"gemscope: no room (left on the disk for|in) \S+[, ].*free .*\n", said), said
        assert job in GO_ON or list(to.parent.iterdir()) == []
    assert left(to) == []
    gone_on(job, to, nursery, whole)
    return code == 1


# --- several workers ------------------------------------------------------------------------------------------------


SHARED = ("harvest", "describe", "score")
"""Jobs that any number of workers may share."""


def shares(number: int) -> list[str]:
    return [f"{rank}/{number}" for rank in range(number)]


def pieces_of(to: Path) -> dict[str, tuple[int, int]]:
    """Which file each finished piece is, and since when."""
    found = {path.name: path.stat() for path in to.with_name("out.partial").glob("pieces/*") if path.name[0] != "."}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize("job", SHARED)
def test_any_number_of_workers_make_the_same_bytes_and_open_no_socket(
    job: str, number: int, nursery: Nursery, wholes: dict[str, Whole], tmp_path: Path
) -> None:
    whole = whole_of(job, nursery, wholes, tmp_path)
    to = tmp_path / "shared" / "out"
    began = [(nursery.begin(job, to, share=share), nursery.said) for share in shares(number)]
    for child, said in began:
        assert nursery.end(child) == 0, said.read_text()
        assert "opened" not in said.read_text()
    assert contents(to) == whole.contents
    assert left(to) == []


@pytest.mark.parametrize("job", SHARED)
def test_killed_at_random_moments_it_is_finished_by_another_number_of_workers_and_no_piece_is_done_twice(
    job: str, nursery: Nursery, wholes: dict[str, Whole], tmp_path: Path
) -> None:
    whole = whole_of(job, nursery, wholes, tmp_path)
    to, dice = tmp_path / "killed" / "out", random.Random(job)
    for number in (3, 2, 4, 1):
        before = pieces_of(to)
        children = [(nursery.begin(job, to, share=share), nursery.said) for share in shares(number)]
        time.sleep(dice.random() * whole.seconds / number)
        for child, said in children:
            os.kill(child, signal.SIGKILL)  # nobody has waited for it, so the number is still its own
            assert nursery.end(child) in (0, -signal.SIGKILL), said.read_text()
        if to.exists():
            break
        after = pieces_of(to)
        assert after.items() >= before.items()
    for child, said in [(nursery.begin(job, to, share=share), nursery.said) for share in shares(3)]:
        assert nursery.end(child) == 0, said.read_text()
    found = contents(to)
    if job == "harvest":  # killed with all but the last word said
        found = {name: content for name, content in found.items() if not name.startswith("out/pieces/")}
    assert found == whole.contents
    assert left(to) == []


@pytest.mark.parametrize("job", SHARED)
def test_one_worker_does_its_share_and_the_same_one_twice_changes_nothing(
    job: str, nursery: Nursery, wholes: dict[str, Whole], tmp_path: Path
) -> None:
    whole = whole_of(job, nursery, wholes, tmp_path)
    to = tmp_path / "shared" / "out"
    began = [(nursery.begin(job, to, share="1/2"), nursery.said) for _ in range(2)]  # one is thought dead, and is not
    for child, said in began:
        assert nursery.end(child) == 0, said.read_text()
        assert "pieces are done; others do the rest" in said.read_text()
    before = pieces_of(to)
    assert len(before) >= 2
    assert not to.exists()
    assert nursery.do(job, to, share="1/2") == 0
    assert pieces_of(to) == before
    assert nursery.do(job, to, share="0/2") == 0, nursery.said.read_text()
    assert contents(to) == whole.contents
    assert nursery.do(job, to, share="1/2") == 0, nursery.said.read_text()  # it comes when all is done
    assert contents(to) == whole.contents
    assert left(to) == []


# --- many times -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("job", JOBS)
def test_ended_at_any_moment_it_is_gone_on_from(
    job: str, by: signal.Signals, nursery: Nursery, wholes: dict[str, Whole], tmp_path: Path
) -> None:
    whole = whole_of(job, nursery, wholes, tmp_path)
    dice, seconds, number = random.Random(f"{job} {by}"), whole.seconds, 0
    tally = dict.fromkeys(("ended", "left", "through"), 0)
    while tally["ended"] < MOMENTS:
        number += 1
        assert number < 20 * MOMENTS
        to = tmp_path / str(number) / "out"
        child = nursery.begin(job, to)
        time.sleep(dice.random() * seconds)
        os.kill(child, by)  # nobody has waited for it, so the number is still its own
        code = nursery.end(child)
        assert code in (0, -by, 128 + by), nursery.said.read_text()
        tally["ended" if code else "through"] += 1
        tally["left"] += bool(left(to))
        if code == 0:  # it was faster than when it was measured
            seconds *= 0.9
        if code == 128 + by:
            assert left(to) == []
        assert is_sound(job, to, whole)
        gone_on(job, to, nursery, whole)
    sys.stdout.write(f"{job}, {by.name}: {tally}, left after the next run: 0\n")


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("job", JOBS)
def test_of_several_at_once_one_does_it_again_and_again(
    job: str, number: int, nursery: Nursery, wholes: dict[str, Whole], tmp_path: Path
) -> None:
    whole = whole_of(job, nursery, wholes, tmp_path)
    did = [several_at_once(job, number, nursery, whole, tmp_path / str(one) / "out") for one in range(10)]
    told = f"{sum(did)} did it, {10 * number - sum(did)} were refused, sound: 10 of 10"
    sys.stdout.write(f"{job}, {number} at once, 10 times: {told}\n")
    assert all(did)


@pytest.mark.slow
@pytest.mark.parametrize("job", [*JOBS, *OTHERS])
def test_wherever_the_room_ends_it_is_a_full_disk(
    job: str, nursery: Nursery, wholes: dict[str, Whole], tmp_path: Path
) -> None:
    whole = whole_of(job, nursery, wholes, tmp_path)
    longest = max(map(len, whole.contents.values()))
    sizes = sorted({int(longest * share / 12) for share in range(12)} | {1, 511, 4097})
    full = sum(full_at(size, job, nursery, whole, tmp_path / str(size) / "out") for size in sizes)
    sys.stdout.write(f"{job}: {full} of {len(sizes)} lengths were too little, each said so\n")
    assert full > len(sizes) // 2
