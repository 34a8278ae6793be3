"""Two features side by side, of one atlas or of two: how near their directions are, where they fire together and where
one does without the other, what both promote.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gemscope.atlas.dashboard import Dashboard, Example
from gemscope.atlas.reader import Atlas
from gemscope.features.together import Together
from gemscope.pages.blocks import spark
from gemscope.pages.feature import axis, example_line, snippet
from gemscope.pages.labels import said
from gemscope.pages.numbers import figure, percent
from gemscope.pages.plain import Shown
from gemscope.pages.tables import Cell, Table
from gemscope.text.printable import readable, visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from gemscope.features.sae import SAE

_STRONG = 0.25
"""Of its maximum, from which a firing counts when tokens are told apart: what a feature does faintly is seldom its."""
_TELLING = 5.0
"""G² from which a token tells two features apart: chance alone gives so much to one token in forty."""
_MOST, _MANY = 0.5, 5
"""Share of a feature's tokens on which another fires too, and tokens of it, from which it is said to fire within it."""
_TOKENS, _PLACES = 6, 4
"""How many of each are kept."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Tokens on which two features fire, of the rows of text that both atlases hold out."""

    tokens: int
    """Counted tokens of these rows."""
    one: int
    other: int
    both: int

    @property
    def jaccard(self) -> float | None:
        """Tokens where both fire over tokens where either does; None where neither fires."""
        either = self.one + self.other - self.both
        return self.both / either if either else None

    @property
    def share(self) -> tuple[float | None, float | None]:
        """Of the first's tokens those where the second fires too, and the reverse."""
        return (self.both / self.one if self.one else None, self.both / self.other if self.other else None)


class Contrast(NamedTuple):
    """A token on which one of two features fires far more than the other."""

    token: str
    of: int
    """How often the token stands in the text; 0 where only examples are counted."""
    one: int
    """On how many of these the first fires at a quarter of its maximum or more."""
    other: int
    telling: float
    """G² of these counts against all on which each fires; above 0 where it is the first's token."""


class Place(NamedTuple):
    """A token of the common text, with what is around it, and both features on all of that."""

    one: Example
    other: Example


