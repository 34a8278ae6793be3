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


def _effect(folder: Path) -> None:
    path = folder / "effect.safetensors"
    tensors, beside = read_tensors(path)
    said = json_of(beside["gemscope_effect"], dict[str, Any], where="")
    said["checksum"] = checksum_of(tensors, said["of"])
    _put_beside(path, {"gemscope_effect": said})


SEALS["effect"] = _effect


def _sums(folder: Path) -> None:
    path = folder / "effect.partial"
    tensors, beside = read_tensors(path)
    said = json_of(beside["gemscope_unfinished_effect"], dict[str, Any], where="")
    said.pop("checksum", None)
    said["checksum"] = checksum_of(tensors, said)
    _put_beside(path, {"gemscope_unfinished_effect": said})


SEALS["measuring"] = _sums


def _relatives(folder: Path) -> None:
    path = folder / "relatives.safetensors"
    tensors, beside = read_tensors(path, framework="np")
    said = json_of(beside["gemscope_relatives"], dict[str, Any], where="")
    said["checksum"] = checksum_of(tensors, said["of"])
    _put_beside(path, {"gemscope_relatives": said})


SEALS["relatives"] = _relatives


def _firings(folder: Path) -> None:
    for path in (folder / "kept").glob("*.safetensors"):
        tensors, beside = read_tensors(path, framework="np")
        said = json_of(beside["gemscope_firings"], dict[str, Any], where="")
        said["checksum"] = checksum_of(tensors, said["settings"])
        _put_beside(path, {"gemscope_firings": said})


SEALS["firings"] = _firings


def _put_beside(path: Path, said: dict[str, Any]) -> None:
    """In a safetensors file, beside the tensors that it has."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = {name: json.dumps(one) for name, one in said.items()}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
