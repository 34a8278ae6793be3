"""A description under way, on disk: what it will take to go on where it stopped, whenever it is stopped.

NAME.partial/settings.json     what is being made; going on with other settings is refused
NAME.partial/corpus.bin        rows of token ids (int32), appended
NAME.partial/documents.jsonl   where documents begin, appended
NAME.partial/effect-SITE       the effect of a site, once it is measured
NAME.partial/state.safetensors the running statistics, replaced as a whole; says how much of the two above counts
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors.numpy import save_file

from gemscope.activations.site import Site
from gemscope.activations.suited import other_format
from gemscope.checked import (
    Count,
    as_read,
    checksum_of,
    declared,
    json_of,
    read_json,
    read_tensors,
    size_of,
)
from gemscope.disk import claimed, room, synced
from gemscope.errors import CorruptFile, InputError, NotFound

Array = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T")

_PIECE = 1 << 22
_LEAST = 20.0
"""Seconds, at least, between two snapshots."""
_SHARE = 20.0
"""At most one part in this many of the time goes into snapshots."""
_OWN = re.compile(r"(settings\.json|state\.safetensors)(\.new)?|corpus\.bin|documents\.jsonl|\.tmp\w*|\.?effect-[\w.]+")
"""What an unfinished atlas is made of; the last is what safetensors leaves when it is killed."""


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What a snapshot says beside its arrays."""

    appended: Mapping[str, tuple[Count, Count]]
    """By file, how much of it counts, and the sum of that."""
    progress: Mapping[str, Any]


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
        self._sums = {self.rows.name: 0, self.documents.name: 0}
        """Of what was appended."""
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
            earlier = read_json(path, dict[str, Any])
        except (CorruptFile, NotFound) as error:
            raise CorruptFile(f"{error}; remove {self.folder} to begin anew") from error
        wanted = as_read(settings)
        if others := [name for name in wanted if earlier.get(name) != wanted[name]]:
            named = [other_format(earlier.get(name), wanted[name]) if name == "dtype" else name for name in others]
            raise InputError(
                f"{self.folder} holds an unfinished atlas made with another {', '.join(named)}: "
                f"go on with the same settings, or remove it"
            )

    def resume(self, kind: type[T]) -> tuple[T, dict[str, Array]] | None:
        """What was saved last: how far it was, and the statistics. None at the beginning. Raises CorruptFile."""
        if not self.begun:
            with self._room():
                self.rows.write_bytes(b"")
                self.documents.write_bytes(b"")
            return None
        try:
            state, beside = read_tensors(self._state, framework="np")
            document = json_of(beside.get("progress", ""), dict[str, Any], where="its progress")
            if document.pop("checksum", None) != checksum_of(state, document):
                raise CorruptFile("its checksum is another")
            said = declared(document, _Said, where="its progress")
            # What was appended after the snapshot will be appended again.
            for appended in (self.rows, self.documents):
                size, sum_ = said.appended.get(appended.name, (0, 0))
                if size_of(appended) < size or _sum_of(appended, size) != sum_:
                    raise CorruptFile(f"{appended} is not as it was left")
                os.truncate(appended, size)
                self._sums[appended.name] = sum_
            return declared(said.progress, kind, where="its progress"), state
        except (CorruptFile, NotFound) as error:
            raise self.damaged(error) from error

    def damaged(self, why: object) -> CorruptFile:
        """Of what was saved last."""
        return CorruptFile(f"{self._state} is damaged ({why}): remove {self.folder} to begin anew")

    def append(self, ids: Array, starts: Sequence[tuple[int, str, str]]) -> None:
        """Rows of ids, and the documents (flat position, source, licence) that begin in them."""
        with self._room():
            lines = b"".join(json.dumps(start, ensure_ascii=False).encode() + b"\n" for start in starts)
            for path, content in ((self.rows, ids.astype("<i4").tobytes()), (self.documents, lines)):
                with path.open("ab") as file:
                    file.write(content)
                self._sums[path.name] = zlib.crc32(content, self._sums[path.name])

    def effect_of(self, site: Site) -> Path:
        """Where the effect of a site is kept until the atlas is made."""
        return self.folder / f"effect-{site}"

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved > max(_LEAST, _SHARE * self._cost)

    def save(self, progress: Mapping[str, Any], state: Mapping[str, Array]) -> None:
        """Replaces what was saved before."""
        started = time.monotonic()
        appended = {path.name: [path.stat().st_size, self._sums[path.name]] for path in (self.rows, self.documents)}
        aside = self.folder / "state.safetensors.new"
        with self._room():
            whole = {name: np.ascontiguousarray(value) for name, value in state.items()}
            said = as_read({"appended": appended, "progress": progress})
            said["checksum"] = checksum_of(whole, said)
            save_file(whole, aside, {"progress": json.dumps(said)})
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
        with self.documents.open("rb") as file:
            for line in file:
                yield json_of(line, tuple[Count, str, str], where=str(self.documents))

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


def _sum_of(path: Path, size: int) -> int:
    """Of the first `size` bytes."""
    sum_ = 0
    with path.open("rb") as file:
        while size > 0 and (piece := file.read(min(size, _PIECE))):
            sum_, size = zlib.crc32(piece, sum_), size - len(piece)
    return sum_


def _replace(path: Path, content: bytes) -> None:
    aside = path.with_name(path.name + ".new")
    aside.write_bytes(content)
    os.replace(aside, path)
