"""Atlases of several texts put together: the same, byte for byte, as one pass over all of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gemscope.atlas.dashboard import Explanation
from gemscope.atlas.describe.compose import compose
from gemscope.atlas.describe.effects import UNREAD, keep, measured
from gemscope.atlas.describe.gather import DescribeConfig, Described, Statistics
from gemscope.atlas.describe.mapping import plane_of
from gemscope.atlas.files.whole import EFFECT, SUMS
from gemscope.atlas.labels.scoring import score_labels
from gemscope.atlas.reader import Atlas
from gemscope.checked import read_tensors
from gemscope.errors import CorruptFile, InputError, Mismatch, NotFound
from gemscope.features.effect import Effect
from gemscope.features.examples import Kept
from gemscope.features.map import Plane
from gemscope.progress import Progress, silent

Array = np.ndarray[Any, np.dtype[Any]]

_ALIKE = (
    "model",
    "revision",
    "sae_digest",
    "site",
    "site_out",
    "length",
    "before",
    "after",
    "bos",
    "logits",
)
_OF_WEIGHTS = (
    *("encoder_cosine", "decoder_norm", "promoted", "promoted_values", "suppressed", "suppressed_values"),
    *("logit_low", "logit_step", "logit_histogram", "neighbours", "cosines"),
)
_ROWS = 4096
"""Of the corpus, copied at a time."""
_BLOCK = 256
"""Features whose examples are taken over at a time."""


def merge(atlases: Sequence[Atlas | str | Path], *, to: str | Path, progress: Progress = silent) -> Atlas:
    """One atlas of all the texts that several atlases of one SAE were made of, in the order given.

    The same bytes as one pass over all of the texts, but for the effect of the site: that of the merged atlas is the
    mean over what each was measured on, kept beside it; where these differ, no feature is read by it until `add_effect`
    does, as that takes the model.

    Each needs its `sums.safetensors`, which `describe` leaves beside it. Labels come along; where several say
    something of a feature, the best one shows, and the last one's of equals; rules are scored anew.

    Raises Mismatch where the atlases are not of one SAE made with the same settings, NotFound for missing sums,
    InputError for fewer than two.
    """
    opened = [one if isinstance(one, Atlas) else Atlas(one) for one in atlases]
    if len(opened) < 2:
        raise InputError(f"{len(opened)} atlases given: at least two make one")
    first = opened[0]
    for other in opened[1:]:
        _require_alike(first, other)
    try:
        config = DescribeConfig(**{"effect": 0, **first.manifest.options})
    except (TypeError, InputError) as error:
        raise CorruptFile(f"{first.folder} does not say how it was made: {error}") from error
    with progress("merge", sum(map(len, opened)), "features") as advance:
        whole = _statistics(first, config)
        advance(len(first))
        shift = first.manifest.rows * config.length
        for other in opened[1:]:
            whole.merge(_statistics(other, config), shift)
            shift += other.manifest.rows * config.length
            advance(len(other))
    described = Described(
        whole,
        [part for one in opened for part in one.manifest.parts],
        lambda: (block for one in opened for block in _blocks(one)),
        lambda: _documents(opened),
        first.manifest.bos,
    )
    said = _explanations(opened)
    merged = compose(
        _FromAtlases(opened, _effects(opened)), described, to=Path(to), config=config, said=said, progress=progress
    )
    if len(merged.pool) and any(one.rule for _, one in said):
        score_labels(merged, progress=progress)
    return merged


def _require_alike(one: Atlas, other: Atlas) -> None:
    for name in _ALIKE:
        ours, theirs = getattr(one.manifest, name), getattr(other.manifest, name)
        if ours != theirs:
            raise Mismatch(
                f"{one.folder} and {other.folder} cannot be merged: their {name} differ ({ours!r} and {theirs!r})"
            )
    if (ours := _options(one)) != (theirs := _options(other)):
        raise Mismatch(
            f"{one.folder} and {other.folder} cannot be merged: their options differ ({ours!r} and {theirs!r})"
        )


def _options(atlas: Atlas) -> Mapping[str, Any]:
    """How it was made, but for the effect, which may have been put in later."""
    return {name: value for name, value in atlas.manifest.options.items() if name != "effect"}


def _statistics(atlas: Atlas, config: DescribeConfig) -> Statistics:
    """What was gathered for an atlas, from its pages and the sums beside it."""
    path = atlas.folder / SUMS
    statistics = Statistics(len(atlas), config)
    try:
        statistics.restore_sums(read_tensors(path, framework="np")[0])
    except NotFound:
        raise NotFound(f"no {SUMS} in {atlas.folder}: merging needs what describe leaves there") from None
    except CorruptFile as error:
        raise CorruptFile(f"{path} is damaged: {error}") from error
    if config.pool:
        statistics.held_out.keep(atlas.pool)
    exponents = statistics.tally.exponents.numpy()
    for start in range(0, len(atlas), _BLOCK):
        kept = _kept(atlas, range(start, min(len(atlas), start + _BLOCK)), config)
        if (kept.values >= np.ldexp(1.0, exponents[kept.features])).any():
            raise CorruptFile(f"{atlas.folder} holds an example above its feature's maximum: copy it again")
        statistics.examples.keep(kept, exponents)
    return statistics


def _kept(atlas: Atlas, some: range, config: DescribeConfig) -> Kept:
    entries = [atlas.entry(feature) for feature in some]
    counts = [len(entry.positions) for entry in entries]
    positions = np.concatenate([entry.positions.astype(np.int64) for entry in entries])
    first = np.cumsum([0, *counts[:-1]])
    owners = np.concatenate([entry.owners + start for entry, start in zip(entries, first, strict=True)])
    columns = np.concatenate([entry.columns for entry in entries]) - positions[owners] % config.length
    cells = np.concatenate([entry.values for entry in entries])
    values = np.zeros(len(positions), np.float32)
    values[owners[columns == 0]] = cells[columns == 0]
    if len(columns) and not -config.before <= int(columns.min()) <= int(columns.max()) <= config.after:
        raise CorruptFile(f"{atlas.folder} holds examples wider than its manifest says: copy it again")
    windows = np.zeros((len(positions), config.before + 1 + config.after), np.float16)
    windows[owners, config.before + columns] = cells / values[owners]
    return Kept(
        features=np.repeat(np.arange(some.start, some.stop), counts),
        drawn=np.concatenate([entry.intervals for entry in entries]) >= 0,
        keys=atlas.keys(positions),
        positions=positions,
        values=values,
        windows=windows,
    )


def _blocks(atlas: Atlas) -> Iterator[Array]:
    """The corpus, some rows at a time."""
    length = atlas.manifest.length
    for first in range(0, atlas.manifest.rows, _ROWS):
        some = np.arange(first * length, min(atlas.manifest.rows, first + _ROWS) * length)
        yield atlas.ids(some).reshape(-1, length)


def _documents(atlases: Sequence[Atlas]) -> Iterator[tuple[int, str, str]]:
    shift = 0
    for atlas in atlases:
        for start, source, license_ in atlas.documents():
            yield start + shift, source, license_
        shift += atlas.manifest.rows * atlas.manifest.length


def _explanations(atlases: Sequence[Atlas]) -> list[tuple[int, Explanation]]:
    """Of all, each once; what the last atlas says is the newest. What was tried on one's rows is to be tried anew."""
    every = [
        (feature, replace(one, score=None, control=None, trials=()) if one.trials else one)
        for atlas in atlases
        for feature, one in atlas.explanations()
    ]
    return list({(feature, replace(one, id=0)): (feature, one) for feature, one in every}.values())


