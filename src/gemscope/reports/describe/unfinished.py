"""A description under way, on disk: what it will take to go on where it stopped, whenever it is stopped.

NAME.partial/settings.json     what is being made; going on with other settings is refused
NAME.partial/corpus.bin        rows of token ids (int32), appended
NAME.partial/documents.jsonl   where documents begin, appended
NAME.partial/state.safetensors the running statistics, replaced as a whole; says how much of the two above counts
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gemscope.disk import claimed, room, synced
from gemscope.errors import CorruptFile, InputError

Array = np.ndarray[Any, np.dtype[Any]]

_LEAST = 20.0
"""Seconds, at least, between two snapshots."""
_SHARE = 20.0
"""At most one part in this many of the time goes into snapshots."""
_OWN = re.compile(r"(settings\.json|state\.safetensors)(\.new)?|corpus\.bin|documents\.jsonl|\.tmp\w*")
"""What an unfinished atlas is made of; the last is what safetensors leaves when it is killed."""


class Unfinished:
    """The folder of a description that is not finished; `to` is where the finished one will be."""

    def __init__(self, to: Path, settings: Mapping[str, Any]) -> None:
        """Opens what an earlier attempt left, or begins.

        Raises InputError where that was made with other settings or is something else, AccessError where another
        process is at it.
        """
        self.folder = to.with_name(to.name + ".partial")
        self.rows = self.folder / "corpus.bin"
        self.documents = self.folder / "documents.jsonl"
        self._state = self.folder / "state.safetensors"
        self._saved = time.monotonic()
        self._cost = 0.0
        with ExitStack() as held:
            held.enter_context(claimed(self.folder))
            with self._room():
                self.folder.mkdir(exist_ok=True)
            self._require_own()
            self.begun = self._state.exists()
            """Whether there is something to go on from; what was made before the first snapshot is made again."""
            held.callback(self._leave_nothing_useless)
            path = self.folder / "settings.json"
            if self.begun:
                self._refuse_others(path, settings)
            else:
                with self._room():
                    _replace(path, json.dumps(settings, indent=1).encode())
            self._held = held.pop_all()

    def _require_own(self) -> None:
        """Raises InputError where the folder holds what no description writes: it may be somebody's work."""
        for path in self.folder.iterdir():
            if _OWN.fullmatch(path.name) is None:
                raise InputError(f"{path} is of no unfinished atlas: move {self.folder}, or name another folder")

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
                synced(path)
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
        self._held.close()

    def _leave_nothing_useless(self) -> None:
        if not self._state.exists():
            self.discard()

    def _room(self) -> AbstractContextManager[None]:
        return room(self.folder, kept=self._kept)

    def _kept(self) -> str:
        return "what was described so far is kept there: free some room and start again" if self._state.exists() else ""


def _replace(path: Path, content: bytes) -> None:
    aside = path.with_name(path.name + ".new")
    aside.write_bytes(content)
    os.replace(aside, path)
