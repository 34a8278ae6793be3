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
        """Whether those who are not may go before it."""
        self._work = work
        self._listen = listen
        self._cancelled = threading.Event()
        self._deadline = float("inf")

    def cancel(self) -> None:
        """Takes it out of the line; one that runs ends at its next `check`."""
        self._cancelled.set()
        self.outcome.cancel()

    def check(self) -> None:
        """Called by the work between its steps. Raises Cancelled or Overtime when it shall not go on."""
        if self._cancelled.is_set():
            raise Cancelled("nobody waits for this any more")
        if time.monotonic() > self._deadline:
            raise Overtime(f"this took longer than {self.seconds:g} seconds")

    def tell(self, news: Any) -> None:
        """Called by the work with what it has so far: whoever listens hears of it, in the worker's thread."""
        if self._listen is not None:
            self._listen(news)

    def _run(self) -> None:
        if not self.outcome.set_running_or_notify_cancel():
            return
        self._deadline = time.monotonic() + self.seconds
        try:
            result = self._work(self)
        except BaseException as error:  # a model may raise anything; the thread serves the next one all the same
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(result)


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

    def submit(
        self,
        work: Callable[[Job[T]], T],
        *,
        seconds: float | None = None,
        always: bool = False,
        patient: bool = False,
        listen: Callable[[Any], None] | None = None,
    ) -> Job[T]:
        """Puts a job at the end of the line; `work` is given the job, to `check`. Raises Full, unless `always`.

        One that is `patient` lets those who are not go before it: readers shall not wait for what a page asks for by
        itself. `listen` hears what the work `tell`s while it runs.
        """
        with self._changed:
            waiting = self._alive()
            if self._closed or (len(waiting) >= self.room and not always):
                raise Full(f"{len(waiting)} texts wait to be read already: try again in a moment")
            place = len(waiting) if patient else sum(not one.patient for one in waiting)
            ahead = place + (self._running is not None)
            job = Job(work, self.seconds if seconds is None else seconds, ahead, listen)
            job.patient = patient
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
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)

    def _alive(self) -> list[Job[Any]]:
        """Those that wait; cancelled ones leave the line here."""
        alive = [job for job in self._line if not job.outcome.cancelled()]
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
            job._run()
            del job  # and with it what it returned