@dataclass(frozen=True, kw_only=True)
class FeaturePair(Shown):
    """What `compare_features` found. `str` gives it in lines, `to_dict` what `--json` prints."""

    one: Dashboard
    other: Dashboard
    cosine: float | None
    """Of their decoder directions; None where it is not known."""
    cosine_below: float | None
    """Where the cosine is not known but that it is no larger."""
    shares: Shares | None
    """None where the atlases hold out no row in common."""
    contrasts: tuple[Contrast, ...]
    """Tokens that tell them apart: the first's, then the second's, each by how telling."""
    promoted: tuple[str, ...]
    """Tokens that both promote."""
    places: Mapping[str, tuple[Place, ...]]
    """Where `one` fires alone, where `other` does, where `both` do: the strongest first. Each token once."""

    width = 160

    @property
    def names(self) -> tuple[str, str]:
        """What tells them apart: their numbers, with model and source where these differ."""
        one, other = self.one, self.other
        if (one.model, one.source) == (other.model, other.source):
            return str(one.index), str(other.index)
        if one.model == other.model:
            return f"{one.source}/{one.index}", f"{other.source}/{other.index}"
        return f"{one.model}/{one.source}/{one.index}", f"{other.model}/{other.source}/{other.index}"

    @property
    def telling(self) -> str:
        """The most telling difference, as a sentence: that one fires within the other, a token on which one fires and
        the other does not, or that they fire apart. "" where nothing tells them apart.
        """
        return self._within() or self._on_a_token() or self._apart()

    def _within(self) -> str:
        """Where one fires almost only where the other does."""
        if self.shares is None or not self.shares.both:
            return ""
        fired, both = (self.shares.one, self.shares.other), self.shares.both
        for names, (mine, theirs) in ((self.names, fired), (self.names[::-1], fired[::-1])):
            inner, outer, share = *names, both / mine
            if mine >= _MANY and share >= _MOST and both / theirs <= _MOST / 2:
                return f"{inner} fires where {outer} does ({percent(share)} of its tokens), {outer} mostly elsewhere"
        return ""

    def _on_a_token(self) -> str:
        if not self.contrasts:
            return ""
        best = max(self.contrasts, key=lambda one: abs(one.telling))
        one, other = self.names if best.telling > 0 else self.names[::-1]
        more, less = (best.one, best.other) if best.telling > 0 else (best.other, best.one)
        token, never = visible(best.token), f"on {less}" if less else "never"
        if best.of:
            return f"{one} fires strongly on {more} of {best.of} {token}, {other} {never}"
        return f"{more} of the strongest examples of {one} are on {token}, {less or 'none'} of those of {other}"

    def _apart(self) -> str:
        shares = self.shares
        if shares is None or shares.jaccard is None or shares.jaccard > _MOST / 2:
            return ""
        either = shares.one + shares.other - shares.both
        return f"they fire on different tokens: both on {shares.both:,} of {either:,} where either does"

    @property
    def own(self) -> tuple[list[str], list[str]]:
        """Tokens that one promotes and the other does not, among those that their pages name."""
        one, other = (
            [token for token in tokens if token not in self.promoted] for tokens in _promoted(self.one, self.other)
        )
        return one, other

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        shares = self.shares
        return {
            "a": self.one.to_dict(),
            "b": self.other.to_dict(),
            "cosine": self.cosine,
            "cosine_below": self.cosine_below,
            "together": None
            if shares is None
            else {**asdict(shares), "jaccard": shares.jaccard, "share_a": shares.share[0], "share_b": shares.share[1]},
            "telling": self.telling,
            "contrasts": [one._asdict() for one in self.contrasts],
            "promoted_by_both": list(self.promoted),
            "promoted_by_a": self.own[0],
            "promoted_by_b": self.own[1],
            "places": {
                name: [
                    {"tokens": one.one.tokens, "peak": one.one.peak, "a": one.one.values, "b": one.other.values}
                    for one in some
                ]
                for name, some in self.places.items()
            },
        }

    # --- how it shows itself ----------------------------------------------------------------------------------

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.padding import Padding
        from rich.text import Text

        width = options.max_width
        pages = (self.one, self.other)
        for name, page in zip(self.names, pages, strict=True):
            yield Text(f"{name} · {said(page.meaning) if page.meaning else 'no label'}", style="bold")
        if self.telling:
            yield Padding(Text(readable(self.telling)), (0, 0, 0, 2))
        yield Text()
        yield Padding(self.figures(), (0, 0, 0, 2))
        if console.is_terminal and all(page.histogram and not page.dead for page in pages):
            yield Text()
            yield from self._strengths(width - 2)
        for title, tokens in self.tokens():
            yield Padding(Text(f"{title}  {'  '.join(map(visible, tokens))}"), (0, 0, 0, 2))
        for name, page in zip(self.names, pages, strict=True):
            yield Text()
            yield Text(f"Where {name} fires most", style="bold")
            yield from (example_line(example, page.max, width) for example in page.strongest[:_PLACES])
        for title, which, some in self.apart():
            yield Text()
            yield Text(title, style="bold")
            for place in some:
                values = "  ".join(f"{figure(one.value):>6}" for one in place)
                before = f"  {values}  "
                shown = place[which]
                yield Text.assemble(
                    before,
                    snippet(shown.tokens, shown.values, shown.peak, pages[which].max, width - len(before)),
                    no_wrap=True,
                )

    def figures(self) -> Table:
        """What both are, in figures."""
        heads = ("", *self.names)
        pages = (self.one, self.other)
        rows: list[tuple[Cell | str, ...]] = [
            ("fires on", *(f"{percent(page.density)} of tokens" for page in pages)),
            ("max", *(figure(page.max) for page in pages)),
            ("mean", *(figure(page.mean) for page in pages)),
        ]
        if (shares := self.shares) is not None:
            rows += [("fires with the other on", *(_share(one) for one in shares.share))]
            rows += [("Jaccard", Cell("—" if shares.jaccard is None else f"{shares.jaccard:.3f}"), "")]
        if self.cosine is not None or self.cosine_below is not None:
            rows += [("decoder cosine", Cell(self.nearness), "")]
        return Table(heads, rows, left=heads[:1], bold=False)

    @property
    def nearness(self) -> str:
        """The cosine in words."""
        if self.cosine is not None:
            return f"{self.cosine:.3f}".replace("-", "−")
        return "not known" if self.cosine_below is None else f"at most {self.cosine_below:.3f}"

    def tokens(self) -> Iterator[tuple[str, list[str]]]:
        """Lists of tokens with what they are: each feature's own, and those promoted."""
        for sign, name in zip((1, -1), self.names, strict=True):
            if told := [one.token for one in self.contrasts if one.telling * sign > 0]:
                yield f"{name} rather than the other fires on", told
        for name, some in zip(
            ("both promote", *(f"{name} promotes" for name in self.names)), (self.promoted, *self.own), strict=True
        ):
            if some:
                yield name, some

    def apart(self) -> Iterator[tuple[str, int, tuple[Place, ...]]]:
        """Places below what they are, and whose activations matter there."""
        one, other = self.names
        for key, title, which in (
            ("one", f"{one} fires, {other} does not", 0),
            ("other", f"{other} fires, {one} does not", 1),
            ("both", f"Both fire: {one}, {other}", 0),
        ):
            if some := self.places[key]:
                yield title, which, some

    def _strengths(self, room: int) -> Iterator[RenderableType]:
        """Two histograms over one axis."""
        from rich.text import Text

        histograms = [page.histogram for page in (self.one, self.other) if page.histogram]
        high = max(page.max for page in (self.one, self.other))
        wide = max(map(len, self.names))
        for name, one in zip(self.names, histograms, strict=True):
            line, end, _ = spark(one, min(64, room - wide - 2), high=high)
            yield Text.assemble(f"  {name:<{wide}}  ", (line, "green"), no_wrap=True)
        yield Text(
            f"  {'':<{wide}}  {axis(histograms[0].low, end, len(line), 'activation')}", style="dim", no_wrap=True
        )


