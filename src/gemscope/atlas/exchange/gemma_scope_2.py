"""An atlas from the `examples.safetensors` that lies beside every SAE of Gemma Scope 2: no model is run for it.

The file holds, for each feature, a thousand places of a corpus where it fires and how strongly. Of the other tokens
around them it says nothing: a window shows the activations of those places alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemscope.atlas.entry import Entry
from gemscope.atlas.exchange.folder import slugged
from gemscope.atlas.exchange.pieces import bytes_in, number_of
from gemscope.errors import CorruptFile, InputError, NotFound
from gemscope.progress import Progress, silent

if TYPE_CHECKING:
    from gemscope.atlas.reader import Atlas
    from gemscope.atlas.writer import Writer

Array = np.ndarray[Any, np.dtype[Any]]

KEYS = (
    "top_tokens", "top_logits", "bottom_tokens", "bottom_logits", "activations", "seq_ids", "positions",
    "feature_frequencies", "tokens",
)  # fmt: skip
_WHOLE = ("top_tokens", "bottom_tokens", "seq_ids", "positions", "tokens")
_BLOCK = 512
"""Features read at a time: 6 MB."""
_ROWS = 1024
"""Rows of the corpus read at a time."""
_TOP, _EACH, _INTERVALS = 20, 5, 5
"""Strongest examples; examples from each of so many equal parts of 0 to the maximum."""
_BEFORE, _AFTER = 40, 23


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
    from gemscope.atlas.writer import Writer

    path, to = Path(path), Path(to)
    if not path.is_file():
        raise NotFound(f"no file {path}: it lies beside the SAE's params.safetensors")
    with Writer(to) as writer, _opened(path) as file:
        sizes = _sizes(file, path)
        picked, frequencies = _pick_all(file, sizes, path, progress)
        rows = np.arange(sizes.rows) if whole_corpus else np.unique(np.concatenate([one.rows for one in picked]))
        picked = [one.placed(rows, sizes.length) for one in picked]
        scale = _counting(frequencies, sizes)
        used = _add_rows(writer, file, rows, sizes, progress)
        has_logits = False
        with progress("write", sizes.features, "features") as advance:
            for block, one in zip(_blocks(sizes.features), picked, strict=True):
                logits = [file[name][block.start : block.stop] for name in KEYS[:4]]
                used |= set(np.unique(np.concatenate([logits[0].ravel(), logits[2].ravel()])).tolist())
                has_logits |= bool(logits[0].size)
                for number in range(len(block)):
                    count = round(float(frequencies[block.start + number]) * scale)
                    writer.add(_entry(block.start + number, count, one, [some[number] for some in logits]))
                    advance(1)
        texts, special = _texts(model, used)
        writer.add_tokens(texts, special)
        manifest = _manifest(
            sae, model, sizes, rows=len(rows), whole=whole_corpus, shares=scale != 1, logits=has_logits
        )
        return writer.finish(manifest)


# --- the file -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sizes:
    features: int
    each: int
    """Examples of a feature."""
    rows: int
    length: int


class _File:
    """Slices of tensors, read as they are asked for."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened

    def __enter__(self) -> _File:
        self._file = self._opened.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._opened.__exit__(*raised)

    def kind(self, name: str) -> str:
        """What a tensor's numbers are: I32, BF16 and so on."""
        found: str = self._file.get_slice(name).get_dtype()
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> _Slice:
        return _Slice(self._file.get_slice(name))


@dataclass(frozen=True)
class _Slice:
    of: Any

    def __getitem__(self, rows: slice) -> Array:
        tensor = self.of[rows]
        whole = not tensor.dtype.is_floating_point
        out: Array = (tensor.long() if whole else tensor.float()).numpy()  # bfloat16 is none of numpy's
        return out


def _opened(path: Path) -> _File:
    from safetensors import SafetensorError, safe_open

    try:
        return _File(safe_open(path, framework="pt"))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CorruptFile(f"{path} is no whole safetensors file ({reason}): delete it and fetch it again") from error


