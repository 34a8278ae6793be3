"""A corpus through a model once, its activations at any number of sites onto disk."""

from __future__ import annotations

import platform
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

from rich.filesize import decimal

from gemscope.activations import memory
from gemscope.activations.ahead import ahead, enough
from gemscope.activations.capture import Captured
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.activations.store import FORMAT, Manifest, Store
from gemscope.activations.writer import Writer, bytes_per_row
from gemscope.errors import InputError, StorageFull
from gemscope.progress import Progress, silent
from gemscope.text.corpus import Corpus
from gemscope.text.rows import Passed
from gemscope.text.tokens import Tokens


def harvest(
    model: LanguageModel,
    corpus: Corpus,
    sites: Iterable[Site | str],
    *,
    to: str | Path,
    tokens: int | None = None,
    length: int = 256,
    batch: int = 32,
    dtype: str = "float16",
    progress: Progress = silent,
) -> Store:
    """Reads `tokens` tokens (None: the whole corpus) and stores the counted ones' activations as `dtype` (float16,
    bfloat16, float32).

    The text is packed into rows of `length` tokens, `batch` of them at a time, and reading ends with the batch that
    completes `tokens`. Special tokens, first positions and attention sinks are left out, the same ones at every site:
    row i is the same token everywhere, as transcoders and crosscoders need it. `to` must not exist; it appears when the
    harvest is whole. One that was cut off goes on from its last whole shard when started again, and ends with the same
    bytes. Raises InputError, SiteNotFound, NotFinite, OutOfMemory, StorageFull (before it begins, where it will not
    fit), and Mismatch where an unfinished harvest of something else is in the way.
    """
    sites = sorted(set(map(Site.parse, [sites] if isinstance(sites, str | Site) else sites)))
    if tokens is not None and tokens < length:
        raise InputError(f"tokens={tokens} is less than one row (length={length})")
    if tokens is not None:
        batch = min(batch, tokens // length)
    manifest = Manifest(
        format=FORMAT,
        model=model.name,
        revision=model.revision,
        dtype=str(model.dtype).removeprefix("torch."),
        sites=dict.fromkeys(map(str, sites), 0),
        read=0,
        length=length,
        corpus=corpus.name,
        corpus_digest=corpus.digest,
        versions=versions(),
        stored=dtype,
    )
    row = sum(bytes_per_row(model.width(site), dtype) for site in sites)
    read = 0
    passed: Passed = Counter()
    identity = {**asdict(manifest), "tokens": tokens, "batch": batch}
    with memory.fewer("a harvest", batch, model.device), Writer(to, identity, stored=dtype) as writer:
        expected = expected_tokens(model, corpus) if tokens is None else tokens
        if expected is not None:
            _require_room(Path(to), expected, row, done=writer.read)
        size = "" if expected is None else f", about {decimal(expected * row)}"
        begun = writer.batches
        with progress(f"harvest {', '.join(map(str, sites))}{size}", expected, "tokens") as advance:
            packed = enough(model.rows(corpus.documents(passed), length=length, batch=batch), tokens)

            def captured(item: tuple[int, Tokens]) -> Captured | None:
                return None if item[0] < begun else model.capture(item[1], sites)

            for (_, rows), found in ahead(enumerate(packed), captured, model.device):
                if found is not None:
                    writer.add(*found.values())
                step = int(rows.real.sum())
                read += step
                advance(step)
        return writer.finish(replace(manifest, sites=writer.counts, read=read, passed=dict(passed)))


def expected_tokens(model: LanguageModel, corpus: Corpus) -> int | None:
    """About how many tokens a corpus has, by its letters and every 64th document's tokens. None where finding out means
    downloading it.
    """
    if corpus.streamed:
        return None
    letters = known = tokens = 0
    for index, document in enumerate(corpus):
        letters += len(document.text)
        if index % 64 == 0:
            known += len(document.text)
            tokens += len(model.tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"])
    return round(letters * tokens / max(1, known))


def _require_room(to: Path, tokens: int, row: int, *, done: int) -> None:
    """What is still to be written, as if every token counted, against what is free."""
    there = next(folder for folder in to.absolute().parents if folder.exists())
    free, needed = shutil.disk_usage(there).free, (tokens - done) * row
    if needed > free:
        raise StorageFull(
            f"a harvest of about {tokens:,} tokens takes {decimal(tokens * row)}, {decimal(needed)} of it still to be "
            f"written; {there} has {decimal(free)} left: make room, or ask for fewer tokens, sites or bytes per number"
        )


def versions() -> dict[str, str]:
    """What computed this: for manifests and cards."""
    packages = ("gemscope", "torch", "transformers")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


@cache
def _version(package: str) -> str:
    """Looked up once: a run of many checkpoints asks each time."""
    return version(package)
