"""What all tests share: shapes are checked while they run, torch keeps to one thread, and the Hub is left alone."""

import os

import pytest
from jaxtyping import install_import_hook

os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
install_import_hook("gemscope", "typecheck.checked")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module, and with it the Hub's client, is imported."""
    if config.option.markexpr != "hub":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        # Read when Triton is imported, which other libraries do as well: where nobody asks for the GPU, its programs are
        # interpreted.
        os.environ.setdefault("TRITON_INTERPRET", "1")
