"""Tensors in a file of ours: what they are of stands beside them, with one checksum over both, so that what is read is
what was written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemscope.checked import Count, as_read, checksum_of, declared, json_of, read_tensors, shown
from gemscope.errors import CorruptFile, InputError


@dataclass(frozen=True, kw_only=True)
class _Said:
    format: Count
    of: dict[str, Any]
    checksum: str


def seal(name: str, tensors: Mapping[str, Any], of: Mapping[str, Any], *, format: int = 1) -> dict[str, str]:
    """What stands beside tensors, as safetensors takes it: plain values, called `name`, and the checksum of all."""
    said = as_read(of)
    return {name: json.dumps({"format": format, "of": said, "checksum": checksum_of(tensors, said)})}


def unsealed(
    name: str, path: Path, kind: Any, *, lacking: str, remedy: str, format: int = 1, framework: str = "pt"
) -> tuple[Any, dict[str, Any]]:
    """What was sealed, as a value of a declared `kind`, and the tensors. `lacking` says of a file that has nothing of
    this name what it is not. Raises NotFound, AccessError, CorruptFile.
    """
    try:
        tensors, beside = read_tensors(path, framework=framework)
        where = shown(path)
        if name not in beside:
            raise CorruptFile(f"{where} {lacking}")
        said = json_of(beside[name], _Said, where=where)
        if said.format != format:
            raise CorruptFile(f"{where} is of format {said.format}, this version reads {format}")
        if checksum_of(tensors, said.of) != said.checksum:
            raise CorruptFile(f"{where} is damaged: its checksum is another")
        return declared(said.of, kind, where=where), tensors
    except CorruptFile as error:
        raise CorruptFile(f"{error}: {remedy}") from error


def require_same(settings: Mapping[str, Any], wanted: Mapping[str, Any], holds: str) -> None:
    """Of what is to be gone on from. Raises InputError that names the settings that differ."""
    if others := [name for name in wanted if settings.get(name) != wanted[name]]:
        raise InputError(f"{holds} with another {', '.join(others)}: go on with the same settings, or remove it")
