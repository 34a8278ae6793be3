"""Two SAEs side by side, by an atlas of each: their figures, which features of one are features of the other too, and
what only one of them has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from gemscope.atlas.entry import Floats
from gemscope.atlas.files.manifest import Manifest
from gemscope.atlas.reader import Atlas
from gemscope.errors import InputError, Mismatch
from gemscope.features.histogram import Histogram
from gemscope.features.together import Best, Together
from gemscope.pages.labels import said, short_label
from gemscope.pages.numbers import figure, percent
from gemscope.pages.plain import Shown
from gemscope.pages.tables import Cell, Table
from gemscope.progress import Progress, silent
from gemscope.text.printable import readable, visible

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gemscope.features.sae import SAE

By = Literal["decoder", "firing"]
SAME: dict[By, float] = {"decoder": 0.7, "firing": 0.5}
"""Cosine of decoder rows, or Jaccard's index of the tokens on which both fire, from which two features that are each
other's best match are called the same.
"""
_DENSE = 0.1
_BINS = 20


class Figures(NamedTuple):
    """An SAE in numbers, by its atlas."""

    features: int
    living: int
    dead: int
    dense: int
    """Features that fire on more than a tenth of the tokens."""
    l0: float
    """Features a counted token."""
    density: float
    """Median of the living ones."""
    tokens: int
    labelled: int
    scored: int
    good: int
    """Labels with a score above .8."""


class Match(NamedTuple):
    """A feature of the first SAE and the one of the second that is most like it."""

    one: int
    other: int
    value: float
    label: str | None
    """What it stands for and promotes; without a label, the token on which it fires most."""
    label_other: str | None


class Alone(NamedTuple):
    """A feature that the other SAE has nothing like, and what of that one is nearest; -1 where nothing is."""

    feature: int
    nearest: int
    value: float
    label: str | None


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Which features of two SAEs belong together."""

    by: By
    """By the cosine of decoder rows, or by the tokens of a common text on which both fire."""
    tokens: int | None
    """Of that text."""
    chance: float | None
    """The cosine that the nearest of so many random directions has about."""
    mutual: int
    """Pairs of which each is the other's best."""
    same: int
    """Of these, those as near as `SAME`."""
    mean: tuple[float, float]
    """Of the living features' best values, of each SAE: by decoders what papers call MMCS, mean max cosine similarity
    (arXiv 2309.08600), which is not the same both ways.
    """
    median: tuple[float, float]
    """Of the same."""
    spread: tuple[Histogram, Histogram]
    """The same values, by size."""
    pairs: tuple[Match, ...]
    """Mutual pairs, the nearest first."""
    alone: tuple[tuple[Alone, ...], tuple[Alone, ...]]
    """Living features of each with no mutual partner and the lowest values; those first whose labels are best known."""
    lonely: tuple[int, int]
    """How many living features of each have no such partner as `SAME` asks for."""


