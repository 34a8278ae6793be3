"""Rows of ids on their way to the disk and back, against numpy's own reading of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemscope.atlas.files.corpus import Corpus, Rows
from gemscope.errors import CorruptFile, InputError, Mismatch


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    sizes=st.lists(st.integers(0, 4), max_size=4),
    most=st.sampled_from([5, 65_534, 65_535, 2**31 - 1]),
)
def test_rows_are_read_back_while_they_are_written_and_afterwards(
    seed: int, sizes: list[int], most: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lot = np.random.default_rng(seed)
    blocks = [lot.integers(-1, most + 1, (size, 3)) for size in sizes]
    if blocks and len(blocks[-1]):
        blocks[-1][-1, -1] = most  # so that what came before is widened at the end
    path = tmp_path_factory.mktemp("atlas") / "corpus.npy"
    rows, so_far = Rows(path), np.zeros(0, np.int64)
    for block in blocks:
        rows.append(block)
        so_far = np.concatenate([so_far, block.ravel()])
        asked = np.arange(-2, len(so_far) + 3)
        inside = (asked >= 0) & (asked < len(so_far))
        assert (
            rows.at(asked).tolist() == np.where(inside, np.append(so_far, -1)[asked.clip(0, len(so_far))], -1).tolist()
        )
    rows.close()
    held = np.load(path)
    wide = bool(len(so_far)) and so_far.max() >= 65_535
    assert held.dtype == (np.int32 if wide else np.uint16)
    assert held.size == len(so_far)
    corpus = Corpus(path, sum(sizes), 3)
    assert len(corpus) == len(so_far)
    assert corpus.at(np.arange(len(so_far))).tolist() == so_far.tolist()
    assert corpus.between(1, 4).tolist() == so_far[1:4].tolist()


def test_what_is_no_row_of_ids_is_refused(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "corpus.npy")
    rows.append(np.array([[-1, 2**31 - 1]]))
    for wrong, message in (
        (np.array([1, 2]), "expected whole numbers"),
        (np.zeros((2, 0), np.int64), "at least one token per row"),
        (np.array([[-2, 1]]), "no token -2"),
        (np.array([[2**31, 1]]), f"no token {2**31}"),
    ):
        with pytest.raises(InputError, match=message):
            rows.append(wrong)
    with pytest.raises(Mismatch, match="rows of 3 tokens given after rows of 2"):
        rows.append(np.array([[1, 2, 3]]))
    assert rows.count == 1
    rows.abandon()


@pytest.mark.parametrize(
    "facts",
    [
        "[1]",
        "{'descr': '<u2', 'fortran_order': False, 'shape': None}",
        "{'descr': '<u2', 'fortran_order': True, 'shape': (1, 2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2)}",
        "{'descr': '<u2', 'shape': (1, 2)}",
        "{'descr': '<u2'",
        "((((" * 26,
    ],
)
def test_a_header_that_says_something_else_is_a_damaged_file(facts: str, tmp_path: Path) -> None:
    path = tmp_path / "corpus.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + facts.encode().ljust(117) + b"\n" + bytes(4))
    with pytest.raises(CorruptFile, match=r"corpus\.npy is not an atlas's corpus"):
        Corpus(path, 1, 2)


def test_a_file_of_other_rows_or_another_length_is_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "corpus.npy"
    rows = Rows(path)
    rows.append(np.array([[1, 2], [3, 4]]))
    rows.close()
    assert len(Corpus(path, 2, 2)) == 4
    for shape in ((1, 2), (2, 1), (0, 2)):
        with pytest.raises(CorruptFile, match="its manifest says"):
            Corpus(path, *shape)
    whole = path.read_bytes()
    for cut in (whole[:-1], whole + b"x"):
        path.write_bytes(cut)
        with pytest.raises(CorruptFile, match="are expected: copy it again"):
            Corpus(path, 2, 2)
