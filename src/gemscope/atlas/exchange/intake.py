"""What files of other tools hold, on its way into an atlas: features in any order, each with examples and explanations,
kept on disk until all are read. Knows the atlas's Writer; leaves each format's fields to its own file.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import groupby
from math import isnan
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, TypeGuard

import numpy as np

from gemscope.atlas.entry import Entry, Floats, Ints
from gemscope.atlas.exchange.pieces import bytes_of, is_special, looks_byte_level
from gemscope.checked import EXACT
from gemscope.disk import room
from gemscope.errors import CorruptFile, InputError

_ROWS = 4096
"""Windows handed on at a time."""
_ROUNDED = 1e-3
"""The activations of windows are rounded by as large a share as this."""
_WIDEST = 1 << 24
"""Features of the widest SAE that is believed in."""
_MOST = 3e38
"""Below the largest float32."""
_CLOSE = 1e-6
"""Bounds that differ by less than this share of the maximum are one bound."""


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


def as_number(value: object) -> float | None:
    """What JSON may hold as a number, when it is one that float32 has room for."""
    if type(value) is not int and type(value) is not float:  # True is an int to isinstance
        return None
    return float(value) if abs(value) < _MOST else None  # NaN is not below it either


def as_whole(value: object) -> int | None:
    """What JSON may hold as a whole number, when it is one: true is none."""
    return value if type(value) is int and abs(value) <= EXACT else None


def are_numbers(values: object) -> TypeGuard[list[float]]:
    """Whether it is a list of nothing but such numbers."""
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
        return False
    return not values or (-_MOST < min(values) <= max(values) < _MOST and not any(map(isnan, values)))


def are_texts(values: object) -> TypeGuard[list[str]]:
    """Whether it is a list of nothing but strings."""
    return isinstance(values, list) and set(map(type, values)) <= {str}


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
        """What somebody says that it stands for: `text`, `method`, `author`, `score`."""
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
        # The order of arrival is kept among the examples of a feature: it decides which of two alike stays.
        self._database.execute("CREATE INDEX IF NOT EXISTS by_feature ON example(feature)")
        examples = groupby(self._database.execute("SELECT * FROM example ORDER BY feature, rowid"), key=itemgetter(0))
        figures = iter(self._database.execute("SELECT id, record FROM feature ORDER BY id"))
        waiting, known = next(examples, None), next(figures, None)
        while waiting is not None or known is not None:
            index = min(one[0] for one in (waiting, known) if one is not None)
            shown: list[Shown] = []
            record = None
            if waiting is not None and waiting[0] == index:
                shown = [_shown(row) for row in waiting[1]]
                waiting = next(examples, None)
            if known is not None and known[0] == index:
                record = json.loads(known[1])
                known = next(figures, None)
            self.taken.orphans += record is None
            yield index, record, shown

    def explanations(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Feature and explanation, by feature, in the order of arrival."""
        for feature, record in self._database.execute("SELECT * FROM explanation ORDER BY feature, rowid"):
            yield feature, json.loads(record)


def _shown(row: tuple[Any, ...]) -> Shown:
    _, window, own, columns, cells, low, high, share = row
    return Shown(
        window=window,
        own=own,
        columns=np.frombuffer(columns, np.int32),
        values=np.frombuffer(cells, np.float32),
        low=low,
        high=high,
        share=share,
    )


@dataclass(frozen=True)
class Arranged:
    """Examples of one feature as an atlas wants them: the strongest first, then from the highest interval down."""

    shown: list[Shown] = field(default_factory=list)
    intervals: list[int] = field(default_factory=list)
    edges: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    counts: list[int] = field(default_factory=list)


def arranged(examples: Iterable[Shown], firings: int, taken: Taken, edges: Floats | None = None) -> Arranged:
    """Each window once, each example in the interval that its value lies in, whatever it was filed under.

    The bounds of the intervals are `edges`, or those that the examples tell of.
    """
    kept: dict[int, Shown] = {}
    for one in sorted(examples, key=lambda one: one.low is not None):  # the strongest before all else
        if one.window in kept:
            taken.duplicates += 1
        else:
            kept[one.window] = one
    strongest = sorted((one for one in kept.values() if one.low is None), key=lambda one: -one.value)
    others = [one for one in kept.values() if one.low is not None]
    if not others:
        return Arranged(strongest, [-1] * len(strongest))
    bounds = _edges(others) if edges is None else edges
    if len(bounds) < 2:
        everything = sorted([*strongest, *others], key=lambda one: -one.value)
        return Arranged(everything, [-1] * len(everything))
    placed = [(_interval(one.value, bounds), one) for one in others]
    if edges is None:
        taken.rebinned += sum(not _within(one, bounds, interval) for interval, one in placed)
    placed.sort(key=lambda pair: (-pair[0], -pair[1].value))
    top = max(one.value for one in others)
    if top >= bounds[-1]:  # the last bound is the maximum itself, or was rounded below it
        bounds = bounds.copy()
        bounds[-1] = np.nextafter(np.float32(top), np.float32(np.inf))
    return Arranged(
        [*strongest, *(one for _, one in placed)],
        [-1] * len(strongest) + [interval for interval, _ in placed],
        bounds,
        _counts(others, bounds, firings),
    )


