"""A folder, on this disk or in an object store: what work in pieces and readers of stores need of one, written once for
both. What only a disk knows (temporary names, renaming) and what only a bucket does lies behind these few words.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from gemscope import disk
from gemscope.activations.bucket import Bucket, is_bucket

T = TypeVar("T")
U = TypeVar("U")


@runtime_checkable
class Place(Protocol):
    """A folder of files, called by their paths from it, with / between names.

    On a disk it comes to its name whole, by a renaming. A bucket knows none, so there the file that is written last
    (`manifest.json`) says that the rest is there.
    """

    def names(self, under: str = "") -> list[str]:
        """All files in it, or in a folder of it, and below, while others may add some and take some away."""
        ...

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        ...

    def reading(self, name: str) -> AbstractContextManager[Path]:
        """The file on this disk, while the block runs. Raises NotFound, and what keeps it from being reached."""
        ...

    def kept(self, name: str, digest: str = "") -> Path:
        """The file on this disk to stay there: itself, or its copy in the cache, which has that SHA-256 where one is
        named. Raises as `reading` does, CorruptFile.
        """
        ...

    def digest(self, name: str) -> str:
        """A file's SHA-256."""
        ...

    def each(self, do: Callable[[T], U], of: Iterable[T]) -> Iterator[U]:
        """`map`; at a distance several at a time."""
        ...

    def making(self, name: str, *, anew: bool = False) -> AbstractContextManager[Path]:
        """An empty folder on this disk for what is on its way here, which nobody else uses; it is gone when the block
        ends. `anew`: though this folder itself may be gone.
        """
        ...

    def take(self, file: Path, name: str) -> None:
        """Gives a file out of such a folder its name here, in place of one that has it."""
        ...

    def put_once(self, name: str, write: Callable[[Path], None]) -> bool:
        """Has a file written, which gets its name when it is whole, unless that is taken by then: what is there stays.
        Whether this was the first.
        """
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Takes files away, as far as they are there."""
        ...

    # --- of what is being made ------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> Place:
        """Where it lies until it is whole."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether somebody has made it to its end."""
        ...

    def begin(self, *folders: str) -> None:
        """Makes it and the folders in it, and takes away what dead processes had on their way."""
        ...

    def tidy(self, kept: set[str]) -> None:
        """Leaves those files alone, and what others here are still at."""
        ...

    def leave(self) -> None:
        """Takes away what this process has on its way here: others are done."""
        ...

    def become(self, whole: Place) -> None:
        """All is in it: it gets its name."""
        ...

    def discard(self, under: str = "") -> None:
        """Takes it away, or a folder in it, with all that is in there."""
        ...

    def end(self, *folders: str) -> None:
        """Takes away what of it is empty."""
        ...

    def room(self, whole: Place, kept: Callable[[], str]) -> AbstractContextManager[None]:
        """What the system says while something is written, in one line."""
        ...

    @property
    def free(self) -> int | None:
        """Bytes that there is room for; None where nobody says."""
        ...


def place_of(folder: str | os.PathLike[str] | Place) -> Place:
    """The folder of a path, or of an address such as s3://bucket/folder. Raises InputError, MissingDependency."""
    if isinstance(folder, Place):
        return folder
    name = os.fspath(folder)
    return Bucket.at(name) if is_bucket(name) else Here(Path(name))


class Here:
    """A folder on this disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: list[Path] = []
        """Folders around it that were not there."""

    def __str__(self) -> str:
        return str(self.path)

    def names(self, under: str = "") -> list[str]:
        found = (Path(folder, name) for folder, _, names in os.walk(self.path / under) for name in names)
        return [path.relative_to(self.path).as_posix() for path in found]

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        yield self.path / name

    def kept(self, name: str, digest: str = "") -> Path:
        return self.path / name

    def digest(self, name: str) -> str:
        return disk.digest_of(self.path / name)

    def each(self, do: Callable[[T], U], of: Iterable[T]) -> Iterator[U]:
        return map(do, of)

    @contextmanager
    def making(self, name: str, *, anew: bool = False) -> Iterator[Path]:
        folder = self.path / disk.unlike_others(name)
        folder.mkdir(parents=anew)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def take(self, file: Path, name: str) -> None:
        (self.path / name).parent.mkdir(exist_ok=True)
        os.replace(file, self.path / name)

    def put_once(self, name: str, write: Callable[[Path], None]) -> bool:
        if "/" in name:  # this folder itself may have got its name meanwhile, and is not to be there again
            (self.path / name).parent.mkdir(exist_ok=True)
        return disk.put_once(self.path / name, write)

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    @property
    def unfinished(self) -> Here:
        return Here(self.path.with_name(f"{self.path.name}.partial"))

    @property
    def is_whole(self) -> bool:
        return self.path.exists()

    def begin(self, *folders: str) -> None:
        self._made = [folder for folder in self.path.absolute().parents if not folder.exists()]
        for last in (False, False, True):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                disk.left_by_dead(self.path)
                for folder in folders:
                    (self.path / folder).mkdir(exist_ok=True)
                    disk.left_by_dead(self.path / folder)
                return
            except FileNotFoundError:  # others, who have just ended, have moved the folder or taken it away
                if last:
                    raise

    def tidy(self, kept: set[str]) -> None:
        disk.left_by_dead(self.path)
        for name in self.names():
            if name not in kept and not disk.of_another(Path(name)):
                (self.path / name).unlink(missing_ok=True)
        for there, _, _ in os.walk(self.path, topdown=False):
            if not disk.of_another(Path(there).relative_to(self.path)):
                with suppress(OSError):  # something is in it
                    os.rmdir(there)

    def leave(self) -> None:
        disk.left_by_dead(self.path, own=True)

    def become(self, whole: Place) -> None:
        assert isinstance(whole, Here)
        os.rename(self.path, whole.path)

    def discard(self, under: str = "") -> None:
        shutil.rmtree(self.path / under, ignore_errors=True)

    def end(self, *folders: str) -> None:
        for folder in (*(self.path / name for name in folders), self.path, *self._made):
            with suppress(OSError):  # somebody is at it
                folder.rmdir()

    def room(self, whole: Place, kept: Callable[[], str]) -> AbstractContextManager[None]:
        return disk.room(Path(str(whole)), self.path, kept=kept)

    @property
    def free(self) -> int | None:
        there = next(folder for folder in self.path.absolute().parents if folder.exists())
        return shutil.disk_usage(there).free
