"""Files written beside their name and moved there when whole, so that nobody ever reads half a file."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemscope.errors import FileError, GemscopeError, StorageFull

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A name to write to; when the block ends, what was written there is `target`, in place of what was there before.

    When anything is raised, nothing is left and `target` is as it was. Raises StorageFull for a disk without room and
    FileError where writing is not allowed.
    """
    if target.exists() and not target.is_file():
        raise FileError(f"cannot write {target}: it is there and no file; name a file")
    target = Path(os.path.realpath(target))  # a link goes on leading where it led
    aside = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with aside.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(aside, target)
    except GemscopeError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(
                f"no room left on the disk for {target}, nothing half-written was kept: free some room"
            ) from error
        raise FileError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)
