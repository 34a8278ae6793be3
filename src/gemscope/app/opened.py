"""Atlases that are opened when they are asked for, of which those stay open that were asked for last."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gemscope.atlas.reader import Atlas
from gemscope.pages.charts.scatter import Cells, gathered

FEATURES = 1 << 20
"""Features of the atlases that are open at a time, so that their memory has a bound whatever their size."""
MOST = 64
"""Atlases that are open at a time, however small: each takes a few files."""
FEW = 8
"""As many atlases as this are all opened as soon as they are served."""


class Opened:
    """An open atlas, and what is gathered from it for its pages: let go of together."""

    def __init__(self, atlas: Atlas) -> None:
        self.atlas = atlas

    @cached_property
    def dead(self) -> int:
        """How many features fired nowhere."""
        return self.atlas.count(dead=True)

    @cached_property
    def points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`Atlas.scatter`: what labels say does not change it."""
        return self.atlas.scatter()

    @cached_property
    def cells(self) -> Cells | None:
        """The points as a chart has them; None where no feature fired."""
        return gathered(*self.points)

    @cached_property
    def maps(self) -> dict[str, Any]:
        """The map of all features as its page has it, under `now`."""
        return {}

    @cached_property
    def striking(self) -> list[int]:
        """A few features to begin with."""
        return [one.feature for one in self.atlas.striking()]

    @cached_property
    def figures(self) -> tuple[np.ndarray, np.ndarray]:
        """Densities and maxima [d_sae]."""
        features, *figures = self.points
        whole = np.zeros((2, len(self.atlas)))
        whole[:, features] = figures
        return whole[0], whole[1]

    def warm(self) -> None:
        """Gathers what lists and pages need first: else the first readers would wait for it."""
        self.atlas.summaries(limit=1)
        if len(self.atlas):
            self.atlas[0]
        _ = self.cells, self.dead, self.striking


class Room:
    """Opens atlases and keeps those open that were asked for last. Whoever reads one that is let go of reads on: it is
    closed when nobody has it any more. Safe from many threads.
    """

    def __init__(self, *, most: int = MOST, features: int = FEATURES) -> None:
        self.most, self.features = most, features
        self._open: dict[Path, Opened] = {}
        """The one that was asked for last comes last."""
        self._doors: dict[Path, threading.Lock] = {}
        self._lock = threading.Lock()

    def open(self, folder: Path) -> Opened:
        """Raises what `Atlas` raises."""
        if (found := self.at_hand(folder)) is not None:
            return found
        with self._lock:
            door = self._doors.setdefault(folder, threading.Lock())
        with door:  # who comes while it is opened waits for it, and nobody else does
            if (found := self.at_hand(folder)) is not None:
                return found
            found = Opened(Atlas(folder))
            with self._lock:
                self._open[folder] = found
                left = list(self._too_many())
            del left
            return found

    def _too_many(self) -> Iterator[Opened]:
        """Those that are let go of."""
        features = sum(len(one.atlas) for one in self._open.values())
        while len(self._open) > 1 and (len(self._open) > self.most or features > self.features):
            oldest = self._open.pop(next(iter(self._open)))
            features -= len(oldest.atlas)
            yield oldest

    def at_hand(self, folder: Path) -> Opened | None:
        """Where it is open already."""
        with self._lock:
            found = self._open.pop(folder, None)
            if found is not None:
                self._open[folder] = found
            return found

    def close(self) -> None:
        """Closes those that are open."""
        with self._lock:
            left = list(self._open.values())
            self._open.clear()
        for one in left:
            one.atlas.close()
