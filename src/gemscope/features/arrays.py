"""Sparse rows as other libraries hold them: scipy's compressed rows, Arrow's lists, a data frame's entries. On the same
memory where their layout is ours; on a copy of what differs.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gemscope.errors import InputError, MissingDependency
from gemscope.features.kernels.rows import Rows, offsets_of

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("token", "feature", "value")
"""Of a data frame."""
_INT32 = np.iinfo(np.int32).max


def to_scipy(rows: Rows, d_sae: int) -> Any:
    """A `scipy.sparse.csr_array` [rows, d_sae]."""
    sparse = library("scipy.sparse", "scipy")
    offsets, ids = array(rows.offsets), array(rows.ids)
    # Both have one type there. The offsets are few: they give way, unless there are too many entries to count.
    kind = ids.dtype if len(ids) <= _INT32 else np.dtype(np.int64)
    found = sparse.csr_array((len(offsets) - 1, d_sae), dtype=np.float32)
    found.data, found.indices, found.indptr = (
        array(rows.values.float()),
        ids.astype(kind, copy=False),
        offsets.astype(kind, copy=False),
    )
    return found


def of_scipy(matrix: Any) -> tuple[Rows, int]:
    """Any sparse matrix or array of scipy's with two axes, and how many columns it has. Zeros that are stored are left
    out.
    """
    if not library("scipy.sparse", "scipy").issparse(matrix) or len(matrix.shape) != 2:
        raise InputError(f"a {type(matrix).__name__} given: expected a sparse matrix of scipy's with two axes")
    found = matrix.tocsr()
    if found is matrix and (not matrix.has_canonical_format or not np.all(matrix.data)):
        found = matrix.copy()  # the caller's stays as it is
    found.sum_duplicates()
    if not np.all(found.data):
        found.eliminate_zeros()
    used = slice(0, int(found.indptr[-1]))
    entries = tensor(found.indptr).long(), tensor(found.indices[used]), tensor(found.data[used])
    return ascending(*entries, found.shape[1]), int(found.shape[1])


def to_lists(rows: Rows) -> dict[str, pa.Array]:
    """By name, for every row the list of its `features` and of their `values`."""
    arrow = library("pyarrow", '"gemscope[parquet]"')
    offsets = arrow.array(array(rows.offsets))
    columns = {"features": rows.ids, "values": rows.values}
    return {
        name: arrow.LargeListArray.from_arrays(offsets, arrow.array(array(column))) for name, column in columns.items()
    }


def of_lists(features: pa.ChunkedArray, values: pa.ChunkedArray, d_sae: int) -> Rows:
    """Raises InputError for columns that are no lists, or not of each other."""
    offsets, ids = _flat("features", features)
    others, strengths = _flat("values", values)
    if not torch.equal(offsets, others):
        raise InputError("the lists in features and values have different lengths: each feature has one value")
    return ascending(offsets, ids, strengths, d_sae)


def _flat(name: str, column: pa.ChunkedArray) -> tuple[Tensor, Tensor]:
    arrow = library("pyarrow", '"gemscope[parquet]"')
    if not arrow.types.is_list(column.type) and not arrow.types.is_large_list(column.type):
        raise InputError(f"the column {name} is of type {column.type}: expected a list for each token")
    whole = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    flat = whole.flatten()
    if whole.null_count or flat.null_count:
        raise InputError(f"the column {name} has nulls: expected a list for each token, which may be empty")
    offsets = tensor(whole.offsets.to_numpy()).long()
    return offsets - offsets[0] if len(offsets) and offsets[0] else offsets, tensor(flat.to_numpy(zero_copy_only=False))


def of_entries(frame: Any, n_tokens: int, d_sae: int) -> Rows:
    """Of a data frame of pandas or polars with the columns `COLUMNS`, in any order of its rows. Raises InputError."""
    columns = list(getattr(frame, "columns", ()))
    if missing := [name for name in COLUMNS if name not in columns]:
        raise InputError(
            f"a {type(frame).__name__} without {', '.join(missing)}: expected columns {', '.join(COLUMNS)}"
        )
    tokens, ids, values = (tensor(frame[name].to_numpy()) for name in COLUMNS)
    _require_ids("token", tokens, n_tokens)
    if (tokens.diff() < 0).any():
        order = tokens.argsort(stable=True)
        tokens, ids, values = tokens[order], ids[order], values[order]
    return ascending(offsets_of(torch.bincount(tokens, minlength=n_tokens)), ids, values, d_sae)


def ascending(offsets: Tensor, ids: Tensor, values: Tensor, d_sae: int) -> Rows:
    """Rows whose ids ascend, sorted where they do not. Raises InputError for ids that there are not, for one that
    stands twice in a row, and for values that are no floats.
    """
    _require_ids("feature", ids, d_sae)
    if not values.is_floating_point():
        raise InputError(f"values of type {str(values.dtype).removeprefix('torch.')}: expected floats")
    rows = Rows(offsets, ids, values)
    within = rows.rows.diff() == 0
    if not (rows.ids.diff()[within] > 0).all():
        order = rows.ids.argsort(stable=True)
        order = order[rows.rows[order].argsort(stable=True)]
        rows = Rows(rows.offsets, rows.ids[order], rows.values[order])
        if (twice := within & (rows.ids.diff() == 0)).any():
            at = int(twice.nonzero()[0])
            raise InputError(f"feature {int(rows.ids[at])} stands twice in token {int(rows.rows[at])}")
    return rows


def _require_ids(what: str, ids: Tensor, count: int) -> None:
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise InputError(f"{what}s of type {str(ids.dtype).removeprefix('torch.')}: expected whole numbers")
    if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < count):
        raise InputError(f"{what}s from {int(ids.min())} to {int(ids.max())} given: expected 0 to {count - 1}")


def array(held: Tensor) -> Any:
    """A tensor as numpy sees it: on its own memory where it is on this processor, and no half-width float."""
    held = held.detach().cpu()
    return (held.float() if held.dtype == torch.bfloat16 else held).numpy()


def tensor(held: Any) -> Tensor:
    """An array of numpy's as a tensor on the same memory, which others may mark as not to be written. Nothing here
    writes into it.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(np.ascontiguousarray(held))
    except TypeError as error:
        raise InputError(f"numbers of type {held.dtype} given: expected whole numbers and floats") from error


def library(module: str, package: str) -> Any:
    """What is needed to hand something to it. Raises MissingDependency."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependency(f"{module.partition('.')[0]} is not installed: pip install {package}") from error
