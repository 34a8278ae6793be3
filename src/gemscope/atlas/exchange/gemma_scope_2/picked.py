"""Which of a feature's thousand examples are shown, and the cells of their windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_TOP, _EACH, _INTERVALS = 20, 5, 5
"""Strongest examples; examples from each of so many equal parts of 0 to the maximum."""
BEFORE, AFTER = 40, 23


@dataclass(frozen=True)
class Picked:
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

    def placed(self, rows: Array, length: int) -> Picked:
        """In a corpus of these rows alone."""
        return replace(self, columns=np.searchsorted(rows, self.rows) * length + self.columns)


def pick(values: Array, rows: Array, columns: Array, there: Array) -> Picked:
    """Of a block of features: values [features, each], where they lie, and which of them are there at all."""
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
            near = (row == row[one]) & (column >= column[one] - BEFORE) & (column <= column[one] + AFTER)
            at, first = np.unique(column[near], return_index=True)
            cells.append((at, own[near][first]))
            owners.append(feature)
            chosen.append((int(row[one]), int(column[one]), group))
    flat = np.array(chosen, np.int64).reshape(-1, 3)
    return Picked(
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
        taken[(row == row[one]) & (np.abs(column - column[one]) <= min(BEFORE, AFTER))] = True

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
