"""What comes onto the disk: whole or not at all, from one process at a time, swept after a dead one, a full disk named."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import torch

from gemscope.disk import claimed, folder_aside, is_full, room, tidied, written_aside
from gemscope.errors import AccessError, FileError, GemscopeError, StorageFull

HOLDER = """
import sys, time
from pathlib import Path
from gemscope.disk import claimed
with claimed(Path(sys.argv[1])) as place:
    (place / "half").mkdir()
    (place / "half" / "file").write_bytes(b"half")
    print(flush=True)
    time.sleep(600)
"""


@contextmanager
def another_process(target: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is writing `target`, killed in the end with no chance to tidy up."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(target)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def everything_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# --- one writer at a time -------------------------------------------------------------------------------------------


def test_what_one_left_that_died_behind_its_last_word_goes_when_the_thing_is_used(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with another_process(target):
        target.mkdir()  # it has its name, and the process is not quite through
        tidied(target)
        assert (tmp_path / ".model.gemscope").is_dir()  # a living one's is left alone
    tidied(target)
    assert everything_in(tmp_path) == ["model"]
    tidied(target)
    assert everything_in(tmp_path) == ["model"]


def test_what_another_process_writes_is_refused_until_that_one_is_dead(tmp_path: Path) -> None:
    target = tmp_path / "a.csv"
    with another_process(target):
        for _ in range(2):
            with pytest.raises(AccessError, match=r"a.csv is being written by another process: wait for it, or end it"):
                with written_aside(target):
                    pass
        with written_aside(tmp_path / "b.csv") as other:
            other.write_text("b")
        assert (tmp_path / ".a.csv.gemscope" / "half" / "file").exists()
    with written_aside(target) as aside:
        assert everything_in(aside.parent) == ["lock"]
        aside.write_text("a")
    assert everything_in(tmp_path) == ["a.csv", "b.csv"]


def test_what_a_dead_process_left_is_swept_by_whoever_writes_there_next_whatever_it_writes(tmp_path: Path) -> None:
    with another_process(tmp_path / "dead"):
        pass
    assert (tmp_path / ".dead.gemscope" / "half").is_dir()
    with another_process(tmp_path / "live"), folder_aside(tmp_path / "mine") as aside:
        (aside / "file").write_text("whole")
        assert everything_in(tmp_path / ".live.gemscope") == ["half", "half/file", "lock"]
        assert not (tmp_path / ".dead.gemscope").exists()


def test_nothing_is_swept_that_is_not_ours(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("somebody's")
    (outside / "lock").write_text("somebody's")
    here = tmp_path / "here"
    here.mkdir()
    (here / ".a.gemscope").symlink_to(outside)
    (here / ".b.gemscope").write_text("a file")
    (here / ".c.12-abcd.part").write_text("half of somebody else's")
    (here / "d.partial").mkdir()
    before = everything_in(tmp_path)
    with written_aside(here / "new") as aside:
        aside.write_text("new")
    assert everything_in(tmp_path) == sorted([*before, "here/new"])
    with pytest.raises(FileError, match=r"\.a\.gemscope is another user's: have it removed"), claimed(here / "a"):
        pass
    assert everything_in(outside) == ["file", "lock"]


def test_another_user_s_folder_is_neither_written_to_nor_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".a.gemscope").mkdir()
    (tmp_path / ".a.gemscope" / "half").write_text("")
    another = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: another)
    with pytest.raises(FileError, match="is another user's"), claimed(tmp_path / "a"):
        pass
    assert everything_in(tmp_path) == [".a.gemscope", ".a.gemscope/half"]


def test_of_many_that_wait_one_at_a_time_is_at_it_and_nothing_is_left(tmp_path: Path) -> None:
    target, inside, most = tmp_path / "a", [0], [0]

    def work(number: int) -> None:
        with claimed(target, wait=True) as place:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            assert everything_in(place) == ["lock"]
            (place / str(number)).write_text("")
            time.sleep(0.002)
            inside[0] -= 1

    with ThreadPoolExecutor(4) as several:
        list(several.map(work, range(24)))
    assert most == [1]
    assert everything_in(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_drive_without_locks_is_one_line(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl", reason="how this system locks files is not known here")

    def none(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(FileError, match=f"cannot write .*/a: {os.strerror(number)}"), written_aside(tmp_path / "a"):
        pass
    assert everything_in(tmp_path) == []


def test_a_drive_that_has_no_such_call_is_guarded_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl", reason="how this system locks files is not known here")

    def none(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", none)

    def write() -> None:
        with written_aside(tmp_path / "a") as aside:
            aside.write_text("whole")
            with pytest.raises(AccessError, match="is being written by another process"), claimed(tmp_path / "a"):
                pass

    with pytest.warns(UserWarning, match="flock not supported"):
        write()
    assert everything_in(tmp_path) == ["a"]


# --- written whole --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "full"), ValueError("wrong")])
def test_what_fails_half_way_leaves_everything_as_it_was(error: BaseException, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")

    def fail(target: Path) -> None:
        with written_aside(target) as aside:
            aside.write_text("half")
            raise error

    def fail_in_a_folder(target: Path) -> None:
        with folder_aside(target) as aside:
            (aside / "half").write_text("half")
            raise error

    for write, target in ((fail, "old"), (fail, "new/er/file"), (fail_in_a_folder, "folder")):
        with pytest.raises((StorageFull, KeyboardInterrupt, ValueError)):
            write(tmp_path / target)
    assert everything_in(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_a_link_goes_on_leading_where_it_led(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "file")
    with written_aside(tmp_path / "link") as aside:
        aside.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert everything_in(tmp_path) == ["far", "far/file", "link"]
    with pytest.raises(FileError, match="exists"), folder_aside(tmp_path / "link"):
        pass


def test_a_folder_that_appears_meanwhile_is_never_written_over(tmp_path: Path) -> None:
    def overtaken() -> None:
        with folder_aside(tmp_path / "a") as aside:
            (aside / "file").write_text("")
            (tmp_path / "a").mkdir()

    with pytest.raises(FileError, match="a appeared while it was being written"):
        overtaken()
    assert everything_in(tmp_path) == ["a"]


# --- signals --------------------------------------------------------------------------------------------------------

ENDED = """
import argparse, os, signal, sys, time
from pathlib import Path
from gemscope.cli import main as shell
from gemscope.disk import folder_aside
for number in (signal.SIGINT, signal.SIGHUP):  # which a shell's background, or nohup, has ignored
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
def run(args):
    with folder_aside(Path(sys.argv[1])) as aside:
        (aside / "half").write_text("half")
        os.kill(os.getpid(), int(sys.argv[2]))
        time.sleep(60)