def _effects(atlases: Sequence[Atlas]) -> Effect | str:
    """The mean over the texts of all; or why there is none."""
    reasons = {one.manifest.no_effect or "none was measured" for one in atlases if one.manifest.effect is None}
    if len(reasons) == 1 and not any(one.manifest.effect for one in atlases):
        return reasons.pop()
    found = []
    for one in atlases:
        if one.manifest.effect is None:
            return f"one of the atlases that were merged has none: {one.manifest.no_effect or 'none was measured'}"
        try:
            found.append(Effect.load(one.folder / EFFECT))
        except NotFound:
            return f"one of the atlases that were merged came without its {EFFECT}"
    return found[0] if len({one.digest for one in found}) == 1 else Effect.over(found)


class _FromAtlases:
    """What weights say, from the atlas that it was written into before."""

    def __init__(self, atlases: Sequence[Atlas], effect: Effect | str) -> None:
        """With the effect of all of them, or why there is none."""
        self._atlases, self._effect = atlases, effect
        digests = {one.manifest.effect.digest if one.manifest.effect else None for one in atlases}
        self._written = isinstance(effect, Effect) and digests == {effect.digest}
        """Whether all of them read features by this very effect."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Of the manifest."""
        manifest = self._atlases[0].manifest
        names = (
            *("model", "model_id", "source_id", "revision", "sae", "sae_digest", "site", "site_out"),
            *("gate", "d_sae", "logits", "no_logits", "versions", "neuronpedia_id"),
        )
        return {
            **{name: getattr(manifest, name) for name in names},
            "effect": measured(self._effect) if isinstance(self._effect, Effect) else None,
            "no_effect": self._effect if isinstance(self._effect, str) else None if self._written else UNREAD,
        }

    def plane(self, progress: Progress) -> Plane | str:
        """That of the first which has one."""
        found = [plane_of(atlas) for atlas in self._atlases]
        return next((one for one in found if isinstance(one, Plane)), found[0])

    def keep(self, folder: Path) -> None:
        """Puts the effect of all beside the atlas."""
        if isinstance(self._effect, Effect):
            keep(self._effect, folder)

    def features(self) -> Iterator[dict[str, Any]]:
        """For each feature in order, the fields of its entry that weights alone decide."""
        atlas = self._atlases[0]
        for feature in range(len(atlas)):
            entry = atlas.entry(feature)
            yield {name: getattr(entry, name) for name in _OF_WEIGHTS} | {
                "written": entry.written if self._written else None
            }

    def texts(self, ids: Sequence[int]) -> tuple[Mapping[int, bytes], Collection[int]]:
        """What tokens stand for, and which of them are special."""
        texts: dict[int, bytes] = {}
        special: set[int] = set()
        for atlas in self._atlases:
            texts |= atlas.tokens()
            special |= atlas.special
        for id_ in ids:
            if id_ not in texts:
                raise CorruptFile(
                    f"token {id_} is in the corpus or on a page of an atlas that is to be merged, and no vocabulary "
                    "has it: find the damaged one with gemscope atlas verify"
                )
        return {id_: texts[id_] for id_ in ids}, special.intersection(ids)
