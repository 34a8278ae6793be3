"""What finds no room in a device's memory: how that is told from other errors, and said in one line with what would
fit, which is tried, not guessed, where it can be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from traceback import clear_frames

import torch
from rich.filesize import decimal
from torch import nn

from gemscope.activations.suited import devices, free_memory
from gemscope.disk import chain
from gemscope.errors import OutOfMemory

_ASKED = re.compile(r"allocate:? ([\d.]+) ([KMGTP]?)(?:i?B|bytes)")
_SAID = ("out of memory", "not enough memory", "can't allocate memory", "STATUS_ALLOC_FAILED")
"""What torch says where memory does not suffice, when it does not say so by the kind of its error."""


def put(module: nn.Module, device: torch.device, name: str, smaller: Callable[[int], str] | None = None) -> None:
    """Moves weights. Raises OutOfMemory where there is no room for them, with what would fit of such a kind into so
    many free bytes, by `smaller`.
    """
    size = sum(weight.nbytes for weight in module.parameters())

    def remedy() -> str:
        module.to("cpu")  # what got there makes room again
        free = free_on(device)
        fitting = smaller(free) if smaller and free is not None else ""
        return f"{fitting or 'take'} {elsewhere(device)}"

    with room(f"{name}, which takes {decimal(size)}", device, remedy):
        module.to(device)


def lacking(error: BaseException) -> int | None:
    """How many bytes were asked for that are not there, 0 where the error does not say; None for an error of another
    kind.
    """
    text = str(error)
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if not known and not (isinstance(error, RuntimeError) and any(said in text for said in _SAID)):
        return None
    found = _ASKED.search(text)
    return round(float(found[1]) * 1024 ** " KMGTP".index(found[2] or " ")) if found else 0


def free_on(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where nobody says."""
    if device.type == "cuda":
        with suppress(RuntimeError, AssertionError):
            torch.cuda.empty_cache()
            return torch.cuda.mem_get_info(device)[0]
    return free_memory() if device.type == "cpu" else None


@contextmanager
def room(what: str, device: torch.device, remedy: Callable[[], str]) -> Iterator[None]:
    """While the block runs, an error of memory becomes one line: what found no room where, and what `remedy` says then,
    when the memory that the block had taken is free again. Raises OutOfMemory.
    """
    try:
        yield
    except OutOfMemory:
        raise
    except (RuntimeError, MemoryError) as error:
        if (lacked := lacking(error)) is None:
            raise
        for one in chain(error):  # which holds on to all that was made until it was raised
            clear_frames(one.__traceback__)
        free = free_on(device)
        sizes = [f"{decimal(lacked)} more were asked for"] * bool(lacked)
        sizes += [] if free is None else [f"{decimal(free)} are free"]
        said = f" ({', '.join(sizes)})" if sizes else ""
        raise OutOfMemory(f"{device} has no room for {what}{said}: {remedy()}") from error


def most(fits: Callable[[int], bool], below: int) -> int:
    """The largest of `below` / 2, / 4, ... that fits by a try; 0 where not even 1 does."""
    number = below // 2
    while number and not fits(number):
        number //= 2
    return number


def succeeds(work: Callable[[], object]) -> bool:
    """Whether there is room for some work. Raises what it raises otherwise."""
    try:
        work()
    except (RuntimeError, MemoryError) as error:
        if lacking(error) is None:
            raise
        return False
    return True


def fewer(what: str, batch: int, device: torch.device) -> AbstractContextManager[None]:
    """`room` for work in batches of rows."""
    half = f"take fewer rows at a time (batch={batch // 2})" if batch > 1 else "take shorter rows (length=...)"
    return room(f"{what} with batch={batch}", device, lambda: f"{half}, or {elsewhere(device)}")


def elsewhere(device: torch.device) -> str:
    """Other devices, in words."""
    others = [name for name in devices() if name != str(device)]
    return f"another device ({', '.join(others)})" if others else "a machine with more memory"