parser = argparse.ArgumentParser()
parser.set_defaults(run=run)
shell.parser = lambda: parser
sys.exit(shell.main([]))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_command_that_is_told_to_end_tidies_up_and_says_so(name: str, tmp_path: Path) -> None:
    """Also where these tests run in the background of a shell, which lets Ctrl-C pass by."""
    number = signal.Signals[name]
    ended = subprocess.run(
        [sys.executable, "-c", ENDED, str(tmp_path / "out"), str(int(number))],
        capture_output=True,
        text=True,
        check=False,
    )
    said = "interrupted" if name == "SIGINT" else f"ended by {name}"
    assert (ended.returncode, ended.stderr) == (128 + number, f"gemscope: {said}\n")
    assert everything_in(tmp_path) == []


def test_a_signal_that_is_ignored_stays_so_and_the_others_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    from gemscope.cli import main as shell

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with shell._signals_end_it():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert callable(signal.getsignal(signal.SIGTERM))
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


# --- no room --------------------------------------------------------------------------------------------------------


@contextmanager
def longest_file(size: int) -> Iterator[None]:
    """While the block runs no file grows beyond `size` bytes; the system says EFBIG."""
    resource = pytest.importorskip("resource", reason="this system knows no limit on a file's length")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _python(place: Path) -> None:
    (place / "a").write_bytes(bytes(200_000))


def _numpy(place: Path) -> None:
    import numpy as np

    np.memmap(place / "a", "f4", "w+", shape=(100_000,))


