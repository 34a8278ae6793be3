"""How far the making of a scope is as a whole: a bar over everything, in seconds of work as planned, above the bar of
what is being done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gemscope.progress import Advance, Progress

_OFTEN = 2.0
"""Seconds between two looks at what other workers have done."""


class Whole:
    """A `Progress` for a part of the work is had by `part(seconds)`: what its bar advances, the bar over all does."""

    def __init__(self, progress: Progress, advance: Callable[[float], None], done: Callable[[], float]) -> None:
        """`advance` moves the bar over all to so many seconds; `done` counts those of all parts that are finished."""
        self._progress, self._advance, self._done = progress, advance, done
        self._looked, self._finished = 0.0, 0.0

    def look(self, under_way: float = 0.0, *, now: bool = False) -> None:
        """Says how far all is, with so many seconds of what this worker is at."""
        if now or time.monotonic() - self._looked > _OFTEN:
            self._looked, self._finished = time.monotonic(), self._done()
        self._advance(self._finished + under_way)

    def part(self, seconds: float, *, bars: int = 1) -> Progress:
        """Of work that was planned to take so long, in as many bars after one another."""

        before = 0.0

        @contextmanager
        def progress(what: str, total: int | None, unit: str) -> Iterator[Advance]:
            nonlocal before
            done = 0

            def advance(more: int) -> None:
                nonlocal done
                done += more
                inner(more)
                share = 0.0 if not total else min(1.0, done / total)
                self.look(min(seconds, before + share * seconds / bars))

            with self._progress(what, total, unit) as inner:
                yield advance
            before = min(seconds, before + seconds / bars)

        return progress


@contextmanager
def whole(progress: Progress, what: str, seconds: float, done: Callable[[], float]) -> Iterator[Whole]:
    """The bar over all, while the block runs."""
    with progress(what, max(1, round(seconds)), "s") as advance:
        there = 0

        def to(now: float) -> None:
            nonlocal there
            step = int(now) - there
            if step > 0:
                there += step
                advance(step)

        one = Whole(progress, to, done)
        one.look(now=True)
        yield one
