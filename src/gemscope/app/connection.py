"""One connection: uvicorn's own, closed when its other side keeps it open without getting on. uvicorn waits for ever.

What takes its time is the head of a request, the rest of one that is answered already, and an answer that is not read.
A body that is wanted is the guard's matter.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 15.0
LINGER_SECONDS = 1.0
"""How long what still comes of a request is thrown away behind its answer: closed at once, the answer could be lost
with it (RFC 9112, section 9.6)."""
STALL_SECONDS, STALL_BYTES = 20.0, 10_000
"""An answer of which fewer bytes are taken in that time is given up."""


class Connection(H11Protocol):
    """HTTP/1.1 by h11."""

    _late: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _answered = False
    """Whether the answer is out and the rest of the request is thrown away."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # whatever is not taken at once is watched
        self._late = self.loop.call_later(HEAD_SECONDS, self._close_late)

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._in_time()
        elif self._late is None:  # a part of the next request's head
            self._late = self.loop.call_later(HEAD_SECONDS, self._close_late)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE and not self._answered:
            self._answered = True
            self._unset_keepalive_if_required()
            self.transport.write_eof()
            self._late = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taken()

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        super().connection_lost(exc)
        self._taken()

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close_late(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()

    def _watch(self) -> None:
        self._taken()
        size = self.transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(STALL_SECONDS, self._abort_unread, size)

    def _abort_unread(self, before: int) -> None:
        if before - self.transport.get_write_buffer_size() < STALL_BYTES:
            self.transport.abort()
        else:
            self._watch()

    def _taken(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
