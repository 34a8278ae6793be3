"""What SAEs lie at an address, listed as a scope or opened as a stack: a scope of one's own, a published repository, a
run's folder, a set of transcoders. Which address one SAE has is `load.py`'s.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, urlsplit

import torch

from gemscope.activations import hub
from gemscope.activations.bucket import Bucket, is_bucket
from gemscope.activations.bundled import cache_dir as own_cache_dir
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.checked import existing, read_yaml, shown
from gemscope.errors import FileError, GemscopeError, InputError, SAENotFound
from gemscope.features import scope_manifest
from gemscope.features.entry import Entry
from gemscope.features.files import circuit_tracer, sparsify
from gemscope.features.files.cross_layer import is_clt
from gemscope.features.files.format import Found, Glance
from gemscope.features.files.formats import weights_among
from gemscope.features.kernels.choice import Devices
from gemscope.features.load import glance, load_sae
from gemscope.features.published import find, nearest, snapshot
from gemscope.features.sae import SAE
from gemscope.features.scope import Member, Scope, labelled, order
from gemscope.features.scope_manifest import Failed, Manifest, read_scope
from gemscope.features.several import among, below, is_pattern, matching
from gemscope.features.stack import Stack

_L0 = re.compile(r"average_l0_([0-9]{1,9})")


def load_scope(
    address: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    device: Devices = "auto",
    dtype: torch.dtype | None = torch.float32,
    model: LanguageModel | None = None,
) -> Scope:
    """All SAEs at an address, by site, width and L0. Nothing is opened before it is asked for.

    An address is one of

        my-scope                                a folder with a scope.json, which lists what is in it
        runs, runs/pythia-160m                  any folder below which SAEs lie, a run of sparsify's among them
        sets/qwen3                              a set of transcoders as circuit-tracer has them, here or on the Hub
        google/gemma-scope-2b-pt-res            a repository of the bundled catalogue, or a folder in it
        gemma-scope-2b-pt-res-canonical         a release of SAELens's
        google/gemma-scope-2b-pt-*              several of these
        USER/REPO                               a scope or a run on the Hub
        s3://bucket/my-scope                    a scope, or a folder below which SAEs lie, in a bucket

    What the catalogue has is listed without a network. What lies at an address and cannot be opened is listed in
    `failed`, with the reason. The other options are `load_sae`'s, for when an SAE is opened; `device` "auto" is where
    `model` is, if that is given.

    Raises SAENotFound where no SAE is, FileError where none of those that are can be read here, CorruptFile for a
    scope.json that is none, HubUnreachable, GatedRepository.
    """
    name = os.fspath(address).strip()
    where = _Where(hub.Access(revision, token, cache_dir, offline), model)
    found = _listed(name, where)
    if not found.members:
        if found.failed:
            raise FileError(f"no SAE at {name!r} can be opened here: {found.failed[0].reason}")
        raise _nothing(name)

    def opened(member: Member) -> SAE:
        return load_sae(
            member.address,
            revision=member.revision or (None if member.folder else revision),
            token=token,
            cache_dir=cache_dir,
            offline=offline,
            device=device,
            dtype=dtype,
            model=model,
        )

    members = tuple(sorted(found.members, key=order))
    one = found.models.pop() if len(found.models) == 1 else None
    return Scope(name, members, opened, one, tuple(found.failed), found.manifest)


def load_stack(
    address: str | os.PathLike[str],
    kind: str | None = None,
    *,
    width: int | str | None = None,
    l0: float | str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    device: Devices = "auto",
    dtype: torch.dtype | None = torch.float32,
    model: LanguageModel | None = None,
) -> Stack:
    """One SAE or transcoder for each layer: `load_scope(address, ...).stack(kind, width=width, l0=l0)`.

        load_stack("mwhanna/qwen3-4b-transcoders")                          a set of transcoders
        load_stack("google/gemma-scope-2b-pt-res", width="16k")             the canonical SAE of every layer
        load_stack("my-scope", "res", width="2k", l0=30)                    the SAEs with L0s closest to 30

    Raises what these raise.
    """
    scope = load_scope(
        address,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        offline=offline,
        device=device,
        dtype=dtype,
        model=model,
    )
    return scope.stack(kind, width=width, l0=l0)


def is_scope(address: str) -> bool:
    """Whether an address stands for several SAEs, so that `load_scope` is for it and not `load_sae`: a pattern, a
    folder with several below it, a repository or a release of the catalogue.
    """
    if is_bucket(address):
        return Bucket.at(address).has(scope_manifest.NAME)
    if is_pattern(address):
        return True
    here = existing(address)
    if here is not None:
        if not here.is_dir() or is_clt(address):
            return False
        return (here / scope_manifest.NAME).exists() or (
            len(weights_among(os.listdir(here))) != 1 and bool(below(here, many=1))
        )
    entries = [entry for entry in snapshot() if _is_of(entry, address.rstrip("/"))]
    return len(entries) > 1 and find(address) is None and not is_clt(address)


def each_of(address: str) -> list[str]:
    """The addresses of single SAEs that one may stand for: those of a pattern, of a folder with several, of a published
    repository with one for each place; else itself. Raises SAENotFound, InputError for a repository of many, what
    `load_scope` raises.
    """
    if is_pattern(address) and not is_bucket(address):
        return matching(address)
    if not is_scope(address):
        return [address]
    scope = load_scope(address)
    if existing(address) is None and not is_bucket(address) and len(scope.sites) < len(scope):
        pattern = f"{scope[0].address.rpartition('/')[0]}/*"
        raise InputError(f"{address} has {len(scope):,} SAEs: choose by a pattern, such as '{pattern}'")
    return [member.address for member in scope]


# --- what lies there ----------------------------------------------------------------------------------------------


@dataclass
class _Found:
    """What was listed so far."""

    members: list[Member]
    failed: list[Failed]
    models: set[str]
    manifest: Manifest | None = None

    @classmethod
    def nothing(cls) -> _Found:
        return cls([], [], set())

    def add(self, name: str, told: Callable[[], Glance], *, address: str, folder: Path | None = None) -> None:
        """One that files tell of, or why not."""
        try:
            seen = told()
        except GemscopeError as error:
            self.failed.append(Failed(site=name, reason=str(error)))
            return
        if seen.site is None:
            reason = "does not say where in the model it reads: load_sae(..., site='20.res') opens it"
            self.failed.append(Failed(site=name, reason=f"{address} {reason}"))
            return
        l0 = _L0.fullmatch(PurePosixPath(name).name)
        self.members.append(
            Member(
                site=seen.site,
                site_out=seen.site_out or seen.site,
                width=seen.width,
                l0=float(l0[1]) if l0 else seen.l0,
                address=address,
                label=labelled(seen.width),
                folder=folder,
            )
        )
        self.models |= {seen.model} if seen.model else set()

    def add_entry(self, entry: Entry) -> None:
        """One of the catalogue."""
        if entry.closed or entry.site is None:
            reason = entry.closed or "it reads at a place that is no site here"
            self.failed.append(Failed(site=entry.sae_id, reason=f"{entry.address}: {reason}"))
        else:
            self.members.append(_of_entry(entry))
            self.models.add(entry.model)

    def add_manifest(self, manifest: Manifest, address: Callable[[str], str], folder: Path | None) -> None:
        """All of a scope of one's own."""
        self.manifest = manifest
        self.models.add(manifest.model)
        self.failed += manifest.failed
        self.members += [
            Member(
                site=Site.parse(one.site),
                site_out=Site.parse(one.site_out),
                width=one.width,
                l0=one.l0,
                address=address(one.path),
                label=labelled(one.width),
                folder=None if folder is None else folder / one.path,
            )
            for one in manifest.saes
        ]


