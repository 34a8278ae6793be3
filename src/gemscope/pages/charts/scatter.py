"""Many features by density and maximum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from gemscope.pages.numbers import figure, percent

if TYPE_CHECKING:
    import numpy as np


GRID = (240, 96)
"""Cells of a scatter: features that would lie on the same few pixels share one."""


@dataclass(frozen=True)
class Cells:
    """Features gathered into the cells of a grid, so that a page stays small for any number of them."""

    extent: tuple[float, float, float, float]
    """Powers of ten: least and greatest density, least and greatest maximum."""
    cells: str
    """Each cell as its distance from the one before, how many features it holds, and one of them."""
    summary: Markup
    """How the two figures are spread: what a reader without scripts, or without sight of the chart, gets."""


def gathered(ids: np.ndarray[Any, Any], densities: np.ndarray[Any, Any], maxima: np.ndarray[Any, Any]) -> Cells | None:
    """Living features by density and maximum, both logarithmic; None where there is none."""
    import numpy as np

    kept = (densities > 0) & (maxima > 0) & np.isfinite(maxima)
    ids, densities, maxima = ids[kept], densities[kept], maxima[kept]
    if not len(ids):
        return None
    (left, right), (low, high) = _extent(np.log10(densities)), _extent(np.log10(maxima))
    columns, rows = GRID
    across = ((np.log10(densities) - left) / (right - left) * columns).astype(int).clip(0, columns - 1)
    up = ((np.log10(maxima) - low) / (high - low) * rows).astype(int).clip(0, rows - 1)
    cells, first, counts = np.unique(up * columns + across, return_index=True, return_counts=True)
    gaps = np.diff(cells, prepend=0)
    triples = zip(gaps.tolist(), counts.tolist(), ids[first].tolist(), strict=True)
    data = " ".join([f"{gap},{count},{one}" for gap, count, one in triples])
    return Cells((left, right, low, high), data, _quantiles(densities, maxima))


def scatter(points: Cells | tuple[Any, Any, Any], *, feature: str, browse: str) -> Markup:
    """Density against maximum as a `<feature-scatter>`, of cells or of ids, densities and maxima.

    `feature` and `browse` are the addresses of feature 0, which a cell of one feature turns into that one's, and of the
    table, which a cell of several leads to.
    """
    cells = points if isinstance(points, Cells) else gathered(*points)
    if cells is None:
        return Markup("")
    return Markup(
        '<feature-scatter data-grid="{}" data-extent="{}" data-feature="{}" data-browse="{}" data-cells="{}">{}'
        "</feature-scatter>"
    ).format(
        "{} {}".format(*GRID),
        " ".join(f"{bound:.6g}" for bound in cells.extent),
        feature,
        browse,
        cells.cells,
        cells.summary,
    )


def _extent(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low - 0.02, high + 0.02) if high - low > 0.1 else (low - 0.5, high + 0.5)


def _quantiles(densities: np.ndarray[Any, Any], maxima: np.ndarray[Any, Any]) -> Markup:
    import numpy as np

    rows = Markup("").join(
        Markup('<tr><th scope="row">{}</th><td>{}</td><td>{}</td></tr>').format(name, percent(density), figure(top))
        for name, density, top in zip(
            ("least", "a tenth is below", "half is below", "nine tenths are below", "most"),
            np.quantile(densities, (0, 0.1, 0.5, 0.9, 1)).tolist(),
            np.quantile(maxima, (0, 0.1, 0.5, 0.9, 1)).tolist(),
            strict=True,
        )
    )
    return Markup(
        '<table class="quantiles"><caption>Density and maximum of {} living features</caption><thead><tr><td></td>'
        '<th scope="col">density</th><th scope="col">max</th></tr></thead><tbody>{}</tbody></table>'
    ).format(f"{len(densities):,}", rows)
