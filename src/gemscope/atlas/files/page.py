"""One feature's page as a packed record: an `Entry` but for its figures, which are columns of a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemscope.atlas.entry import Entry, Floats, Ints, require_sound
from gemscope.atlas.files.packing import Halves, pack, unpack
from gemscope.errors import CorruptFile, InputError

_ARRAYS = 20


def pack_page(entry: Entry, length: int) -> bytes:
    """What an entry says beyond its figures, for a corpus with rows of `length` tokens. Raises InputError, NotFinite.

    Intervals are kept as steps from one example to the next; an example's cells as steps from its own column to the
    first, from there to the next and so on. Its own cell is left out, as its column is known; its value stands, exact,
    among the peaks. The others are kept as shares of that, in float16: what was kept once is kept unchanged again.
    """
    require_sound(entry, length)
    columns = entry.columns.astype(np.int64)
    home = (entry.positions.astype(np.int64) % length)[entry.owners]
    own = columns == home
    owners, columns, home = entry.owners[~own], columns[~own], home[~own]
    steps = np.diff(columns, prepend=0)
    first = np.diff(owners, prepend=-1) != 0
    steps[first] = columns[first] - home[first]
    peaks = entry.values[own]
    for wrong in contradictions(entry.histogram, entry.interval_counts, peaks, entry.count, entry.max):
        raise InputError(f"feature {entry.index}: {wrong}")
    return pack(
        (
            np.array((entry.step, entry.logit_low, entry.logit_step), np.float64),
            entry.histogram,
            entry.edges,
            entry.interval_counts,
            entry.positions,
            np.diff(entry.intervals.astype(np.int64), prepend=-1),
            peaks,
            np.bincount(owners, minlength=len(entry.positions)),
            steps,
            _shares(entry.values[~own], _units(peaks)[owners]),
            entry.promoted,
            Halves(entry.promoted_values),
            entry.suppressed,
            Halves(entry.suppressed_values),
            entry.logit_histogram,
            entry.neighbours,
            Halves(entry.cosines),
            entry.partners,
            Halves(entry.jaccards),
            Halves(entry.shares),
        )
    )


@dataclass(frozen=True, slots=True)
class Page:
    """A page as it lies in the file: as in an `Entry`, except that the cells at the examples' own columns are apart."""

    scales: list[float]
    """Step of the histogram; low and step of the logits' histogram."""
    histogram: Ints
    edges: Floats
    interval_counts: Ints
    positions: Ints
    intervals: Ints
    peaks: Floats
    """[n] The value at each example's own column."""
    sizes: Ints
    """[n] How many cells each example has beside that one."""
    offsets: Ints
    """[z] Columns of those, counted from the example's own."""
    values: Floats
    promoted: Ints
    promoted_values: Floats
    suppressed: Ints
    suppressed_values: Floats
    logit_histogram: Ints
    neighbours: Ints
    cosines: Floats
    partners: Ints
    jaccards: Floats
    shares: Floats


_AS_THEY_ARE = (
    *("histogram", "edges", "interval_counts", "intervals", "logit_histogram", "neighbours", "cosines"),
    *("promoted", "promoted_values", "suppressed", "suppressed_values", "partners", "jaccards", "shares"),
)
"""What pages keep as entries have it."""


def entry_of(page: Page, length: int, **figures: Any) -> Entry:
    """The entry that a page was packed from, given its figures: `index`, `count`, `max` and so on.

    Raises CorruptFile for a page that no entry gave.
    """
    positions = page.positions.astype(np.int64)
    home = positions % length
    examples = np.arange(len(positions))
    others = np.repeat(examples, page.sizes)
    owners = np.concatenate((others, examples))
    columns = np.concatenate((home[others] + page.offsets, home))
    order = np.lexsort((columns, owners))
    step, logit_low, logit_step = page.scales
    entry = Entry(
        **figures,
        **{name: getattr(page, name) for name in _AS_THEY_ARE},
        step=step,
        positions=positions,
        owners=owners[order],
        columns=columns[order],
        values=np.concatenate((page.values, page.peaks))[order],
        logit_low=logit_low,
        logit_step=logit_step,
    )
    try:
        require_sound(entry, length)
    except InputError as error:
        raise CorruptFile(f"a packed record is damaged: {error}") from error
    return entry


