"""Small JSON objects, written atomically, and read where every name in them may matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gemscope import checked
from gemscope.features.files.aside import written_aside


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file, whatever it holds. Raises NotFound, AccessError, CorruptFile."""
    found: dict[str, Any] = checked.read_json(path, dict, remedy="fetch it again")
    return found


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Raises StorageFull, FileError."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
