"""Folders written beside their name and moved there when whole, and which features go into them."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gemscope.errors import FileError, GemscopeError, InputError, NotFound, StorageFull

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def slug(name: str) -> str:
    """The name, when it can name a folder and a part of an address anywhere. Raises InputError."""
    if _SLUG.fullmatch(name) is None:
        raise InputError(f"{name[:80]!r} cannot name a folder: expected letters, digits and . _ - alone")
    return name


def slugged(name: str) -> str:
    """A name that can name a folder, as close to this one as may be."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:200].lower() or "unnamed"


@contextmanager
def folder_aside(target: Path) -> Iterator[Path]:
    """An empty folder to write to; when the block ends it is `target`, which must not exist before.

    When anything is raised nothing is left. Raises FileError, StorageFull.
    """
    if target.exists():
        raise FileError(f"{target} exists: choose a name that does not, or remove it first")
    aside = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        yield aside
        os.rename(aside, target)
    except GemscopeError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFull(
                f"no room left on the disk for {target}, nothing half-written was kept: free some room"
            ) from error
        raise FileError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def chosen(features: Iterable[int] | None, size: int) -> list[int] | range:
    """The features asked for, ascending and each once; all for None. Raises NotFound, InputError."""
    if features is None:
        return range(size)
    wanted = sorted({int(feature) for feature in features})
    if not wanted:
        raise InputError("no features given: name some, or leave them out for all")
    for feature in wanted:
        if not 0 <= feature < size:
            raise NotFound(f"no feature {feature}: this SAE has features 0 to {size - 1}")
    return wanted
