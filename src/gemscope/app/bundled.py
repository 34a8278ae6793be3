"""The atlas that ships with the package, for the reader to label."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from gemscope.activations.bundled import cache_dir
from gemscope.atlas.bundled import BUNDLED
from gemscope.disk import claimed, tidied
from gemscope.errors import NotFound


def bundled() -> Path:
    """A copy for the reader to label: what belongs to the package stays as it came. The package's own where none can
    be made. Raises NotFound.
    """
    if not BUNDLED.is_dir():
        raise NotFound("no atlas ships with this installation: name the folder that `gemscope describe` made")
    digest = hashlib.sha256((BUNDLED / "atlas.sqlite").read_bytes()).hexdigest()
    try:
        copy = cache_dir() / "atlases" / f"bundled-{digest[:12]}"
        if (copy / "manifest.json").is_file():
            tidied(copy)
        else:
            _copied(BUNDLED, copy)
    except (OSError, RuntimeError):  # no place that can be written, or no home at all
        return BUNDLED
    return copy


def _copied(folder: Path, to: Path) -> None:
    """The files of a folder, without what it says of who may write them, under a new name. Raises OSError."""
    with claimed(to, wait=True) as place:
        if (to / "manifest.json").is_file():  # another process was at it
            return
        aside = place / to.name
        aside.mkdir()
        for path in folder.iterdir():
            shutil.copyfile(path, aside / path.name)
        if to.exists():  # not whole
            os.replace(to, place / "damaged")
        os.replace(aside, to)
