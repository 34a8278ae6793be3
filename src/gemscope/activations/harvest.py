"""A corpus through a model once, its activations at any number of sites onto disk."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

from rich.filesize import decimal

from gemscope.activations import memory
from gemscope.activations.ahead import ahead, enough
from gemscope.activations.bucket import LAST
from gemscope.activations.model import LanguageModel
from gemscope.activations.place import Place, place_of
from gemscope.activations.site import Site
from gemscope.activations.store import FORMAT, Manifest, Store
from gemscope.activations.work import counted, device_kind
from gemscope.activations.writer import Writer, bytes_per_row
from gemscope.checked import as_read
from gemscope.errors import GemscopeError, InputError, StorageFull
from gemscope.progress import Progress, silent
from gemscope.text.corpus import PIECE, Corpus
from gemscope.world import ALONE, World


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
    piece: int = PIECE,
    world: World = ALONE,
    progress: Progress = silent,
) -> Store:
    """Reads `tokens` tokens (None: the whole corpus) and stores the counted ones' activations as `dtype` (float16,
    bfloat16, float32).

    The text is read in pieces, whole documents of at least `piece` bytes together; each is packed by itself into rows
    of `length` tokens, `batch` of them at a time, and reading ends with the batch that completes `tokens`. Special
    tokens, first positions and attention sinks are left out, the same ones at every site: row i is the same token
    everywhere, as transcoders and crosscoders need it. `to` must not exist; it appears when the harvest is whole. One
    that was cut off goes on with the pieces that are missing when started again, and ends with the same bytes.

    Of a `world` of several workers each does its share of the missing pieces, and the store is the same for any number
    of them; whoever does the last makes it (and gives it back; so does one that comes later).

    Raises InputError, SiteNotFound, NotFinite, OutOfMemory, StorageFull (before it begins, where it will not fit),
    Mismatch where an unfinished harvest of something else is in the way, and Awaited where others still have pieces to
    do.
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
    place = place_of(to)
    if world.size > 1 and (made := _made(place, manifest)):
        return made
    row = sum(bytes_per_row(model.width(site), dtype) for site in sites)
    asked = {"tokens": tokens, "batch": batch, "piece": piece, "device": device_kind(model.device)}
    identity = {**asdict(manifest), **asked}
    with memory.fewer("a harvest", batch, model.device), Writer(place, identity, stored=dtype) as writer:
        work = writer.work
        known = work.read_so_far() if world.first else {}
        expected = tokens if tokens is not None or not world.first else expected_tokens(model, corpus)
        if expected is not None and world.first:
            _require_room(place, expected, row, done=sum(known.values()))
        size = "" if expected is None else f", about {decimal(expected * row)}"
        try:
            with progress(f"harvest {', '.join(map(str, sites))}{size}", expected, "tokens") as advance:
                advance(sum(known.values()))
                count = partial(counted, model, length=length)
                for passage, most in work.mine(corpus.pieces(piece), world, tokens=tokens, count=count):
                    with writer.piece(passage.number, first=passage.first, passed=passage.passed) as shards:
                        packed = enough(model.rows(passage.documents, length=length, batch=batch), most)
                        for rows, found in ahead(packed, partial(model.capture, sites=sites), model.device):
                            shards.add(*found.values())
                            advance(int(rows.real.sum()))
                    known[passage.number] = shards.read
                    if world.first and world.size > 1:
                        advance(work.news(known))
            return writer.finish(manifest, work.number)
        except (OSError, GemscopeError):
            if not place.has(LAST):
                raise
            # Others have made it meanwhile, and what was on its way there with it.
            place.leave()
            return Store(place)


def _made(to: Place, wanted: Manifest) -> Store | None:
    """The store that other workers have made of the same."""
    if not to.has(LAST):
        return None
    store = Store(to)
    there, ours = as_read(asdict(store.manifest)), as_read(asdict(wanted))
    filled = ("sites", "read", "passed", "dropped", "shards")
    if [*there["sites"]] == [*ours["sites"]] and all(there[name] == ours[name] for name in ours if name not in filled):
        return store
    return None


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


def _require_room(to: Place, tokens: int, row: int, *, done: int) -> None:
    """What is still to be written, as if every token counted, against what is free."""
    free, needed = to.free, (tokens - done) * row
    if free is not None and needed > free:
        raise StorageFull(
            f"a harvest of about {tokens:,} tokens takes {decimal(tokens * row)}, {decimal(needed)} of it still to be "
            f"written; {to} has {decimal(free)} left: make room, or ask for fewer tokens, sites or bytes per number"
        )


def versions() -> dict[str, str]:
    """What computed this: for manifests and cards."""
    packages = ("gemscope", "torch", "transformers")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


@cache
def _version(package: str) -> str:
    """Looked up once: a run of many checkpoints asks each time."""
    return version(package)
