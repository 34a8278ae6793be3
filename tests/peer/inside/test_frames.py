"""Feature activations as polars holds them, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gemscope as gs
from gemscope.errors import InputError


@pytest.mark.parametrize("counted", [False, True])
def test_polars_sees_what_pandas_sees_and_gives_it_back(counted: bool) -> None:
    import polars as pl

    dense = torch.rand(3, 5, 12, generator=torch.Generator().manual_seed(0))
    dense *= dense > 0.6
    mask = torch.arange(15).reshape(3, 5) % 2 == 0 if counted else None
    acts = gs.FeatureActivations.from_dense(dense, mask)
    frame = acts.to_polars()
    assert frame.schema["feature"] == pl.Int64
    for name, column in acts.to_pandas().items():
        assert np.array_equal(frame[str(name)].to_numpy(), column.to_numpy())
    for given in (frame, frame.sample(fraction=1, shuffle=True, seed=0)):
        back = gs.FeatureActivations.from_frame(given, d_sae=12, lead=(3, 5), counted=mask)
        assert torch.equal(back.to_dense(), dense)
    of_arrow = (
        pl.from_arrow(acts.to_arrow()).with_row_index("token").explode("features", "values").drop_nulls("features")
    )
    assert of_arrow["features"].to_list() == frame["feature"].to_list()
    assert np.shares_memory(acts.values.numpy(), acts.to_polars()["value"].to_numpy())
    with pytest.raises(InputError, match="a DataFrame without value: expected columns token, feature, value"):
        gs.FeatureActivations.from_frame(frame.drop("value"), d_sae=12, lead=(3, 5))
