"""The lists of whoever uses this machine: a folder with a JSON file for each, for the shell, the library and the pages.

Whoever changes one reads it, changes it and writes it under a lock, and says only what is to change (take this in, put
this before that): two windows, or a window and a shell, lose nothing of each other's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from gemscope.atlas.exchange.folder import slugged
from gemscope.atlas.notes.kept import MOST, Address, FeatureList, Kept, from_json
from gemscope.checked import bytes_of
from gemscope.disk import claimed, room, synced
from gemscope.errors import CorruptFile, FileError, GemscopeError, InputError, Mismatch, NotFound

if TYPE_CHECKING:
    from gemscope.atlas.dashboard import Dashboard

_LARGE = 32 << 20
"""Bytes of a list's file."""
_SUFFIX = ".json"
_NAMED = 60
"""Characters of a name that go into that of the file."""


def data_dir() -> Path:
    """Where gemscope keeps what a user made: $GEMSCOPE_DATA, else $XDG_DATA_HOME/gemscope, else
    ~/.local/share/gemscope. The folder need not exist yet. Raises FileError where there is no home at all.
    """
    return _data_dir(*map(os.environ.get, ("GEMSCOPE_DATA", "XDG_DATA_HOME", "HOME", "USERPROFILE")))


@lru_cache(maxsize=8)  # every page of a feature asks
def _data_dir(own: str | None, shared: str | None, *_homes: str | None) -> Path:
    if own:
        return Path(own).expanduser()
    if shared and Path(shared).is_absolute():
        return Path(shared) / "gemscope"
    try:
        return Path.home() / ".local" / "share" / "gemscope"
    except RuntimeError as error:
        raise FileError(
            "no home folder to keep lists in: set GEMSCOPE_DATA to a folder that you can write to"
        ) from error


@dataclass(frozen=True)
class _Read:
    """A file as it was when it was read, and what was in it, or why nothing could be made of it."""

    state: tuple[int, int, int]
    found: FeatureList | None
    problem: str = ""


