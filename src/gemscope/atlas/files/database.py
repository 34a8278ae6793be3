"""The SQLite file of an atlas: connections to it, and what is wrong with it in one line."""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gemscope.atlas.files import schema
from gemscope.disk import is_full
from gemscope.errors import AccessError, CorruptFile, InputError, StorageFull

_MAPPED = 1 << 30
"""Bytes of a file that connections read without copying, all of them the same memory."""
_WAIT = 30.0
"""Seconds to wait for another process that writes."""
_DEFENSIVE = "SQLITE_DBCONFIG_DEFENSIVE"
_SETTINGS = (_DEFENSIVE, "SQLITE_DBCONFIG_ENABLE_TRIGGER", "SQLITE_DBCONFIG_ENABLE_VIEW")


class Database:
    """As many connections to read by as were ever needed at once, and one to write by. Safe from many threads.

    What is not closed is let go of when nobody holds it any more.
    """

    def __init__(self, path: Path) -> None:
        """Opens nothing yet."""
        self.path = path
        self._idle: deque[sqlite3.Connection] = deque()
        self._writing = threading.Lock()
        self._writers: deque[sqlite3.Connection] = deque()
        """The one that writes, once there is one."""
        self._closed = False
        # Not at the end of the program, when threads may be reading still.
        weakref.finalize(self, _let_go, self._idle, self._writers).atexit = False

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection of one's own: as many are kept open as were ever needed at once."""
        if self._closed:
            raise InputError(f"{self.path.parent} was closed: open it again")
        with _explained(self.path):
            try:
                db = self._idle.pop()
            except IndexError:
                db = _connect(self.path)
            try:
                yield db
            finally:
                self._idle.append(db)
                if self._closed:
                    self.let_go()

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """The one connection that writes, for one thread at a time. What is not committed is undone."""
        with self._writing, _explained(self.path):
            if self._closed:
                raise InputError(f"{self.path.parent} was closed: open it again")
            if not self._writers:
                self._writers.append(_connect(self.path, write=True))
            writer = self._writers[0]
            try:
                yield writer
            finally:
                if writer.in_transaction:
                    writer.execute("ROLLBACK")

    def close(self) -> None:
        """Lets go of all files. What other threads are reading at the moment, they still get."""
        self._closed = True
        self.let_go()
        with self._writing:
            if not self._writers and _logged(self.path) and writable(self.path.parent):
                with suppress(sqlite3.Error, CorruptFile):
                    self._writers.append(_connect(self.path, write=True))
                    schema.version(self._writers[0])
            _let_go(self._writers)  # closed last of all, it clears away the log that labels are written through

    def let_go(self) -> None:
        """Closes the connections that nobody reads by at the moment."""
        _let_go(self._idle)

    @contextmanager
    def undamaged(self, what: str) -> Iterator[None]:
        """Says of a packed record that is damaged which one it is, and what to do."""
        try:
            yield
        except CorruptFile as error:
            raise CorruptFile(f"{self.path}, {what}: {error}; copy it again, or describe anew") from error


def _let_go(*connections: deque[sqlite3.Connection]) -> None:
    for some in connections:
        with suppress(IndexError):
            while True:
                some.pop().close()


def _connect(path: Path, *, write: bool = False) -> sqlite3.Connection:
    """A connection that one thread at a time may use. Nothing is created.

    Where nobody can write, SQLite is told so: it would want to make files beside this one. Only what an interrupted
    writer left there is a reason to let it.
    """
    mode = "rw" if write else "ro"
    if not write and not writable(path.parent) and not _logged(path):
        mode += "&immutable=1"
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_WAIT,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        db.execute("PRAGMA trusted_schema = OFF")
        for name in _SETTINGS:  # from Python 3.12 on
            if hasattr(db, "setconfig") and hasattr(sqlite3, name):
                db.setconfig(getattr(sqlite3, name), name == _DEFENSIVE)
        schema.require_ours(db, path)
        if not write:
            if schema.as_it_is(schema.version(db)):
                schema.lend(db)
            db.execute(f"PRAGMA mmap_size = {_MAPPED}")
    except BaseException:
        db.close()
        raise
    return db


def _logged(path: Path) -> bool:
    """Whether there is a log of changes beside the file, which belongs to it."""
    return path.with_name(path.name + "-wal").exists()


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder."""
    return os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Says in one line what is wrong with a file, where SQLite finds it damaged, locked, or has no room."""
    try:
        yield
    except sqlite3.Error as error:
        if isinstance(error, sqlite3.ProgrammingError):
            raise  # no fault of the file
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            raise CorruptFile(
                f"{path} is damaged: {error}; `verify` says where, a copy or describing anew helps"
            ) from error
        if is_full(error, path.parent):
            raise StorageFull(f"no room left on the disk of {path}: nothing was changed") from error
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise AccessError(f"{path} is being written by another program for over {_WAIT:.0f} s: {error}") from error
        if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            raise AccessError(f"{path} cannot be reached or written ({error}): copy the atlas elsewhere") from error
        raise CorruptFile(f"{path} cannot be read: {error}") from error
