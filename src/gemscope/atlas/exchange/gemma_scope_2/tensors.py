"""The tensors of an `examples.safetensors`, read slice by slice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gemscope.checked import read_tensors
from gemscope.errors import CorruptFile

Array = np.ndarray[Any, np.dtype[Any]]
KEYS = (
    "top_tokens", "top_logits", "bottom_tokens", "bottom_logits", "activations", "seq_ids", "positions",
    "feature_frequencies", "tokens",
)  # fmt: skip
_WHOLE = ("top_tokens", "bottom_tokens", "seq_ids", "positions", "tokens")


@dataclass(frozen=True)
class Sizes:
    """Of one file."""

    features: int
    each: int
    """Examples of a feature."""
    rows: int
    length: int


class File:
    """Slices of tensors, read as they are asked for."""

    def __init__(self, path: Path) -> None:
        """Raises CorruptFile."""
        try:
            self.tensors, _ = read_tensors(path)  # mapped: nothing is in memory yet
        except CorruptFile as error:
            raise CorruptFile(f"{error}: delete it and fetch it again") from error

    def __call__(self, name: str, rows: slice = slice(None)) -> Array:
        """As int64 or float32."""
        tensor = self.tensors[name][rows]
        whole = not tensor.dtype.is_floating_point
        out: Array = (tensor.long() if whole else tensor.float()).numpy()  # bfloat16 is none of numpy's
        return out


def sizes_of(file: File, path: Path) -> Sizes:
    """Raises CorruptFile, naming what was found, unless all tensors are there and fit each other."""
    shapes = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    found = ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items())) or "nothing"
    wrong = [name for name in KEYS if name not in shapes]
    if not wrong and len(shapes["activations"]) == 2 and len(shapes["tokens"]) == 2:
        features, each = shapes["activations"]
        logits = shapes["top_tokens"][-1:]
        expected = {
            "seq_ids": (features, each),
            "positions": (features, each),
            "feature_frequencies": (features,),
            **dict.fromkeys(KEYS[:4], (features, *logits)),
        }
        wrong = [name for name, shape in expected.items() if shapes[name] != shape]
        if not wrong:
            for name in KEYS:
                kind = file.tensors[name].dtype
                if kind.is_complex or kind == torch.bool or (kind.is_floating_point and name in _WHOLE):
                    what = "whole numbers" if name in _WHOLE else "numbers"
                    raise CorruptFile(f"{path}: {name} holds no {what}, as they are in Gemma Scope 2's examples")
            return Sizes(features, each, *shapes["tokens"])
    raise CorruptFile(
        f"{path} holds {found}: expected Gemma Scope 2's examples, with {', '.join(KEYS)}"
        + (f"; {', '.join(wrong)} is missing or of another shape" if wrong else "")
    )
