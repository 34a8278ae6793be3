"""All features as points of a map: as few bytes for a script, drawn without one, and the names of its regions."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from gemscope.pages.labels import said
from gemscope.pages.numbers import many

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

SIDE = 65536
"""Of the map: places are whole numbers below it, y upwards."""
TILES = 16
"""Tiles in a row: labels come a tile at a time."""
_GRID = 100
"""Cells in a row of the drawing."""
_LEVELS = (3, 6, 9)
"""Into how many parts a side is parted for names: a few large regions, then smaller ones."""
_LONG = 44
"""Characters of a region's name."""
_LEAST = 1e-6
"""Density below which all are as rare."""


_WORD = re.compile(r"[^\W\d_]{3,}")
_RESERVE = re.compile(r" \((?:when strong|in part)\)$")
_COMMON = frozenset(
    _WORD.findall(
        "after and before beginning ending exactly follows for from often other part strong such that the then token "
        "tokens weak what when with word words"
    )
)
"""Words that labels have whatever they are about."""


_FIRST = re.compile(r"0(?=(?:/index\.html)?$)")
"""Feature 0 in its address, on a server and in a static site."""


@dataclass(frozen=True)
class Region:
    """A part of the map, and the feature whose label stands for it."""

    feature: int
    x: int
    y: int
    label: str
    level: int
    """0 for the largest."""


def encoded(places: Array, densities: Array, maxima: Array, right: Array, labelled: Array) -> bytes:
    """What a script draws, eight bytes a feature, a column after another: x and y (uint16, low byte first), density and
    maximum on logarithmic scales (0: it never fired), how far the label is right (0: none), and nothing.
    """
    import numpy as np

    fires = densities > 0
    steps = np.zeros((4, len(places)), np.uint8)
    steps[0, fires] = 1 + np.rint(254 * np.log(np.maximum(densities[fires], _LEAST) / _LEAST) / np.log(1 / _LEAST))
    if fires.any():
        sizes = np.log(np.maximum(maxima[fires], 1e-30))
        spread = float(np.ptp(sizes)) or 1.0
        steps[1, fires] = 1 + np.rint(254 * (sizes - sizes.min()) / spread)
    steps[2, labelled] = 1 + np.rint(254 * (np.clip(right[labelled], 0.5, 1.0) - 0.5) * 2)
    return places.T.astype("<u2").tobytes() + steps.tobytes()


def tiles(places: Array) -> Array:
    """[F] in which tile each feature lies."""
    part = SIDE // TILES
    found: Array = (places[:, 1] // part).astype(int) * TILES + places[:, 0] // part
    return found


def regions(places: Array, densities: Array, right: Array, labels: Mapping[int, str]) -> list[Region]:
    """Names over the map, those of large regions first: in each part the feature whose label has most of the words that
    labels have there and elsewhere have not, and is short and right.
    """
    import numpy as np

    named = np.array(sorted(one for one, label in labels.items() if densities[one] > 0 and label.strip()), int)
    words = [frozenset(_WORD.findall(labels[one].lower())) - _COMMON for one in named.tolist()]
    everywhere = Counter(word for some in words for word in some)
    short = np.array([min(1.0, 30 / len(labels[one])) for one in named.tolist()])
    good = np.maximum(right[named], 0.5) - 0.4
    found: list[Region] = []
    taken: set[int] = set()
    for level, parts in enumerate(_LEVELS):
        cell = (places[named, 1].astype(int) * parts // SIDE) * parts + places[named, 0].astype(int) * parts // SIDE
        for place in np.unique(cell).tolist():
            some = np.flatnonzero(cell == place).tolist()
            if len(some) < 3:
                continue
            here = Counter(word for at in some for word in words[at])
            share = len(some) / len(named)
            telling = {
                word: count * math.log(count / (everywhere[word] * share))
                for word, count in here.items()
                if count > 1 and count > everywhere[word] * share
            }
            worth = {at: max((telling[word] for word in words[at] & telling.keys()), default=0.0) for at in some}
            most = max(worth.values()) or 1.0
            ranked = sorted(some, key=lambda at: (-(0.15 + worth[at] / most) * short[at] * good[at], at))
            best = next((int(named[at]) for at in ranked if int(named[at]) not in taken), None)
            if best is not None:
                taken.add(best)
                x, y = places[best].tolist()
                found.append(Region(best, x, y, _name(labels[best]), level))
    return found


def _name(label: str) -> str:
    text = _RESERVE.sub("", said(label))
    return text if len(text) <= _LONG else f"{text[: _LONG - 1].rstrip()}…"


def drawn(places: Array, names: Sequence[Region], lit: Collection[int], *, feature: str, title: str) -> Markup:
    """The map without a script: cells that hold features, the largest regions' names as links, and what is lit.
    `feature` is the address of feature 0.
    """
    import numpy as np

    cells = (places[:, 1].astype(int) * _GRID // SIDE) * _GRID + places[:, 0].astype(int) * _GRID // SIDE
    held, counts = np.unique(cells, return_counts=True)
    paths = []
    for shade, (low, high) in enumerate(((1, 2), (2, 4), (4, 1 << 40)), 1):
        some = held[(counts >= low) & (counts < high)]
        data = "".join(f"M{one % _GRID} {_GRID - one // _GRID - 0.5:g}h1" for one in some.tolist())
        paths.append(Markup('<path class="d{}" d="{}"/>').format(shade, data))
    marks = [
        Markup('<a href="{}" aria-label="Feature {}"><circle cx="{:.1f}" cy="{:.1f}" r=".8"/></a>').format(
            address_of(feature, one), one, *_at(places[one])
        )
        for one in sorted(lit)[:500]
    ]
    words = [
        Markup('<a href="{}"><text x="{:.1f}" y="{:.1f}">{}</text></a>').format(
            address_of(feature, one.feature), *_at((one.x, one.y)), one.label
        )
        for one in names
        if one.level == 0
    ]
    return Markup('<svg class="plane" viewBox="0 0 {0} {0}" role="group" aria-label="{1}">{2}</svg>').format(
        _GRID, f"{title}: {many(len(places), 'feature')}", Markup("").join([*paths, *marks, *words])
    )


def _at(place: Any) -> tuple[float, float]:
    x, y = (float(one) for one in place)
    return x * _GRID / SIDE, _GRID - y * _GRID / SIDE


def address_of(feature: str, index: int) -> str:
    """A feature's address, from that of feature 0."""
    return _FIRST.sub(str(index), feature)
