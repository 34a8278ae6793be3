"""The features of a token against a plain sort of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemscope.atlas.files import hits
from gemscope.errors import CorruptFile

ONE = st.tuples(st.integers(0, 200_000), st.integers(1, 300), st.sampled_from([0.25, 0.5, 1.0]))


@settings(max_examples=50, deadline=None)
@given(st.lists(ONE, max_size=12, unique_by=lambda one: one[0]))
def test_features_come_back_by_examples_then_strength_then_id(given_: list[tuple[int, int, float]]) -> None:
    columns = [[one[nth] for one in given_] for nth in range(3)]
    packed = hits.pack(hits.of(*columns))  # type: ignore[arg-type]
    wanted = sorted(
        ((id_, min(255, count), strength) for id_, count, strength in given_), key=lambda o: (-o[1], -o[2], o[0])
    )
    found = hits.unpack(packed, len(given_), 200_001)
    assert [(int(one["feature"]), int(one["examples"]), float(one["strength"])) for one in found] == wanted


@pytest.mark.parametrize(("most", "bytes_"), [(65_535, 5), (65_536, 7)])
def test_ids_take_two_bytes_where_all_fit_and_four_else(most: int, bytes_: int) -> None:
    packed = hits.pack(hits.of([most, 3], [1, 1], [0.5, 1.0]))
    assert len(packed) == 2 * bytes_
    assert hits.unpack(packed, 2, most + 1)["feature"].tolist() == [3, most]
    with pytest.raises(CorruptFile, match=f"not all among the {most}"):
        hits.unpack(packed, 2, most)
    assert len(hits.unpack(hits.pack(hits.of([], [], [])), 0, 1)) == 0


def test_bytes_that_are_no_features_are_refused() -> None:
    packed = hits.pack(hits.of([4, 3], [1, 1], [0.5, np.inf]))
    with pytest.raises(CorruptFile, match="not all among the 5"):
        hits.unpack(packed, 2, 5)
    sound = hits.pack(hits.of([4, 3], [1, 1], [0.5, 1.0]))
    for wrong in (sound[:-1], sound + b"x", sound * 2, b""):
        with pytest.raises(CorruptFile, match=f"{len(wrong)} bytes for 2 of them"):
            hits.unpack(wrong, 2, 5)
