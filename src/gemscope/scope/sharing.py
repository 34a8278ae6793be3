"""Work that several processes share without talking: each does its share of what is missing, then what nobody is at."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from gemscope.disk import claimed
from gemscope.errors import AccessError, CorruptFile, FileError
from gemscope.world import World

Thing = TypeVar("Thing", bound=Hashable)


def shared_out(
    world: World,
    locks: Path,
    missing: Callable[[], Sequence[Thing]],
    parts: Callable[[Sequence[Thing]], Sequence[tuple[Thing, ...]]],
    work: Callable[[tuple[Thing, ...]], None],
    *,
    called: Callable[[Thing], str],
    wait: Callable[[], None],
) -> None:
    """Until nothing is missing: cuts what is into parts, does this worker's, and then one that nobody else is at.

    `work` is given things of one part that are missing still, and while it runs no other process has them: each is
    locked in `locks`, by what it is `called`. The locks of a process that dies fall. `wait` is called while others are
    at all that is left.
    """
    while left := missing():
        every = parts(left)
        mine = world.share(every)
        did = [part for part in mine if _taken(part, locks, missing, work, called)]
        others = (part for part in reversed(every) if part not in mine)
        if not did and not any(_taken(part, locks, missing, work, called) for part in others):
            wait()


def _taken(
    part: tuple[Thing, ...],
    locks: Path,
    missing: Callable[[], Sequence[Thing]],
    work: Callable[[tuple[Thing, ...]], None],
    called: Callable[[Thing], str],
) -> bool:
    """Whether there was something to do."""
    with ExitStack() as held:
        mine = [thing for thing in part if held.enter_context(alone_at(locks / called(thing)))]
        left = set(missing()) if mine else set()
        if todo := tuple(thing for thing in mine if thing in left):
            work(todo)
        return bool(todo)


def singly(
    things: tuple[Thing, ...], work: Callable[[tuple[Thing, ...]], None], failed: Callable[[Thing, Exception], None]
) -> None:
    """Does what may fail of some together; where it does, each by itself, so that those alone are said to have failed
    that do. Raises what `failure` raises.
    """
    error = failure(lambda: work(things))
    if error is not None and len(things) == 1:
        failed(things[0], error)
    for thing in things if error is not None and len(things) > 1 else ():
        singly((thing,), work, failed)


def failure(work: Callable[[], None]) -> Exception | None:
    """What some work failed of. What all other work would fail of too is raised: a disk that is full or may not be
    written, a lock that another has.
    """
    try:
        work()
    except (AccessError, FileError) as error:
        if not isinstance(error, CorruptFile):
            raise
        return error
    except Exception as error:  # a fault of ours too: hours of others' work go on
        return error
    return None


@contextmanager
def alone_at(place: Path) -> Iterator[bool]:
    """Whether nobody else is at it, as long as the block runs. Nothing needs to be there."""
    with ExitStack() as held:
        try:
            held.enter_context(claimed(place))
        except AccessError:
            yield False
            return
        yield True
