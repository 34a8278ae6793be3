"""A corpus through a model once, its activations at any number of sites onto disk."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.activations.store import FORMAT, Manifest, Store, Writer
from gemscope.errors import InputError
from gemscope.progress import Progress, silent
from gemscope.text.corpus import Corpus


def harvest(
    model: LanguageModel,
    corpus: Corpus,
    sites: Iterable[Site | str],
    *,
    to: str | Path,
    tokens: int | None = None,
    length: int = 256,
    batch: int = 32,
    progress: Progress = silent,
) -> Store:
    """Reads `tokens` tokens (None: the whole corpus) and stores the counted ones' activations in float16.

    The text is packed into rows of `length` tokens, `batch` of them at a time, and reading ends with the batch that
    completes `tokens`. Special tokens, first positions and attention sinks are left out. `to` must not exist; it
    appears when the harvest is whole. Raises InputError, SiteNotFound, NotFinite, StorageFull.
    """
    sites = sorted(map(Site.parse, sites))
    if tokens is not None and tokens < length:
        raise InputError(f"tokens={tokens} is less than one row (length={length})")
    if tokens is not None:
        batch = min(batch, tokens // length)
    read = 0
    with Writer(to) as writer, progress(f"harvest {', '.join(map(str, sites))}", tokens, "tokens") as advance:
        for rows in model.rows(corpus, length=length, batch=batch):
            for acts in model.capture(rows, sites).values():
                writer.add(acts)
            step = int(rows.real.sum())
            read += step
            advance(step)
            if tokens is not None and read >= tokens:
                break
        return writer.finish(
            Manifest(
                format=FORMAT,
                model=model.name,
                revision=model.revision,
                dtype=str(model.dtype).removeprefix("torch."),
                sites=writer.counts,
                read=read,
                length=length,
                corpus=corpus.name,
                corpus_digest=corpus.digest,
                versions=versions(),
            )
        )


def versions() -> dict[str, str]:
    """What computed this: for manifests and cards."""
    packages = ("gemscope", "torch", "transformers")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
