"""What all tests share: shapes are checked while they run, and torch keeps to one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from jaxtyping import install_import_hook

install_import_hook("gemscope", "typecheck.checked")

import torch  # noqa: E402

torch.set_num_threads(1)
