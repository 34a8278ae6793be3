"""From an address to an SAE: what the address means, where its files lie, which format they are. The formats themselves
are in `files/`, the names of what is published in `published`.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypedDict
from urllib.parse import unquote, urlsplit

import torch

from gemscope.activations import hub
from gemscope.activations.bucket import Bucket, is_bucket
from gemscope.activations.bundled import cache_dir as own_cache_dir
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.checked import existing
from gemscope.errors import CorruptFile, FileError, HubUnreachable, SAENotFound, UnsafeFile
from gemscope.features.entry import Entry
from gemscope.features.files import saelens_config
from gemscope.features.files.contents import Contents, build
from gemscope.features.files.format import Folder, Found, Glance
from gemscope.features.files.formats import (
    WEIGHTS,
    expected,
    is_beside,
    is_fixed,
    is_weights,
    recognised,
    weights_among,
)
from gemscope.features.files.pickled import OTHERS
from gemscope.features.kernels.choice import Devices, places_for
from gemscope.features.published import entry_of, find, nearest
from gemscope.features.sae import SAE
from gemscope.features.several import among, below, some_of
from gemscope.progress import Progress, silent

BUNDLED = "smollm2"
"""The address of the SAE that ships with this package."""
_BUNDLED_FOLDER = Path(__file__).parent.parent / "data" / "smollm2-15-res"


def load_sae(
    address: str | os.PathLike[str],
    *,
    site: Site | str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    device: Devices = "auto",
    dtype: torch.dtype | None = torch.float32,
    model: LanguageModel | None = None,
    progress: Progress = silent,
) -> SAE:
    """An SAE by its address. Weights stay mapped from the disk where the file, `dtype` and `device` allow it.

    An address is one of

        google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71      a repository on the Hub and a folder in it
        google/gemma-scope-2-4b-pt/resid_post/layer_17_width_16k_l0_medium
        gemma-scope-2b-pt-res-canonical layer_20/width_16k/canonical       SAELens's release and id, a blank between
        gemma-2-2b/20-gemmascope-res-16k                                   a Neuronpedia id, or its page's URL
        mwhanna/qwen3-4b-transcoders/layer_12                              one file of several, its suffix or not
        runs/15-res, params.npz, ae.pt                                     a folder or file here; it goes first
        USER/NAME, runs                                                    a repository or folder with one SAE below it
        s3://bucket/runs/15-res/sae                                        a folder or file in a bucket (gs:// too)
        smollm2                                                            the one that ships with this package

    `site` says where the SAE reads when its file does not, or says it in a way that is not known here. `revision` is
    a branch, tag or commit of the repository; `token` and `cache_dir` are as in huggingface_hub; `offline=None`
    follows HF_HUB_OFFLINE. `device` "auto" is where `model` is, or would go; Apple's MPS has no sparse products, and an
    SAE stays on the processor there. Of several (`device=["cuda:0", "cuda:1"]`, for one that is too wide for a card)
    each holds a slice of the features; the first takes in and gives out. `dtype` is what the matrices are kept in
    (None: what the file has); biases, thresholds and what is folded into weights are never rounded below float32 but
    for a narrower `dtype` asked for.
    `model` is the one that the SAE is for; a few files made on a model that TransformerLens had rewritten need it, and
    say so.

    Raises SAENotFound (naming the nearest addresses that exist), GatedRepository, HubUnreachable, CorruptFile,
    UnsafeFile (a pickle of more than plain tensors), FileError (a kind that is not read here), NotFinite, StorageFull.
    """
    where = places_for(device, None if model is None else model.device)
    name = os.fspath(address).strip()
    given = None if site is None else Site.parse(site)
    cache = (own_cache_dir() if cache_dir is None else Path(cache_dir) / "gemscope") / "unpacked"
    found = partial(Found, source=name, site=given, model=model, cache=cache, progress=progress)
    local = existing(name) or existing(f"{name}.safetensors")
    if name == BUNDLED:
        contents = _read(found(**_bundled()))
    elif local is not None:
        contents = _read(found(**_local(local, name)))
    elif is_bucket(name):
        contents = _read(found(**_in_bucket(name)))
    else:
        published = _published(name)
        if published.entry is not None and published.entry.closed:
            raise FileError(f"{name} cannot be opened here: {published.entry.closed}")
        remote = _Remote(published, hub.Access(revision or published.revision, token, cache_dir, offline))
        try:
            contents = _read(found(**remote.located()))
        except HubUnreachable as error:
            if published.is_known or not (near := _near(name)):
                raise
            raise SAENotFound(
                f"no SAE at {name!r} in the bundled catalogue, and the Hub cannot be reached to look further{near}"
            ) from error
        contents = replace(contents, info=replace(contents.info, revision=remote.commit))
    return build(contents, dtype=dtype, devices=where)


def glance(path: Path | str, model: LanguageModel | None = None) -> Glance:
    """What an SAE here, or at an address in a bucket, is: by the names on the way to it where they are Gemma Scope's,
    else by its files. Whether its weights are sound is not known then. `model` is the one that it is for. Raises what
    `load_sae` raises.
    """
    lie = _local(path, str(path)) if isinstance(path, Path) else _in_bucket(path)
    if (entry := lie["entry"]) is not None and entry.file == lie["weights"]:
        l0 = None if entry.l0 is None else float(entry.l0)
        return Glance(site=entry.site, site_out=entry.site_out, width=entry.width, l0=l0, model=entry.model)
    found = Found(source=str(path), model=model, cache=own_cache_dir() / "unpacked", **lie)
    format = recognised(found)
    return Glance.of(format.read(found)) if format.glance is None else format.glance(found)


def _read(found: Found) -> Contents:
    """In the format that it is of."""
    format = recognised(found)
    contents = format.read(found)
    return replace(contents, info=replace(contents.info, format=format.name))


def _one_of(weights: list[str], source: str) -> str:
    """The one file with weights. Raises SAENotFound for none and for several."""
    if len(weights) == 1:
        return weights[0]
    if weights:
        raise SAENotFound(f"no SAE at {source!r}: there are SAEs in it: {some_of(weights)}")
    raise SAENotFound(f"no SAE at {source!r}: expected {expected()}{_near(source)}")


# --- here -----------------------------------------------------------------------------------------------------------


class _Lie(TypedDict):
    """Where the files lie: what `Found` takes of it."""

    folder: Folder
    place: PurePosixPath
    weights: str
    entry: Entry | None
    repo: str | None


def _bundled() -> _Lie:
    if not (_BUNDLED_FOLDER / saelens_config.CONFIG).exists():
        raise SAENotFound(
            f"the bundled SAE {BUNDLED!r} is not part of this installation: reinstall gemscope, or give an address"
        )
    return _local(_BUNDLED_FOLDER, BUNDLED)


def _here(folder: Path) -> Folder:
    def find(name: str, *, needed: bool = True) -> Path | None:
        path = folder / name
        return path if path.is_file() else None

    return find


def _local(path: Path, source: str) -> _Lie:
    """What a path means, and what the names on the way to it say."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        here = weights_among(names := os.listdir(path))
        if not here and len(inside := below(path)) == 1:
            return _local(path / inside[0], source)
        if not here and inside:
            raise SAENotFound(f"no SAE at {source!r}: there are SAEs in it: {some_of(inside)}")
        if not here and (alone := [name for name in names if is_beside(name) and name != "config.json"]):
            raise CorruptFile(f"{source} has {alone[0]} and no weights beside it: no {expected()}")
        weights = _one_of(here, source)
    elif is_weights(path.name):
        weights = path.name
    elif is_beside(path.name):
        weights = _one_of(weights_among(os.listdir(folder), beside=path.name), source)
    elif path.suffix in OTHERS:
        raise UnsafeFile(
            f"{path} may hold a pickle, which can run anything: expected .safetensors, .npz, or plain tensors in a .pt"
        )
    else:
        raise SAENotFound(f"{path} is no file of an SAE: expected {', '.join(sorted(WEIGHTS))}, or a folder")
    whole = folder.resolve()
    repo = next((part.removeprefix("models--") for part in whole.parts if part.startswith("models--")), None)
    return {
        "folder": _here(folder),
        "place": PurePosixPath(whole.as_posix()),
        "weights": weights,
        "entry": _entry_of_path(whole),
        "repo": None if repo is None else repo.replace("--", "/", 1),
    }