def _listed(name: str, where: _Where) -> _Found:
    here = existing(name)
    if here is not None and here.name == scope_manifest.NAME:
        here = here.parent
    if here is not None:
        if not here.is_dir():
            raise InputError(f"{name} is a file: load_sae opens one SAE, and a scope is a folder")
        return _in_folder(here, where)
    if is_bucket(name):
        return _in_bucket(name.rstrip("/"), where)
    if is_pattern(name):
        return _of_pattern(name, where)
    return _of_catalogue(lambda entry: _is_of(entry, name.rstrip("/"))) or _on_hub(name, where)


# --- here -----------------------------------------------------------------------------------------------------------


def _in_folder(folder: Path, where: _Where) -> _Found:
    found = _Found.nothing()
    if (folder / scope_manifest.NAME).exists():
        found.add_manifest(read_scope(folder), lambda path: str(folder / path), folder)
        return found
    config = _config_of(folder / circuit_tracer.CONFIG)
    if config is not None and config.transcoders is not None:
        _add_set(found, config, str(folder))
        return found
    for name in below(folder, many=sys.maxsize):
        path = folder / name
        found.add(name, partial(glance, path, where.model), address=str(path), folder=path if path.is_dir() else None)
    return found


def _in_bucket(address: str, where: _Where) -> _Found:
    found, bucket = _Found.nothing(), Bucket.at(address)
    if bucket.has(scope_manifest.NAME):
        manifest = read_scope(bucket.kept(scope_manifest.NAME).parent)
        found.add_manifest(manifest, lambda path: f"{address}/{path}", None)
        return found
    for folder, _ in among(bucket.names()):
        found.add(folder, partial(glance, f"{address}/{folder}", where.model), address=f"{address}/{folder}")
    return found


