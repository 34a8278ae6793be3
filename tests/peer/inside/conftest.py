"""Tests that hold objects of another library and ours in one process: run by `make peer` in the environment where those
libraries are. Elsewhere they are passed over.
"""

from __future__ import annotations

import os
import warnings

import pytest

LIBRARIES = ("sae_lens", "transformer_lens", "nnsight", "peft", "polars")

os.environ.setdefault("WANDB_MODE", "disabled")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "inside" in item.path.parts:
            item.add_marker(pytest.mark.peer)
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # theirs


@pytest.fixture(scope="session", autouse=True)
def libraries() -> None:
    """Imported once, whatever they have to say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in LIBRARIES:
            pytest.importorskip(
                name, reason=f"{name} is not in this environment: run `make peer`", exc_type=ImportError
            )
