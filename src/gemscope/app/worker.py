"""One thread for whatever runs a model, and the line in front of it. Knows neither models nor HTTP."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Full(Exception):
    """As many jobs wait as there is room for."""


class Overtime(Exception):
    """A job took longer than it may."""


class Cancelled(Exception):
    """Nobody waits for the job any more."""


class GivesWay(Exception):
    """A patient job stops for somebody who is not: it begins anew when nobody is before it."""


class Job(Generic[T]):
    """A piece of work, waiting, running or done; `outcome` is a future of what it returns or raises."""

    def __init__(
        self, work: Callable[[Job[T]], T], seconds: float, ahead: int, listen: Callable[[Any], None] | None = None
    ) -> None:
        self.outcome: Future[T] = Future()
        self.ahead = ahead
        """How many jobs were before it when it came, the running one included."""
        self.seconds = seconds
        """How long it may run."""
        self.patient = False
        """Whether those who are not may go before it, even once it has begun."""
        self.name = ""
        """What its reader calls it, to ask for its place in the line."""
        self._work = work
        self._listen = listen
        self._cancelled = threading.Event()
        self._hurried = False
        self._deadline = float("inf")

    def cancel(self) -> None:
        """Takes it out of the line; one that runs ends at its next `check`."""
        self._cancelled.set()
        self.outcome.cancel()

    def check(self) -> None:
        """Called by the work between its steps. Raises Cancelled, Overtime or GivesWay when it shall not go on."""
        if self._cancelled.is_set():
            raise Cancelled("nobody waits for this any more")
        if self._hurried:
            raise GivesWay("somebody waits who is not patient")
        if time.monotonic() > self._deadline:
            raise Overtime(f"this took longer than {self.seconds:g} seconds")

    def tell(self, news: Any) -> None:
        """Called by the work with what it has so far: whoever listens hears of it, in the worker's thread."""
        if self._listen is not None:
            self._listen(news)

    def begin(self) -> None:
        """Called by the work: its time is counted from now on, for what came before was not for its reader alone."""
        self._deadline = time.monotonic() + self.seconds

    @property
    def _gone(self) -> bool:
        """Whether nobody waits for it; asked of one in the line."""
        if self._cancelled.is_set() and self.outcome.running():  # it had begun, and had given way
            self.outcome.set_exception(Cancelled("nobody waits for this any more"))
        return self._cancelled.is_set()

    def _run(self) -> bool:
        """Whether that was all; not where it gave way."""
        if self._gone if self.outcome.running() else not self.outcome.set_running_or_notify_cancel():
            return True
        self.begin()
        try:
            result = self._work(self)
        except GivesWay:
            return False
        except BaseException as error:  # a model may raise anything; the thread serves the next one all the same
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(result)
        return True


class Worker:
    """Runs jobs one after another, in the order in which they came, in one thread of its own."""

    def __init__(self, *, room: int = 16, seconds: float = 30.0) -> None:
        """At most `room` jobs wait; each may run for `seconds`."""
        self.room = room
        self.seconds = seconds
        self._line: deque[Job[Any]] = deque()
        self._running: Job[Any] | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Jobs that wait, not counting the one that runs."""
        with self._changed:
            return len(self._alive())

    @property
    def busy(self) -> bool:
        """Whether a job runs."""
        return self._running is not None

    def ahead(self, job: Job[Any]) -> int:
        """How many are before this one now, the running one included; 0 for one that runs or is done."""
        with self._changed:
            alive = self._alive()
            return alive.index(job) + (self._running is not None) if job in alive else 0

    def place(self, name: str) -> int | None:
        """How many are before the job of this name now; None where it waits no longer, or there is none."""
        with self._changed:
            found = next((job for job in self._alive() if job.name == name), None) if name else None
        return None if found is None else self.ahead(found)

    def submit(
        self,
        work: Callable[[Job[T]], T],
        *,
        seconds: float | None = None,
        always: bool = False,
        patient: bool = False,
        listen: Callable[[Any], None] | None = None,
        name: str = "",
    ) -> Job[T]:
        """Puts a job at the end of the line; `work` is given the job, to `check`. Raises Full, unless `always`.

        One that is `patient` lets those who are not go before it, at once: where it runs already it stops at its next
        `check`, and its work is called anew when none of them is left. Whatever of it is finished by then is for the
        work to keep. `listen` hears what the work `tell`s while it runs; `name` finds its `place`.
        """
        with self._changed:
            waiting = self._alive()
            if self._closed or (len(waiting) >= self.room and not always):
                raise Full(f"{len(waiting)} texts wait to be read already: try again in a moment")
            place = len(waiting) if patient else sum(not one.patient for one in waiting)
            running = self._running
            if running is not None and running.patient and not patient:
                running._hurried = True
            ahead = place + (running is not None)
            job = Job(work, self.seconds if seconds is None else seconds, ahead, listen)
            job.patient, job.name = patient, name
            self._line.insert(place, job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="gemscope-model", daemon=True)
                self._thread.start()
            self._changed.notify()
        return job

    def close(self, *, seconds: float = 5.0) -> None:
        """Takes no more jobs, drops those that wait, and gives the one that runs up to `seconds` to notice."""
        with self._changed:
            self._closed = True
            for job in (*self._line, self._running):
                if job is not None:
                    job.cancel()
            self._alive()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)

    def _alive(self) -> list[Job[Any]]:
        """Those that wait; cancelled ones leave the line here."""
        alive = [job for job in self._line if not job._gone]
        if len(alive) < len(self._line):
            self._line = deque(alive)
        return alive

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._running = None
                while not self._line and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                self._running = job = self._line.popleft()
            if not job._run():
                with self._changed:
                    job._hurried = False
                    self._line.insert(sum(not one.patient for one in self._line), job)
                    self._alive()
            del job  # and with it what it returned