def _config_of(path: Path) -> circuit_tracer.Config | None:
    """A circuit-tracer set's configuration, where the file is there and is one."""
    try:
        return read_yaml(path, circuit_tracer.Config) if path.exists() else None
    except FileError:
        return None


# --- the catalogue ----------------------------------------------------------------------------------------------------


def _is_of(entry: Entry, name: str) -> bool:
    return (
        f"{entry.address}/".startswith(f"{name}/")
        or entry.release == name
        or (entry.canonical and entry.saelens_names[0].split()[0] == name)
    )


def _of_catalogue(fits: Callable[[Entry], bool]) -> _Found | None:
    found = _Found.nothing()
    for entry in filter(fits, snapshot()):
        found.add_entry(entry)
    return found if found.members or found.failed else None


def _of_pattern(pattern: str, where: _Where) -> _Found:
    if (repos := _of_catalogue(_repos(pattern))) is not None:
        return repos
    found = _Found.nothing()
    for address in matching(pattern):
        if (here := existing(address)) is not None:
            found.add(
                address, partial(glance, here, where.model), address=str(here), folder=here if here.is_dir() else None
            )
        elif (entry := find(address)) is not None:
            found.add_entry(entry)
    return found


def _repos(pattern: str) -> Callable[[Entry], bool]:
    """Whether an entry is of a repository or a release that a pattern means."""
    from fnmatch import fnmatchcase

    parts = pattern.count("/")

    def fits(entry: Entry) -> bool:
        if parts == 1:
            return all(map(fnmatchcase, entry.repo.split("/"), pattern.split("/")))
        return parts == 0 and " " not in pattern and fnmatchcase(entry.release, pattern)

    return fits


def _of_entry(entry: Entry) -> Member:
    assert entry.site is not None
    return Member(
        site=entry.site,
        site_out=entry.site_out or entry.site,
        width=entry.width,
        l0=None if entry.l0 is None else float(entry.l0),
        address=entry.address,
        label=entry.width_label or "",
        l0_label=entry.l0_label,
        canonical=entry.canonical,
    )


# --- the Hub ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Where:
    """How the Hub is asked, and what else is known."""

    hub: hub.Access
    model: LanguageModel | None
    """That the SAEs are for, where it is given."""

    def find(self, repo: str, path: str) -> Path | None:
        """A file of a repository, fetched."""
        found = self.hub.find(repo, path)
        return None if found is None else found[0]


