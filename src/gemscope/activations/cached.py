"""Copies of objects on this disk, of a bounded size in all: those that were used last stay. They lie under a digest of
what they hold, or of the object and its version, so that what is there is right.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rich.filesize import decimal

from gemscope.activations.bundled import cache_dir
from gemscope.disk import claimed, room, synced
from gemscope.errors import InputError, StorageFull

SIZE = "GEMSCOPE_CACHE_SIZE"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_used: set[Path] = set()
"""What this process has asked for: not taken away to make room for more of the same."""


def folder() -> Path:
    """Where they lie."""
    return cache_dir() / "objects"


def found(key: str, name: str) -> Path | None:
    """The copy, if it is there."""
    path = _path(key, name)
    try:
        os.utime(path)
    except OSError:
        return None
    _used.add(path)
    return path


def kept(key: str, name: str, size: int, write: Callable[[Path], None]) -> Path | None:
    """The copy; where there is none yet, `write` makes it, one process at a time. None where there is no room for it.
    Raises what `write` raises, StorageFull, FileError.
    """
    path = _path(key, name)
    if (there := found(key, name)) is not None:
        return there
    with claimed(path, wait=True) as place:
        if (there := found(key, name)) is not None:  # another process was at it
            return there
        if not _make_room(size):
            return None
        aside = place / path.name
        with room(path, place):
            write(aside)
            synced(aside)
            os.replace(aside, path)
    return found(key, name)


def no_room(what: str) -> StorageFull:
    """There is none for this."""
    return StorageFull(f"no room in the cache for {what}: {SIZE} bounds it (now {decimal(_most())}), in {folder()}")


def _path(key: str, name: str) -> Path:
    return folder() / key / name.rpartition("/")[2]


def _make_room(size: int) -> bool:
    """Takes copies away, those first that were used longest ago, until so much more fits."""
    there = sorted((stat.st_mtime, stat.st_size, path) for path, stat in _copies())
    held, most = sum(size for _, size, _ in there), _most()
    spare = [(bytes_, path) for _, bytes_, path in there if path not in _used]
    if held + size - sum(bytes_ for bytes_, _ in spare) > most:
        return False
    for bytes_, path in spare:
        if held + size <= most:
            break
        shutil.rmtree(path.parent, ignore_errors=True)
        held -= bytes_
    return True


def _copies() -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in folder().glob("*/*"):
        with suppress(OSError):
            if not path.name.startswith(".") and path.is_file():
                found.append((path, path.stat()))
    return found


def _most() -> int:
    """Bytes that copies may have: what the environment says; else half of what the disk has for them."""
    text = os.environ.get(SIZE, "")
    if text:
        said = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text.lower())
        if said is None:
            raise InputError(f"{SIZE}={text}: expected bytes, such as 200GB")
        return int(float(said[1]) * _UNITS[said[2]])
    there = next(one for one in folder().absolute().parents if one.exists())
    return (shutil.disk_usage(there).free + sum(stat.st_size for _, stat in _copies())) // 2
