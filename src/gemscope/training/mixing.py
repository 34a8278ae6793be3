"""Rows that arrive in order, given out in a random one. Where they come from, `source.py` knows."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from gemscope.errors import InputError
from gemscope.progress import Advance
from gemscope.shapes import Float
from gemscope.training.shuffle import Shuffle

_KEPT = 1 << 16
"""Rows given out last that can be asked for again: as many as a run calibrates on at its end."""


class Mixed:
    """Batches out of a buffer: each takes random rows, and as many that arrive next take their places.

    What comes out at a step is a pure function of (seed, step), and of the stream. A step further on is reached by
    going through all before it; one further back than 65,536 rows, by starting over. A stream that is shorter than the
    buffer is held as a whole and shuffled anew each epoch; a longer one begins again when it ends.
    """

    def __init__(self, stream: Callable[[], Iterator[Tensor]], *, buffer: int, batch: int, seed: int) -> None:
        """`stream()` gives rows [n, W], some at a time and of any n, the same each time. Raises InputError."""
        if buffer < 1 or batch < 1:
            raise InputError(f"buffer={buffer}, batch={batch}: at least one row is needed of each")
        if batch > buffer:
            raise InputError(f"batch={batch} is more than buffer={buffer} rows: nothing could be mixed")
        self._stream, self._size, self._batch, self._seed = stream, buffer, batch, seed
        self._held: Tensor | None = None
        self._order: Shuffle | None = None
        """Where the stream is held as a whole."""
        self._recent: OrderedDict[int, Tensor] = OrderedDict()
        self._taken = torch.empty(0, dtype=torch.int64)
        """Places in the buffer whose rows were given out, and no others have come yet."""
        self._next = 0
        self._pieces: Iterator[Tensor] = iter(())
        self._left: Tensor | None = None

    def sample(self, count: int, advance: Advance = lambda done: None) -> Float[Tensor, "N W"]:
        """Random rows of what the buffer holds at the beginning; batches give them out as well. `advance` hears how the
        buffer fills.
        """
        held = self._at_the_beginning(advance)
        generator = np.random.default_rng((self._seed, 0))
        return held[torch.from_numpy(generator.permutation(len(held))[:count])]

    def __getitem__(self, step: int) -> Float[Tensor, "B W"]:
        if step in self._recent:
            return self._recent[step]
        held = self._at_the_beginning() if self._held is None or step < self._next else self._held
        if self._order is not None:
            return held[self._order[step]]
        while self._next <= step:
            self._advance(held)
        return self._recent[step]

    def _advance(self, held: Tensor) -> None:
        if len(self._taken):
            held[self._taken] = self._arriving(len(self._taken))
        # 1 + step, as 0 is the sample's.
        generator = np.random.default_rng((self._seed, 1 + self._next))
        self._taken = torch.from_numpy(generator.choice(len(held), self._batch, replace=False))
        self._recent[self._next] = held[self._taken]
        if len(self._recent) > math.ceil(_KEPT / self._batch):
            self._recent.popitem(last=False)
        self._next += 1

    # --- the stream -------------------------------------------------------------------------------------------

    def _at_the_beginning(self, advance: Advance = lambda done: None) -> Tensor:
        """The buffer as the first rows fill it."""
        if self._held is not None and (self._next == 0 or self._order is not None):
            return self._held
        self._next = 0
        self._taken = torch.empty(0, dtype=torch.int64)
        self._recent.clear()
        self._pieces, self._left = self._stream(), None
        count = 0
        for piece in self._pieces:
            if self._held is None:
                # Memory that is never written to costs nothing.
                self._held = torch.empty(self._size, piece.shape[1], dtype=piece.dtype)
            room = self._size - count
            self._held[count : count + len(piece)] = piece[:room]
            count += min(room, len(piece))
            advance(min(room, len(piece)))
            if len(piece) > room:
                self._left = piece[room:]
            if count == self._size:
                break
        if self._held is None or count == 0:
            raise InputError("the stream gave no rows: there is nothing to train on")
        if count < self._size:
            self._held = self._held[:count]
            self._order = Shuffle(count, self._batch, self._seed)
        return self._held

    def _arriving(self, count: int) -> Tensor:
        """The next rows of the stream."""
        found: list[Tensor] = []
        while count:
            if self._left is None or not len(self._left):
                self._left = next(self._pieces, None)
                if self._left is None:
                    # At its end it begins again; the buffer goes on mixing what is of either reading.
                    self._pieces = self._stream()
                    self._left = next(self._pieces, None)
                if self._left is None:
                    raise InputError("the stream gave rows once and no more: its text must be there to be read again")
                continue
            found.append(self._left[:count])
            self._left = self._left[count:]
            count -= len(found[-1])
        return torch.cat(found)
