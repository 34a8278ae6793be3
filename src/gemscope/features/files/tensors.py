"""The safetensors container: mapped from the disk without copying, and written piece by piece."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemscope.checked import shown
from gemscope.errors import CorruptFile
from gemscope.features.sliced import Sliced

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""What weights come in, and what safetensors calls it."""


def dtype_for(weight: Tensor | Sliced, dtype: torch.dtype | None) -> torch.dtype:
    """What a weight is kept in when `dtype` is asked for (None: what it has). Biases and thresholds, which decide when
    a feature is active, are never rounded below float32.
    """
    dtype = dtype or weight.dtype
    return dtype if len(weight.shape) == 2 else torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class Stream:
    """A tensor on its way into a file: what it will be, and its bytes in row-major order, piece by piece."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Iterable[Any]
    """Whatever a file's `write` takes."""


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor, mapped from the disk: nothing is read before it is used. Raises CorruptFile, also for what is not
    of `DTYPES`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CorruptFile(f"{path} is no whole safetensors file ({reason}): delete it and fetch it again") from error
    for name, tensor in found.items():
        if tensor.dtype not in DTYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CorruptFile(f"{path}: {shown(name, 60)} is of dtype {kind}, expected {', '.join(DTYPES.values())}")
    return found


def write_safetensors(path: Path, streams: Mapping[str, Stream]) -> None:
    """Writes tensors whose bytes come in pieces to a file that nobody reads yet; memory holds one piece."""
    header, end = {}, 0
    for name, stream in streams.items():
        start, end = end, end + math.prod(stream.shape) * stream.dtype.itemsize
        header[name] = {"dtype": DTYPES[stream.dtype], "shape": list(stream.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants its data aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for stream in streams.values():
            for piece in stream.pieces:
                file.write(piece)


def stream_of(tensor: Tensor | Sliced, dtype: torch.dtype | None = None) -> Stream:
    """A tensor as it is, or in another dtype, in pieces of a few megabytes."""
    whole = Sliced.of(tensor)
    into = dtype or whole.dtype

    def pieces() -> Iterator[Any]:
        for part in whole.pieces():
            flat = part.to(into).contiguous().flatten()
            if flat.stride(0) != 1:  # one number of a larger tensor counts as contiguous
                flat = flat.clone(memory_format=torch.contiguous_format)
            yield flat.view(torch.uint8).numpy().data

    return Stream(into, whole.shape, pieces())