def _in_bucket(address: str) -> _Lie:
    """What an address in a bucket means. Files are fetched into the cache when they are asked for."""
    address = address.rstrip("/")
    above, _, file = address.rpartition("/")
    if is_weights(file) or is_beside(file):
        bucket = Bucket.at(above)
        names = {name for name in bucket.names() if "/" not in name}
        weights = _one_of(weights_among(names, file) if is_beside(file) else [file] if file in names else [], address)
    else:
        bucket = Bucket.at(address)
        names = {*bucket.names()}
        there = among(names)
        weights = _one_of([f"{folder}/{name}".lstrip("/") for folder, name in there], address)
        if inside := weights.rpartition("/")[0]:
            return _in_bucket(f"{address}/{inside}")

    def find(name: str, *, needed: bool = True) -> Path | None:
        return bucket.kept(name) if name in names else None

    place = PurePosixPath(bucket.inside)
    entry = _entry_of_path(Path(bucket.inside))
    return {"folder": find, "place": place, "weights": weights, "entry": entry, "repo": None}


def _entry_of_path(path: Path) -> Entry | None:
    """What a folder's own names say, when it lies as in its repository or in the Hub's cache."""
    for start, part in enumerate(path.parts):
        if part.startswith("models--"):  # models--google--gemma-scope-2b-pt-res/snapshots/COMMIT/path
            return entry_of(part.removeprefix("models--").replace("--", "/", 1), "/".join(path.parts[start + 3 :]))
        if entry := entry_of(f"google/{part}", "/".join(path.parts[start + 1 :])):
            return entry
    return None


