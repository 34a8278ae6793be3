"""What a format is to the loader, and what of an SAE lies at an address before anybody knows whose it is. Which formats
there are is `formats.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar, runtime_checkable

from gemscope import checked
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.errors import CorruptFile, FileError, SAENotFound
from gemscope.features.entry import Entry
from gemscope.features.files.contents import Contents
from gemscope.features.files.hook_names import Builds, builds_of, model_id
from gemscope.features.files.pickled import PICKLES, read_pickled
from gemscope.features.files.tensors import read_safetensors
from gemscope.features.sae import SAEInfo
from gemscope.progress import Progress, silent

T = TypeVar("T")


@runtime_checkable
class Folder(Protocol):
    """Where the files of an SAE lie, on this disk or on the Hub."""

    def __call__(self, name: str, *, needed: bool = True) -> Path | None:
        """A file by its path from the folder, fetched if need be; None where there is none. With `needed=False` also
        None where that cannot be found out now."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The files of one SAE, and what else is known or was asked for."""

    source: str
    """The address, for messages."""
    place: PurePosixPath
    """Of the folder: a whole path here, REPO/path on the Hub. Names of folders say much."""
    repo: str | None = None
    """The repository on the Hub, also of what lies in the Hub's cache."""
    folder: Folder
    weights: str
    """The file in it that holds the weights."""
    entry: Entry | None = None
    """What the catalogue knows of it."""
    site: Site | None = None
    """Where it reads, as far as the user has said."""
    model: LanguageModel | None = None
    """The one that it is for, as far as the user has given it."""
    cache: Path
    progress: Progress = silent

    @property
    def file(self) -> PurePosixPath:
        """The name of the weights' file, without the folders that it may lie in."""
        return PurePosixPath(PurePosixPath(self.weights).name)

    @cached_property
    def path(self) -> Path:
        """The weights. Raises SAENotFound where there are none."""
        path = self.folder(self.weights)
        if path is None:
            raise SAENotFound(f"no SAE at {self.source!r}: it has no {self.weights}")
        return path

    @cached_property
    def stored(self) -> Mapping[str, Any]:
        """What the weights' file holds by name: tensors, mapped from the disk; in a pickle also numbers and text. Of an
        npz nothing, for it may have to be unpacked: that is for whoever knows that it is theirs.

        Raises CorruptFile, UnsafeFile.
        """
        if self.file.suffix == ".npz":
            return {}
        return read_pickled(self.path) if self.file.suffix in PICKLES else read_safetensors(self.path)

    def has(self, *names: str) -> bool:
        """Whether the weights' file holds all of these."""
        return all(name in self.stored for name in names)

    def declared(self, name: str, kind: type[T]) -> T:
        """A JSON file of the folder. Raises CorruptFile, also where there is none."""
        path = self.folder(name)
        if path is None:
            raise CorruptFile(f"{self.source} has no {name} beside {self.weights}: fetch the whole folder")
        found: T = checked.read_json(path, kind, remedy="fetch it again")
        return found

    def named(self, said: str | None) -> str | None:
        """The model that the file names, as the Hub calls it; where it names none, the one given."""
        return model_id(said) or (None if self.model is None else self.model.name)

    def info(self, model: str | None, **more: Any) -> SAEInfo:
        """What is known of it: by its files (`model` as they call it), else by the catalogue."""
        entry = self.entry
        known: dict[str, Any] = {}
        if entry is not None:
            l0 = None if entry.l0 is None else float(entry.l0)
            known = {"neuronpedia_id": entry.neuronpedia_id, "declared_l0": l0}
        return SAEInfo(
            name=self.source, model=self.named(model or (entry.model if entry else None)), **{**known, **more}
        )

    def builds(self, said: str | None) -> Builds:
        """How the SAE's model may be built: that given, else by the name that the file says, or its repository's."""
        return builds_of(self.model, said) or builds_of(None, self.repo)

    def hit(self, pattern: str, said: str | None = None) -> re.Match[str] | None:
        """Where what was said matches, or a name on the way to the weights, or theirs; the innermost first."""
        names = (said or "", *reversed(self.parts))
        return next((hit for name in names if (hit := re.fullmatch(pattern, name))), None)

    @property
    def parts(self) -> tuple[str, ...]:
        """The names on the way, and the weights' own. A repository in the Hub's cache has its name there."""
        repo = () if self.repo is None else tuple(self.repo.split("/"))
        return (*repo, *self.place.parts, self.weights)

    def required_site(self, hint: str = "") -> Site:
        """The site that the user gave. Raises FileError where it was not."""
        if self.site is None:
            raise FileError(f"{self.source} does not say where in the model it reads{hint}: say it with site='20.res'")
        return self.site


@dataclass(frozen=True, kw_only=True)
class Glance:
    """What an SAE is, as far as lists need it."""

    site: Site | None
    site_out: Site | None
    """Where it writes; None: where it reads."""
    width: int | None
    """Features; None where only the weights' file would tell."""
    l0: float | None
    model: str | None
    """Hugging Face id."""

    @classmethod
    def of(cls, contents: Contents) -> Glance:
        """Of what was read."""
        return cls(
            site=contents.site,
            site_out=contents.site_out,
            width=contents.tensors["b_enc"].numel() if "b_enc" in contents.tensors else None,
            l0=contents.info.declared_l0 if contents.k is None else float(contents.k),
            model=contents.info.model,
        )


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way in which SAEs are kept in files."""

    name: str
    """As docs/formats.md and SAEInfo.format call it."""
    weights: str
    """A pattern: what the file is called that holds the weights, where a folder may hold other files too."""
    called: str
    """The same in words: layer_N.safetensors."""
    beside: Mapping[str, str | None] = field(default_factory=dict)
    """Files by which somebody may name the SAE as well, and where the weights then lie; None: beside it."""
    is_its: Callable[[Found], bool]
    """By what is in the weights and beside them: asked where their name does not tell. No two may say yes."""
    read: Callable[[Found], Contents]
    glance: Callable[[Found], Glance] | None = None
    """The same without the weights' numbers, where the files beside them tell."""
    is_closed: bool = False
    """Whether `read` refuses all of them, by their name."""

    def among(self, names: Iterable[str]) -> list[str]:
        """Which of the files of a folder hold weights, or stand for some that lie further in."""
        return [
            self.beside.get(name) or name for name in names if re.fullmatch(self.weights, name) or self.beside.get(name)
        ]
