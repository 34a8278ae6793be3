"""Feature activations as scipy, Arrow and pandas hold them, and back (polars: `peer/test_peer_arrays.py`): the same
numbers as the dense tensor, on the same memory where that is said.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gemscope as gs
from by_hand import random_sae
from gemscope.errors import CorruptFile, InputError, MissingDependency
from gemscope.features.activations import FeatureActivations
from gemscope.testing import tiny_model

D_SAE = 12


def drawn(
    lead: tuple[int, ...], share: float, seed: int, *, counted: bool = False, small: bool = True
) -> FeatureActivations:
    """As `encode` gives them, with ids of 32 bits, or as `from_dense` does."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(*lead, D_SAE, generator=generator) + 0.1
    dense *= torch.rand(*lead, D_SAE, generator=generator) < share
    mask = torch.rand(lead, generator=generator) < 0.5 if counted else None
    found = FeatureActivations.from_dense(dense, mask)
    ids = found.features.to(torch.int32) if small else found.features
    return FeatureActivations(found.offsets, ids, found.values, D_SAE, found.lead, mask)


def assert_same(ours: FeatureActivations, theirs: FeatureActivations) -> None:
    assert (ours.d_sae, ours.lead) == (theirs.d_sae, theirs.lead)
    for name in ("offsets", "features", "values"):
        assert torch.equal(getattr(ours, name).double(), getattr(theirs, name).double()), name
    assert theirs.values.dtype == torch.float32
    assert (ours.counted is None) == (theirs.counted is None)
    assert ours.counted is None or torch.equal(ours.counted, theirs.counted)


def through_scipy(acts: FeatureActivations) -> FeatureActivations:
    return FeatureActivations.from_scipy(acts.to_scipy(), lead=acts.lead, counted=acts.counted)


def through_arrow(acts: FeatureActivations) -> FeatureActivations:
    return FeatureActivations.from_arrow(acts.to_arrow())


def through_pandas(acts: FeatureActivations) -> FeatureActivations:
    return FeatureActivations.from_frame(acts.to_pandas(), d_sae=D_SAE, lead=acts.lead, counted=acts.counted)


def through_a_shuffled_frame(acts: FeatureActivations) -> FeatureActivations:
    frame = acts.to_pandas().sample(frac=1, random_state=0)
    return FeatureActivations.from_frame(frame, d_sae=D_SAE, lead=acts.lead, counted=acts.counted)


@settings(max_examples=30, deadline=None)
@given(
    lead=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    share=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 99),
    counted=st.booleans(),
    small=st.booleans(),
    through=st.sampled_from([through_scipy, through_arrow, through_pandas, through_a_shuffled_frame]),
)
def test_there_and_back_nothing_is_lost(
    lead: tuple[int, ...], share: float, seed: int, counted: bool, small: bool, through: Callable[..., Any]
) -> None:
    acts = drawn(lead, share, seed, counted=counted, small=small)
    assert_same(acts, through(acts))


def test_what_an_sae_finds_is_what_scipy_and_pandas_see() -> None:
    sae = random_sae(tiny_model("llama"))
    acts = sae.encode(torch.randn(3, 5, sae.d_in, generator=torch.Generator().manual_seed(0)))
    dense = acts.to_dense().reshape(15, -1)
    assert np.array_equal(acts.to_scipy().toarray(), dense.numpy())
    frame = acts.to_pandas()
    assert list(frame.columns) == ["token", "feature", "value"]
    for token, feature, value in frame.sample(20, random_state=1).itertuples(index=False):
        assert dense[token, feature] == value
    sums = frame.groupby("feature")["value"].sum()
    torch.testing.assert_close(torch.tensor(sums.to_numpy()), dense.sum(0)[sums.index.to_numpy()])
    again = gs.FeatureActivations.from_scipy(acts.to_scipy(), lead=(3, 5))
    torch.testing.assert_close(sae.decode(again), sae.decode(acts), rtol=0, atol=0)


def shared(tensor: Tensor, array: Any) -> bool:
    return bool(np.shares_memory(tensor.numpy(), np.asarray(array)))


def test_no_copy_is_made_where_none_is_needed() -> None:
    acts = drawn((3, 5), 0.3, 1, counted=True)
    matrix = acts.to_scipy()
    assert shared(acts.values, matrix.data)
    assert shared(acts.features, matrix.indices)
    back = FeatureActivations.from_scipy(matrix)
    assert shared(back.values, matrix.data)
    assert shared(back.features, matrix.indices)

    table = acts.to_arrow()
    for name, held in (("features", acts.features), ("values", acts.values)):
        assert shared(held, table[name].chunk(0).flatten().to_numpy())
        assert shared(acts.offsets, table[name].chunk(0).offsets.to_numpy())
    back = FeatureActivations.from_arrow(table)
    assert shared(back.values, acts.values)
    assert shared(back.features, acts.features)
    assert shared(back.offsets, acts.offsets)

    frame = acts.to_pandas()
    assert shared(acts.values, frame["value"])
    assert shared(acts.features, frame["feature"])
    back = FeatureActivations.from_frame(frame, d_sae=D_SAE, lead=(3, 5))
    assert shared(back.values, acts.values)
    assert shared(back.features, acts.features)


@pytest.mark.parametrize("kind", ["csr_array", "csr_matrix", "csc_array", "coo_matrix", "lil_array"])
def test_any_sparse_matrix_of_scipy_is_taken_and_left_as_it_is(kind: str) -> None:
    dense = drawn((6,), 0.4, 2).to_dense().double().numpy()
    matrix = getattr(scipy.sparse, kind)(dense)
    acts = FeatureActivations.from_scipy(matrix)
    torch.testing.assert_close(acts.to_dense(), torch.from_numpy(dense).float())
    assert np.array_equal(matrix.toarray(), dense)