def _edges(others: list[Shown]) -> Floats:
    bounds = np.unique(np.array([(one.low, one.high) for one in others], np.float64))
    bounds = bounds[np.isfinite(bounds) & (bounds >= 0)]
    if len(bounds) < 2:
        return np.zeros(0, np.float32)
    apart = np.diff(bounds, prepend=-np.inf) > _CLOSE * bounds[-1]
    return np.unique(bounds[apart].astype(np.float32))


def _interval(value: float, bounds: Floats) -> int:
    return int(np.clip(np.searchsorted(bounds, np.float32(value), side="right") - 1, 0, len(bounds) - 2))


def _within(one: Shown, bounds: Floats, interval: int) -> bool:
    """Whether it was filed under an interval that holds it; bounds are told with a few digits."""
    assert one.low is not None
    slack = 1e-3 * float(bounds[-1])
    return one.low - slack <= one.value <= (one.high or one.low) + slack or one.low == float(bounds[interval])


def _counts(others: list[Shown], bounds: Floats, firings: int) -> list[int]:
    """Firings in each interval, as its share says; where there is none, 0."""
    shares = np.zeros(len(bounds) - 1)
    for one in others:
        if one.share is not None and one.low is not None and one.high is not None:
            shares[_interval((one.low + one.high) / 2, bounds)] = min(1.0, max(0.0, one.share))
    counts = np.rint(shares / max(1.0, shares.sum()) * firings).astype(np.int64)
    while counts.sum() > firings:  # by rounding up
        counts[counts.argmax()] -= 1
    out: list[int] = counts.tolist()
    return out


def with_examples(entry: Entry, found: Arranged, length: int) -> Entry:
    """The entry, and the cells of its examples in a corpus of rows of `length`."""
    shown = found.shown
    if not shown:
        return entry
    return replace(
        entry,
        edges=found.edges,
        interval_counts=np.array(found.counts, np.int64),
        positions=np.array([one.window * length + one.own for one in shown], np.int64),
        intervals=np.array(found.intervals, np.int64),
        owners=np.repeat(np.arange(len(shown)), [len(one.columns) for one in shown]),
        columns=np.concatenate([one.columns for one in shown]).astype(np.int64),
        values=np.concatenate([one.values for one in shown]).astype(np.float32),
    )


def highest(told: float | None, examples: Iterable[Shown]) -> float:
    """A feature's maximum: as told, unless its examples show more than rounding makes of it."""
    shown = max((float(one.values.max()) for one in examples), default=0.0)
    return told if told is not None and shown <= told * (1 + _ROUNDED) else shown


def firings(share: float, tokens: int, heights: Sequence[float], known: int, taken: Taken) -> tuple[int, Ints]:
    """How often a feature fired, and its histogram with as many counts.

    A share of the tokens is told with five digits at best; bars that are whole numbers and agree with it are counts,
    and exact. `known` firings are shown by the examples, which is the least there can be.
    """
    bars = np.nan_to_num(np.asarray(heights, np.float64), posinf=0.0, neginf=0.0).clip(0)
    total = float(bars.sum())
    whole = total > 0 and bool((bars == np.rint(bars)).all())
    if whole and abs(total / max(1, tokens) - share) <= max(5.1e-6, 1e-9 * share):
        taken.exact += 1
        return int(total), bars.astype(np.int64)
    count = max(round(share * tokens), known)
    taken.rounded += count > 0
    if total <= 0 or count == 0:
        return count, np.zeros(0, np.int64)
    # The shape is known, the scale is not: the bars as shares of the count, the largest remainders rounded up.
    shares = bars * (count / total)
    out = np.floor(shares).astype(np.int64)
    short = count - int(out.sum())
    out[np.argsort(out - shares, kind="stable")[:short]] += 1
    return count, out


def from_zero(values: Sequence[float], counts: Ints) -> tuple[float, Ints]:
    """Width of the bins and the counts of a histogram whose bars stand at `values`, on bins that begin at 0.

    A bar moves by half a bin at most. No histogram where the bars do not stand at equal distances.
    """
    middles = np.asarray(values, np.float64)
    none = 0.0, np.zeros(0, np.int64)
    if len(middles) != len(counts) or not len(counts) or not np.isfinite(middles).all():
        return none
    step = float((middles[-1] - middles[0]) / (len(middles) - 1)) if len(middles) > 1 else 2 * float(middles[0])
    if step <= 0 or (len(middles) > 1 and np.abs(np.diff(middles) - step).max() > 0.05 * step):
        return none
    first = round(middles[0] / step - 0.5)
    if not 0 <= first < 1000:
        return none
    return step, np.concatenate([np.zeros(first, np.int64), counts])
