"""What an atlas says of itself and of places that many features share, against a plain count."""

from __future__ import annotations

import numpy as np
import pytest

from gemscope.atlas.describe.compose import _crowded
from gemscope.atlas.describe.weights import address_of, present
from gemscope.atlas.files.manifest import CROWDED
from gemscope.features.sae import SAE, SAEInfo


def test_crowded_places_are_those_of_most_features_a_hundred_at_most() -> None:
    random = np.random.default_rng(0)
    tops = {
        int(place): int(count)
        for place, count in zip(random.permutation(300), random.integers(1, 40, 300), strict=True)
    }
    wanted = sorted((-count, place) for place, count in tops.items() if count > CROWDED)[:100]
    assert [(-one.features, one.position) for one in _crowded(tops)] == wanted
    assert [one.position for one in _crowded({3: CROWDED, 5: CROWDED + 1})] == [5]


@pytest.mark.parametrize(
    ("model", "d_sae", "site", "known", "address"),
    [
        ("HuggingFaceTB/SmolLM2-135M", 2048, "20.res", None, ("smollm2-135m", "20-res-2k")),
        ("gpt2/", 1000, "embed", "", ("gpt2", "embed-1000")),
        ("///", 1025, None, "no address", ("model", "sae-1025")),
        ("a b/C!d", 8, "3.mlp", "x/y/z", ("c-d", "3-mlp-8")),
        ("gpt2", 8, "3.mlp", "gpt2-small/8-res-jb", ("gpt2-small", "8-res-jb")),
    ],
)
def test_an_address_is_neuronpedias_or_says_model_place_and_width(
    model: str, d_sae: int, site: str | None, known: str | None, address: tuple[str, str]
) -> None:
    assert address_of(model, SAE(2, d_sae, site=site, info=SAEInfo(neuronpedia_id=known))) == address


def test_relatives_end_where_there_are_no_more() -> None:
    columns = np.array([[4, 7, -1], [-1, -1, -1]]), np.array([[0.5, 0.25, 0], [0, 0, 0]])
    found = present(("ids", "values"), columns, 0)
    assert {name: one.tolist() for name, one in found.items()} == {"ids": [4, 7], "values": [0.5, 0.25]}
    assert [len(one) for one in present(("ids", "values"), columns, 1).values()] == [0, 0]
    assert present(("ids", "values"), None, 0) == {}