# --- published ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Published:
    """What an address that is no path here stands for."""

    repo: str
    path: str
    entry: Entry | None = None
    revision: str | None = None

    @property
    def is_known(self) -> bool:
        """Whether the catalogue has it."""
        return find(f"{self.repo}/{self.path}") is not None


_Listed = Callable[[str, str], list[str] | None]
"""The names of the files in a folder of a repository."""


class _Remote:
    """One folder of a repository, its files fetched when asked for, all of one commit."""

    def __init__(self, published: _Published, access: hub.Access) -> None:
        self.published, self.access = published, access
        self.commit: str | None = None

        self.folder = published.path
        """In the repository."""

    def located(self) -> _Lie:
        """Which folder, and which file in it, the address means."""
        entry, repo = self.published.entry, self.published.repo
        weights = (None if entry is None else entry.file) or self._weights()
        if entry is not None and self.find(weights) is None:
            raise SAENotFound(f"no SAE at {self._address!r}: it has no {weights}{_near(self._address)}")
        place = PurePosixPath(repo) / self.folder
        return {"folder": self.find, "place": place, "weights": weights, "entry": entry, "repo": repo}

    def _weights(self) -> str:
        path = PurePosixPath(self.published.path)
        known = self._meant(path, self.access.cached)  # what was loaded once needs no network
        # One of the names that a set's files have says nothing of how many there are: that the Hub alone knows.
        if len(known) == 1 and (is_fixed(known[0]) or f"{known[0]}.".startswith(f"{path.name}.")):
            return known[0]
        if self.access.is_offline:
            hint = f" (there is {some_of(known)}: name one)" if known else ""
            raise HubUnreachable(f"{self.access.missing(self._address)}{hint}")
        meant = self._meant(path, self.access.folder)
        return _one_of(meant or self._below(), self._address)

    def _below(self) -> list[str]:
        """The weights of the one SAE that lies in the folders below the one meant; the paths of several."""
        inside = f"{self.published.path}/" if self.published.path else ""
        found = among(name for name in self.access.files(self.published.repo) if name.startswith(inside))
        if len(found) == 1:
            self.folder, weights = found[0]
            return [weights]
        files = Counter(folder for folder, _ in found)
        return [folder if files[folder] == 1 else f"{folder}/{name}".lstrip("/") for folder, name in found]

    def _meant(self, path: PurePosixPath, listed: _Listed) -> list[str]:
        """The weights that a path may mean: a file, the files of a folder, a file without its suffix."""
        if is_weights(path.name) or is_beside(path.name):
            names = self._names(path.parent, listed) or []
            if path.name in names:
                return [path.name] if is_weights(path.name) else weights_among(names, path.name)
        inside = self._names(path, listed)
        if inside is not None:
            return weights_among(inside)
        return [name for name in self._names(path.parent, listed) or [] if name.startswith(f"{path.name}.")]

    def _names(self, folder: PurePosixPath, listed: _Listed) -> list[str] | None:
        """The files of a folder, which is then the one meant; None for no folder, or none that is known here."""
        self.folder = "" if folder == PurePosixPath() else str(folder)
        try:
            return listed(self.published.repo, self.folder)
        except SAENotFound as error:
            raise SAENotFound(f"{error}{_near(self._address)}") from error

    @property
    def _address(self) -> str:
        return f"{self.published.repo}/{self.published.path}"

    def find(self, name: str, *, needed: bool = True) -> Path | None:
        path = posixpath.normpath(posixpath.join(self.folder, name))
        if path.startswith(".."):
            return None
        try:
            found = self.access.find(self.published.repo, path)
        except HubUnreachable:
            if needed:
                raise
            return None
        except SAENotFound as error:
            raise SAENotFound(f"{error}{_near(self._address)}") from error
        if found is None:
            return None
        local, self.commit = found
        self.access = replace(self.access, revision=self.commit)
        return local


