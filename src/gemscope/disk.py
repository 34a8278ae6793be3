"""What comes onto the disk: whole or not at all, from one process at a time, and a full disk is called a full disk.

Whoever writes NAME has a folder `.NAME.gemscope` beside it, with a lock in it and what is on its way to NAME. The lock
falls when its process ends, however it ends; what was left by one that ended is taken away by the next to write there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from gemscope.errors import AccessError, FileError, GemscopeError, StorageFull

if TYPE_CHECKING:
    from filelock import BaseFileLock

_SUFFIX = ".gemscope"
_LOCK = "lock"
_PATIENCE = 0.5
"""Seconds to wait for a lock: somebody may just be taking away what was left there."""

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP}
"""Said by network drives without the service for it. Where there is no such call at all, filelock knows another way."""

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}
"""Said by drives on which no file has two names."""
_MINE = ".gemscope-"
"""Between a name and whose file on its way there it is."""
_numbers = count()

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""No space; no more of it for this user; a file longer than may be."""
_SAID = re.compile(
    rf"\(os error (?:{'|'.join(map(str, _FULL))})\)|No space left on device|Disk quota exceeded|File too large"
    "|not enough space on the disk"
)
"""How it is said by those who keep the number to themselves: Rust, shutil's list of what could not be copied."""
_IN_RUST = re.compile(r"\(os error \d+\)")
_IN_SQLITE = re.compile("SQLITE_(IOERR|CANTOPEN|READONLY|PERM)")


# --- written whole ------------------------------------------------------------------------------------------------


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A name to write a file to; when the block ends, it is `target`, in place of what was there before.

    When anything is raised, nothing is left and `target` is as it was. Raises StorageFull for a disk without room,
    AccessError while another process writes the same file, FileError where writing is not allowed.
    """
    if target.exists() and not target.is_file():
        raise FileError(f"cannot write {target}: it is there and no file; name a file")
    target = Path(os.path.realpath(target))  # a link goes on leading where it led
    with claimed(target) as place, room(target, place):
        aside = place / target.name
        yield aside
        synced(aside)
        os.replace(aside, target)


@contextmanager
def folder_aside(target: Path) -> Iterator[Path]:
    """An empty folder to write to; when the block ends it is `target`, which must not exist before.

    When anything is raised nothing is left. Raises FileError, AccessError, StorageFull.
    """
    _refuse_existing(target)
    with claimed(target) as place, room(target, place):
        _refuse_existing(target)  # another process may have just finished it
        aside = place / target.name
        aside.mkdir()
        yield aside
        if os.path.lexists(target):  # made by a program that knows nothing of these locks
            raise FileError(f"{target} appeared while it was being written: choose another name")
        os.rename(aside, target)


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise FileError(f"{target} exists: choose a name that does not, or remove it first")


def synced(path: Path) -> None:
    """Returns when what was written to a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- by several at once, who take no lock ------------------------------------------------------------------------


def unlike_others(name: str) -> str:
    """A hidden name that no other process writes to, nor this one again: for what is on its way to `name`."""
    return f".{name}{_MINE}{_host()}-{os.getpid()}-{next(_numbers)}"


def put_once(target: Path, write: Callable[[Path], None]) -> bool:
    """Writes a file beside its place and gives it its name when it is whole, unless that is taken by then: whoever was
    first has it, and what is there stays. Returns whether this was the first. Takes no lock, so any number of processes
    and hosts may. Raises what `write` raises, and OSError.
    """
    # In a folder of its own: those who write have temporary names themselves, and forks may have the same ones.
    folder = target.with_name(unlike_others(target.name))
    folder.mkdir()
    aside = folder / target.name
    try:
        write(aside)
        synced(aside)
        try:
            os.link(aside, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if target.exists():
                return False
            os.replace(aside, target)
        return True
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def of_another(path: Path) -> bool:
    """Whether this, or a folder that it lies in, is what another process of this host has on its way, and lives."""
    mine = re.compile(rf"\..*{re.escape(_MINE + _host())}-(\d+)-\d+")
    numbers = (int(found[1]) for found in map(mine.fullmatch, path.parts) if found)
    return any(number != os.getpid() and _lives(number) for number in numbers)


def left_by_dead(folder: Path, *, own: bool = False) -> None:
    """Takes away what processes of this host had on its way into a folder, and are there no more; with `own`, what this
    one has.
    """
    mine = re.compile(rf"\..*{re.escape(_MINE + _host())}-(\d+)-\d+")
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        found = mine.fullmatch(name)
        if found and (int(found[1]) == os.getpid() if own else not _lives(int(found[1]))):
            path = folder / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    if os.name == "nt":  # where asking would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", platform.node())[:40] or "here"


# --- one writer at a time -----------------------------------------------------------------------------------------


@contextmanager
def claimed(target: Path, *, wait: bool = False) -> Iterator[Path]:
    """While the block runs nobody else writes `target`, a file or a folder. Gives a folder beside it for what is on its
    way there: empty at first, gone in the end.

    What dead processes left beside it, on the way to whatever name, is taken away first. `wait` waits for a process
    that is at it; without, that is an AccessError. Raises FileError, StorageFull.
    """
    target = target.absolute()
    place = aside_of(target)
    missing = [folder for folder in target.parents if not folder.exists()]
    lock = _lock_in(place)
    try:
        with room(target):
            mine = _locked(place, lock, -1 if wait else _PATIENCE)
        if not mine:
            raise AccessError(f"{target} is being written by another process: wait for it, or end it")
        _empty(place)
        _sweep(target.parent, place)
        yield place
    finally:
        try:
            _let_go(place, lock)
        except BaseException:  # told to end while at it
            _let_go(place, lock)
            raise
        finally:
            with suppress(OSError):  # something was written
                for folder in missing:
                    folder.rmdir()


def aside_of(target: Path) -> Path:
    """The folder of what is on its way to a name; it is there while somebody has claimed that."""
    return target.absolute().with_name(f".{target.name}{_SUFFIX}")


def tidied(target: Path) -> None:
    """What is there needs no writing: what a process left beside it that died behind its last word is taken away."""
    place = aside_of(target)
    if place.exists():
        _let_go(place, _lock_in(place))


def _lock_in(place: Path) -> BaseFileLock:
    from filelock import FileLock

    return FileLock(place / _LOCK, thread_local=False)


def _locked(place: Path, lock: BaseFileLock, patience: float) -> bool:
    """Makes the folder and takes its lock; False where another has it. Raises OSError."""
    while True:
        try:
            place.mkdir(mode=0o700, exist_ok=True)  # nobody else puts anything there
            _require_own(place)
            return _acquired(place, lock, patience)
        except FileNotFoundError:  # nor was there a folder around it, or somebody has just tidied it away
            place.parent.mkdir(parents=True, exist_ok=True)


def _acquired(place: Path, lock: BaseFileLock, patience: float) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=patience)
    except Timeout:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:  # so nobody has it
            with suppress(OSError):
                (place / _LOCK).unlink()
        raise
    return True


