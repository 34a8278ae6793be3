"""Pages of features. One at a time is made in the server's own thread; where several readers ask at once, or a model
computes in this process, others make them too: a process for each further processor, which reads the same atlases from
the disk and is started when it is first wanted.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from gemscope.app.keeping import Keeping

MOST = 4
"""Processes beside the server's, however many processors there are."""
_AHEAD = 8
"""Pages that a process has at a time: the next is there when one is done."""
ROOM = 1 << 20
"""Bytes of pages that may be on their way from a process, which else waits with its next until the server has time."""
SIZE = 4
"""Bytes of a page's length, which go before it; 0 stands for one that could not be made."""


@dataclass(frozen=True)
class Wanted:
    """A feature's page: its address, and what stands on it beside what the atlas has."""

    model: str
    source: str
    index: int
    query: dict[str, str]
    live: bool
    why: str
    median_norm: float | None = None
    kept: Keeping | None = None
    """Of the reader's own lists; None where the page is for a frame."""


def beside() -> int:
    """How many processes pay beside the server's."""
    return min(MOST, (os.cpu_count() or 1) - 1)


class Renderers:
    """Whoever makes pages: `here` does in this thread, and is what the others do too."""

    def __init__(
        self, here: Callable[[Wanted], str], folders: Sequence[Path], *, busy: Callable[[], bool], processes: int
    ) -> None:
        """`busy` says whether a model computes in this process; `processes` is how many there are beside it."""
        self._here = here
        self._folders = folders
        self._busy = busy
        self._processes = processes
        self._asking = 0
        self._line: asyncio.Queue[tuple[Wanted, asyncio.Future[str | bytes]]] = asyncio.Queue()
        self._hands: list[asyncio.Task[None]] = []
        self._started: list[Process] = []

    @property
    def pids(self) -> list[int]:
        """Of the processes beside this one that have been started."""
        return [process.pid for process in self._started]

    async def page(self, wanted: Wanted) -> str | bytes:
        """Raises what `here` raises."""
        self._asking += 1
        try:
            await asyncio.sleep(0)  # whoever asks at the same time is counted
            if not self._processes or (self._asking == 1 and not self._busy()):
                return self._here(wanted)
            if not self._hands:
                self._hands = [asyncio.create_task(self._make_here()), asyncio.create_task(self._start())]
            answer: asyncio.Future[str | bytes] = asyncio.get_running_loop().create_future()
            self._line.put_nowait((wanted, answer))
            return await answer
        finally:
            self._asking -= 1

    async def _make_here(self) -> None:
        while True:
            self._answer(*await self._line.get())
            await asyncio.sleep(0)  # what came meanwhile, pages from elsewhere too, is seen to between two of ours

    def _answer(self, wanted: Wanted, answer: asyncio.Future[str | bytes]) -> None:
        if answer.done():  # its reader has left
            return
        try:
            answer.set_result(self._here(wanted))
        except Exception as error:  # it is the reader's, who asked for this page
            answer.set_exception(error)

    async def _start(self) -> None:
        for _ in range(self._processes):
            # -P: a file in the working folder that is named like a module of ours is none.
            command = (sys.executable, "-P", "-m", "gemscope.app.renderer", *map(str, self._folders))
            try:
                process = await asyncio.create_subprocess_exec(
                    *command, stdin=PIPE, stdout=PIPE, pipesize=ROOM, limit=ROOM
                )
            except OSError:  # the system gives no more processes: those that there are do it
                return
            self._started.append(process)
            self._hands.append(asyncio.create_task(self._make_there(process)))

    async def _make_there(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        sent: deque[tuple[Wanted, asyncio.Future[str | bytes]]] = deque()  # pages come back in this order
        try:
            while True:
                while len(sent) < _AHEAD and not (sent and self._line.empty()):
                    sent.append(await self._line.get())
                    process.stdin.write(json.dumps(asdict(sent[-1][0])).encode() + b"\n")
                size = int.from_bytes(await process.stdout.readexactly(SIZE))
                made = await process.stdout.readexactly(size)
                wanted, answer = sent.popleft()
                if not made:
                    self._answer(wanted, answer)
                elif not answer.done():
                    answer.set_result(made)
        except (OSError, EOFError):  # it has ended; the others go on
            for wanted, answer in sent:
                self._answer(wanted, answer)

    async def close(self) -> None:
        """Ends the others."""
        for hand in self._hands:
            hand.cancel()
        for process in self._started:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
