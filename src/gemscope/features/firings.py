"""All that fires of several SAEs on the same tokens of a text, and how two features correlate over them: exact, over
every counted token. What was read is kept beside the result, so that a reading that was stopped goes on.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from gemscope.activations.model import LanguageModel
from gemscope.checked import Form, as_read, require_forms
from gemscope.disk import claimed, room, synced
from gemscope.errors import CorruptFile, InputError, NotFound
from gemscope.features.activations import FeatureActivations
from gemscope.features.cofiring import ranges
from gemscope.features.fit import require_fit
from gemscope.features.sae import SAE
from gemscope.features.sealed import require_same, seal, unsealed
from gemscope.progress import Progress, silent
from gemscope.text.corpus import Corpus

Array = np.ndarray[Any, np.dtype[Any]]

_NAME, _REMEDY = "gemscope_firings", "remove it to begin anew"


@dataclass(frozen=True)
class Firings:
    """What fires of one SAE on N tokens, token by token: E entries."""

    d_sae: int
    sizes: Array
    """int64 [N]: active features of each token."""
    ids: Array
    """uint16, or int32 where there are more of them [E]: those of the first token, of the second, ..."""
    values: Array
    """float32 [E]"""
    scale: float = 1.0
    """Mean scale of the tokens, of an SAE with a norm."""

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.sizes)

    @cached_property
    def starts(self) -> Array:
        """int64 [N]: where each token's entries begin."""
        starts: Array = self.sizes.cumsum() - self.sizes
        return starts

    @cached_property
    def counts(self) -> Array:
        """int64 [F]: tokens on which each feature fires."""
        return np.bincount(self.ids, minlength=self.d_sae)

    @cached_property
    def sums(self) -> tuple[Array, Array]:
        """float64 [F]: of each feature's activations, and of their squares."""
        values = self.values.astype(np.float64)
        first, second = (np.bincount(self.ids, weights, self.d_sae) for weights in (values, values**2))
        return first, second

    @cached_property
    def means(self) -> Array:
        """float64 [F]: of each feature's activations where it fires; 0 for one that does not."""
        means: Array = self.sums[0] / np.maximum(1, self.counts)
        return means

    @cached_property
    def _order(self) -> tuple[Array, Array]:
        """Entries, those of the first feature first; and where each feature's end."""
        return np.argsort(self.ids, kind="stable"), self.counts.cumsum()

    @cached_property
    def _token(self) -> Array:
        return np.repeat(np.arange(self.tokens, dtype=np.int64), self.sizes)

    def of(self, feature: int) -> tuple[Array, Array]:
        """The tokens on which a feature fires, ascending, and its activations there."""
        order, ends = self._order
        mine = order[ends[feature] - self.counts[feature] : ends[feature]]
        return self._token[mine], self.values[mine]

    def beside(self, other: Firings, features: Sequence[int], *, shift: int = 0) -> tuple[Array, Array]:
        """For each of some features and every one of the other SAE's: Pearson's correlation of their activations over
        all N tokens, zeros where they do not fire included (float32 [n, G]; 0 for one that never changes), and on how
        many tokens both fire (int32 [n, G]).

            r = (Σ ab / N − ā b̄) / √((Σ a² / N − ā²) (Σ b² / N − b̄²))

        With a `shift` each token is taken with the other's token that many places further on, from the end to the
        beginning: what is left is chance.
        """
        n, beginning, sizes = self.tokens, other.starts, other.sizes
        mean, spread = self._moments
        mean_there, spread_there = other._moments
        correlation = np.zeros((len(features), other.d_sae), np.float32)
        both = np.zeros((len(features), other.d_sae), np.int32)
        for row, feature in enumerate(features):
            tokens, values = self.of(feature)
            if not len(tokens):
                continue
            there = (tokens + shift) % n
            entries = ranges(beginning[there], sizes[there])
            ids = other.ids[entries]
            weights = np.repeat(values.astype(np.float64), sizes[there]) * other.values[entries]
            both[row] = np.bincount(ids, minlength=other.d_sae)
            product = np.bincount(ids, weights, other.d_sae) / n
            under = spread[feature] * spread_there
            correlation[row] = np.where(
                under > 0, (product - mean[feature] * mean_there) / np.where(under > 0, under, 1.0), 0.0
            )
        return correlation, both

    @cached_property
    def _moments(self) -> tuple[Array, Array]:
        """float64 [F]: mean and standard deviation over all tokens."""
        first, second = self.sums
        mean = first / max(1, self.tokens)
        return mean, np.sqrt(np.maximum(0.0, second / max(1, self.tokens) - mean**2))


@dataclass(frozen=True)
class Read:
    """A text that was read through several SAEs."""

    firings: tuple[Firings, ...]
    """Of each, on the same tokens."""
    dropped: dict[str, int]
    """Places of the text that count for none, by reason."""


