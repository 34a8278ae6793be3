"""Small JSON objects: read from files that may be damaged, written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gemscope.errors import CorruptFile
from gemscope.features.files.aside import written_aside


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises CorruptFile for anything else."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise CorruptFile(f"{path} is no JSON ({' '.join(str(error).split())}): fetch it again") from error
    if not isinstance(value, dict):
        raise CorruptFile(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Raises StorageFull, FileError."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
