"""Packed records: arrays, pages and the vocabulary come back, and no damage goes unnoticed."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlases import manifest_of
from gemscope.atlas.entry import Entry
from gemscope.atlas.files import packing
from gemscope.atlas.files.packing import Halves
from gemscope.atlas.files.page import pack_page, unpack_page
from gemscope.atlas.files.vocabulary import Vocabulary, packed
from gemscope.atlas.writer import Writer
from gemscope.errors import CorruptFile, InputError, NotFinite, NotFound


def test_wide_ids_and_padding_survive_in_the_corpus(tmp_path: Path) -> None:
    ids = np.array([[5, -1, 65534], [7, 8, -1]])
    for name, last, dtype in (("short", 65534, "uint16"), ("wide", 65535, "int32"), ("widest", 2**31 - 1, "int32")):
        more = np.array([[last, 1, -1]])
        with Writer(tmp_path / name) as writer:
            writer.add_rows(ids)
            writer.add_rows(more)
            atlas = writer.finish(manifest_of(1, 3, 3))
        assert np.load(tmp_path / name / "corpus.npy").dtype == dtype
        assert [atlas.row(3 * row + 1) for row in range(3)] == [*ids.tolist(), *more.tolist()]
        assert atlas.ids(np.array([[0, 1], [5, 6]])).tolist() == [[5, -1], [-1, last]]
        for wrong in (-1, 9):
            with pytest.raises(NotFound, match=r"no position|positions 0 to 8"):
                atlas.row(wrong)
            with pytest.raises(NotFound, match="the corpus has positions 0 to 8"):
                atlas.ids(np.array([wrong]))
        atlas.close()


ARRAYS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1)).map(lambda values: np.array(values, np.int64)),
    st.lists(st.integers(0, 300)).map(lambda values: np.array(values, np.int64)),
    st.lists(st.floats(allow_nan=False, allow_infinity=False)).map(lambda values: np.array(values, np.float64)),
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32)).map(lambda v: np.array(v, np.float32)),
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=16)).map(lambda v: np.array(v, np.float16)),
)


@settings(deadline=None)
@given(st.lists(ARRAYS, max_size=6))
def test_packed_arrays_come_back_exactly(arrays: list[np.ndarray]) -> None:
    for found, array in zip(packing.unpack(packing.pack(arrays), len(arrays)), arrays, strict=True):
        np.testing.assert_array_equal(found, array)


@settings(deadline=None)
@given(st.data())
def test_no_flipped_bit_of_a_packed_record_goes_unnoticed(data: st.DataObject) -> None:
    whole = bytearray(packing.pack([np.arange(50), np.linspace(0, 1, 40)]))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptFile):
        packing.unpack(bytes(whole), 2)
    with pytest.raises(CorruptFile):
        packing.unpack(bytes(whole[:at]), 2)


def test_a_cell_a_million_times_its_peak_or_less_is_neither_infinite_nor_silent() -> None:
    entry = Entry(
        index=0,
        count=3,
        max=1e6,
        mean=1.0,
        positions=np.array([1, 5]),
        intervals=np.array([-1, -1]),
        owners=np.array([0, 0, 1, 1]),
        columns=np.array([0, 1, 1, 2]),
        values=np.array([1e-9, 1.0, 1.0, 1e6], np.float32),
    )
    found = unpack_page(pack_page(entry, 4))
    assert 0 < found.values[0] < 1e-7
    assert 6e4 < found.values[1] < 1e6


def test_the_vocabulary_comes_back_and_gaps_in_it_do_no_harm() -> None:
    texts = {3: b"a", 5000: b"\xff", 70_000: b"", 12: b"x" * 10}
    vocabulary = Vocabulary(packed(texts, [12, 99]))
    assert vocabulary.tokens == texts
    assert vocabulary.special == {12}
    assert [vocabulary.alone(id_) for id_ in (3, 4, 5000, -1, 10**9)] == ["a", "\ufffd", "\\xff", "\ufffd", "\ufffd"]


@pytest.mark.parametrize("name", ["u1", "i1", "u2", "i2", "u4", "i4", "i8"])
def test_whole_numbers_take_the_narrowest_type_that_holds_them(name: str) -> None:
    order = [np.dtype(one) for one in ("u1", "i1", "u2", "i2", "u4", "i4", "i8")]
    bounds = np.iinfo(name)
    for low, high in ((bounds.min, bounds.max), (0, bounds.max), (bounds.min, 0)):
        (found,) = packing.unpack(packing.pack([np.array([low, high], np.int64)]), 1)
        assert found.tolist() == [low, high]
        wanted = next(one for one in order if np.iinfo(one).min <= low and high <= np.iinfo(one).max)
        assert found.dtype == wanted
    with pytest.raises(InputError, match="too large a whole number"):
        packing.pack([np.array([2**63], np.uint64)])


def test_floats_take_float32_where_that_is_exact() -> None:
    for values, dtype in (([0.1], "f8"), ([0.5, 3.0], "f4"), ([1e300], "f8"), ([], "f4")):
        (found,) = packing.unpack(packing.pack([np.array(values, np.float64)]), 1)
        assert (found.dtype, found.tolist()) == (np.dtype(dtype), values)
    for wrong in (np.nan, np.inf):
        for array in (np.array([wrong]), Halves(np.array([1.0, wrong]))):
            with pytest.raises(NotFinite, match="NaN or Inf"):
                packing.pack([array])


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.floats(-1, 1), min_size=1, max_size=9), exponent=st.integers(-140, 120), odd=st.booleans())
def test_halves_keep_eleven_bits_of_what_is_near_the_largest(values: list[float], exponent: int, *, odd: bool) -> None:
    """To 2^-11 of themselves down to 2^-14 of the largest, and to 2^-25 of the largest below that."""
    given = np.array([*values, 1.0]) * 2.0**exponent * (1.9997 if odd else 1.0)
    (found,) = packing.unpack(packing.pack([Halves(given)]), 1)
    assert found.dtype == np.float32
    largest = np.abs(given).max()
    allowed = np.maximum(np.abs(given) * 2.0**-11, largest * 2.0**-24)
    assert (np.abs(found - given) <= np.maximum(allowed, 2.0**-149)).all()
    again = np.concatenate([found, [2 * float(np.abs(found).max())]])[: len(found)]
    assert (
        packing.unpack(packing.pack([Halves(again)]), 1)[0].tolist() == found.tolist()
    )  # what was kept once stays as it is


def test_halves_of_what_is_beyond_float32_are_refused_and_what_is_just_below_is_kept() -> None:
    top = math.ldexp(1 - 2.0**-12, 126)
    (found,) = packing.unpack(packing.pack([Halves(np.array([top, 1.0]))]), 1)
    assert found[0] == pytest.approx(top, rel=2.0**-11)
    with pytest.raises(NotFinite, match="below 8e37 are kept"):
        packing.pack([Halves(np.array([2.0**126]))])
    assert packing.unpack(packing.pack([Halves(np.zeros(0)), Halves(np.zeros(3))]), 2)[1].tolist() == [0, 0, 0]


def test_lower_bytes_that_are_noise_are_not_deflated_and_cost_what_they_are() -> None:
    random = np.random.default_rng(0)
    noise = random.random(2000).astype(np.float32)
    ramp = np.arange(2000)
    blob = packing.pack([noise, ramp])
    assert len(blob) < len(zlib.compress(noise.tobytes() + ramp.astype("<u2").tobytes(), 9))
    for found, array in zip(packing.unpack(blob, 2), (noise, ramp), strict=True):
        np.testing.assert_array_equal(found, array)


def test_a_record_holds_so_many_bytes_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_MOST", 105)
    assert packing.unpack(packing.pack([np.arange(100) % 7]), 1)[0].tolist() == (np.arange(100) % 7).tolist()
    with pytest.raises(InputError, match="106 bytes are to go into one record: at most 105"):
        packing.pack([np.arange(101) % 7])
    blob = packing.pack([np.arange(100) % 7])
    monkeypatch.setattr(packing, "_MOST", 104)
    with pytest.raises(CorruptFile, match="unpacks to more than 104 bytes"):
        packing.unpack(blob, 1)


def test_a_record_that_holds_something_else_is_refused() -> None:
    blob = packing.pack([np.arange(5), Halves(np.array([0.5, 2.0]))])
    for count in (1, 3):
        with pytest.raises(CorruptFile, match="a packed record is damaged"):
            packing.unpack(blob, count)
    with pytest.raises(CorruptFile, match="its checksum is another"):
        packing.unpack(blob[:-1], 2)

    def resealed(body: bytes) -> bytes:
        return zlib.crc32(body).to_bytes(4, "little") + body

    for wrong in (resealed(blob[4:] + b"x"), resealed(blob[4:-1]), resealed(b"")):
        with pytest.raises(CorruptFile, match="a packed record is damaged: "):
            packing.unpack(wrong, 2)
