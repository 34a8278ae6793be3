"""Rows of text that are kept apart to test what is said of features: all activations on them, and never an example.

Which rows those are is decided by the text of each alone. So they are the same however the text was cut into batches,
and of what would be kept of two texts one can keep what would be kept of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gemscope.features.examples import Firings
from gemscope.features.keys import row_keys
from gemscope.features.pool import Pool, codes

Array = np.ndarray[Any, np.dtype[Any]]

ONE_IN = 16
"""Rows, of which one is held out."""


def hashes(ids: Array, counted: Array) -> Array:
    """uint64 [R]: of the counted tokens of rows [R, T], and where they stand: a harvest knows of no others."""
    return row_keys(np.where(counted, ids, -1))


def is_held_out(hashed: Array) -> Array:
    """bool [R]: which rows with these hashes are: one in ONE_IN."""
    held: Array = hashed < np.uint64((1 << 64) // ONE_IN)
    return held


@dataclass(frozen=True)
class _Row:
    """One row of text, with n counted tokens and E firings on them."""

    position: int
    ids: Array
    """int32 [T]"""
    counted: Array
    """int32 [n] Columns, ascending."""
    columns: Array
    """int32 [E] Where each firing is, ascending."""
    features: Array
    """int32 [E]"""
    codes: Array
    """int16 [E]"""


_PARTS = {"counted": np.int32, "columns": np.int32, "features": np.int32, "codes": np.int16}


class HeldOut:
    """At most `room` of the rows that are held out: those with the lowest hashes, each text once."""

    def __init__(self, d_sae: int, length: int, room: int) -> None:
        self.d_sae, self.length, self.room = d_sae, length, room
        self._rows: dict[int, _Row] = {}
        self._most = (1 << 64) - 1
        """Rows with higher hashes find no room."""

    def add(self, ids: Array, counted: Array, firings: Firings, *, every: bool = False) -> Array:
        """Of a batch ids [R, T] with its `counted` tokens [R, T] and what fires, the rows that are held out, or `every`
        one. Returns which those are: bool [R].
        """
        hashed = hashes(ids, counted)
        chosen: Array = counted.any(1) & (every | is_held_out(hashed))
        rows = np.flatnonzero(chosen)
        bounds = np.searchsorted(firings.tokens, rows[:, None] * self.length + [0, self.length])
        for row, key, inside in zip(rows.tolist(), hashed[rows].tolist(), bounds.tolist(), strict=True):
            if key > self._most:
                continue
            mine, start = slice(*inside), row * self.length
            held = _Row(
                position=firings.first + start,
                ids=ids[row].astype(np.int32),
                counted=np.flatnonzero(counted[row]).astype(np.int32),
                columns=(firings.tokens[mine] - start).astype(np.int32),
                features=firings.features[mine].astype(np.int32),
                codes=codes(firings.values[mine]).astype(np.int16),
            )
            self._keep(key, held)
        return chosen

    def merge(self, other: HeldOut, shift: int) -> None:
        """What another text gave, whose positions start at `shift` here."""
        for key, row in other._rows.items():
            self._keep(key, replace(row, position=row.position + shift))

    def _keep(self, key: int, row: _Row) -> None:
        self._rows.setdefault(key, row)  # the same text once more is no other test
        if len(self._rows) > self.room:
            del self._rows[max(self._rows)]
            self._most = max(self._rows, default=-1)

    def pool(self) -> Pool:
        """The rows in the order of the text."""
        rows = sorted(self._rows.values(), key=lambda row: row.position)
        ids = np.array([row.ids for row in rows], np.int64).reshape(-1, self.length)
        counted = np.zeros(ids.shape, np.bool_)
        for number, row in enumerate(rows):
            counted[number, row.counted] = True
        features, coded = _joined(rows, "features"), _joined(rows, "codes").astype(np.int64)
        starts = np.repeat(np.arange(len(rows)) * self.length, [len(row.columns) for row in rows])
        places = starts + _joined(rows, "columns")
        order = np.argsort(features, kind="stable")
        ends = np.searchsorted(features[order], np.arange(self.d_sae + 1))
        places, coded = places[order], coded[order]

        def firings(feature: int) -> tuple[Array, Array]:
            mine = slice(ends[feature], ends[feature + 1])
            return places[mine], coded[mine]

        return Pool(ids, counted, np.array([row.position for row in rows], np.int64), firings)

    def keep(self, pool: Pool) -> None:
        """Rows that were kept before, such as an atlas's."""
        every = [pool.firings(feature) for feature in range(self.d_sae)]
        places, coded = (np.concatenate([np.zeros(0, np.int64), *part]) for part in zip(*every, strict=True))
        features = np.repeat(np.arange(self.d_sae, dtype=np.int32), [len(one) for one, _ in every])
        order = np.argsort(places, kind="stable")
        ends = np.searchsorted(places[order], np.arange(len(pool) + 1) * self.length)
        hashed = hashes(pool.ids, pool.counted).tolist()
        for row, (key, position) in enumerate(zip(hashed, pool.positions.tolist(), strict=True)):
            mine = order[ends[row] : ends[row + 1]]
            held = _Row(
                position=position,
                ids=pool.ids[row].astype(np.int32),
                counted=np.flatnonzero(pool.counted[row]).astype(np.int32),
                columns=(places[mine] - row * self.length).astype(np.int32),
                features=features[mine],
                codes=coded[mine].astype(np.int16),
            )
            self._keep(key, held)

    def state(self) -> dict[str, Array]:
        """All of it, to be stored."""
        rows = [self._rows[key] for key in sorted(self._rows)]
        return {name: _joined(rows, name) for name in ("ids", *_PARTS)} | {
            "positions": np.array([row.position for row in rows], np.int64),
            "tokens": np.array([len(row.counted) for row in rows], np.int64),
            "firings": np.array([len(row.columns) for row in rows], np.int64),
        }

    def restore(self, state: Mapping[str, Array], end: int) -> None:
        """What was stored of a text that ends at this flat position. Raises ValueError for what was none."""
        positions, tokens, firings = (state[name] for name in ("positions", "tokens", "firings"))
        parts = {name: state[name] for name in _PARTS}
        if not (
            len(state["ids"]) == len(positions) * self.length
            and len(positions) == len(tokens) == len(firings) <= self.room
            and ((tokens >= 1) & (tokens <= self.length)).all()
            and ((firings >= 0) & (firings <= self.length * self.d_sae)).all()
            and tokens.sum() == len(parts["counted"])
            and all(firings.sum() == len(parts[name]) for name in ("columns", "features", "codes"))
            and ((positions >= 0) & (positions < end) & (positions % self.length == 0)).all()
            and ((parts["counted"] >= 0) & (parts["counted"] < self.length)).all()
            and ((parts["features"] >= 0) & (parts["features"] < self.d_sae)).all()
            and (parts["codes"] > 0).all()
        ):
            raise ValueError("the rows that it holds out are none of this text")
        ids = state["ids"].reshape(-1, self.length)
        ends = {name: np.cumsum(tokens if name == "counted" else firings)[:-1] for name in parts}
        split = {name: np.split(one, ends[name]) if len(positions) else [] for name, one in parts.items()}
        counted = np.zeros(ids.shape, np.bool_)
        counted[np.repeat(np.arange(len(ids)), tokens), parts["counted"]] = True
        hashed = hashes(ids, counted)
        if not is_held_out(hashed).all() or len(np.unique(hashed)) < len(hashed):
            raise ValueError("the rows that it holds out are not those that are held out")
        self._rows = {}
        for number, key in enumerate(hashed.tolist()):
            row = _Row(int(positions[number]), ids[number], *(split[name][number] for name in _PARTS))
            if (
                (np.diff(row.counted) <= 0).any()
                or (row.ids[row.counted] < 0).any()
                or (np.diff(row.columns) < 0).any()
                or not np.isin(row.columns, row.counted).all()
            ):
                raise ValueError("a row that it holds out counts what is no token")
            self._keep(key, row)


def _joined(rows: Sequence[_Row], name: str) -> Array:
    """One part of all rows, in one."""
    return np.concatenate([np.zeros(0, _PARTS.get(name, np.int32)), *(getattr(row, name) for row in rows)])