class Lists:
    """All lists in a folder, by name. `lists["wishes"]` is a `FeatureList`, read anew where anybody has changed it."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Of a folder, which need not exist yet; without one, of that in which gemscope keeps them."""
        self._given = None if folder is None else Path(folder).expanduser()
        self._known: dict[str, _Read] = {}
        self._among: tuple[list[FeatureList], dict[Address, list[tuple[FeatureList, Kept]]]] = ([], {})

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self._given or data_dir() / "lists"

    # --- reading ------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[FeatureList]:
        """By name. What cannot be read is passed over: `problems` says why."""
        found = [one.found for one in self._all().values() if one.found is not None]
        return iter(sorted(found, key=lambda one: (one.name.casefold(), one.id)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._id(name) is not None

    def __getitem__(self, name: str) -> FeatureList:
        """By its name or its id. Raises NotFound, CorruptFile."""
        id_ = self._id(name)
        read = None if id_ is None else self._all().get(id_)
        if read is None:
            raise NotFound(f"no list {name[:80]!r}: there {_there([one.name for one in self])}")
        if read.found is None:
            raise CorruptFile(read.problem)
        return read.found

    @property
    def problems(self) -> list[str]:
        """Of each file that is no list, why not."""
        return [one.problem for one in self._all().values() if one.problem]

    def having(self, model: str, source: str, index: int) -> list[tuple[FeatureList, Kept]]:
        """The lists that a feature is in, with its entry in each."""
        now = list(iter(self))  # not of the lists themselves: it would ask how many they are, which looks for them anew
        lists, among = self._among
        if len(lists) != len(now) or any(one is not other for one, other in zip(lists, now, strict=True)):
            among = {}
            for one in now:
                for kept in one:
                    among.setdefault(kept.key, []).append((one, kept))
            self._among = now, among
        return among.get((model, source, index), [])

    def _all(self) -> Mapping[str, _Read]:
        """By id, as of now: files are read again when they have become others."""
        try:
            files = [
                one for one in os.scandir(self.folder) if one.name.endswith(_SUFFIX) and not one.name.startswith(".")
            ]
            states = {one.name.removesuffix(_SUFFIX): _state(one.stat()) for one in files}
        except (OSError, FileError):  # not there yet, or nowhere
            states = {}
        known = self._known
        self._known = {
            id_: known[id_] if id_ in known and known[id_].state == state else self._read(id_, state)
            for id_, state in states.items()
        }
        return self._known

    def _read(self, id_: str, state: tuple[int, int, int]) -> _Read:
        path = self._path(id_)
        try:
            found = from_json(bytes_of(path, most=_LARGE), where=str(path))
        except GemscopeError as error:
            return _Read(state, None, str(error))
        return _Read(state, replace(found, id=id_))

    def _id(self, name: str) -> str | None:
        """Of the list by this id, else by this name."""
        known = self._all()
        if name in known:
            return name
        return next((one.id for one in self if _same(one.name, name)), None)

    def _path(self, id_: str) -> Path:
        return self.folder / f"{id_}{_SUFFIX}"

    # --- changing -----------------------------------------------------------------------------------------------------

    def new(self, name: str, about: str = "") -> FeatureList:
        """An empty list. Raises InputError for a name that there is already, FileError, StorageFull."""
        if self._id(name) is not None:
            raise InputError(f"there is a list {name[:80]!r} already: choose another name, or add to that one")
        return self.put(FeatureList(name=name, about=about))

    def put(self, given: FeatureList) -> FeatureList:
        """A list from elsewhere. Into one of that name go the features that it does not have yet, behind its own.

        Raises InputError, FileError, StorageFull.
        """
        return self._changed(given.name, lambda there: _together(there, given), make=True)

    def add(self, name: str, *features: Kept | Dashboard, note: str = "") -> FeatureList:
        """Takes features in, behind the others; into a new list where there is none of that name. One that is in it
        stays where it is, and a `note` for it is added to its own.

        Raises InputError, FileError, StorageFull.
        """
        today = date.today().isoformat()
        taken = [_kept(one, note, today) for one in features]
        return self._changed(name, lambda there: _with(there, taken), make=True)

    def remove(self, name: str, *keys: Address) -> FeatureList:
        """Takes features out; one that is gone already is gone. Raises NotFound for the list, FileError."""
        gone = set(keys)
        return self._changed(
            name, lambda there: replace(there, features=tuple(one for one in there if one.key not in gone))
        )

    def annotate(self, name: str, key: Address, note: str, *, was: str | None = None) -> FeatureList:
        """Another note for a feature. Where `was` is given, and somebody has changed it since, Mismatch says so and
        nothing is changed. Raises NotFound, InputError, FileError.
        """

        def change(there: FeatureList) -> FeatureList:
            old = there.find(key)
            if was is not None and old.note not in (was, note):
                raise Mismatch(f"this note was changed elsewhere meanwhile, to {old.note[:300]!r}: nothing was written")
            return replace(there, features=tuple(replace(one, note=note) if one is old else one for one in there))

        return self._changed(name, change)

    def move(self, name: str, key: Address, *, before: Address | None) -> FeatureList:
        """Puts a feature before another, or behind all for None. Raises NotFound, FileError."""

        def change(there: FeatureList) -> FeatureList:
            moved = there.find(key)
            if before == key:
                return there
            rest = [one for one in there if one is not moved]
            at = len(rest) if before is None else rest.index(there.find(before))
            return replace(there, features=(*rest[:at], moved, *rest[at:]))

        return self._changed(name, change)

    def edit(self, name: str, *, rename: str | None = None, about: str | None = None) -> FeatureList:
        """Another name, or another word on what it is about; its id and its address stay. Raises NotFound, InputError,
        FileError.
        """
        said = {"name": rename, "about": about}
        if rename is not None and self._id(rename) not in (None, self._id(name)):
            raise InputError(f"there is a list {rename[:80]!r} already: choose another name")
        return self._changed(name, lambda there: replace(there, **{k: v for k, v in said.items() if v is not None}))

    def delete(self, name: str) -> None:
        """Takes a list away, file and all. Raises NotFound, FileError."""
        id_ = self._id(name)
        if id_ is None:
            raise NotFound(f"no list {name[:80]!r}")
        path = self._path(id_)
        with claimed(path, wait=True) as place, room(path, place):
            path.unlink(missing_ok=True)

    def _changed(self, name: str, change: Callable[[FeatureList], FeatureList], *, make: bool = False) -> FeatureList:
        """The one way that anything is written. Nobody else writes between what is read here and what is written."""
        id_ = self._id(name)
        if id_ is None and not make:
            raise NotFound(f"no list {name[:80]!r}: there {_there([one.name for one in self])}")
        fresh = id_ is None
        while True:
            id_ = id_ or self._free(name)
            path = self._path(id_)
            with claimed(path, wait=True) as place, room(path, place):
                if path.exists():
                    there = from_json(bytes_of(path, most=_LARGE), where=str(path))
                elif make:
                    there = FeatureList(name=name.strip())
                else:
                    raise NotFound(f"no list {name[:80]!r}: it was taken away meanwhile")
                if fresh and not _same(there.name, name):  # somebody has just made another one under that id
                    id_ = None
                    continue
                made = replace(change(there), id=id_)
                aside = place / path.name
                aside.write_text(_sound(made), encoding="utf-8")
                synced(aside)
                os.replace(aside, path)
            return made

    def _free(self, name: str) -> str:
        """A file's name that no list has."""
        start = slugged(name[:_NAMED]).replace(".", "-")
        known, number, found = self._all(), 1, start
        while found in known or found in _OURS:
            number += 1
            found = f"{start}-{number}"
        return found

    def __repr__(self) -> str:
        return f"Lists({self.folder}, {', '.join(repr(one.name) for one in self) or 'none yet'})"


_OURS = frozenset({"import", "keep", "new"})
"""What addresses below that of all lists stand for something else."""


def _is_list(name: str) -> bool:
    return name.endswith(_SUFFIX) and not name.startswith(".")


def _state(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_mtime_ns, found.st_size, found.st_ino


def _same(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()


def _there(names: list[str]) -> str:
    return f"are {', '.join(names[:20])}" if names else "are none yet"


def _kept(one: Kept | Any, note: str, today: str) -> Kept:
    """A feature, or its dashboard, as an entry of today."""
    if not isinstance(one, Kept):
        one = Kept(model=one.model, source=one.source, index=one.index, label=one.label or "")
    return replace(one, note=note or one.note, added=one.added or today)


def _with(there: FeatureList, taken: list[Kept]) -> FeatureList:
    entries = {one.key: one for one in there}
    for one in taken:
        old = entries.get(one.key)
        if old is None:
            entries[one.key] = one
        elif one.note and one.note not in old.note:
            entries[one.key] = replace(old, note=f"{old.note}\n{one.note}".strip())
    return replace(there, features=tuple(entries.values()))


def _together(there: FeatureList, given: FeatureList) -> FeatureList:
    return replace(_with(there, list(given)), about=there.about or given.about)


def _sound(made: FeatureList) -> str:
    """What is written: what can be read again. Raises InputError for what no list may be."""
    if len(made) > MOST:
        raise InputError(f"{len(made):,} features are too many for one list: {MOST:,} are kept")
    text = made.to_json()
    try:
        from_json(text)
    except CorruptFile as error:
        raise InputError(str(error)) from None
    return text