def unpack_page(blob: bytes) -> Page:
    """What `pack_page` packed. Raises CorruptFile, for what is whole and says what no page can say as well."""
    scales, *arrays = unpack(blob, _ARRAYS)
    _require(len(scales) == 3 and not any(arrays[number].dtype.kind == "f" for number in _WHOLE))
    lengths = list(map(len, arrays))
    _require(all(lengths[one] == lengths[other] for one, other in _ALIKE))
    _require(lengths[1] == (lengths[2] + 1 if lengths[2] else 0))
    for number in _COUNTS:
        _require(arrays[number].dtype.kind == "u" or not lengths[number] or int(arrays[number].min()) >= 0)
    arrays[4] = np.cumsum(arrays[4], dtype=np.int64) - 1
    sizes, steps = arrays[6], arrays[7].astype(np.int64)
    if lengths[4]:
        _require(int(arrays[4].min()) >= -1 and int(arrays[4].max()) < lengths[2])
        _require(int(sizes.max()) <= lengths[7])
    _require(lengths[7] == int(sizes.sum()))
    # Sums that start anew at every example: the running sum less what it was where the example starts.
    starts = np.cumsum(sizes, dtype=np.int64) - sizes  # of examples in the list of cells
    running = np.concatenate((np.zeros(1, np.int64), np.cumsum(steps)))
    arrays[7] = running[1:] - np.repeat(running[starts], sizes)
    with np.errstate(over="ignore", invalid="ignore"):
        arrays[8] = arrays[8].astype(np.float32) * np.repeat(_units(arrays[5]), sizes)
        _require(bool(np.isfinite(np.concatenate((scales, *(arrays[number] for number in _REAL)))).all()))
    return Page(scales.tolist(), *arrays)


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What a list shows of a page."""

    step: float
    """Of the histogram, whose bins begin at 0."""
    histogram: Ints
    positions: Ints
    """[n] Of the strongest examples, the strongest first."""


def unpack_glimpse(blob: bytes) -> Glimpse:
    """A little of what `pack_page` packed. Raises CorruptFile."""
    scales, histogram, positions, intervals = unpack(blob, _ARRAYS, only=_GLIMPSED)
    _require(len(scales) == 3 and not any(one.dtype.kind == "f" for one in (histogram, positions, intervals)))
    _require(len(positions) == len(intervals) and bool(np.isfinite(scales).all()))
    for one in (histogram, positions):
        _require(one.dtype.kind == "u" or not len(one) or int(one.min()) >= 0)
    strongest = np.cumsum(intervals, dtype=np.int64) == 0
    return Glimpse(float(scales[0]), histogram, positions[strongest].astype(np.int64))


_GLIMPSED = (0, 1, 4, 5)
_REAL = (1, 5, 8, 10, 12, 15, 17, 18)
_COUNTS = (0, 2, 3, 6, 9, 11, 13, 14, 16)
_WHOLE = (*_COUNTS, 4, 7)
"""Arrays of a page, by what their numbers are; steps may be negative."""
_ALIKE = ((3, 4), (3, 5), (3, 6), (7, 8), (9, 10), (11, 12), (14, 15), (16, 17), (16, 18))
"""Those that are of one length."""


def contradictions(histogram: Ints, interval_counts: Ints, peaks: Floats, count: int, top: float) -> Iterator[str]:
    """What of a page is at odds with its feature's firings and maximum: in words, nothing where all is well."""
    if len(histogram) and (total := int(histogram.sum())) != count:
        yield f"its histogram counts {total} firings, its row says {count}"
    if (total := int(interval_counts.sum())) > count:
        yield f"its intervals hold {total} firings, its row says {count}"
    if len(peaks) and (strongest := float(peaks.max())) > top * 1.001:  # what others published may be rounded
        yield f"an example of {strongest:g} is stronger than its maximum, {top:g}"


def _require(sensible: bool) -> None:
    if not sensible:
        raise CorruptFile("a packed record is damaged: it is no page's")


def _units(peaks: Floats) -> Floats:
    """[n] What an example's other cells are relative to: its peak, where there is one."""
    return np.where(peaks == 0, 1, peaks)


def _shares(values: Floats, units: Floats) -> Floats:
    """In float16, without turning anything into silence or infinity."""
    shares = values / units
    largest, least = np.finfo(np.float16).max, np.finfo(np.float16).smallest_subnormal
    sizes = np.where(shares == 0, 0, np.clip(np.abs(shares), least, largest))
    return np.copysign(sizes, shares).astype(np.float16)
