"""What files of other tools hold, on its way into an atlas: features in any order, each with examples and explanations,
kept on disk until all are read. Knows the atlas's Writer; leaves each format's fields to its own file.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from gemscope.atlas.dashboard import Explanation
from gemscope.atlas.entry import Entry, Floats, Ints
from gemscope.atlas.exchange.numbers import as_whole
from gemscope.atlas.exchange.pieces import bytes_of, is_special, looks_byte_level
from gemscope.atlas.writer import Writer
from gemscope.checked import row_of
from gemscope.disk import room
from gemscope.errors import CorruptFile, InputError
from gemscope.progress import Progress

_ROWS = 4096
"""Windows handed on at a time."""
_WIDEST = 1 << 24
"""Features of the widest SAE that is believed in."""
_HELD = "a record that was taken in"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An example as another tool shows it: a window of tokens, and the feature's activation on each."""

    window: int
    """Row of the atlas's corpus."""
    own: int
    """Column of the token that it stands for."""
    columns: Ints
    values: Floats
    """Where the feature is not silent."""
    low: float | None = None
    """Bounds of the interval that it is said to be drawn from; None among the strongest."""
    high: float | None = None
    share: float | None = None
    """Share of the feature's firings that the interval is said to hold."""

    @property
    def value(self) -> float:
        """The activation on its own token."""
        return float(self.values[self.columns == self.own].max(initial=0.0))


@dataclass
class Taken:
    """What was put right on the way in, counted."""

    duplicates: int = 0
    """Examples whose window another example of the same feature shows."""
    silent: int = 0
    """Examples on which the feature does not fire."""
    rebinned: int = 0
    """Examples that lie in another interval than the one they were filed under."""
    logits: int = 0
    """Logits marked as missing."""
    foreign: int = 0
    """Examples that a visitor made by typing a text of their own."""
    repeated: int = 0
    """Features told of twice; the first word counts."""
    orphans: int = 0
    """Features with examples and no figures."""
    exact: int = 0
    """Features whose firings were counted out of their histogram."""
    rounded: int = 0
    """Features whose firings are known as a rounded share of the tokens alone."""


class _Ids(dict[str, int]):
    """A number for every string, from 0 on, as they are met."""

    def __missing__(self, text: str) -> int:
        self[text] = len(self)
        return self[text]


