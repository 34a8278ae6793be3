"""Rows of a mapped tensor are the tensor's, and the disk is read for them alone."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from gemscope.features.files.tensors import read_safetensors
from gemscope.features.mapped import Mapped, Scattered

ROWS, WIDE = 8192, 2048  # 64 MB


@given(st.lists(st.integers(0, 30), unique=True).map(sorted), st.integers(0, 2))
def test_rows_are_those_of_the_tensor_also_of_a_part_of_it(rows: list[int], skipped: int) -> None:
    whole = torch.randn(31, 3, 5)
    part = whole[:, skipped:]
    assert torch.equal(Scattered(part)[torch.tensor(rows, dtype=torch.int64)], part[rows])


@pytest.mark.skipif(sys.platform != "linux", reason="tensors are told to be mapped on Linux alone")
def test_rows_of_a_mapped_tensor_are_copied_out_of_it(tmp_path: Path) -> None:
    values = torch.arange(400 * 3 * 700).float().reshape(400, 3, 700)
    save_file({"a": torch.ones(7), "rows": values}, tmp_path / "x.safetensors")
    mapped = read_safetensors(tmp_path / "x.safetensors")["rows"]
    assert Mapped.of(mapped) is not None
    for part, expected in ((mapped, values), (mapped[:, 1:], values[:, 1:])):
        some = torch.tensor([0, 1, 17, 398, 399])
        assert torch.equal(Scattered(part)[some], expected[some])
        assert Scattered(part)[torch.tensor([], dtype=torch.int64)].shape == (0, *expected.shape[1:])


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="what the system keeps of a file cannot be let go of here")
def test_a_few_rows_of_a_large_file_bring_little_more_than_themselves_from_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    values = torch.arange(ROWS, dtype=torch.float32)[:, None].expand(ROWS, WIDE).contiguous()
    save_file({"rows": values}, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    tensor = read_safetensors(path)["rows"]
    if _resident(tensor) > values.nbytes // 2:
        pytest.skip("this file system keeps files in memory")
    rows = Scattered(tensor)
    before = _resident(tensor)
    some = torch.arange(40, ROWS, 80)
    assert torch.equal(rows[some], values[some])
    own = len(some) * WIDE * 4
    assert own <= _resident(tensor) - before + 64 * mmap.PAGESIZE
    assert _resident(tensor) - before < 4 * own  # and not all 64 MB, of which each row is a part of some megabyte


def _resident(tensor: torch.Tensor) -> int:
    """Bytes of a mapped tensor that lie in the system's cache."""
    start = tensor.data_ptr() - tensor.data_ptr() % mmap.PAGESIZE
    length = tensor.data_ptr() + tensor.nbytes - start
    pages = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(length), pages) == 0
    return sum(page & 1 for page in pages) * mmap.PAGESIZE
