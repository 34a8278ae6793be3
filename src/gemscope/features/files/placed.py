"""Files that belong together, put in the place of those that were there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gemscope.disk import claimed, room, synced
from gemscope.features.files.json_file import write_json
from gemscope.features.files.tensors import Stream, write_safetensors

Writing = Callable[[Path], None]
"""Writes a file that nobody reads yet."""


def put(folder: Path, files: Mapping[str, Writing]) -> Path:
    """Files by name in place of those that were there, the first of which describes the others. Returns the folder.

    Raises StorageFull, FileError, AccessError where another process writes it.
    """
    description, *others = files
    with claimed(folder / description) as place, room(folder, place):
        for name, write in files.items():
            write(place / name)
            synced(place / name)
        # With the description taken away first, a crash between them leaves a folder that nobody takes for an SAE,
        # never weights under another's description.
        (folder / description).unlink(missing_ok=True)
        for name in (*others, description):
            os.replace(place / name, folder / name)
    return folder


def of_json(value: dict[str, Any]) -> Writing:
    """A JSON object."""
    return lambda path: write_json(path, value)


def of_streams(streams: Mapping[str, Stream]) -> Writing:
    """Tensors in a safetensors file."""
    return lambda path: write_safetensors(path, streams)
