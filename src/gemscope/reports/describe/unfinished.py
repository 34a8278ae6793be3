"""A description under way, on disk: what it will take to go on where it stopped, whenever it is stopped.

NAME.partial/settings.json     what is being made; going on with other settings is refused
NAME.partial/corpus.bin        rows of token ids (int32), appended
NAME.partial/documents.jsonl   where documents begin, appended
NAME.partial/state.safetensors the running statistics, replaced as a whole; says how much of the two above counts
NAME.partial/lock              held by the process that is at it
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gemscope.errors import AccessError, CorruptFile, FileError, GemscopeError, InputError, StorageFull

Array = np.ndarray[Any, np.dtype[Any]]

_LEAST = 20.0
"""Seconds, at least, between two snapshots."""
_SHARE = 20.0
"""At most one part in this many of the time goes into snapshots."""


class Unfinished:
    """The folder of a description that is not finished; `to` is where the finished one will be."""

    def __init__(self, to: Path, settings: Mapping[str, Any]) -> None:
        """Opens what an earlier attempt left, or begins.

        Raises InputError where that was made with other settings, AccessError where another process is at it.
        """
        self.folder = to.with_name(to.name + ".partial")
        self.rows = self.folder / "corpus.bin"
        self.documents = self.folder / "documents.jsonl"
        self._state = self.folder / "state.safetensors"
        self._saved = time.monotonic()
        self._cost = 0.0
        with self._room():
            self._lock = self._locked()
        self.begun = self._state.exists()
        """Whether there is something to go on from; what was made before the first snapshot is made again."""
        path = self.folder / "settings.json"
        try:
            if self.begun:
                self._refuse_others(path, settings)
            else:
                with self._room():
                    _replace(path, json.dumps(settings, indent=1).encode())
        except BaseException:
            self.close()
            raise

    def _locked(self) -> BinaryIO:
        """The open lock file. Whoever had it may have thrown it away with all else: then another is made."""
        path = self.folder / "lock"
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                lock = path.open("ab")
                if not _hold(lock):
                    lock.close()
                    raise AccessError(f"{self.folder} is being written by another process: wait for it, or end it")
                if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    return lock
                lock.close()

    def _refuse_others(self, path: Path, settings: Mapping[str, Any]) -> None:
        try:
            earlier = json.loads(path.read_text())
        except (ValueError, FileNotFoundError) as error:
            raise CorruptFile(f"{path} is damaged: remove {self.folder} to begin anew") from error
        wanted = json.loads(json.dumps(settings))
        if other := [name for name in wanted if earlier.get(name) != wanted[name]]:
            raise InputError(
                f"{self.folder} holds an unfinished atlas made with another {', '.join(other)}: "
                f"go on with the same settings, or remove it"
            )

    def resume(self) -> tuple[dict[str, Any], dict[str, Array]] | None:
        """What was saved last: how far it was and the statistics. None at the beginning."""
        path = self._state
        if not self.begun:
            self.rows.write_bytes(b"")
            self.documents.write_bytes(b"")
            return None
        try:
            with safe_open(path, framework="np") as file:
                progress = json.loads(file.metadata()["progress"])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptFile(f"{path} is damaged ({error}): remove {self.folder} to begin anew") from error
        # What was appended after the snapshot will be appended again.
        for appended, size in ((self.rows, progress["rows_bytes"]), (self.documents, progress["documents_bytes"])):
            if not appended.exists() or appended.stat().st_size < size:
                raise CorruptFile(f"{appended} is shorter than it was: remove {self.folder} to begin anew")
            os.truncate(appended, size)
        return progress, state

    def append(self, ids: Array, starts: Sequence[tuple[int, str, str]]) -> None:
        """Rows of ids, and the documents (flat position, source, licence) that begin in them."""
        with self._room():
            with self.rows.open("ab") as file:
                file.write(ids.astype("<i4").tobytes())
            with self.documents.open("ab") as file:
                file.writelines(json.dumps(start, ensure_ascii=False).encode() + b"\n" for start in starts)

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved > max(_LEAST, _SHARE * self._cost)

    def save(self, progress: Mapping[str, Any], state: Mapping[str, Array]) -> None:
        """Replaces what was saved before."""
        started = time.monotonic()
        sizes = {"rows_bytes": self.rows.stat().st_size, "documents_bytes": self.documents.stat().st_size}
        aside = self.folder / "state.safetensors.new"
        with self._room():
            whole = {name: np.ascontiguousarray(value) for name, value in state.items()}
            save_file(whole, aside, {"progress": json.dumps({**progress, **sizes})})
            for path in (self.rows, self.documents, aside):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            os.replace(aside, self._state)
        self._saved = time.monotonic()
        self._cost = self._saved - started

    def blocks(self, length: int) -> Iterator[Array]:
        """All rows so far, some at a time."""
        with self.rows.open("rb") as file:
            while held := file.read(4 * length * 4096):
                yield np.frombuffer(held, "<i4").reshape(-1, length)

    def starts(self) -> Iterator[tuple[int, str, str]]:
        """All documents so far."""
        with self.documents.open(encoding="utf-8") as file:
            for line in file:
                flat, source, license_ = json.loads(line)
                yield flat, source, license_

    def discard(self) -> None:
        """The finished atlas is in its place: this is needed no more."""
        self._state.unlink(missing_ok=True)  # first: without it nobody goes on from what may be left of the rest
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Lets others at it. Where nothing was saved, nothing stays: there is nothing to go on from."""
        if not self._state.exists():
            self.discard()
        self._lock.close()

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
                kept = f"what was described so far is kept in {self.folder}; " if self._state.exists() else ""
                raise StorageFull(f"no room left in {self.folder.parent}: {kept}make room and start again") from error
            if isinstance(error, OSError) and not isinstance(error, GemscopeError):
                raise FileError(f"cannot write {self.folder}: {error.strerror or error}") from error
            raise


def _hold(lock: BinaryIO) -> bool:
    """Whether nobody else holds it; the system lets go of it when this process ends, however it does."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)  # some file systems know no locks
    return True


def _replace(path: Path, content: bytes) -> None:
    aside = path.with_name(path.name + ".new")
    aside.write_bytes(content)
    os.replace(aside, path)
