"""Batches where they are trained on. Another device than the processor works by itself: while it has one batch, the
next is read, and copied beside the work.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context

import torch
from torch import Tensor

from gemscope.training.source import Batches

Pair = tuple[Tensor, Tensor]


class Delivered:
    """Pairs of a step in float32, on a device; y is x where it is at the source."""

    def __init__(self, batches: Batches, device: torch.device, end: int) -> None:
        """`end`: no step from there on will be asked for, so that none is read ahead."""
        self._batches, self._device, self._end = batches, device, end
        self._held: tuple[int, Pair] | None = None
        self._ahead: tuple[int, Future[Pair]] | None = None
        self._reader = None if device.type == "cpu" else ThreadPoolExecutor(1, "batches")
        self._copies = _stream(device)

    def __getitem__(self, step: int) -> Pair:
        """Raises what the source raises. The step asked for last is not read again: a stream would begin anew."""
        if self._held is None or self._held[0] != step:
            self._held = step, self._next(step)
        return self._held[1]

    def sample(self, count: int) -> Pair:
        """Up to `count` pairs, on the processor: their means and scales are summed there in float64, for all devices
        alike.
        """
        x, y = self._batches.sample(count)
        whole = x.float()
        return whole, (whole if y is x else y.float())

    def close(self) -> None:
        """Waits for what is read ahead, and drops it."""
        self._held = self._ahead = None
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)

    def _next(self, step: int) -> Pair:
        if self._reader is None:
            return self._moved(*self._batches[step])
        if self._ahead is None or self._ahead[0] != step:
            self._start(step)
        assert self._ahead is not None
        pair = self._ahead[1].result()
        self._ahead = None
        if self._copies is not None:
            now = torch.cuda.current_stream(self._device)
            now.wait_stream(self._copies)
            for rows in pair:
                rows.record_stream(now)  # or its memory would be given away while work on it is still queued
        if step + 1 < self._end:
            self._start(step + 1)
        return pair

    def _start(self, step: int) -> None:
        assert self._reader is not None
        if self._ahead is not None:  # of another step: read in order, for a stream does not run backwards
            self._ahead[1].exception()
        self._ahead = step, self._reader.submit(copy_context().run, self._read, step)

    def _read(self, step: int) -> Pair:
        with torch.no_grad():
            pair = self._batches[step]
            beside: AbstractContextManager[object] = nullcontext()
            if self._copies is not None:
                pinned = _pinned(pair[0])
                pair = pinned, (pinned if pair[1] is pair[0] else _pinned(pair[1]))
                beside = torch.cuda.stream(self._copies)
            with beside:
                return self._moved(*pair)

    def _moved(self, x: Tensor, y: Tensor) -> Pair:
        """As they are stored they are half as long as in float32."""
        there = x.to(self._device, non_blocking=True).float()
        return there, (there if y is x else y.to(self._device, non_blocking=True).float())


def _pinned(rows: Tensor) -> Tensor:
    """Where a GPU fetches them by itself."""
    return rows.pin_memory() if rows.device.type == "cpu" else rows


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    """For copies beside the work, where a device has such."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
