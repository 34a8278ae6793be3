"""From an address to an atlas: a folder here, or one that lies in a repository on the Hub and is fetched once."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath

from gemscope.activations.bundled import cache_dir as own_cache_dir
from gemscope.activations.hub import Access
from gemscope.atlas.files.manifest import NAME
from gemscope.atlas.files.whole import NEEDED, own
from gemscope.atlas.reader import Atlas
from gemscope.checked import existing, shown
from gemscope.disk import claimed, folder_aside
from gemscope.errors import CorruptFile, HubUnreachable, NotFound, SAENotFound

_PLAIN = Access()


def load_atlas(
    address: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
) -> Atlas:
    """An atlas by its address: a folder, or a repository on the Hub and the folder in it (`USER/NAME/15.res/atlas`;
    `USER/NAME` where there is one alone).

    One of the Hub's is copied into gemscope's own cache, a folder for each commit, and labels that are added to it stay
    there. `revision`, `token`, `cache_dir` and `offline` are as in `load_sae`. Raises NotFound, CorruptFile,
    GatedRepository, HubUnreachable, StorageFull.
    """
    return Atlas(located(address, Access(revision, token, cache_dir, offline)))


def located(address: str | os.PathLike[str], access: Access = _PLAIN) -> Path:
    """The folder here of an atlas, fetched where it lies on the Hub. What is no folder and can be no address of the
    Hub's is given back as it is: opening it says what is wrong.
    """
    name = os.fspath(address)
    parts = PurePosixPath(name).parts
    if (
        existing(name) is not None
        or len(parts) < 2
        or name.startswith(("/", ".", "~"))
        or "\0" in name
        or ".." in parts
    ):
        return Path(name)
    try:
        return _fetched("/".join(parts[:2]), "/".join(parts[2:]), access)
    except SAENotFound as error:
        raise NotFound(f"no atlas in {shown(name)}: neither here nor on the Hub ({error})") from error
    except HubUnreachable as error:
        raise HubUnreachable(f"no folder {shown(name)} here, and for an address of the Hub's: {error}") from error


def _fetched(repo: str, folder: str, access: Access) -> Path:
    """The folder of an atlas of the Hub's in gemscope's cache."""
    name = "/".join((repo, *filter(None, [folder])))
    first = access.find(repo, _within(folder, NAME))
    if first is None:
        folder = _alone(repo, folder, access)
        first = access.find(repo, _within(folder, NAME))
    if first is None:
        raise NotFound(f"no atlas in {shown(name)}: it has no {NAME}")
    commit = first[1]
    access = replace(access, revision=commit)
    home = own_cache_dir() if access.cache_dir is None else Path(access.cache_dir) / "gemscope"
    place = home / "atlases" / repo.replace("/", "--") / commit / (folder.replace("/", "--") or "atlas")
    with claimed(place.with_name(f"{place.name}.lock"), wait=True):
        if not place.exists():
            there = own(access.folder(repo, folder) or ())
            if lost := [one for one in NEEDED if one not in there]:
                raise CorruptFile(f"the atlas in {shown(name)} has no {lost[0]}: it was not sent whole")
            files = {one: access.find(repo, _within(folder, one)) for one in there}
            with folder_aside(place) as aside:
                for one, found in files.items():
                    assert found is not None  # a commit does not change
                    shutil.copyfile(found[0], aside / one)
    return place


def _alone(repo: str, folder: str, access: Access) -> str:
    """The one folder with an atlas in it. Raises NotFound for none and for several."""
    from gemscope.features.several import some_of  # brings torch, which the server's start does without

    if access.is_offline:
        raise HubUnreachable(
            f"which atlas {repo} holds is not in the cache, and offline mode is on: name its folder, or go online"
        )
    names = access.files(repo)
    begins = f"{folder}/" if folder else ""
    holding = {str(PurePosixPath(one).parent) for one in names if one.startswith(begins)}
    found = sorted(one for one in holding if all(_within(one, name) in names for name in NEEDED))
    if len(found) != 1:
        told = f"there are atlases in it: {some_of(found)}" if found else "expected a folder that `describe` made"
        raise NotFound(f"no atlas in {'/'.join((repo, *filter(None, [folder])))}: {told}")
    return found[0]


def _within(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder not in ("", ".") else name
