"""From an address to an SAE: what the address means, where its files lie, which format they are. The formats themselves
are in `files/`, the names of what is published in `published`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import torch

from gemscope.activations import hub
from gemscope.activations.bundled import cache_dir as own_cache_dir
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.checked import existing
from gemscope.errors import FileError, HubUnreachable, SAENotFound, UnsafeFile
from gemscope.features.entry import Entry
from gemscope.features.files import gemma_scope_1, gemma_scope_2, saelens, saelens_config
from gemscope.features.files.contents import Contents, Folder, build
from gemscope.features.kernels.choice import place_for
from gemscope.features.published import entry_of, find, nearest
from gemscope.features.sae import SAE
from gemscope.features.several import below
from gemscope.progress import Progress, silent

BUNDLED = "smollm2"
"""The address of the SAE that ships with this package."""
_BUNDLED_FOLDER = Path(__file__).parent.parent / "data" / "smollm2-15-res"

_CONFIGS = {
    saelens_config.WEIGHTS: saelens_config.CONFIG,
    gemma_scope_1.WEIGHTS: None,
    gemma_scope_2.WEIGHTS: gemma_scope_2.CONFIG,
}
"""The weights of each format, and the configuration beside them."""
_FILES = frozenset(filter(None, (*_CONFIGS, *_CONFIGS.values())))
_PICKLES = frozenset({".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt"})


def load_sae(
    address: str | os.PathLike[str],
    *,
    site: Site | str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    device: torch.device | str | None = "auto",
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
        runs/15-res, params.npz                                            a folder or file here; it goes first
        smollm2                                                            the one that ships with this package

    `site` says where the SAE reads when its file does not, or says it in a way that is not known here. `revision` is
    a branch, tag or commit of the repository; `token` and `cache_dir` are as in huggingface_hub; `offline=None`
    follows HF_HUB_OFFLINE. `device` "auto" is where `model` is, or would go; Apple's MPS has no sparse products, and an
    SAE stays on the processor there. `dtype` is what the matrices are kept in (None: what the file has); biases,
    thresholds and what is folded into weights are never rounded below float32 but for a narrower `dtype` asked for.
    `model` is the one that the SAE is for; a few files made on a model that TransformerLens had rewritten need it, and
    say so.

    Raises SAENotFound (naming the nearest addresses that exist), GatedRepository, HubUnreachable, CorruptFile,
    UnsafeFile (a pickle), FileError (a kind that is not read here), NotFinite, StorageFull.
    """
    where = place_for(device, None if model is None else model.device)
    name = os.fspath(address).strip()
    given = None if site is None else Site.parse(site)
    cache = (own_cache_dir() if cache_dir is None else Path(cache_dir) / "gemscope") / "unpacked"
    read = partial(_read, site=given, model=model, cache=cache, progress=progress)
    local = existing(name)
    if name == BUNDLED:
        contents = read(_bundled(), None, source=BUNDLED, place=BUNDLED)
    elif local is not None:
        contents = read(*_local(local), source=name, place=str(local.resolve()))
    else:
        published = _published(name)
        if published.entry is not None and published.entry.closed:
            raise FileError(f"{name} cannot be opened here: {published.entry.closed}")
        found = _Remote(published, revision or published.revision, token, cache_dir, offline)
        try:
            contents = read(found, published.entry, source=name, place=published.repo)
        except HubUnreachable as error:
            if published.is_known or not (near := _near(name)):
                raise
            raise SAENotFound(
                f"no SAE at {name!r} in the bundled catalogue, and the Hub cannot be reached to look further{near}"
            ) from error
        contents = replace(contents, info=replace(contents.info, revision=found.commit))
    return build(contents, dtype=dtype, device=where)


def _read(
    folder: Folder,
    entry: Entry | None,
    *,
    source: str,
    place: str,
    site: Site | None,
    model: LanguageModel | None,
    cache: Path,
    progress: Progress,
) -> Contents:
    """In the format whose files are there."""
    # What the names promise comes first; a repository that they say nothing of may be laid out in any of the ways.
    for weights in (entry.file,) if entry and entry.file else _CONFIGS:
        config = _CONFIGS[weights]
        if weights == saelens_config.WEIGHTS:
            if folder(saelens_config.CONFIG) is not None or folder(saelens_config.WEIGHTS) is not None:
                return saelens.read(folder, source=source, place=place, site=site, model=model)
        elif (path := folder(weights)) is not None:
            if config is None:
                return gemma_scope_1.read(path, entry=entry, source=source, cache=cache, site=site, progress=progress)
            return gemma_scope_2.read(path, folder(config, needed=False), entry=entry, source=source, site=site)
    inside = below(Path(place)) if entry is None else []
    found = f"; there are SAEs in it: {', '.join(inside)}" if inside else _near(source)
    raise SAENotFound(f"no SAE at {source!r}: expected {' or '.join(_CONFIGS)} there{found}")