def _safetensors(place: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(100_000)}, place / "a")


def _sqlite(place: Path) -> None:
    with closing(sqlite3.connect(place / "a")) as db:
        db.execute("CREATE TABLE t (x BLOB)")
        db.execute("INSERT INTO t VALUES (?)", (bytes(200_000),))
        db.commit()


def _sqlite_vacuum(place: Path) -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE TABLE t (x BLOB)")
        db.execute("INSERT INTO t VALUES (?)", (bytes(200_000),))
        db.commit()
        db.execute("VACUUM INTO ?", (str(place / "a"),))


def _shutil(place: Path) -> None:
    source = place.parent / "source"
    shutil.copytree(source, place / "a")


def _pyarrow(place: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    parquet.write_table(pa.table({"a": list(range(100_000))}), place / "a", compression="none", use_dictionary=False)


def _gzip(place: Path) -> None:
    import gzip

    with gzip.open(place / "a", "wb", compresslevel=0) as file:
        file.write(os.urandom(200_000))


WRITERS = [_python, _numpy, _safetensors, _sqlite, _sqlite_vacuum, _shutil, _pyarrow, _gzip]


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_that_may_grow_no_more_is_a_full_disk_whoever_writes_it(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    place, source = tmp_path / "place", tmp_path / "source"
    place.mkdir()
    source.mkdir()
    for name in "ab":
        (source / name).write_bytes(bytes(200_000))
    with pytest.raises(
        StorageFull, match=r"^no room left on the disk for .*/out, nothing half-written was kept"
    ) as said:
        with longest_file(50_000), room(tmp_path / "out", place):
            write(place)
    assert "\n" not in str(said.value)
    for path in place.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with room(tmp_path / "out", place):  # and without the limit it is none
        write(place)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_want_of_room_is_told_by_number_by_name_or_by_words(number: int) -> None:
    from safetensors import SafetensorError

    said = os.strerror(number)
    copied = shutil.Error([("a", "b", f"[Errno {number}] {said}: 'a' -> 'b'")])
    assert is_full(OSError(number, said))
    assert is_full(SafetensorError(f"Error while serializing: I/O error: {said} (os error {number})"))
    assert is_full(copied)
    with suppress(RuntimeError):
        try:
            raise OSError(number, said)
        except OSError as error:
            raise RuntimeError("could not save") from error
    wrapped = RuntimeError("could not save")
    wrapped.__cause__ = OSError(number, said)
    assert is_full(wrapped)


def test_sqlite_s_own_word_is_enough(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a")) as db:
        db.execute("PRAGMA max_page_count = 2")
        with pytest.raises(sqlite3.OperationalError) as caught:
            db.executescript("CREATE TABLE a (x); CREATE TABLE b (x); CREATE TABLE c (x); CREATE TABLE d (x)")
    assert is_full(caught.value)


def test_other_faults_are_not_for_want_of_room(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    assert not is_full(denied, tmp_path)
    broken = sqlite3.OperationalError("disk I/O error")
    broken.sqlite_errorname = "SQLITE_IOERR_WRITE"  # type: ignore[misc]
    assert not is_full(broken, tmp_path)  # there is room: it is the disk itself
    faults: list[tuple[Exception, str]] = [
        (denied, "Permission denied"),
        (broken, "disk I/O error"),
        (SafetensorError("I/O error: Permission denied (os error 13)"), "Permission denied"),
        (shutil.Error([("a", "b", "[Errno 13] Permission denied: 'a'"), ("c", "d", "e")]), "Permission denied: 'a'$"),
    ]
    for fault, said in faults:
        with pytest.raises(FileError, match=f"cannot write .*/out: .*{said}") as told, room(tmp_path / "out", tmp_path):
            raise fault
        assert not isinstance(told.value, StorageFull)
    with pytest.raises(ZeroDivisionError), room(tmp_path / "out", tmp_path):
        raise ZeroDivisionError
    with pytest.raises(GemscopeError, match=r"^as it is$"), room(tmp_path / "out", tmp_path):
        raise GemscopeError("as it is")
