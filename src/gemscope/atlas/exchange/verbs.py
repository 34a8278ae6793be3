"""`export` and `import_atlas`: which format's file does the work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemscope.errors import InputError
from gemscope.progress import Progress, silent

if TYPE_CHECKING:
    from gemscope.atlas.reader import Atlas

EXPORTS: Mapping[str, tuple[str, str, str]] = {
    "html": ("html", "export_html", "one self-contained file of chosen features"),
    "site": ("html", "export_site", "a folder of pages for any file server"),
    "csv": ("csv", "export", "a row a feature, for spreadsheets"),
    "parquet": ("parquet", "export", "everything, for programs (needs pyarrow)"),
    "neuronpedia": ("neuronpedia.writing", "export", "a folder of batches, as Neuronpedia publishes and imports them"),
    "neuronpedia-upload": ("neuronpedia.upload", "export_upload", "a folder of bodies for its upload of 128 features"),
    "anthropic": ("anthropic.writing", "export", "a folder of JSON, as attribution graphs show features"),
}
"""Format → module, function, and what comes out."""

IMPORTS: Mapping[str, tuple[str, str, str]] = {
    "neuronpedia": ("neuronpedia.reading", "import_atlas", "a source's folder of batches, or SAEDashboard's output"),
    "anthropic": ("anthropic.reading", "import_atlas", "a folder of JSON, or one packed with index.json.gz"),
    "gemma-scope-2": (
        "gemma_scope_2.reading",
        "import_atlas",
        "an SAE's examples.safetensors from Gemma Scope 2",
    ),
}
"""Format → module, function, and what goes in."""


def export(atlas: Atlas | str | Path, to: str | Path, *, format: str, features: Iterable[int] | None = None) -> Path:
    """Writes an atlas in another format: `html`, `site`, `csv`, `parquet`, `neuronpedia`, `neuronpedia-upload` or
    `anthropic`; all its features or those given. Nothing half-written is left behind. Returns `to`.

    Raises InputError, NotFound, FileError for a folder that exists, StorageFull, MissingDependency.
    """
    from gemscope.atlas.reader import Atlas

    write = _function(EXPORTS, format)
    if isinstance(atlas, Atlas):
        return Path(write(atlas, Path(to), features=features))
    with Atlas(atlas) as opened:
        return Path(write(opened, Path(to), features=features))


def import_atlas(
    format: str, path: str | Path, to: str | Path, *, progress: Progress = silent, **options: Any
) -> Atlas:
    """Makes an atlas at `to` of files in the format `neuronpedia`, `anthropic` or `gemma-scope-2`; their options are
    those of each format's own function. What the files do not say, or get wrong, stands in the manifest's metadata.

    Raises InputError, NotFound, CorruptFile, FileError, StorageFull.
    """
    read = _function(IMPORTS, format)
    atlas: Atlas = read(path, to, progress=progress, **options)
    return atlas


def _function(known: Mapping[str, tuple[str, str, str]], format: str) -> Callable[..., Any]:
    if format not in known:
        raise InputError(f"no format {format!r}: expected one of {', '.join(known)}")
    module, name, _ = known[format]
    return getattr(import_module(f"gemscope.atlas.exchange.{module}"), name)  # type: ignore[no-any-return]
