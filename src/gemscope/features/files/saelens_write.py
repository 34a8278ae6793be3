"""An SAE written as an SAELens 6 folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gemscope.disk import claimed, room, synced
from gemscope.errors import InputError
from gemscope.features.files.json_file import write_json
from gemscope.features.files.saelens_config import CONFIG, WEIGHTS
from gemscope.features.files.saelens_described import config_of, weights_of
from gemscope.features.files.tensors import DTYPES, Stream, dtype_for, stream_of, write_safetensors
from gemscope.features.sae import SAE


def save_sae(sae: SAE, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Writes an SAE as an SAELens 6 folder, which SAELens and `load_sae` read. Returns the folder.

    `dtype` is what the matrices are stored in; biases and thresholds never below float32, where rounding would move
    features across their threshold. Files of the same name are replaced when the new ones are whole; others in the
    folder stay.

    Raises InputError for an SAE without a site, StorageFull, FileError.
    """
    folder = Path(folder).expanduser()
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"weights cannot be stored as {dtype}: choose one of {', '.join(map(str, DTYPES))}")
    state = weights_of(sae)
    streams = {name: stream_of(weight, dtype_for(weight, dtype)) for name, weight in state.items()}
    return write_pair(folder, config_of(sae, {stream.dtype for stream in streams.values()}), streams)


def write_pair(folder: Path, config: dict[str, Any], streams: Mapping[str, Stream]) -> Path:
    """A configuration and the weights that it describes, in place of those that were there. Returns the folder.

    Raises StorageFull, FileError, AccessError where another process writes it.
    """
    with claimed(folder / CONFIG) as place, room(folder, place):
        write_json(place / CONFIG, config)
        write_safetensors(place / WEIGHTS, streams)
        synced(place / WEIGHTS)
        # The two files belong together: with the configuration taken away first, a crash between them leaves a folder
        # that nobody takes for an SAE, never weights under another's description.
        (folder / CONFIG).unlink(missing_ok=True)
        os.replace(place / WEIGHTS, folder / WEIGHTS)
        os.replace(place / CONFIG, folder / CONFIG)
    return folder
