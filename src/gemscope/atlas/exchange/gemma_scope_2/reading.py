"""An atlas from the `examples.safetensors` that lies beside every SAE of Gemma Scope 2: no model is run for it.

The file holds, for each feature, a thousand places of a corpus where it fires and how strongly. Of the other tokens
around them it says nothing: a window shows the activations of those places alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gemscope.atlas.entry import Entry
from gemscope.atlas.exchange.folder import slugged
from gemscope.atlas.exchange.gemma_scope_2.picked import AFTER, BEFORE, Picked, pick
from gemscope.atlas.exchange.gemma_scope_2.tensors import KEYS, File, Sizes, sizes_of
from gemscope.atlas.exchange.pieces import bytes_in, number_of
from gemscope.atlas.exchange.provenance import imported, in_catalog
from gemscope.atlas.files.manifest import Manifest
from gemscope.atlas.reader import Atlas
from gemscope.atlas.writer import Writer
from gemscope.errors import CorruptFile, InputError, NotFound
from gemscope.progress import Progress, silent

Array = np.ndarray[Any, np.dtype[Any]]
_BLOCK = 512
"""Features read at a time: 6 MB."""
_ROWS = 1024
"""Rows of the corpus read at a time."""


def import_atlas(
    path: str | Path,
    to: str | Path,
    *,
    sae: str,
    model: Any = None,
    whole_corpus: bool = False,
    progress: Progress = silent,
) -> Atlas:
    """Reads an `examples.safetensors` into a new atlas at `to`.

    `sae` is the address of the SAE that it lies beside. `model` (a LanguageModel, or its tokenizer) knows what the ids
    of tokens stand for; without it they are shown as numbers. Rows of the corpus that no example lies in are left out
    unless `whole_corpus`.

    Raises NotFound, CorruptFile (naming the tensors found), InputError.
    """
    path, to = Path(path), Path(to)
    if not path.is_file():
        raise NotFound(f"no file {path}: it lies beside the SAE's params.safetensors")
    with Writer(to) as writer:
        file = File(path)
        sizes = sizes_of(file, path)
        picked, frequencies = _pick_all(file, sizes, path, progress)
        rows = np.arange(sizes.rows) if whole_corpus else np.unique(np.concatenate([one.rows for one in picked]))
        picked = [one.placed(rows, sizes.length) for one in picked]
        scale = _counting(frequencies, sizes)
        used = _add_rows(writer, file, rows, sizes, progress)
        has_logits = False
        with progress("write", sizes.features, "features") as advance:
            for block, one in zip(_blocks(sizes.features), picked, strict=True):
                logits = [file(name, block) for name in KEYS[:4]]
                used |= set(np.unique(np.concatenate([logits[0].ravel(), logits[2].ravel()])).tolist())
                has_logits |= bool(logits[0].size)
                for number in range(block.stop - block.start):
                    count = round(float(frequencies[block.start + number]) * scale)
                    writer.add(_entry(block.start + number, count, one, [some[number] for some in logits]))
                    advance(1)
        texts, special = _texts(model, used)
        writer.add_tokens(texts, special)
        manifest = _manifest(
            sae, model, sizes, rows=len(rows), whole=whole_corpus, shares=scale != 1, logits=has_logits
        )
        return writer.finish(manifest)


def _blocks(features: int) -> Iterator[slice]:
    for start in range(0, features, _BLOCK):
        yield slice(start, min(start + _BLOCK, features))


def _pick_all(file: File, sizes: Sizes, path: Path, progress: Progress) -> tuple[list[Picked], Array]:
    picked = []
    with progress("read", sizes.features, "features") as advance:
        for block in _blocks(sizes.features):
            values, rows, columns = (file(name, block) for name in ("activations", "seq_ids", "positions"))
            # Places that are not filled: features that fire more rarely than there is room for.
            there = (values > 0) & np.isfinite(values) & (rows >= 0) & (columns >= 0)
            beyond = there & ((rows >= sizes.rows) | (columns >= sizes.length))
            if beyond.any():
                feature = block.start + int(np.flatnonzero(beyond.any(axis=1))[0])
                raise CorruptFile(f"{path}: feature {feature} has an example outside the file's own corpus")
            picked.append(pick(values, rows, columns, there))
            advance(block.stop - block.start)
    frequencies = file("feature_frequencies").astype(np.float64)
    if not np.isfinite(frequencies).all() or (frequencies < 0).any():
        raise CorruptFile(f"{path}: feature_frequencies holds numbers that are no frequencies")
    return picked, frequencies


def _add_rows(writer: Writer, file: File, rows: Array, sizes: Sizes, progress: Progress) -> set[int]:
    """The corpus, as far as it is kept; returns the ids that occur."""
    used: set[int] = set()
    with progress("copy", len(rows), "rows") as advance:
        for start in range(0, sizes.rows, _ROWS):
            low, high = np.searchsorted(rows, (start, start + _ROWS))
            if low == high:
                continue
            ids = file("tokens", slice(start, start + _ROWS))[rows[low:high] - start]
            if (ids >= 1 << 31).any():
                raise CorruptFile("examples.safetensors: tokens holds numbers that are no ids of tokens")
            ids = np.maximum(ids, -1)
            writer.add_rows(ids.astype(np.int32))
            used |= set(np.unique(ids).tolist())
            advance(len(ids))
    return used - {-1}


def _entry(index: int, count: int, picked: Picked, logits: list[Array]) -> Entry:
    number = index % _BLOCK
    low, high = np.searchsorted(picked.owners, (number, number + 1))
    first, last = np.searchsorted(picked.cell_owners, (low, high))
    own = slice(low, high)
    top_ids, top, bottom_ids, bottom = logits
    falling, rising = np.argsort(-top, kind="stable"), np.argsort(bottom, kind="stable")
    intervals = high > low
    return Entry(
        index=index,
        count=max(count, int(picked.stored[number])),
        max=float(picked.maxima[number]),
        mean=float(picked.means[number]),
        edges=picked.edges[number] if intervals else np.zeros(0, np.float32),
        interval_counts=picked.counts[number] if intervals else np.zeros(0, np.int64),
        positions=picked.columns[own],
        intervals=picked.intervals[own],
        owners=picked.cell_owners[first:last] - low,
        columns=picked.cell_columns[first:last],
        values=picked.cell_values[first:last],
        promoted=top_ids[falling],
        promoted_values=top[falling].astype(np.float32),
        suppressed=bottom_ids[rising],
        suppressed_values=bottom[rising].astype(np.float32),
    )


def _counting(frequencies: Array, sizes: Sizes) -> float:
    """What a frequency is multiplied by to give a count: numbers up to 1 are shares of the file's tokens."""
    if frequencies.max(initial=0) <= 1:
        return float(sizes.rows * sizes.length)
    if (frequencies != np.rint(frequencies)).any():
        raise InputError("feature_frequencies holds neither shares of the tokens nor whole numbers: it cannot be read")
    return 1.0