def _on_hub(name: str, where: _Where) -> _Found:
    parts = name.strip("/").split("/")
    if len(parts) < 2 or {"", ".", ".."} & set(parts) or name.startswith(("/", "~")) or " " in name:
        raise _nothing(name)
    repo, folder = "/".join(parts[:2]), "/".join(parts[2:])
    found = _Found.nothing()
    if (manifest := where.find(repo, posixpath.join(folder, scope_manifest.NAME))) is not None:
        found.add_manifest(read_scope(manifest.parent), lambda path: posixpath.join(repo, folder, path), None)
        return found
    config = where.find(repo, posixpath.join(folder, circuit_tracer.CONFIG))
    if config is not None:
        told = read_yaml(config, circuit_tracer.Config)
        _add_set(found, told, posixpath.join(repo, folder), [] if told.transcoders else where.hub.names(repo, folder))
        return found
    for path in where.hub.files(repo):
        place = PurePosixPath(path)
        if place.name == sparsify.WEIGHTS and (not folder or place.is_relative_to(folder)):
            found.add(
                str(place.parent),
                partial(sparsify.glance, _found_on_hub(repo, place, where)),
                address=f"{repo}/{place.parent}",
            )
    return found


def _found_on_hub(repo: str, place: PurePosixPath, where: _Where) -> Found:
    """The files of an SAE there, none of them fetched yet."""

    def find(name: str, *, needed: bool = True) -> Path | None:
        path = posixpath.normpath(posixpath.join(str(place.parent), name))
        return None if path.startswith("..") else where.find(repo, path)

    return Found(
        source=f"{repo}/{place.parent}",
        place=PurePosixPath(repo) / place.parent,
        repo=repo,
        folder=find,
        weights=place.name,
        model=where.model,
        cache=own_cache_dir() / "unpacked",
    )


# --- sets of transcoders ----------------------------------------------------------------------------------------------


def _add_set(found: _Found, config: circuit_tracer.Config, address: str, names: Iterable[str] = ()) -> None:
    """A transcoder for each layer: where the configuration says they lie, else those of the files' names."""
    if not config.is_set:
        reason = (
            f"{address} is a {config.model_kind.replace('_', ' ')}, which writes at several layers: load_clt opens it"
        )
        found.failed.append(Failed(site=address, reason=reason))
        return
    layers = dict(enumerate(config.transcoders)) if config.transcoders else {}
    layers = layers or {layer: name for name in names if (layer := circuit_tracer.layer_of(name)) is not None}
    for layer, path in layers.items():
        try:
            site, site_out = config.sites(layer, address)
            there, revision = _address_of(path, address)
        except GemscopeError as error:
            found.failed.append(Failed(site=f"layer {layer}", reason=str(error)))
            continue
        entry = find(there.rpartition("/")[0]) or find(there)
        width = None if entry is None else entry.width
        found.members.append(
            Member(
                site=site,
                site_out=site_out,
                width=width,
                l0=None,
                address=there,
                label=labelled(width),
                revision=revision,
            )
        )
    found.models |= {config.model_name} if config.model_name else set()


def _address_of(path: str, address: str) -> tuple[str, str | None]:
    """What `load_sae` takes, and a revision: of a file beside the configuration, or one elsewhere on the Hub. Raises
    FileError for a path that leads out of the set.
    """
    url = urlsplit(path)
    inside = (url.netloc + url.path if url.scheme == "hf" else path).strip("/")
    parts = inside.split("/")
    if url.scheme not in ("", "hf") or {"", ".", ".."} & set(parts) or path.startswith(("/", "~")) or "\\" in path:
        raise FileError(
            f"{address} names a transcoder at {shown(path, 100)!r}: expected hf://REPO/file, or a file beside it"
        )
    if url.scheme == "":
        return posixpath.join(address, inside), None
    return inside, next(iter(parse_qs(url.query).get("revision", [])), None)


def _nothing(name: str) -> SAENotFound:
    near = nearest(name)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    return SAENotFound(f"no SAEs at {name!r}: expected a folder with SAEs in it, or a repository with some{hint}")
