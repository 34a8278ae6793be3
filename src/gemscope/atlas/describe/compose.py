"""From what was gathered and from weights, an atlas: every feature's entry in order, and what it all came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from safetensors.numpy import save_file

from gemscope.atlas.dashboard import Explanation
from gemscope.atlas.describe.gather import DescribeConfig, Described, Statistics
from gemscope.atlas.describe.mapping import mapped
from gemscope.atlas.describe.weights import present
from gemscope.atlas.entry import Entry
from gemscope.atlas.files import corpus
from gemscope.atlas.files.manifest import CROWDED, Crowded, Manifest
from gemscope.atlas.files.whole import SUMS
from gemscope.atlas.reader import Atlas
from gemscope.atlas.writer import Writer
from gemscope.features.best import Places
from gemscope.features.examples import INTERVALS
from gemscope.features.map import Plane
from gemscope.progress import Progress, silent

Array = np.ndarray[Any, np.dtype[Any]]

_BLOCK = 1024
"""Features composed at a time."""


@runtime_checkable
class Weights(Protocol):
    """What is known of an SAE's features without any text."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Of the manifest: model, SAE, convention of the logits."""

    def features(self) -> Iterator[dict[str, Any]]:
        """For each feature in order, the fields of its entry that the pass does not give."""

    def plane(self, progress: Progress) -> Plane | str:
        """The map of all features, or why there is none."""

    def keep(self, folder: Path) -> None:
        """Puts what is not on pages beside an atlas."""

    def texts(self, ids: Sequence[int]) -> tuple[Mapping[int, bytes], Collection[int]]:
        """What tokens stand for, and which of them are special."""


def compose(
    weights: Weights,
    described: Described,
    *,
    to: Path,
    config: DescribeConfig,
    said: Iterable[tuple[int, Explanation]] = (),
    progress: Progress = silent,
) -> Atlas:
    """Writes an atlas, with what is `said` of features. The same input gives the same bytes.

    Raises InputError where `to` exists, StorageFull, FileError.
    """
    statistics, facts = described.statistics, weights.facts
    with Writer(to) as writer:
        used: set[int] = set()
        tops: Counter[int] = Counter()
        for rows in described.blocks():
            used.update(np.unique(rows[rows >= 0]).tolist())
            writer.add_rows(rows)
        for start in described.starts():
            writer.add_document(*start)
        with progress("pages", statistics.tally.d_sae, "features") as advance:
            for entry in _entries(weights.features(), statistics, config):
                for ids in _named(entry):
                    used.update(ids.tolist())
                tops.update(entry.positions[:1].tolist())  # its strongest example comes first
                writer.add(entry)
                advance(1)
        on_map = weights.plane(progress)
        if isinstance(on_map, Plane):
            writer.add_places(on_map.places)
        writer.add_pool(statistics.held_out.pool())
        for feature, one in said:
            writer.add_explanation(feature, one)
        writer.add_tokens(*weights.texts(sorted(used)))
        with writer.beside(SUMS) as path:
            weights.keep(path.parent)
            save_file(statistics.sums(), path)
            path.chmod((path.parent / corpus.NAME).stat().st_mode)  # safetensors lets nobody else read it
        seen, counted = statistics.sample.tokens, statistics.tally.tokens
        return writer.finish(
            Manifest(
                **facts,
                parts=tuple(described.parts),
                length=config.length,
                before=config.before,
                after=config.after,
                bos=described.bos,
                crowded=_crowded(tops),
                coactivation=f"counted on {seen:,} of {counted:,} counted tokens" if config.partners else "not counted",
                options=asdict(config),
                map=mapped(on_map) if isinstance(on_map, Plane) else None,
                no_map=on_map if isinstance(on_map, str) else None,
                median_norm=statistics.median_norm,
            )
        )


def _named(entry: Entry) -> Iterator[Array]:
    """Tokens that its page names beside those of the text."""
    for one in (entry, entry.written):
        if one is not None:
            yield one.promoted
            yield one.suppressed


def _crowded(tops: Mapping[int, int]) -> tuple[Crowded, ...]:
    """Of places and how many features are strongest there."""
    most = sorted(tops.items(), key=lambda one: (-one[1], one[0]))[:100]
    return tuple(Crowded(position=position, features=count) for position, count in most if count > CROWDED)


def _entries(weights: Iterator[dict[str, Any]], statistics: Statistics, config: DescribeConfig) -> Iterator[Entry]:
    tally = statistics.tally
    exponents, steps, means = tally.exponents.numpy(), tally.steps.numpy(), tally.means.numpy()
    counts, maxima, bins = tally.counts.numpy(), tally.max.numpy(), tally.bins.numpy()
    edges = np.ldexp(np.arange(INTERVALS + 1) / INTERVALS, exponents[:, None]).astype(np.float32)
    top, drawn = statistics.examples.sorted()
    partners = statistics.sample.partners(config.partners) if config.partners else None
    for start in range(0, tally.d_sae, _BLOCK):
        some = range(start, min(tally.d_sae, start + _BLOCK))
        shown = _shown(top, drawn, some, config)
        for feature in some:
            found: dict[str, Any] = {}
            if counts[feature]:
                found = {
                    "histogram": bins[feature],
                    "edges": edges[feature],
                    "interval_counts": bins[feature].reshape(INTERVALS, -1).sum(1),
                }
            yield Entry(
                index=feature,
                count=int(counts[feature]),
                max=float(maxima[feature]),
                mean=float(means[feature]),
                step=float(steps[feature]),
                **found,
                **shown[feature - start],
                **next(weights),
                **present(("partners", "jaccards", "shares"), partners, feature),
            )


def _shown(top: Places, drawn: Places, some: range, config: DescribeConfig) -> list[Mapping[str, Any]]:
    """The examples of some features: the strongest, then from the highest interval down; by strength in each."""
    mine = top[slice(*np.searchsorted(top.group, (some.start, some.stop)))]
    theirs = drawn[slice(*np.searchsorted(drawn.group, (some.start * INTERVALS, some.stop * INTERVALS)))]
    feature = np.concatenate([mine.group, theirs.group // INTERVALS])
    interval = np.concatenate([np.full(len(mine), -1), theirs.group % INTERVALS])
    value = np.concatenate([mine.value, theirs.value])
    position = np.concatenate([mine.position, theirs.position])
    window = np.concatenate([mine.window, theirs.window])
    rank = np.where(interval < 0, INTERVALS, interval)
    order = np.lexsort((position, -value, -rank, feature))
    feature, interval, value, position, window = (part[order] for part in (feature, interval, value, position, window))
    owner, place = window.nonzero()
    columns = position[owner] % config.length - config.before + place
    values = window[owner, place].astype(np.float32) * value[owner]
    firsts = np.searchsorted(feature, np.arange(some.start, some.stop + 1))
    cells = np.searchsorted(owner, firsts)
    return [
        {
            "positions": position[a:b],
            "intervals": interval[a:b],
            "owners": owner[c:d] - a,
            "columns": columns[c:d],
            "values": values[c:d],
        }
        for a, b, c, d in zip(firsts, firsts[1:], cells, cells[1:], strict=False)
    ]
