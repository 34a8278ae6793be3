"""Packed records: arrays, pages and the vocabulary come back, and no damage goes unnoticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlases import manifest_of
from gemscope.atlas.entry import Entry
from gemscope.atlas.files import packing
from gemscope.atlas.files.page import pack_page, unpack_page
from gemscope.atlas.files.vocabulary import Vocabulary, packed
from gemscope.atlas.writer import Writer
from gemscope.errors import CorruptFile, NotFound


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