def _require_own(place: Path) -> None:
    """Raises FileError for a folder of another user's, or a link: nothing is written there, and nothing taken away."""
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "geteuid") and found.st_uid != os.geteuid()):
        raise FileError(f"{place} is another user's: have it removed, or write elsewhere")


def _empty(place: Path) -> None:
    for path in place.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _LOCK:
            path.unlink(missing_ok=True)


def _let_go(place: Path, lock: BaseFileLock) -> None:
    """The folder goes with all that is in it, unless another has the lock. The lock's file goes while it is held:
    whoever waits for it finds that out and makes another.
    """
    try:
        _require_own(place)
    except OSError:  # or it is gone already
        return
    with suppress(OSError):
        if lock.is_locked or _acquired(place, lock, 0):
            _empty(place)
            (place / _LOCK).unlink()  # Windows removes no open file; there the lock does it itself
    lock.release()
    with suppress(OSError):  # the next one is in it already
        place.rmdir()


def _sweep(folder: Path, own: Path) -> None:
    """Takes away what dead processes left in a folder: the lock of a living one cannot be had."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(".") and name.endswith(_SUFFIX) and name != own.name:
                _let_go(folder / name, _lock_in(folder / name))


# --- no room ------------------------------------------------------------------------------------------------------


@contextmanager
def room(target: Path, place: Path | None = None, *, kept: str | Callable[[], str] = "") -> Iterator[None]:
    """Turns what the system says while `target` is written, in `place`, into one line: StorageFull, with what is `kept`
    all the same, or FileError.
    """
    try:
        yield
    except GemscopeError:
        raise
    except Exception as error:
        if is_full(error, place or target.parent):
            said = (kept if isinstance(kept, str) else kept()) or "nothing half-written was kept: free some room"
            raise StorageFull(f"no room left on the disk for {target}, {said}") from error
        if isinstance(error, OSError) or _IN_SQLITE.match(_of_sqlite(error)) or _IN_RUST.search(str(error)):
            raise FileError(f"cannot write {target}: {_reason(error)}") from error
        raise


def is_full(error: BaseException, place: Path | None = None) -> bool:
    """Whether this, or what it came from, is for want of room. SQLite tells of a limit as of any other fault; then the
    system is asked once more in `place`, where the file lies.
    """
    for one in chain(error):
        if getattr(one, "errno", None) in _FULL or _of_sqlite(one) == "SQLITE_FULL" or _SAID.search(str(one)):
            return True
        unknown = _of_sqlite(one).startswith("SQLITE_IOERR") and "READ" not in _of_sqlite(one)
        if unknown and place is not None and _refuses(place):
            return True
    return False


def _of_sqlite(error: BaseException) -> str:
    return str(getattr(error, "sqlite_errorname", ""))


def _refuses(place: Path) -> bool:
    """Whether no file there may grow beyond the longest that it has."""
    try:
        longest = max((path.stat().st_size for path in place.iterdir() if path.is_file()), default=0)
        with tempfile.TemporaryFile(dir=place) as file:
            file.seek(longest)
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in _FULL
    return False


def _reason(error: BaseException) -> str:
    said = getattr(error, "strerror", None) or error
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):  # of every file that could not be copied
        said = error.args[0][0][-1]
    return " ".join(str(said).split())[:300]


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it came from, and so on."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