def read_firings(
    model: LanguageModel,
    saes: Sequence[SAE],
    corpus: Corpus,
    *,
    tokens: int,
    length: int = 128,
    batch: int = 16,
    kept: Kept | None = None,
    progress: Progress = silent,
) -> Read:
    """Reads a text once, until about `tokens` tokens counted, in rows of `length`: special tokens, first positions,
    padding and attention sinks count for none. Memory grows with what fires, 20 bytes an entry. With `kept` what was
    read before is not read again.

    Raises Mismatch, InputError for text that gives no token that counts, and what `capture` and `encode` raise.
    """
    sites = [require_fit(model, sae) for sae in saes]
    pieces = [] if kept is None else list(kept.pieces([sae.d_sae for sae in saes]))
    done, seen = len(pieces), sum(len(piece["sizes.0"]) for piece in pieces)
    with progress("read", tokens, "tokens") as advance:
        advance(min(seen, tokens))
        for rows in islice(model.rows(corpus, length=length, batch=batch), done, None):
            if seen >= tokens:
                break
            captured = model.capture(rows, sites)
            piece: dict[str, Array] = {}
            for number, (sae, site) in enumerate(zip(saes, sites, strict=True)):
                piece |= {f"{name}.{number}": part for name, part in _counted(sae.encode(captured[site])).items()}
            some = captured[sites[0]]
            piece["dropped"] = np.array([some.dropped[reason] for reason in _REASONS])
            if kept is not None:
                kept.add(piece)
            pieces.append(piece)
            advance(min(len(piece["sizes.0"]), tokens - seen))
            seen += len(piece["sizes.0"])
    if not seen:
        raise InputError(f"{corpus.name} gave no token that counts, in rows of {length}: give more text")
    dropped = Counter[str]()
    for piece in pieces:
        dropped.update(dict(zip(_REASONS, piece["dropped"].tolist(), strict=True)))
    found = []
    for number, sae in enumerate(saes):
        sizes, ids, values, scales = (
            np.concatenate([piece[f"{name}.{number}"] for piece in pieces])
            for name in ("sizes", "ids", "values", "scales")
        )
        found.append(Firings(sae.d_sae, sizes, ids, values, float(scales.mean()) if len(scales) else 1.0))
    return Read(tuple(found), dict(dropped))


_REASONS = ("padding", "first", "special", "sink")


def _counted(found: FeatureActivations) -> dict[str, Array]:
    """What fires on counted tokens alone; and the scale of these, where they have one."""
    found = found.to("cpu")
    assert found.counted is not None
    counted = found.counted.reshape(-1)
    entries = counted[found.tokens]
    scales = np.zeros(0, np.float32) if found.scale is None else found.scale.reshape(-1)[counted].float().numpy()
    return {
        "sizes": found.offsets.diff()[counted].numpy(),
        "ids": found.features[entries].numpy().astype(_kind(found.d_sae)),
        "values": found.values[entries].float().numpy(),
        "scales": scales,
    }


# --- what was read, on the disk -----------------------------------------------------------------------------------


class Kept:
    """A folder with what was read so far: a file for each batch of rows, whole or not there."""

    def __init__(self, folder: Path, place: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self._place, self._settings = folder, place, as_read(settings)
        self._next = 0

    def pieces(self, widths: Sequence[int]) -> Iterator[dict[str, Array]]:
        """From the first on, of SAEs of so many features. Raises InputError for another reading's, CorruptFile."""
        for number in count():
            path = self._path(number)
            try:
                settings, tensors = unsealed(
                    _NAME, path, dict[str, Any], lacking="holds no firings", remedy=_REMEDY, framework="np"
                )
            except NotFound:
                self._next = number
                return
            require_same(settings, self._settings, f"{self.folder} holds what was read")
            _require_sound(tensors, widths, path)
            yield tensors

    def add(self, piece: Mapping[str, Array]) -> None:
        """One more batch. Raises StorageFull, FileError."""
        from safetensors.numpy import save_file

        path = self._path(self._next)
        aside = self._place / path.name
        with room(path, self._place):
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(dict(piece), aside, seal(_NAME, piece, self._settings))
            synced(aside)
            os.replace(aside, path)
        self._next += 1

    def discard(self) -> None:
        """What it was for is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"


def _require_sound(piece: Mapping[str, Array], widths: Sequence[int], path: Path) -> None:
    """Raises CorruptFile for what no reading left."""
    tokens = len(piece.get("sizes.0", ()))
    forms = {"dropped": Form((len(_REASONS),), "int64", 0)}
    for number, width in enumerate(widths):
        forms[f"sizes.{number}"] = Form((tokens,), "int64", 0, width)
        forms[f"ids.{number}"] = Form((None,), np.dtype(_kind(width)).name, 0, width - 1)
        forms[f"values.{number}"] = Form((None,), "float32", 0)
        forms[f"scales.{number}"] = Form((None,), "float32", 0)
    require_forms(piece, forms, where=str(path))
    for number in range(len(widths)):
        entries = int(piece[f"sizes.{number}"].sum())
        sizes = [len(piece[f"{name}.{number}"]) for name in ("ids", "values", "scales")]
        if sizes[:2] != [entries, entries] or sizes[2] not in (0, tokens):
            raise CorruptFile(f"{path}: its tokens have {entries} features, of which there are {sizes[0]}: {_REMEDY}")


def _kind(width: int) -> type[np.generic]:
    """What ids of so many features are kept as."""
    return np.uint16 if width <= 1 << 16 else np.int32


@contextmanager
def keeping(folder: Path, settings: Mapping[str, Any]) -> Iterator[Kept]:
    """What was begun in a folder, while nobody else is at it. Raises AccessError where another is, FileError."""
    with claimed(folder) as place:
        yield Kept(folder, place, settings)
