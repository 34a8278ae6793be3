"""What was asked about the features of an atlas, and what came of it: a file beside the atlas, a line of JSON for each
answer, on the disk before it is counted. Whoever is killed goes on from it, and nothing that was answered is asked
again. One process writes it at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from gemscope.atlas.files.manifest import Manifest
from gemscope.checked import Count, bytes_of, json_of
from gemscope.disk import claimed, room
from gemscope.errors import Mismatch

FORMAT = 1
_LARGE = 1 << 29
"""Bytes of a journal: a million answers."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one run is to ask, in the order in which labels come into the atlas."""

    features: list[Count]
    model: str
    selection: str
    """What they were chosen by: the same words go on with a run that is not over."""
    again: bool = False
    """Whether what failed in earlier runs is asked again."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What came of one question."""

    feature: Count
    model: str
    made: str
    """The day."""
    text: str = ""
    rule: str = ""
    failed: str = ""
    """Why there is no text, where there is none."""
    dropped: str = ""
    """Why there is no rule, where one came that is none."""
    said: str = ""
    """The beginning of what came, where it is no label."""
    tokens: tuple[Count, Count] = (0, 0)
    """Of the question and of the answer, where they were told."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What came of asking where some words apply."""

    feature: Count
    """Whose windows were shown."""
    words: str
    model: str
    said: str
    """A 1 or a 0 for each window; of another length, where there was no answer."""
    tokens: tuple[Count, Count] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One of these."""

    format: Count | None = None
    atlas: str | None = None
    plan: Plan | None = None
    asked: Asked | None = None
    judged: Judged | None = None
    written: Count | None = None
    """So many features of the plan have come into the atlas, as far as they have labels."""
    over: bool = False
    """Whether the plan is."""


@dataclass
class Known:
    """What a journal says."""

    plan: Plan | None = None
    """Of a run that is not over."""
    written: int = 0
    """How much of it is in the atlas."""
    answers: dict[str, dict[int, Asked]] = field(default_factory=dict)
    """By model and feature."""
    judgements: dict[tuple[str, int, str], Judged] = field(default_factory=dict)
    """By model, feature and words."""

    def of(self, model: str) -> dict[int, Asked]:
        """What came of asking a model, by feature."""
        return self.answers.setdefault(model, {})

    def follow(self, plan: Plan) -> None:
        """A run begins, or goes on."""
        if plan is self.plan:
            return
        self.plan, self.written = plan, 0
        mine = self.of(plan.model)
        for feature in plan.features if plan.again else ():
            if feature in mine and mine[feature].failed:
                del mine[feature]

    def _know(self, line: _Line) -> None:
        if line.plan is not None:
            self.follow(line.plan)
        if line.asked is not None:
            self.of(line.asked.model)[line.asked.feature] = line.asked
        if line.judged is not None:
            self.judgements[line.judged.model, line.judged.feature, line.judged.words] = line.judged
        if line.written is not None:
            self.written = line.written
        if line.over:
            self.plan = None


class Journal(Known):
    """Open, and this process's alone."""

    def __init__(self, path: Path, known: Known, file: int) -> None:
        super().__init__(known.plan, known.written, known.answers, known.judgements)
        self.path, self._file = path, file

    @property
    def kept(self) -> str:
        """What is not lost when a run ends early."""
        return f"what was answered is in {self.path}, the same command goes on from there"

    def begin(self, plan: Plan) -> None:
        """Raises StorageFull, as all of these."""
        self._add(_Line(plan=plan))

    def add(self, asked: Asked) -> None:
        self._add(_Line(asked=asked))

    def judge(self, judged: Judged) -> None:
        self._add(_Line(judged=judged))

    def wrote(self, features: int) -> None:
        self._add(_Line(written=features))

    def end(self) -> None:
        self._add(_Line(over=True))

    def _add(self, line: _Line) -> None:
        data = f"{json.dumps(_told(line), ensure_ascii=False)}\n".encode()
        start = os.lseek(self._file, 0, os.SEEK_END)
        with room(self.path, kept="what was answered is kept: free some room"):
            try:
                while data:
                    data = data[os.write(self._file, data) :]
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, start)
                raise
        self._know(line)


def path_of(atlas: Path) -> Path:
    """Where the journal of an atlas lies."""
    whole = Path(os.path.realpath(atlas))
    return whole.with_name(f"{whole.name}.asked.jsonl")


def read_journal(atlas: Path, manifest: Manifest) -> Known:
    """What it says at the moment. Raises Mismatch for that of another atlas, CorruptFile."""
    path, known = path_of(atlas), Known()
    for number, data in enumerate(_whole(path).splitlines(), 1):
        line = json_of(data, _Line, where=f"{path}:{number}")
        if number == 1 and (line.format, line.atlas) != (FORMAT, _digest(manifest)):
            raise Mismatch(f"{path} is of another atlas than lies there now: move it away to begin anew")
        known._know(line)
    return known


@contextmanager
def journal_of(atlas: Path, manifest: Manifest) -> Iterator[Journal]:
    """To go on with; begun where there is none. Raises AccessError while another process asks, Mismatch for the journal
    of another atlas, CorruptFile, StorageFull.
    """
    path = path_of(atlas)
    with claimed(path):
        known = read_journal(atlas, manifest)
        with room(path):
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            size = len(_whole(path))
            os.ftruncate(file, size)  # a line that was cut off was never counted
            journal = Journal(path, known, file)
            if not size:
                journal._add(_Line(format=FORMAT, atlas=_digest(manifest)))
            yield journal
        finally:
            os.close(file)


def _whole(path: Path) -> bytes:
    """All lines that have their end."""
    data = bytes_of(path, most=_LARGE) if path.exists() else b""
    return data[: data.rfind(b"\n") + 1]


def _digest(manifest: Manifest) -> str:
    return " ".join([manifest.sae_digest, *(part.digest for part in manifest.parts)])


def _told(line: Any) -> dict[str, Any]:
    """Without what is as it is where nothing is said."""
    found = {one.name: getattr(line, one.name) for one in fields(line) if getattr(line, one.name) != one.default}
    return {name: _told(one) if is_dataclass(one) else one for name, one in found.items()}
