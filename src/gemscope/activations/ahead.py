"""Text is read one batch ahead on a GPU: while what it found in one batch is looked at here, it has the next.
A processor has little to gain: of reading through the bundled model nine tenths are its passes, on all cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

import torch

from gemscope.text.tokens import Tokens

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(items: Iterable[Item], work: Callable[[Item], Made], device: torch.device) -> Iterator[tuple[Item, Made]]:
    """Each item with what `work` makes of it on the device, in order; in a thread beside the caller where the device
    works by itself. Raises what `work` raises, when its item's turn comes.
    """
    if not _works_by_itself(device):
        for item in items:
            yield item, work(item)
        return
    reader = ThreadPoolExecutor(1, "reads ahead")
    held: tuple[Item, Future[Made]] | None = None
    try:
        for item in items:
            future = reader.submit(copy_context().run, work, item)
            if held is not None:
                yield held[0], held[1].result()
            held = item, future
        if held is not None:
            yield held[0], held[1].result()
    finally:
        reader.shutdown(cancel_futures=True)


def enough(rows: Iterable[Tokens], tokens: int | None) -> Iterator[Tokens]:
    """Rows until so many tokens have come (None: all): no text is read beyond that."""
    read = 0
    for one in rows:
        yield one
        read += int(one.real.sum())
        if tokens is not None and read >= tokens:
            return


def _works_by_itself(device: torch.device) -> bool:
    return device.type == "cuda"
