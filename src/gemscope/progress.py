"""How long work says how far it is. Library functions take a `Progress`; only the shell draws one."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

Advance = Callable[[int], None]
"""Called with how many more units are done."""


@runtime_checkable
class Progress(Protocol):
    """Opens one bar: what is being done, how many units there are (None: unknown), and what a unit is called."""

    def __call__(self, what: str, total: int | None, unit: str) -> AbstractContextManager[Advance]: ...


@contextmanager
def silent(what: str, total: int | None, unit: str) -> Iterator[Advance]:
    """The progress that shows nothing."""
    yield lambda done: None