class Intake:
    """A file in the folder `place`, in which features wait for those before them. A context manager."""

    def __init__(self, place: Path) -> None:
        self.taken = Taken()
        self._path = place / "intake.sqlite"
        self._ids = _Ids()
        with self._room():
            self._database = sqlite3.connect(self._path)
            self._begin()
        self._windows = 0
        self.length = 1
        """Tokens of the longest window."""

    def _begin(self) -> None:
        # It is thrown away whatever happens: nothing needs to reach the disk.
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -65536"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.executescript(
            "CREATE TABLE feature(id INTEGER PRIMARY KEY, record TEXT);"
            "CREATE TABLE window(id INTEGER PRIMARY KEY, digest BLOB UNIQUE, ids BLOB);"
            "CREATE TABLE example(feature INTEGER, window INTEGER, own INTEGER, columns BLOB, cells BLOB,"
            " low REAL, high REAL, share REAL);"
            "CREATE TABLE explanation(feature INTEGER, record TEXT);"
        )

    def _room(self) -> AbstractContextManager[None]:
        kept = "and an import needs about as much beside the atlas as it reads: nothing of it is kept, free some room"
        return room(self._path, kept=kept)

    def __enter__(self) -> Intake:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, sqlite3.Error):
                with self._room():
                    raise error
        finally:
            self._database.close()
            self._path.unlink(missing_ok=True)

    # --- taking in --------------------------------------------------------------------------------------------

    def id_of(self, piece: str) -> int:
        """The number that a token goes by here: another tool's strings say nothing of its ids."""
        return self._ids[piece]

    def feature(self, index: int, record: dict[str, Any]) -> None:
        """Figures of one feature, of any fields."""
        done = self._database.execute("INSERT OR IGNORE INTO feature VALUES (?, ?)", (index, json.dumps(record)))
        self.taken.repeated += done.rowcount == 0

    def example(
        self,
        feature: int,
        pieces: Sequence[str],
        values: Sequence[float],
        own: int,
        *,
        low: float | None = None,
        high: float | None = None,
        share: float | None = None,
    ) -> None:
        """One window of tokens, with an activation for each."""
        dense = np.asarray(values, np.float32)
        columns = np.flatnonzero(dense).astype(np.int32)
        if not len(columns) or dense.max() <= 0:
            self.taken.silent += 1
            return
        if not 0 <= own < len(dense) or dense[own] <= 0:
            own = int(dense.argmax())
        ids = np.fromiter(map(self._ids.__getitem__, pieces), np.int32, len(pieces)).tobytes()
        self._database.execute(
            "INSERT INTO example VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (feature, self._window(ids), own, columns.tobytes(), dense[columns].tobytes(), low, high, share),
        )
        self.length = max(self.length, len(pieces))

    def explanation(self, feature: int, record: dict[str, Any]) -> None:
        """What somebody says that it stands for: fields of an `Explanation`."""
        self._database.execute("INSERT INTO explanation VALUES (?, ?)", (feature, json.dumps(record)))

    def _window(self, ids: bytes) -> int:
        # Tools that show whole prompts show the same one for many features: it is kept once.
        digest = hashlib.blake2b(ids, digest_size=16).digest()
        found = self._database.execute("SELECT id FROM window WHERE digest = ?", (digest,)).fetchone()
        if found is not None:
            return int(found[0])
        self._database.execute("INSERT INTO window VALUES (?, ?, ?)", (self._windows, digest, ids))
        self._windows += 1
        return self._windows - 1

    # --- handing on -------------------------------------------------------------------------------------------

    def hand_on(
        self,
        writer: Writer,
        size: int,
        entry: Callable[[int, dict[str, Any], list[Shown]], Entry],
        progress: Progress,
    ) -> None:
        """All there is of features below `size`; `entry` makes one of its index, figures (none where only examples
        came) and examples.
        """
        with progress("write", size, "features") as advance:
            for rows in self.windows():
                writer.add_rows(rows)
            for index, figures, examples in self.features():
                if index < size:
                    writer.add(entry(index, figures or {}, examples))
                    advance(1)
            writer.add_tokens(*self.texts())
            for index, said in self.explanations():
                if index < size:
                    writer.add_explanation(index, Explanation(id=0, **said))

    @property
    def rows(self) -> int:
        """Different windows."""
        return self._windows

    def windows(self) -> Iterator[Ints]:
        """Their ids [R, length], -1 behind the end of a shorter one."""
        read = self._database.execute("SELECT ids FROM window ORDER BY id")
        while some := read.fetchmany(_ROWS):
            out = np.full((len(some), self.length), -1, np.int32)
            for row, (ids,) in zip(out, some, strict=True):
                tokens = np.frombuffer(ids, np.int32)
                row[: len(tokens)] = tokens
            yield out

    def texts(self) -> tuple[dict[int, bytes], set[int]]:
        """The bytes of every token met, and which are special."""
        byte_level = looks_byte_level(self._ids)
        texts = {id_: bytes_of(piece, byte_level=byte_level) for piece, id_ in self._ids.items()}
        return texts, {id_ for piece, id_ in self._ids.items() if is_special(piece)}

    def indices(self) -> list[int]:
        """Features that there are figures of, ascending."""
        return [index for (index,) in self._database.execute("SELECT id FROM feature ORDER BY id")]

    def missing(self, size: int, skipped: Iterable[int] = ()) -> list[int]:
        """Features below `size` that there are no figures of, but for those that were left out on purpose."""
        return sorted(set(range(size)) - set(self.indices()) - set(skipped))

    def size(self, told: object, where: Path) -> int:
        """How many features there are: as told, or up to the last one met. Raises CorruptFile, InputError."""
        found = self.indices()
        if not found:
            raise CorruptFile(f"{where} tells of no feature: it is empty, or another kind of folder")
        size = max(as_whole(told) or 0, 0) or found[-1] + 1
        if size > _WIDEST:
            raise InputError(
                f"{where} has a feature {size - 1}, beyond any SAE: is it a pair of layer and feature in one number?"
            )
        return size

    def features(self) -> Iterator[tuple[int, dict[str, Any] | None, list[Shown]]]:
        """Index, figures (None where only examples came) and examples, ascending."""
        self._database.execute("CREATE INDEX IF NOT EXISTS by_feature ON example(feature)")
        told = "SELECT id, record FROM feature UNION ALL SELECT DISTINCT feature, NULL FROM example"
        known = self._database.execute(f"SELECT id, max(record) FROM ({told}) GROUP BY id ORDER BY id")
        for index, record in known:
            # The order of arrival is kept among the examples of a feature: it decides which of two alike stays.
            shown = self._database.execute(
                "SELECT window, own, columns, cells, low, high, share FROM example WHERE feature = ? ORDER BY rowid",
                (index,),
            )
            self.taken.orphans += record is None
            yield index, None if record is None else row_of(record, where=_HELD), [_shown(*row) for row in shown]

    def explanations(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Feature and explanation, by feature, in the order of arrival."""
        for feature, record in self._database.execute("SELECT * FROM explanation ORDER BY feature, rowid"):
            yield feature, row_of(record, where=_HELD)


def _shown(window: int, own: int, columns: bytes, cells: bytes, *filed: float | None) -> Shown:
    places, values = np.frombuffer(columns, np.int32), np.frombuffer(cells, np.float32)
    low, high, share = filed
    return Shown(window=window, own=own, columns=places, values=values, low=low, high=high, share=share)