_NEURONPEDIA = re.compile(r"[^/]+/\d+-[^/]+")


def _published(name: str) -> _Published:
    """Raises SAENotFound for what can be no address."""
    if name.startswith(("/", "./", "../", "~")):
        raise SAENotFound(f"no file or folder {name}")
    address, revision, from_neuronpedia = _without_url(name)
    if entry := find(address) or find(_without_file(address)):
        return _Published(entry.repo, entry.path, entry, revision)
    if len(words := address.split()) == 2 and "/" in words[0]:  # SAELens's way to name a repository it does not list
        return _named(words[0], words[1], revision)
    parts = address.split("/")
    if (
        len(words) != 1
        or len(parts) < 2
        or "" in parts
        or ".." in parts
        or from_neuronpedia
        or _NEURONPEDIA.fullmatch(address)
    ):
        raise SAENotFound(
            f"no SAE called {name!r}: expected REPO/path, a folder, RELEASE SAE_ID, a Neuronpedia id, or "
            f"{BUNDLED}{_near(address)}"
        )
    return _named("/".join(parts[:2]), "/".join(parts[2:]), revision)


def _named(repo: str, path: str, revision: str | None) -> _Published:
    folder = _without_file(path)
    entry = entry_of(repo, folder)
    return _Published(repo, path if entry is None else folder, entry, revision)


def _without_file(path: str) -> str:
    """A path's folder, where its last name is one that a file of an SAE has."""
    folder, _, file = path.rpartition("/")
    return folder if is_weights(file) or is_beside(file) else path


def _without_url(name: str) -> tuple[str, str | None, bool]:
    """The address in a URL of the Hub's or Neuronpedia's (or in none), a revision in it, and whether Neuronpedia's."""
    url = urlsplit(name)
    host = (url.hostname or "").removeprefix("www.") if url.scheme in ("http", "https") else ""
    parts = [unquote(part) for part in url.path.split("/") if part] if host else []
    revision = None
    if host == "neuronpedia.org":
        return "/".join(parts[:2]), None, True  # the third is a feature
    if host == "huggingface.co":
        if len(parts) > 3 and parts[2] in ("tree", "blob", "resolve"):
            revision = None if parts[3] == "main" else parts[3]
            parts = parts[:2] + parts[4:]
        name = "/".join(parts)
    name = name.rstrip("/")
    return name, revision, False


def _near(name: str) -> str:
    near = nearest(_without_file(_without_url(name)[0]))
    return f"; nearest: {', '.join(near)}" if near else ""