def test_a_matrix_in_no_order_with_doubles_and_zeros_is_put_right_in_a_copy() -> None:
    data, ids, offsets = np.array([1, 2, 3, 0, 5], "f4"), np.array([4, 1, 4, 0, 2]), np.array([0, 3, 5])
    matrix = scipy.sparse.csr_array((data, ids, offsets), shape=(2, 6))
    acts = FeatureActivations.from_scipy(matrix)
    assert acts.offsets.tolist() == [0, 2, 3]
    assert acts.features.tolist() == [1, 4, 2]
    assert acts.values.tolist() == [2, 4, 5]
    assert matrix.indices.tolist() == [4, 1, 4, 0, 2]


def test_arrow_tables_that_others_made_are_read(tmp_path: Any) -> None:
    table = pa.table({"features": [[3, 1], [], [2]], "values": [[0.5, 0.25], [], [2.0]]})
    with pytest.raises(InputError, match="does not say how many features"):
        FeatureActivations.from_arrow(table)
    acts = FeatureActivations.from_arrow(table, d_sae=5)
    assert acts.to_dense().tolist() == [[0, 0.25, 0, 0.5, 0], [0] * 5, [0, 0, 2, 0, 0]]
    in_pieces = pa.concat_tables([table, table]).slice(1, 4)
    assert torch.equal(FeatureActivations.from_arrow(in_pieces, d_sae=5).to_dense(), acts.to_dense().repeat(2, 1)[1:5])
    ours = drawn((2, 3), 0.5, 3, counted=True)
    pq.write_table(ours.to_arrow(), tmp_path / "acts.parquet")
    assert_same(ours, FeatureActivations.from_arrow(pq.read_table(tmp_path / "acts.parquet")))
    part = FeatureActivations.from_arrow(ours.to_arrow().slice(2, 3))
    assert part.lead == (3,)
    assert torch.equal(part.to_dense(), ours.to_dense().reshape(6, -1)[2:5])


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"features": [[1]]}, "a table without values"),
        ({"features": [1], "values": [1.0]}, "the column features is of type int64: expected a list"),
        ({"features": [[1], None], "values": [[1.0], None]}, "the column features has nulls"),
        ({"features": [[1, None]], "values": [[1.0, 2.0]]}, "the column features has nulls"),
        ({"features": [[1], [2]], "values": [[1.0, 2.0], []]}, "have different lengths"),
        ({"features": [[9]], "values": [[1.0]]}, "features from 9 to 9 given: expected 0 to 4"),
        ({"features": [[-1]], "values": [[1.0]]}, "features from -1 to -1 given: expected 0 to 4"),
        ({"features": [[1.5]], "values": [[1.0]]}, "features of type float64: expected whole numbers"),
        ({"features": [[1]], "values": [[2]]}, "values of type int64: expected floats"),
        ({"features": [["a"]], "values": [[1.0]]}, "numbers of type object given"),
        ({"features": [[2, 1, 2]], "values": [[1.0, 1.0, 1.0]]}, "feature 2 stands twice in token 0"),
        ({"features": [[1]], "values": [[1.0]], "counted": [1]}, "the column counted is of type int64: expected bool"),
    ],
)
def test_tables_that_cannot_be_are_refused_in_one_line(columns: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        FeatureActivations.from_arrow(pa.table(columns), d_sae=5)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("said", [b"{", b"[1]", b'{"d_sae": "5"}', b'{"d_sae": -1}', b'{"lead": [-3]}'])
def test_what_a_table_says_of_itself_is_looked_at(said: bytes) -> None:
    table = drawn((2,), 0.5, 0).to_arrow().replace_schema_metadata({b"gemscope": said})
    with pytest.raises(CorruptFile, match="what the table says"):
        FeatureActivations.from_arrow(table)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"token": [0], "value": [1.0]}, "a DataFrame without feature: expected columns token, feature, value"),
        ({"token": [3], "feature": [0], "value": [1.0]}, "tokens from 3 to 3 given: expected 0 to 2"),
        ({"token": [0], "feature": [5], "value": [1.0]}, "features from 5 to 5 given: expected 0 to 4"),
        ({"token": [0.5], "feature": [0], "value": [1.0]}, "tokens of type float64"),
        ({"token": [0], "feature": [0], "value": ["x"]}, "numbers of type"),
    ],
)
def test_frames_that_cannot_be_are_refused_in_one_line(columns: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        FeatureActivations.from_frame(pd.DataFrame(columns), d_sae=5, lead=(3,))
    assert "\n" not in str(raised.value)


def test_what_is_no_sparse_matrix_is_refused() -> None:
    for given_ in (np.zeros((2, 3)), torch.zeros(2, 3), None):
        with pytest.raises(InputError, match="expected a sparse matrix of scipy's with two axes"):
            FeatureActivations.from_scipy(given_)


@pytest.mark.parametrize(("verb", "name"), [("to_scipy", "scipy"), ("to_arrow", "pyarrow"), ("to_pandas", "pandas"), ("to_polars", "polars")])  # fmt: skip
def test_a_library_that_is_not_there_is_named(verb: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(module: str) -> None:
        raise ImportError(module)

    monkeypatch.setattr(importlib.import_module("gemscope.features.arrays"), "import_module", nothing)
    with pytest.raises(MissingDependency, match=f"{name} is not installed: pip install"):
        getattr(drawn((2,), 0.5, 0), verb)()