def _share(value: float | None) -> str:
    return "—" if value is None else f"{percent(value)} of its tokens"


def compare_features(
    atlas: Atlas,
    one: int,
    other: int,
    *,
    beside: Atlas | None = None,
    saes: tuple[SAE, SAE] | None = None,
) -> FeaturePair:
    """Two features side by side: `one` of an atlas, `other` of the same or of one `beside` it.

    Where they fire is counted on the rows that both atlases hold out: their pages' examples are none of those. With
    `saes` their cosine is computed; without it is what the pages say, where they name each other. Raises NotFound,
    CorruptFile.
    """
    theirs = beside or atlas
    pages = atlas[one], theirs[other]
    together = Together(atlas.pool, theirs.pool) if _one_model(atlas, theirs) else None
    if together is not None and not together.tokens:
        together = None
    cosine, below = _listed(atlas, *pages) if beside is None else (None, None)
    if saes is not None:
        cosine, below = _cosine(saes, one, other), None
    shares, contrasts = None, _by_examples(*pages)
    places: dict[str, tuple[Place, ...]] = {"one": (), "other": (), "both": ()}
    if together is not None:
        fired = [together.firings(which, page.index) for which, page in enumerate(pages)]
        both = np.intersect1d(fired[0][0], fired[1][0], assume_unique=True)
        shares = Shares(tokens=together.tokens, one=len(fired[0][0]), other=len(fired[1][0]), both=len(both))
        contrasts = _by_firings(atlas, together, fired, pages) or contrasts
        places = _places(atlas, together, fired)
    first, second = _promoted(*pages)
    return FeaturePair(
        one=pages[0],
        other=pages[1],
        cosine=cosine,
        cosine_below=below,
        shares=shares,
        contrasts=contrasts,
        promoted=tuple(token for token in first if token in second),
        places=places,
    )


def _promoted(one: Dashboard, other: Dashboard) -> tuple[list[str], list[str]]:
    """The tokens that each promotes most: by the measured effect of the site where there is one of both and it says
    something, else by the direct path.
    """
    if one.writes and other.writes and one.writes.agreed and other.writes.agreed:
        lists = one.writes.promoted, other.writes.promoted
    else:
        lists = one.promoted, other.promoted
    first, second = ([logit.token for logit in some] for some in lists)
    return first, second


def _one_model(atlas: Atlas, other: Atlas) -> bool:
    """Whether ids are the same tokens in both."""
    return atlas is other or atlas.manifest.model == other.manifest.model


def _listed(atlas: Atlas, one: Dashboard, other: Dashboard) -> tuple[float | None, float | None]:
    """What pages of one atlas say of two features' cosine: it, or what it cannot exceed."""
    if one.index == other.index:
        return 1.0, None
    bounds = []
    most = atlas.manifest.options.get("neighbours")
    for page, name in ((one, other.index), (other, one.index)):
        for near in page.neighbours:
            if near.feature == name:
                return near.cosine, None
        if page.neighbours and isinstance(most, int):
            # A list that is not full ends where cosines do that are above 0.
            bounds.append(page.neighbours[-1].cosine if len(page.neighbours) >= most else 0.0)
    return None, min(bounds, default=None)


