"""An SAE written as an SAELens 6 folder."""

from __future__ import annotations

from pathlib import Path

import torch

from gemscope.features.files.placed import of_json, of_streams, put
from gemscope.features.files.saelens_config import CONFIG, WEIGHTS
from gemscope.features.files.saelens_described import config_of, weights_of
from gemscope.features.files.tensors import dtype_for, stream_of
from gemscope.features.sae import SAE


def write(sae: SAE, folder: Path, dtype: torch.dtype | None) -> Path:
    """Writes `folder`, and returns it. Raises InputError for an SAE without a site, StorageFull, FileError."""
    streams = {name: stream_of(weight, dtype_for(weight, dtype)) for name, weight in weights_of(sae).items()}
    config = config_of(sae, {stream.dtype for stream in streams.values()})
    return put(folder, {CONFIG: of_json(config), WEIGHTS: of_streams(streams)})