def _sizes(file: _File, path: Path) -> _Sizes:
    """Raises CorruptFile, naming what was found, unless all tensors are there and fit each other."""
    shapes = file.shapes()
    found = ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items())) or "nothing"
    wrong = [name for name in KEYS if name not in shapes]
    if not wrong and len(shapes["activations"]) == 2 and len(shapes["tokens"]) == 2:
        features, each = shapes["activations"]
        logits = shapes["top_tokens"][-1:]
        expected = {
            "seq_ids": (features, each),
            "positions": (features, each),
            "feature_frequencies": (features,),
            **dict.fromkeys(KEYS[:4], (features, *logits)),
        }
        wrong = [name for name, shape in expected.items() if shapes[name] != shape]
        if not wrong:
            for name in KEYS:
                if not file.kind(name).startswith(("I", "U") if name in _WHOLE else ("I", "U", "F", "BF")):
                    what = "whole numbers" if name in _WHOLE else "numbers"
                    raise CorruptFile(f"{path}: {name} holds no {what}, as they are in Gemma Scope 2's examples")
            return _Sizes(features, each, *shapes["tokens"])
    raise CorruptFile(
        f"{path} holds {found}: expected Gemma Scope 2's examples, with {', '.join(KEYS)}"
        + (f"; {', '.join(wrong)} is missing or of another shape" if wrong else "")
    )


def _blocks(features: int) -> Iterator[range]:
    for start in range(0, features, _BLOCK):
        yield range(start, min(start + _BLOCK, features))


# --- choosing examples ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Picked:
    """Of a block of features: the chosen examples, and the cells of their windows."""

    owners: Array
    """[n] the example's feature within the block, ascending; the strongest come first."""
    rows: Array
    """[n] row of the file's corpus."""
    columns: Array
    """[n] token of the row; once `placed`, token of the whole corpus that is kept."""
    intervals: Array
    """[n] -1 among the strongest."""
    cell_owners: Array
    """[z] the cell's example."""
    cell_columns: Array
    cell_values: Array
    counts: Array
    """[features, intervals] of the file's examples, in each interval."""
    edges: Array
    """[features, intervals + 1]"""
    maxima: Array
    means: Array
    stored: Array
    """[features] examples that the file has."""

    def placed(self, rows: Array, length: int) -> _Picked:
        """In a corpus of these rows alone."""
        return replace(self, columns=np.searchsorted(rows, self.rows) * length + self.columns)


def _pick_all(file: _File, sizes: _Sizes, path: Path, progress: Progress) -> tuple[list[_Picked], Array]:
    picked = []
    with progress("read", sizes.features, "features") as advance:
        for block in _blocks(sizes.features):
            values, rows, columns = (
                file[name][block.start : block.stop] for name in ("activations", "seq_ids", "positions")
            )
            # Places that are not filled: features that fire more rarely than there is room for.
            there = (values > 0) & np.isfinite(values) & (rows >= 0) & (columns >= 0)
            beyond = there & ((rows >= sizes.rows) | (columns >= sizes.length))
            if beyond.any():
                feature = block.start + int(np.flatnonzero(beyond.any(axis=1))[0])
                raise CorruptFile(f"{path}: feature {feature} has an example outside the file's own corpus")
            picked.append(_pick(values, rows, columns, there))
            advance(len(block))
    frequencies = file["feature_frequencies"][:].astype(np.float64)
    if not np.isfinite(frequencies).all() or (frequencies < 0).any():
        raise CorruptFile(f"{path}: feature_frequencies holds numbers that are no frequencies")
    return picked, frequencies


def _pick(values: Array, rows: Array, columns: Array, there: Array) -> _Picked:
    features = len(values)
    owners: list[int] = []
    chosen: list[tuple[int, int, int]] = []
    cells: list[tuple[Array, Array]] = []
    counts = np.zeros((features, _INTERVALS), np.int64)
    maxima = np.where(there, values, 0).max(axis=1, initial=0).astype(np.float32)
    edges = maxima[:, None] * np.linspace(0, 1, _INTERVALS + 1, dtype=np.float32)
    edges[:, -1] = np.nextafter(edges[:, -1], np.float32(np.inf))
    stored = there.sum(axis=1)
    sums = np.where(there, values, 0).sum(axis=1, dtype=np.float64)
    for feature in range(features):
        mine = np.flatnonzero(there[feature])
        # The strongest first; of equals the one that comes first in the corpus.
        order = mine[np.lexsort((columns[feature, mine], rows[feature, mine], -values[feature, mine]))]
        if not len(order):
            continue
        own, row, column = values[feature, order], rows[feature, order], columns[feature, order]
        interval = np.clip(np.searchsorted(edges[feature], own, side="right") - 1, 0, _INTERVALS - 1)
        counts[feature] = np.bincount(interval, minlength=_INTERVALS)
        for one, group in _chosen(row, column, interval):
            near = (row == row[one]) & (column >= column[one] - _BEFORE) & (column <= column[one] + _AFTER)
            at, first = np.unique(column[near], return_index=True)
            cells.append((at, own[near][first]))
            owners.append(feature)
            chosen.append((int(row[one]), int(column[one]), group))
    flat = np.array(chosen, np.int64).reshape(-1, 3)
    return _Picked(
        owners=np.array(owners, np.int64),
        rows=flat[:, 0],
        columns=flat[:, 1],
        intervals=flat[:, 2],
        cell_owners=np.repeat(np.arange(len(cells)), [len(at) for at, _ in cells]),
        cell_columns=np.concatenate([at for at, _ in cells] or [np.zeros(0, np.int64)]),
        cell_values=np.concatenate([own for _, own in cells] or [np.zeros(0, np.float32)]).astype(np.float32),
        counts=counts,
        edges=edges,
        maxima=maxima,
        means=np.divide(sums, stored, out=np.zeros(features), where=stored > 0),
        stored=stored,
    )