def _cosine(saes: tuple[SAE, SAE], one: int, other: int) -> float | None:
    directions = [sae.direction(index).detach().double() for sae, index in zip(saes, (one, other), strict=True)]
    if directions[0].shape != directions[1].shape:
        return None
    size = math.prod(float(direction.norm()) for direction in directions)
    return float(directions[0] @ directions[1]) / size if size else None


Fired = tuple[Any, Any]
"""Flat places, and activations there."""
_Row = tuple[Any, int, int, float]


def _by_firings(
    atlas: Atlas, together: Together, fired: Sequence[Fired], pages: tuple[Dashboard, Dashboard]
) -> tuple[Contrast, ...]:
    """Tokens by how much more one feature fires on them than the other, of all on which each does."""
    ids = together.ids.reshape(-1)
    stands = Counter(ids[together.counted.reshape(-1)].tolist())
    strong = [places[values >= _STRONG * page.max] for (places, values), page in zip(fired, pages, strict=True)]
    counts = [Counter(ids[places].tolist()) for places in strong]
    found = _contrasts(*counts)
    return tuple(Contrast(atlas.token(id_), stands[id_], a, b, told) for id_, a, b, told in found)


def _by_examples(one: Dashboard, other: Dashboard) -> tuple[Contrast, ...]:
    """The same by the tokens of examples, where there is no common text."""
    counts = [Counter(example.tokens[example.peak] for example in page.strongest) for page in (one, other)]
    return tuple(Contrast(token, 0, a, b, told) for token, a, b, told in _contrasts(*counts))


def _contrasts(one: Counter[Any], other: Counter[Any]) -> list[_Row]:
    """Keys of two counts by G², signed; of each side those that tell most."""
    totals = one.total(), other.total()
    if not all(totals):
        return []
    found = [(key, one[key], other[key], _g2((one[key], other[key]), totals)) for key in {**one, **other}]
    found.sort(key=lambda row: (-abs(row[3]), str(row[0])))
    sides = [[row for row in found if row[3] * sign >= _TELLING][:_TOKENS] for sign in (1, -1)]
    return sides[0] + sides[1]


def _g2(counts: tuple[int, int], totals: tuple[int, int]) -> float:
    """2 Σ observed · ln(observed / expected) of a 2 × 2 table; with a minus where the second's share is larger."""
    whole = sum(totals)
    row = sum(counts)
    told = 0.0
    for count, total in zip(counts, totals, strict=True):
        for seen, of in ((count, row), (total - count, whole - row)):
            if seen:
                told += 2 * seen * math.log(seen * whole / (of * total))
    return math.copysign(max(0.0, told), counts[0] / totals[0] - counts[1] / totals[1])


def _places(atlas: Atlas, together: Together, fired: Sequence[Fired]) -> dict[str, tuple[Place, ...]]:
    """Where one fires alone, the other does, and both do: the strongest of each token that they fire on."""
    dense = np.zeros((2, together.counted.size), np.float32)
    for row, (places, values) in zip(dense, fired, strict=True):
        row[places] = values
    one, other = dense
    tops = dense.max(1)
    scale = np.where(tops > 0, tops, 1)[:, None]
    ranks = {
        "one": np.where(other == 0, one, 0),
        "other": np.where(one == 0, other, 0),
        "both": (dense / scale).min(0),
    }
    return {name: tuple(_distinct(atlas, together, dense, rank)) for name, rank in ranks.items()}


def _distinct(atlas: Atlas, together: Together, dense: Any, rank: Any) -> Iterator[Place]:
    seen = set[int]()
    ids = together.ids.reshape(-1)
    for flat in np.argsort(-rank, kind="stable"):
        if rank[flat] <= 0 or len(seen) == _PLACES:
            return
        if int(ids[flat]) not in seen:
            seen.add(int(ids[flat]))
            yield _place(atlas, together, dense, int(flat))


def _place(atlas: Atlas, together: Together, dense: Any, flat: int) -> Place:
    manifest = atlas.manifest
    row, column = divmod(flat, together.length)
    start, stop = max(0, column - manifest.before), min(together.length, column + manifest.after + 1)
    ids = together.ids[row]
    while ids[start] < 0:
        start += 1
    while ids[stop - 1] < 0:
        stop -= 1
    first = row * together.length
    ids = ids[start:stop].tolist()
    tokens = atlas.text(ids)
    one, other = (
        Example(
            document=-1,
            position=-1,
            peak=column - start,
            ids=ids,
            tokens=tokens,
            values=values[first + start : first + stop].tolist(),
        )
        for values in dense
    )
    return Place(one, other)
