"""Small JSON objects, read where every name in them may matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gemscope import checked


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file, whatever it holds. Raises NotFound, AccessError, CorruptFile."""
    found: dict[str, Any] = checked.read_json(path, dict, remedy="fetch it again")
    return found


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a file that nobody reads yet."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
