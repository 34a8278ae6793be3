"""An answer that is sent while it arises: a job's news as server-sent events, and its place in the line before that.

The reader who leaves ends the job; while nothing is to be said, a sign of life is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any, Generic, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gemscope.app.asking import leaving, refused, submitted, worker_of
from gemscope.app.responses import as_json
from gemscope.app.worker import Cancelled, Job
from gemscope.errors import GemscopeError

T = TypeVar("T")

TICK = 0.25
"""Seconds between looks at the line."""
BEAT = 10.0
"""Seconds after which something is said in any case: proxies and browsers hang up on those who are silent."""

Said = tuple[str, Any]
"""The name of an event and its data, for JSON."""


class Events(Response, Generic[T]):
    """The answer to a request that the worker has already been given. Named events, or one kind of message alone."""

    media_type = "text/event-stream"

    def __init__(
        self,
        request: Request,
        work: Callable[[Job[T]], T],
        *,
        seconds: float,
        news: Callable[[Any], Said],
        end: Callable[[T], Said],
        named: bool = True,
    ) -> None:
        """`news` makes an event of what the work tells, `end` of what it returns. With `named`, events have names,
        and there are two more: `wait` (`{"ahead": 2}`) and `failed` (`{"error": ...}`); what fails before anything was
        said is answered as everywhere. Raises HTTPException 503 where too many wait.
        """
        super().__init__(headers={"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._request, self._named = request, named
        self._news, self._end = news, end
        self._begun = False
        self._latest: Any = None
        self._told = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._job = submitted(request, work, seconds=seconds, listen=self._listen)

    def _listen(self, news: Any) -> None:
        """In the worker's thread. What came before and was not sent yet is out of date."""
        with suppress(RuntimeError):  # the loop is gone, and the reader with it
            self._loop.call_soon_threadsafe(self._note, news)

    def _note(self, news: Any) -> None:
        self._latest = news
        self._told.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        try:
            async with aclosing(self._said()) as said:
                async for piece in said:
                    if not self._begun:
                        await send(start)
                        self._begun = True
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            if self._begun:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:  # the reader has gone
            pass
        finally:
            self._job.cancel()

    async def _said(self) -> AsyncGenerator[bytes, None]:
        """Until the job has ended or the reader has gone."""
        done = asyncio.wrap_future(self._job.outcome)
        left = asyncio.ensure_future(leaving(self._request))
        told = asyncio.ensure_future(self._told.wait())
        ahead, spoke = 0, time.monotonic()
        try:
            while True:
                everything: set[asyncio.Future[Any]] = {done, left, told}
                await asyncio.wait(everything, timeout=TICK, return_when=asyncio.FIRST_COMPLETED)
                if left.done():
                    return
                if done.done():
                    yield self._written(self._outcome(done))
                    return
                now = worker_of(self._request).ahead(self._job)
                if told.done():
                    self._told.clear()
                    told = asyncio.ensure_future(self._told.wait())
                    yield self._written(self._news(self._latest))
                elif now != ahead and self._named:
                    yield self._written(("wait", {"ahead": now}))
                elif time.monotonic() - spoke > BEAT:
                    yield b": still there\n\n"
                else:
                    continue
                ahead, spoke = now, time.monotonic()
        finally:
            for one in (left, told):
                one.cancel()
            if not done.done():
                done.cancel()
            self._job.cancel()

    def _outcome(self, done: asyncio.Future[T]) -> Said:
        """Raises what the work raised where nothing was said yet: then the answer can still have another status."""
        try:
            return self._end(done.result())
        except (asyncio.CancelledError, Cancelled):
            return "failed", {"error": "this was cancelled"}
        except Exception as raised:
            error = refused(raised)
            if not self._begun:
                raise error from None
            return "failed", {"error": _line(error)}

    def _written(self, said: Said) -> bytes:
        name, value = said
        head = f"event: {name}\n" if self._named else ""
        return b"%bdata: %b\n\n" % (head.encode(), as_json(value))


def _line(error: Exception) -> str:
    if isinstance(error, HTTPException):
        return error.detail
    if isinstance(error, GemscopeError):
        return " ".join(str(error).split())
    logging.getLogger("gemscope").exception("a stream ended", exc_info=error)
    return "something went wrong in the server; its log says what"


def as_data(value: Mapping[str, Any]) -> Said:
    """A message without a name."""
    return "", dict(value)
