"""The tensors of an `examples.safetensors`, read slice by slice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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

    def __init__(self, opened: Any) -> None:
        self._opened = opened

    def __enter__(self) -> File:
        self._file = self._opened.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._opened.__exit__(*raised)

    def kind(self, name: str) -> str:
        """What a tensor's numbers are: I32, BF16 and so on."""
        found: str = self._file.get_slice(name).get_dtype()
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> _Slice:
        return _Slice(self._file.get_slice(name))


@dataclass(frozen=True)
class _Slice:
    of: Any

    def __getitem__(self, rows: slice) -> Array:
        tensor = self.of[rows]
        whole = not tensor.dtype.is_floating_point
        out: Array = (tensor.long() if whole else tensor.float()).numpy()  # bfloat16 is none of numpy's
        return out


def opened(path: Path) -> File:
    """A context manager. Raises CorruptFile."""
    from safetensors import SafetensorError, safe_open

    try:
        return File(safe_open(path, framework="pt"))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CorruptFile(f"{path} is no whole safetensors file ({reason}): delete it and fetch it again") from error


def sizes_of(file: File, path: Path) -> Sizes:
    """Raises CorruptFile, naming what was found, unless all tensors are there and fit each other."""
    shapes = file.shapes()
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
                if not file.kind(name).startswith(("I", "U") if name in _WHOLE else ("I", "U", "F", "BF")):
                    what = "whole numbers" if name in _WHOLE else "numbers"
                    raise CorruptFile(f"{path}: {name} holds no {what}, as they are in Gemma Scope 2's examples")
            return Sizes(features, each, *shapes["tokens"])
    raise CorruptFile(
        f"{path} holds {found}: expected Gemma Scope 2's examples, with {', '.join(KEYS)}"
        + (f"; {', '.join(wrong)} is missing or of another shape" if wrong else "")
    )
