"""Arrays as few bytes: each in the narrowest type that holds it, its byte planes apart, those with a pattern deflated.

One feature's page is such a list of arrays. Where pages are kept is the atlas's work.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemscope.atlas.entry import Entry, Floats, Ints
from gemscope.errors import CorruptFile, InputError, NotFinite

Array = np.ndarray[Any, np.dtype[Any]]

_INTEGERS = tuple(map(np.dtype, ("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<i8")))
_KINDS = (*_INTEGERS, *map(np.dtype, ("<f2", "<f4", "<f8", "<f2")))
_BOUNDS = [(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for dtype in _INTEGERS]
_HALF = len(_KINDS) - 1
"""The last kind comes with a scale."""
_MOST = 1 << 23
"""Bytes that a record unpacks to, at most: a page takes a few thousand, and deflated zeros would take a thousandth."""


@dataclass(frozen=True)
class Halves:
    """Numbers that are kept to 11 bits each, down to 2^-14 of the largest, and to 2^-25 of it below that.

    They are taken relative to a power of two, so that what was kept once is kept unchanged among other numbers.
    """

    values: Floats


def pack(arrays: Sequence[Array | Halves]) -> bytes:
    """Whole numbers and floats exactly, `Halves` as they say. Raises NotFinite for NaN and infinities, InputError for
    more than a record holds.

    A checksum; deflated: a byte per array for its type and how many of its planes are rough, their lengths, then the
    smooth planes; at last the rough ones as they are. Lower bytes are noise, and deflating noise costs more than it
    saves: it spoils the code for all the rest.
    """
    kinds, lengths = bytearray(), list[int]()
    smooth, rough = list[bytes](), list[bytes]()
    for array in arrays:
        kind, content = _halved(array.values, rough) if isinstance(array, Halves) else _narrowed(array)
        planes = _planes(content)
        noisy = next((number for number, plane in enumerate(planes) if not _noisy(plane)), len(planes))
        kinds.append(kind | noisy << 4)
        lengths.append(len(content))
        rough += planes[:noisy]
        smooth += planes[noisy:]
    if (size := sum(map(len, smooth)) + 5 * len(kinds)) > _MOST:
        raise InputError(f"{size:,} bytes are to go into one record: at most {_MOST:,} are kept")
    deflating = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    deflated = deflating.compress(b"".join((kinds, *_planes(np.array(lengths, "<u4")), *smooth))) + deflating.flush()
    body = b"".join((deflated, *rough))
    return zlib.crc32(body).to_bytes(4, "little") + body


def unpack(blob: bytes, count: int) -> list[Array]:
    """The arrays that `pack` was given; `Halves` as float32. Raises CorruptFile for anything else."""
    if not isinstance(blob, bytes):  # SQLite keeps anything in any column
        raise CorruptFile(f"a packed record is damaged: it is of type {type(blob).__name__}")
    if zlib.crc32(memoryview(blob)[4:]) != int.from_bytes(blob[:4], "little"):
        raise CorruptFile("a packed record is damaged: its checksum is another")
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        smooth, rough = inflating.decompress(memoryview(blob)[4:], _MOST), inflating.unused_data
        if not inflating.eof:
            raise ValueError(f"it ends early, or unpacks to more than {_MOST:,} bytes")
        lengths = np.frombuffer(smooth, "u1", 4 * count, count).reshape(4, count).T.copy().view("<u4").ravel().tolist()
        at, at_rough, arrays = 5 * count, 0, []
        for kind, length in zip(smooth[:count], lengths, strict=True):
            noisy, dtype = kind >> 4, _KINDS[kind & 15]
            scale = None
            if kind & 15 == _HALF and length:
                scale = np.frombuffer(rough, "<f4", 1, at_rough)
                at_rough += 4
            size = dtype.itemsize
            if noisy > size or at + (size - noisy) * length > len(smooth) or at_rough + noisy * length > len(rough):
                raise ValueError("it holds fewer numbers than it says")
            if size == 1:
                values = np.frombuffer(*((rough, dtype, length, at_rough) if noisy else (smooth, dtype, length, at)))
            else:
                bytes_ = np.empty((length, size), np.uint8)
                if noisy:
                    planes = np.frombuffer(rough, np.uint8, noisy * length, at_rough)
                    bytes_[:, :noisy] = planes.reshape(noisy, length).T
                if noisy < size:
                    planes = np.frombuffer(smooth, np.uint8, (size - noisy) * length, at)
                    bytes_[:, noisy:] = planes.reshape(size - noisy, length).T
                values = bytes_.view(dtype).reshape(length)
            arrays.append(values if scale is None else values.astype(np.float32) * scale)
            at_rough += noisy * length
            at += (size - noisy) * length
    except (zlib.error, ValueError, IndexError) as error:
        raise CorruptFile(f"a packed record is damaged: {error}") from error
    if at != len(smooth) or at_rough != len(rough):
        raise CorruptFile("a packed record is damaged: it holds other arrays")
    return arrays


def _narrowed(array: Array) -> tuple[int, Array]:
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise NotFinite("NaN or Inf among the numbers of a page")
        if array.dtype.itemsize == 2:
            return _KINDS.index(np.dtype("<f2")), array.astype("<f2")
        with np.errstate(over="ignore"):
            single = array.astype("<f4")
        exact = single if (single == array).all() else array.astype("<f8")
        return _KINDS.index(exact.dtype), exact
    low, high = (int(array.min()), int(array.max())) if len(array) else (0, 0)
    for kind, (least, most) in enumerate(_BOUNDS):
        if least <= low and high <= most:
            return kind, array.astype(_INTEGERS[kind])
    raise InputError(f"{high} is too large a whole number for a page: it holds up to {np.iinfo(np.int64).max}")


def _halved(values: Floats, scales: list[bytes]) -> tuple[int, Array]:
    """Ratios to the power of two above them, which goes to the scales."""
    if not len(values):
        return _HALF, np.zeros(0, "<f2")
    largest = float(np.abs(values).max())
    if not math.isfinite(largest):
        raise NotFinite("NaN or Inf among the numbers of a page")
    mantissa, exponent = math.frexp(largest)
    if exponent > 126:
        raise NotFinite(f"{largest:.3g} among the numbers of a page: below 8e37 are kept")
    exponent += int(np.float16(mantissa))  # where it is rounded up to the power of two, that is the next one's half
    scale = 2.0 ** max(-126, exponent)  # from there on float32 has fewer bits itself
    scales.append(np.array([scale], "<f4").tobytes())
    return _HALF, (values / np.float64(scale)).astype("<f2")


def _planes(array: Array) -> list[bytes]:
    """The first bytes of all, the second bytes of all, and so on."""
    size = array.dtype.itemsize
    return [plane.tobytes() for plane in np.ascontiguousarray(array).view(np.uint8).reshape(-1, size).T]


def _noisy(plane: bytes) -> bool:
    return 2 * len(set(plane)) > min(len(plane), 256)


# --- one feature's page -----------------------------------------------------------------------------------------------

_ARRAYS = 20


def pack_page(entry: Entry, length: int) -> bytes:
    """What an entry says beyond its figures, for a corpus with rows of `length` tokens. Raises InputError, NotFinite.

    Intervals are kept as steps from one example to the next; an example's cells as steps from its own column to the
    first, from there to the next and so on. Its own cell is left out, as its column is known; its value stands, exact,
    among the peaks. The others are kept as shares of that, in float16: what was kept once is kept unchanged again.
    """
    _check(entry, length)
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
        step=step,
        histogram=page.histogram,
        edges=page.edges,
        interval_counts=page.interval_counts,
        positions=positions,
        intervals=page.intervals,
        owners=owners[order],
        columns=columns[order],
        values=np.concatenate((page.values, page.peaks))[order],
        promoted=page.promoted,
        promoted_values=page.promoted_values,
        suppressed=page.suppressed,
        suppressed_values=page.suppressed_values,
        logit_low=logit_low,
        logit_step=logit_step,
        logit_histogram=page.logit_histogram,
        neighbours=page.neighbours,
        cosines=page.cosines,
        partners=page.partners,
        jaccards=page.jaccards,
        shares=page.shares,
    )
    try:
        _check(entry, length)
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


_COUNTED = (
    *("histogram", "interval_counts", "positions"),
    *("promoted", "suppressed", "logit_histogram", "neighbours", "partners"),
)
"""Fields of an entry that number something, or count it."""
_MOST_VALUE = 3e38
"""What is kept as a share of a peak, rounded, has to be a float32 when it is read again."""


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


def _check(entry: Entry, length: int) -> None:
    """Raises InputError, naming the feature, where parts of an entry do not fit each other."""
    name, examples = f"feature {entry.index}", len(entry.positions)
    for one, other in (
        ("positions", "intervals"),
        ("owners", "columns"),
        ("owners", "values"),
        ("promoted", "promoted_values"),
        ("suppressed", "suppressed_values"),
        ("neighbours", "cosines"),
        ("partners", "jaccards"),
        ("partners", "shares"),
    ):
        ours, theirs = len(getattr(entry, one)), len(getattr(entry, other))
        if ours != theirs:
            raise InputError(f"{name} has {ours} {one} and {theirs} {other}: there must be as many of both")
    for one in (*_COUNTED, "intervals", "owners", "columns"):
        if (dtype := getattr(entry, one).dtype).kind not in "biu":
            raise InputError(f"{name} has numbers of type {dtype} as its {one}: whole numbers are expected")
    for one in _COUNTED:
        if len(numbers := getattr(entry, one)) and int(numbers.min()) < 0:
            raise InputError(f"{name} has {int(numbers.min())} among its {one}: none can be below 0")
    if not (np.abs(entry.values) < _MOST_VALUE).all():
        raise NotFinite(f"{name} has activations that are no numbers, or of {_MOST_VALUE:g} and more: none are kept")
    if len(entry.edges) != (len(entry.interval_counts) + 1 if len(entry.interval_counts) else 0):
        raise InputError(
            f"{name} has {len(entry.edges)} edges and {len(entry.interval_counts)} counts of intervals: "
            f"one edge more than counts, or neither, is expected"
        )
    if examples and (entry.intervals.min() < -1 or entry.intervals.max() >= len(entry.interval_counts)):
        raise InputError(f"{name} has an example from an interval that it does not have: -1 marks the strongest")
    if not len(entry.owners):
        if examples:
            raise InputError(f"{name} has {examples} examples without activations: each needs one at its own column")
        return
    cells = entry.owners.astype(np.int64) * length + entry.columns
    if entry.columns.min() < 0 or entry.columns.max() >= length or (np.diff(cells) <= 0).any():
        raise InputError(f"{name} has columns that do not ascend within an example, or lie outside 0 to {length - 1}")
    own = np.arange(examples) * length + entry.positions.astype(np.int64) % length
    found = cells[np.minimum(np.searchsorted(cells, own), len(cells) - 1)]
    if entry.owners.min() < 0 or entry.owners.max() >= examples or (found != own).any():
        raise InputError(f"{name} has activations that no example owns, or an example without one at its own column")