def _chosen(row: Array, column: Array, interval: Array) -> Iterator[tuple[int, int]]:
    """Which of a feature's examples (strongest first) are shown, and in which group (-1: the strongest).

    One whose token is seen in the window of another already chosen is passed over.
    """
    taken = np.zeros(len(row), bool)

    def take(one: int) -> None:
        taken[(row == row[one]) & (np.abs(column - column[one]) <= min(_BEFORE, _AFTER))] = True

    left = _TOP
    for one in range(len(row)):
        if left and not taken[one]:
            take(one)
            left -= 1
            yield one, -1
    for group in reversed(range(_INTERVALS)):
        among = np.flatnonzero((interval == group) & ~taken)
        # Evenly over the interval's ranks.
        for one in among[np.unique(np.linspace(0, len(among) - 1, min(_EACH, len(among))).astype(int))].tolist():
            if not taken[one]:
                take(one)
                yield one, group


# --- writing --------------------------------------------------------------------------------------------------------


def _add_rows(writer: Writer, file: _File, rows: Array, sizes: _Sizes, progress: Progress) -> set[int]:
    """The corpus, as far as it is kept; returns the ids that occur."""
    used: set[int] = set()
    with progress("copy", len(rows), "rows") as advance:
        for start in range(0, sizes.rows, _ROWS):
            low, high = np.searchsorted(rows, (start, start + _ROWS))
            if low == high:
                continue
            ids = file["tokens"][start : start + _ROWS][rows[low:high] - start]
            if (ids >= 1 << 31).any():
                raise CorruptFile("examples.safetensors: tokens holds numbers that are no ids of tokens")
            ids = np.maximum(ids, -1)
            writer.add_rows(ids.astype(np.int32))
            used |= set(np.unique(ids).tolist())
            advance(len(ids))
    return used - {-1}


def _entry(index: int, count: int, picked: _Picked, logits: list[Array]) -> Entry:
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


def _counting(frequencies: Array, sizes: _Sizes) -> float:
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


def _manifest(sae: str, model: Any, sizes: _Sizes, *, rows: int, whole: bool, shares: bool, logits: bool) -> Any:
    from gemscope import __version__
    from gemscope.atlas.files.manifest import FORMAT, Manifest, Part

    entry = _in_catalog(sae)
    name = entry.model if entry else str(getattr(model, "name", None) or "unknown")
    site, site_out = (str(entry.site), str(entry.site_out)) if entry else ("unknown", "unknown")
    source = f"{entry.site}-{entry.width_label}".replace(".", "-") if entry else slugged(sae.rsplit("/", 1)[-1])
    model_id, _, np_source = (entry.neuronpedia_id or "").partition("/") if entry else ("", "", "")
    return Manifest(
        format=FORMAT,
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
        parts=(
            Part(
                name="the corpus of examples.safetensors",
                digest="",
                rows=rows,
                documents=0,
                counted=sizes.rows * sizes.length,
                masked={},
            ),
        ),
        length=sizes.length,
        before=_BEFORE,
        after=_AFTER,
        bos=False,
        logits="as the file has them: which norm is folded is not said" if logits else None,
        no_logits=None if logits else "examples.safetensors holds none",
        coactivation="not measured: examples.safetensors holds none",
        options={"import": "gemma-scope-2", "whole_corpus": whole},
        versions={"gemscope": __version__},
        metadata={
            "counts": "frequencies times the tokens of the file's corpus" if shares else "as the file has them",
            "mean": f"over the file's examples, {sizes.each} of a feature at most",
            "intervals": f"how many of the file's examples lie in each, {sizes.each} of a feature at most",
            "windows": "activations are known at the places of the file's examples alone",
            "tokens": "ids, as no tokenizer was given" if model is None else "as the tokenizer has them",
        },
        neuronpedia_id=entry.neuronpedia_id if entry else None,
    )


def _in_catalog(sae: str) -> Any:
    from gemscope.features.catalog import snapshot

    return next((entry for entry in snapshot() if entry.address == sae), None)