# --- here -----------------------------------------------------------------------------------------------------------


def _bundled() -> Folder:
    if not (_BUNDLED_FOLDER / saelens_config.CONFIG).exists():
        raise SAENotFound(
            f"the bundled SAE {BUNDLED!r} is not part of this installation: reinstall gemscope, or give an address"
        )
    return _here(_BUNDLED_FOLDER)


def _here(folder: Path) -> Folder:
    return _only({name: folder / name for name in (*_FILES, saelens_config.SCALER, saelens_config.WHITENING)})


def _only(files: Mapping[str, Path]) -> Folder:
    """A folder of these files, as far as they are there."""

    def find(name: str, *, needed: bool = True) -> Path | None:
        path = files.get(name)
        return path if path is not None and path.is_file() else None

    return find


def _local(path: Path) -> tuple[Folder, Entry | None]:
    """The files that a path means, and what the names on the way to it say."""
    if path.is_dir():
        return _here(path), _entry_of_path(path)
    folder = path.parent
    if path.name in (saelens_config.CONFIG, saelens_config.WEIGHTS):
        return _here(folder), None
    if path.suffix in _PICKLES:
        raise UnsafeFile(f"{path} may hold a pickle, which can run anything: expected .safetensors or .npz")
    # Of whatever name: npz is Gemma Scope's, safetensors Gemma Scope 2's.
    if path.suffix == ".npz":
        return _only({gemma_scope_1.WEIGHTS: path}), _entry_of_path(folder)
    weights = folder / gemma_scope_2.WEIGHTS if path.name == gemma_scope_2.CONFIG else path
    if weights.suffix != ".safetensors":
        raise SAENotFound(f"{path} is no file of an SAE: expected .npz, .safetensors, or a folder")
    files = {gemma_scope_2.WEIGHTS: weights, gemma_scope_2.CONFIG: folder / gemma_scope_2.CONFIG}
    return _only(files), _entry_of_path(folder)


def _entry_of_path(path: Path) -> Entry | None:
    """What a folder's own names say, when it lies as in its repository or in the Hub's cache."""
    parts = path.resolve().parts
    for start, part in enumerate(parts):
        if part.startswith("models--"):  # models--google--gemma-scope-2b-pt-res/snapshots/COMMIT/path
            return entry_of(part.removeprefix("models--").replace("--", "/", 1), "/".join(parts[start + 3 :]))
        if entry := entry_of(f"google/{part}", "/".join(parts[start + 1 :])):
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


class _Remote:
    """One folder of a repository, its files fetched when asked for, all of one commit."""

    def __init__(
        self,
        published: _Published,
        revision: str | None,
        token: str | bool | None,
        cache_dir: str | os.PathLike[str] | None,
        offline: bool | None,
    ) -> None:
        self.published, self.token, self.cache_dir, self.offline = published, token, cache_dir, offline
        self.revision = revision
        self.commit: str | None = None

    def __call__(self, name: str, *, needed: bool = True) -> Path | None:
        path = str(PurePosixPath(self.published.path) / name)
        try:
            found = hub.find(
                self.published.repo,
                path,
                revision=self.commit or self.revision,
                token=self.token,
                cache_dir=self.cache_dir,
                offline=self.offline,
            )
        except HubUnreachable:
            if needed:
                raise
            return None
        except SAENotFound as error:
            raise SAENotFound(f"{error}{_near(self.published.repo + '/' + self.published.path)}") from error
        if found is None:
            return None
        local, self.commit = found
        return local


_NEURONPEDIA = re.compile(r"[^/]+/\d+-[^/]+")


def _published(name: str) -> _Published:
    """Raises SAENotFound for what can be no address."""
    if name.startswith(("/", "./", "../", "~")):
        raise SAENotFound(f"no file or folder {name}")
    address, revision, from_neuronpedia = _without_url(name)
    if entry := find(address):
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
    return _Published(repo, path, entry_of(repo, path), revision)


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
    folder, _, file = name.rpartition("/")
    return (folder if file in _FILES else name), revision, False


def _near(name: str) -> str:
    near = nearest(_without_url(name)[0])
    return f"; nearest: {', '.join(near)}" if near else ""