@dataclass(frozen=True, kw_only=True)
class AtlasPair(Shown):
    """What `compare_atlases` found. `str` gives tables, `to_dict` what `--json` prints."""

    one: Manifest
    other: Manifest
    figures: tuple[Figures, Figures]
    matching: Matching | None
    why: str
    """Why nothing is matched, or not by decoders."""

    width = 160

    @property
    def names(self) -> tuple[str, str]:
        """What tells them apart."""
        one, other = ((manifest.model_id, manifest.source_id) for manifest in (self.one, self.other))
        if one[0] == other[0] and one[1] != other[1]:
            return one[1], other[1]
        return "/".join(one), "/".join(other) if one != other else f"{'/'.join(other)} (second)"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        matching = self.matching
        return {
            "a": {**_facts(self.one), **self.figures[0]._asdict()},
            "b": {**_facts(self.other), **self.figures[1]._asdict()},
            "matching": None
            if matching is None
            else asdict(matching)
            | {
                "pairs": [one._asdict() for one in matching.pairs],
                "alone": [[one._asdict() for one in some] for some in matching.alone],
            },
            "why": self.why,
        }

    # --- how it shows itself ----------------------------------------------------------------------------------

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = [
            *(
                Text(f"{name} · {readable(one.sae)}, {readable(one.model)} at {one.site}", style="bold")
                for name, one in zip(self.names, (self.one, self.other), strict=True)
            ),
            Text(),
            self.table(),
        ]
        if self.why:
            parts += [Text(), Text(self.why, style="dim")]
        if self.matching is not None:
            parts += [Text(), Text(self.summary()), Text(), Text("The same in both", style="bold"), self._pairs()]
            for name, some in zip(self.names, self.matching.alone, strict=True):
                if some:
                    parts += [Text(), Text(f"Only in {name}", style="bold"), self._alone(some)]
        return Group(*parts)

    def table(self) -> Table:
        """The figures of both."""
        rows = [(name, *cells) for name, *cells in (*self.rows(), *self.shares())]
        return Table(("", *self.names), rows, left=("",), bold=False)

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Each figure with its name."""

        def row(name: str, said: Any) -> tuple[str, str, str]:
            return name, *(said(one) for one in self.figures)

        yield row("features", lambda one: f"{one.features:,}")
        yield row("living", lambda one: f"{one.living:,}")
        yield row("dead", lambda one: f"{one.dead:,} ({percent(one.dead / max(1, one.features))})")
        yield row("on over a tenth of tokens", lambda one: f"{one.dense:,}")
        yield row("L0", lambda one: figure(one.l0))
        yield row("median density", lambda one: percent(one.density))
        yield row("tokens read", lambda one: f"{one.tokens:,}")
        yield row("labels", lambda one: f"{one.labelled:,}")
        yield row("good labels", lambda one: percent(one.good / one.scored) if one.scored else "—")

    def shares(self) -> Iterator[tuple[str, str, str]]:
        """How far each is in the other, in figures with their names; none where nothing is matched."""
        found = self.matching
        if found is None:
            return
        name = "mean max cosine similarity" if found.by == "decoder" else "mean best Jaccard index"
        yield name, *(f"{one:.3f}" for one in found.mean)
        yield "half have a best match of", *(f"{one:.3f}" for one in found.median)
        living = [max(1, figures.living) for figures in self.figures]
        yield "each other's best", *(f"{found.mutual:,} ({percent(found.mutual / all_)})" for all_ in living)
        yield (
            f"of these {SAME[found.by]} or more: the same",
            *(f"{found.same:,} ({percent(found.same / all_)})" for all_ in living),
        )
        yield (
            "in one alone",
            *(f"{lonely:,} ({percent(lonely / all_)})" for lonely, all_ in zip(found.lonely, living, strict=True)),
        )

    def summary(self) -> str:
        """How much of each is in the other."""
        found = self.matching
        if found is None:
            return self.why
        if found.by == "decoder":
            how = f"a cosine of {SAME['decoder']} or more between decoder rows"
            chance = f" (random directions reach {found.chance:.2f})" if found.chance else ""
        else:
            how = f"a Jaccard index of {SAME['firing']} or more over {found.tokens:,} tokens of common text"
            chance = ""
        one, other = (max(1, figures.living) for figures in self.figures)
        return (
            f"{found.same:,} features are the same: each the other's best match, with {how}{chance}; that is "
            f"{percent(found.same / one)} of the living ones of {self.names[0]}, {percent(found.same / other)} of "
            f"those of {self.names[1]}. Half of the living features have a match of at least "
            f"{found.median[0]:.2f}, and {found.median[1]:.2f} the other way"
        )

    @property
    def measure(self) -> str:
        """What values of a match are."""
        return "cosine" if self.matching is None or self.matching.by == "decoder" else "Jaccard"

    def _pairs(self) -> Table:
        assert self.matching is not None
        first, second = self.names
        heads = (self.measure, first, f"stands for in {first}", second, f"in {second}")
        rows = [
            (
                f"{pair.value:.2f}",
                str(pair.one),
                short_label(pair.label),
                str(pair.other),
                short_label(pair.label_other),
            )
            for pair in self.matching.pairs
        ]
        words = (heads[2], heads[4])
        return Table(heads, rows, left=words, wraps=words)

    def _alone(self, some: Sequence[Alone]) -> Table:
        heads = ("feature", "nearest", self.measure, "what it stands for")
        rows = [
            (
                str(one.feature),
                "none" if one.nearest < 0 else str(one.nearest),
                f"{one.value:.2f}",
                Cell(said(one.label)) if one.label else Cell("no label", "dim"),
            )
            for one in some
        ]
        return Table(heads, rows, left=heads[3:], wraps=heads[3:])


def compare_atlases(
    one: Atlas,
    other: Atlas,
    *,
    saes: tuple[SAE, SAE] | None = None,
    k: int = 12,
    progress: Progress = silent,
) -> AtlasPair:
    """Two SAEs by their atlases; `k` pairs, and `k` features that only one of them has.

    Features are matched by the cosine of decoder rows where `saes` are given (`opened` finds those that atlases name),
    else by the tokens on which both fire, of the rows that both atlases hold out: there are such rows where both read
    the same text. Raises InputError, and Mismatch for SAEs that are not the atlases'.
    """
    if k < 1:
        raise InputError(f"k={k}: at least one must be asked for")
    manifests = one.manifest, other.manifest
    found, why = _matching((one, other), saes, k, progress)
    return AtlasPair(
        one=manifests[0],
        other=manifests[1],
        figures=(figures(one), figures(other)),
        matching=found,
        why=why,
    )


def opened(manifest: Manifest) -> SAE:
    """The SAE that an atlas names, from this machine. Raises what `load_sae` raises, and Mismatch where it is none of
    the atlas's.
    """
    from gemscope.atlas.meaning import misfit
    from gemscope.features.load import load_sae

    if not manifest.sae:
        raise InputError("the atlas names no SAE that could be loaded")
    sae = load_sae(manifest.sae, site=manifest.site or None, offline=True)
    if amiss := misfit(manifest, sae):
        raise Mismatch(f"the atlas {amiss}")
    return sae


def figures(atlas: Atlas) -> Figures:
    """An SAE in numbers."""
    _, densities, _ = atlas.scatter()
    standing = atlas.standing
    return Figures(
        features=len(atlas),
        living=len(densities),
        dead=len(atlas) - len(densities),
        dense=int((densities > _DENSE).sum()),
        l0=float(densities.sum()),
        density=float(np.median(densities)) if len(densities) else 0.0,
        tokens=atlas.manifest.tokens,
        labelled=standing.labelled,
        scored=standing.scored,
        good=standing.good,
    )


def _matching(
    atlases: tuple[Atlas, Atlas], saes: tuple[SAE, SAE] | None, k: int, progress: Progress
) -> tuple[Matching | None, str]:
    one, other = atlases
    if one.manifest.model != other.manifest.model:
        return None, f"{one.manifest.model} and {other.manifest.model} are two models: their features are not matched"
    if saes is not None:
        from gemscope.atlas.meaning import misfit  # brings torch, without which figures are there

        for atlas, sae in zip(atlases, saes, strict=True):
            if amiss := misfit(atlas.manifest, sae):
                raise Mismatch(f"the atlas at {atlas.folder} {amiss}")
        if saes[0].d_out == saes[1].d_out:
            from gemscope.features.neighbours import closest

            best = closest(saes[0].decoder, saes[1].decoder, progress=progress)
            chance = math.sqrt(2 * math.log(max(2, len(other))) / saes[0].d_out)
            return _told(atlases, best, "decoder", k, chance=chance), ""
        why = f"decoders write {saes[0].d_out} and {saes[1].d_out} numbers and cannot be compared"
    else:
        why = "the weights are not at hand"
    together = Together(one.pool, other.pool)
    if not together.tokens:
        return None, f"{why}, and the atlases hold out no text in common: their features are not matched"
    with progress("compare firings", None, ""):
        best = together.matched(len(one), len(other))
    return _told(atlases, best, "firing", k, tokens=together.tokens), f"{why}: features are matched by where they fire"


def _told(
    atlases: tuple[Atlas, Atlas],
    best: tuple[Best, Best],
    by: By,
    k: int,
    *,
    chance: float | None = None,
    tokens: int | None = None,
) -> Matching:
    living = [np.zeros(len(atlas), np.bool_) for atlas in atlases]
    for mask, atlas in zip(living, atlases, strict=True):
        mask[atlas.scatter()[0]] = True
    there, back = best
    known = np.flatnonzero(there.ids >= 0)
    mutual = known[back.ids[there.ids[known]] == known]
    mutual = mutual[living[0][mutual] & living[1][there.ids[mutual]]]
    same = mutual[there.values[mutual] >= SAME[by]]
    nearest = mutual[np.argsort(-there.values[mutual], kind="stable")]
    # Many are the same: of equals those whose labels are best known say most.
    right = [atlas.right() for atlas in atlases]
    equal = nearest[there.values[nearest] >= SAME[by]] if len(same) >= k else nearest
    pairs = equal[np.argsort(-right[0][equal] - right[1][there.ids[equal]], kind="stable")][:k]
    names = [_names(atlas, ids.tolist()) for atlas, ids in zip(atlases, (pairs, there.ids[pairs]), strict=True)]
    kept = [np.zeros(len(atlas), np.bool_) for atlas in atlases]
    kept[0][same], kept[1][there.ids[same]] = True, True
    alone, lonely = [], []
    for atlas, found, mask, own, known_right in zip(atlases, best, living, kept, right, strict=True):
        left = np.flatnonzero(mask & ~own)
        lonely.append(len(left))
        lowest = left[np.argsort(found.values[left], kind="stable")][: max(k, len(left) // 4)]
        shown = lowest[np.argsort(-known_right[lowest], kind="stable")][:k]
        labels = _names(atlas, shown.tolist())
        alone.append(
            tuple(
                Alone(feature, int(found.ids[feature]), float(found.values[feature]), labels.get(feature))
                for feature in shown.tolist()
            )
        )
    values = [found.values[mask] for found, mask in zip(best, living, strict=True)]
    medians = [float(np.median(some)) if len(some) else 0.0 for some in values]
    means = [float(some.mean(dtype=np.float64)) if len(some) else 0.0 for some in values]
    return Matching(
        by=by,
        tokens=tokens,
        chance=chance,
        mutual=len(mutual),
        same=len(same),
        mean=(means[0], means[1]),
        median=(medians[0], medians[1]),
        spread=(_spread(values[0]), _spread(values[1])),
        pairs=tuple(
            Match(
                feature,
                int(there.ids[feature]),
                float(there.values[feature]),
                names[0].get(feature),
                names[1].get(int(there.ids[feature])),
            )
            for feature in pairs.tolist()
        ),
        alone=(alone[0], alone[1]),
        lonely=(lonely[0], lonely[1]),
    )


def _spread(values: Floats) -> Histogram:
    """In twenty bins from 0 to 1; those below 0 are as good as none."""
    bins = np.clip((np.maximum(values, 0) * _BINS).astype(np.int64), 0, _BINS - 1)
    return Histogram(0.0, 1 / _BINS, np.bincount(bins, minlength=_BINS).tolist())


def _names(atlas: Atlas, features: Sequence[int]) -> dict[int, str]:
    """What is known of features, in words."""
    known = atlas.meanings(features)
    tokens = atlas.strongest_on(set(features) - known.keys())
    return {one: f"no label; strongest on {visible(token)}" for one, token in tokens.items()} | known


def _facts(manifest: Manifest) -> dict[str, Any]:
    return {
        "modelId": manifest.model_id,
        "source": manifest.source_id,
        "model": manifest.model,
        "sae": manifest.sae,
        "site": manifest.site,
    }