def _texts(model: Any, used: set[int]) -> tuple[dict[int, bytes], set[int]]:
    if model is None:
        return {id_: number_of(id_) for id_ in used}, set()
    special = set(model.special_ids if hasattr(model, "special_ids") else getattr(model, "all_special_ids", ()))
    return bytes_in(model, sorted(used)), special & used


def _manifest(sae: str, model: Any, sizes: Sizes, *, rows: int, whole: bool, shares: bool, logits: bool) -> Manifest:
    entry = in_catalog("address", sae)
    name = entry.model if entry else str(getattr(model, "name", None) or "unknown")
    site, site_out = (str(entry.site), str(entry.site_out)) if entry else ("unknown", "unknown")
    source = f"{entry.site}-{entry.width_label}".replace(".", "-") if entry else slugged(sae.rsplit("/", 1)[-1])
    model_id, _, np_source = (entry.neuronpedia_id or "").partition("/") if entry else ("", "", "")
    return imported(
        text="the corpus of examples.safetensors",
        rows=rows,
        counted=sizes.rows * sizes.length,
        logits="as the file has them: which norm is folded is not said" if logits else None,
        none="examples.safetensors holds none",
        model=name,
        model_id=slugged(model_id or name.rsplit("/", 1)[-1]),
        source_id=slugged(np_source or source),
        revision=None,
        sae=sae,
        sae_digest="",
        site=site,
        site_out=site_out,
        gate="jumprelu",
        d_sae=sizes.features,
        length=sizes.length,
        before=BEFORE,
        after=AFTER,
        options={"import": "gemma-scope-2", "whole_corpus": whole},
        metadata={
            "counts": "frequencies times the tokens of the file's corpus" if shares else "as the file has them",
            "mean": f"over the file's examples, {sizes.each} of a feature at most",
            "intervals": f"how many of the file's examples lie in each, {sizes.each} of a feature at most",
            "windows": "activations are known at the places of the file's examples alone",
            "tokens": "ids, as no tokenizer was given" if model is None else "as the tokenizer has them",
        },
        neuronpedia_id=entry.neuronpedia_id if entry else None,
    )
