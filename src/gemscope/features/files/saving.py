"""SAEs into files, in one of the formats that are written: each is a file beside its reader, and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

import torch

from gemscope.errors import InputError
from gemscope.features.files import circuit_tracer_write, saelens_write, sparsify_write
from gemscope.features.files.tensors import DTYPES
from gemscope.features.sae import SAE

SavedAs = Literal["saelens", "sparsify", "circuit-tracer"]

_WRITERS: Mapping[str, Callable[[SAE, Path, torch.dtype | None], Path]] = {
    "saelens": saelens_write.write,
    "sparsify": sparsify_write.write,
    "circuit-tracer": circuit_tracer_write.write,
}


def save_sae(sae: SAE, folder: str | Path, *, format: SavedAs = "saelens", dtype: torch.dtype | None = None) -> Path:
    """Writes an SAE, and returns the folder or file that holds it, which `load_sae` reads.

    `format` says whose: `saelens` is an SAELens 6 folder; `sparsify` a folder for the place in the model
    (`layers.5.mlp`) inside of `folder`, beside those of other places; `circuit-tracer` a transcoder's file
    (`layer_5.safetensors`) in `folder`, beside those of other layers. `dtype` is what the matrices are stored in;
    biases and thresholds never below float32, where rounding would move features across their threshold. Files of the
    same name are replaced when the new ones are whole; others in the folder stay.

    Raises InputError for an SAE without a site and for what a format cannot say exactly, StorageFull, FileError.
    """
    if format not in _WRITERS:
        raise InputError(f"no format {format!r} to save an SAE in: choose one of {', '.join(get_args(SavedAs))}")
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"weights cannot be stored as {dtype}: choose one of {', '.join(map(str, DTYPES))}")
    return _WRITERS[format](sae, Path(folder).expanduser(), dtype)
