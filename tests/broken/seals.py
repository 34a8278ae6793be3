"""Checksums made right again in a damaged folder, as who writes one by another program would leave it: what is read then
is whole by its checksum, and may say what cannot be.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemscope.checked import checksum_of, json_of, read_json, read_tensors
from gemscope.errors import GemscopeError

from .samples import CONFIGS

SEALS: dict[str, Callable[[Path], None]] = {}
"""By the sample's name."""


def sealed(name: str, folder: Path) -> bool:
    """Whether there was something to be sealed, and it still says enough for that."""
    try:
        SEALS[name](folder)
    except (KeyError, GemscopeError, OSError, ValueError, TypeError):
        return False
    return True


def _checkpoints(folder: Path) -> None:
    for state in (folder / "run").glob("state-*"):
        said = read_json(state / "state.json", dict[str, Any])
        said.pop("checksum", None)
        said["checksum"] = checksum_of(read_tensors(state / "tensors.safetensors")[0], said)
        (state / "state.json").write_text(json.dumps(said))


SEALS |= dict.fromkeys(CONFIGS, _checkpoints)


def _pieces(folder: Path) -> None:
    for path in folder.glob("*.partial/pieces/*.safetensors"):
        tensors, beside = read_tensors(path, framework="np")
        said = json_of(beside["piece"], dict[str, Any], where="")
        said.pop("checksum", None)
        said["checksum"] = checksum_of(tensors, said)
        _put_beside(path, {"piece": said})


SEALS |= dict.fromkeys(("harvest", "describing"), _pieces)


def _tensors(name: str, files: str) -> Callable[[Path], None]:
    def sealed(folder: Path) -> None:
        for path in folder.glob(files):
            tensors, beside = read_tensors(path)
            said = json_of(beside[name], dict[str, Any], where="")
            said["checksum"] = checksum_of(tensors, said["of"])
            _put_beside(path, {name: said})

    return sealed


SEALS["effect"] = _tensors("gemscope_effect", "effect.safetensors")
SEALS["measuring"] = _tensors("gemscope_unfinished_effect", "effect.partial")
SEALS["outputs"] = _tensors("gemscope_outputs", "outputs.safetensors")
SEALS["relatives"] = _tensors("gemscope_relatives", "relatives.safetensors")
SEALS["firings"] = _tensors("gemscope_firings", "kept/*.safetensors")


def _put_beside(path: Path, said: dict[str, Any]) -> None:
    """In a safetensors file, beside the tensors that it has."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = {name: json.dumps(one) for name, one in said.items()}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
