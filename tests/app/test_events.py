"""Texts that come while they are written, and readers who leave."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from gemscope.app import events, steer_view, steering
from gemscope.app.application import app
from gemscope.app.worker import Worker
from served import ASKED, MODEL, SAE, STEER, TEXT, here, parsed, reader, told, until


class Listener:
    """Somebody who reads a stream, and may leave."""

    def __init__(self, made: Starlette, path: str, query: dict[str, Any], **headers: str) -> None:
        self.sent: list[dict[str, Any]] = []
        self.leave = asyncio.Event()
        self._asked = False
        said = {"host": "localhost", "accept": "text/event-stream, application/json", **headers}
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": urlencode(query, doseq=True).encode(),
            "headers": [(name.encode(), value.encode()) for name, value in said.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8400),
        }
        self.task = asyncio.ensure_future(made(self.scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def text(self) -> str:
        return b"".join(one.get("body", b"") for one in self.sent).decode()

    async def hears(self, part: str, seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while part not in self.text:
            assert time.monotonic() < end, self.text
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def application(folder: Path, worker: Worker) -> Iterator[tuple[Starlette, Any]]:
    made = app([folder], models=here, worker=worker)
    (source,) = made.state.shelf
    source.live.load(here, source.manifest)
    try:
        yield made, source
    finally:
        worker.close()
        source.atlas.close()


def test_who_waits_is_told_how_many_are_before_them_and_that_the_server_lives(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "TICK", 0.01)
    monkeypatch.setattr(events, "BEAT", 0.05)
    worker = Worker()
    with application(folder, worker) as (made, _):
        gates = [threading.Event(), threading.Event()]
        for gate in gates:
            worker.submit(lambda _, gate=gate: gate.wait(120))  # type: ignore[misc]

        async def waiting() -> str:
            one = Listener(made, f"{STEER}/stream", ASKED)
            await one.hears('event: wait\ndata: {"ahead":2}')
            await one.hears(": still there")
            gates[0].set()
            await one.hears('event: wait\ndata: {"ahead":1}')
            gates[1].set()
            await one.hears("event: done")
            await asyncio.wait_for(one.task, 120)
            assert one.sent[-1]["more_body"] is False
            return one.text

        heard = [(name, value) for name, value in parsed(asyncio.run(waiting())) if name in ("wait", "done")]
        assert [value["ahead"] for name, value in heard if name == "wait"][:2] == [2, 1]
        assert heard[-1][0] == "done"


def test_who_leaves_while_a_text_is_written_ends_it_and_leaves_the_model_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "TICK", 0.01)
    steps: list[int] = []
    left = threading.Event()

    def slowly(job: Any, *given: Any) -> Any:
        tell = job.tell

        def telling(news: Any) -> None:
            steps.append(news.frame.n)
            tell(news)
            assert left.wait(120)  # what is written next is written when nobody listens any more

        job.tell = telling
        return steering.stream(job, *given, atlas=source.atlas)

    worker = Worker()
    with application(folder, worker) as (made, source):
        units = source.live.units
        source.live.steer = lambda job, atlas, asked: slowly(job, MODEL, SAE, units(job, atlas), asked)
        plain = MODEL.logits(TEXT)

        async def leaving() -> None:
            one = Listener(made, f"{STEER}/stream", {**ASKED, "tokens": 100})
            await one.hears("event: frame")
            one.leave.set()
            await asyncio.wait_for(one.task, 120)
            left.set()
            assert "event: done" not in one.text

        asyncio.run(leaving())
        until(lambda: not worker.busy)
        assert len(steps) == 1
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in MODEL.hf.modules())
        assert (MODEL.logits(TEXT) == plain).all()
        assert worker.submit(lambda _: "next").outcome.result(120) == "next"


def test_who_leaves_the_line_is_never_written_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "TICK", 0.01)
    worker = Worker()
    with application(folder, worker) as (made, source):
        source.live.steer = lambda *_: pytest.fail("it was written")
        go = threading.Event()
        worker.submit(lambda _: go.wait(120))
        until(lambda: worker.busy)  # or it counts as one that waits

        async def leaving() -> None:
            one = Listener(made, f"{STEER}/stream", ASKED)
            await one.hears("event: wait")
            assert worker.waiting == 1
            one.leave.set()
            await asyncio.wait_for(one.task, 120)

        asyncio.run(leaving())
        assert worker.waiting == 0
        go.set()


def test_a_text_that_takes_too_long_is_given_up(live: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steer_view, "WRITING", 0.0)
    for path in (f"{STEER}.json?run=true&", f"{STEER}/stream?"):
        answer = live.get(f"{path}{urlencode(ASKED, doseq=True)}", headers={"accept": "application/json"})
        assert answer.status_code == 503
        assert "longer than 0 seconds: ask for less" in answer.json()["error"]


def test_what_fails_after_the_first_word_is_said_in_the_stream(folder: Path) -> None:
    with reader(folder, models=here) as client:
        (source,) = client.app.state.shelf  # type: ignore[attr-defined]

        def breaks(job: Any, *_: Any) -> Any:
            frame = steering.Frame(("a",), ("b",), 1)
            job.tell(steering.Partial("steered", frame))
            time.sleep(0.1)
            raise ZeroDivisionError("secret")

        source.live.steer = breaks
        found = told(client.get(f"{STEER}/stream", params=ASKED))
        assert [name for name, _ in found] == ["frame", "failed"]
        assert found[-1][1] == {"error": "something went wrong in the server; its log says what"}


def test_when_too_many_wait_the_next_is_turned_away_from_a_stream_too(folder: Path) -> None:
    worker = Worker(room=1)
    with reader(folder, models=here, worker=worker) as client:
        go = threading.Event()
        worker.submit(lambda _: go.wait(120))
        until(lambda: worker.busy and not worker.waiting)
        worker.submit(lambda _: None)
        answer = client.get(f"{STEER}/stream", params=ASKED, headers={"accept": "application/json"})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        go.set()
