"""Texts wait in a line for the one model, and who leaves is left out."""

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from gemscope.app.application import app
from gemscope.app.worker import Worker
from served import AT, MODEL, TEXT, here, reader, until


def test_when_too_many_wait_the_next_reader_is_told_so(folder: Path) -> None:
    worker = Worker(room=1)
    with reader(folder, models=here, worker=worker) as client:
        go = threading.Event()
        worker.submit(lambda _: go.wait(120))
        until(lambda: worker.busy and not worker.waiting)
        worker.submit(lambda _: None)
        answer = client.post(f"{AT}/3/test", json={"text": TEXT})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert "wait to be read" in answer.json()["error"]
        assert client.get(f"{AT}/3").status_code == 200
        assert client.get("/health").json()["queue"] == {"running": True, "waiting": 1, "room": 1}
        go.set()
        until(lambda: not worker.waiting)
        assert client.post(f"{AT}/3/test", json={"text": TEXT}).status_code == 200


def test_a_text_that_takes_too_long_is_given_up_within_the_pass(folder: Path) -> None:
    worker = Worker(seconds=0.0)
    with reader(folder, models=here, worker=worker) as client:
        answer = client.post(f"{AT}/3/test", json={"text": TEXT})
        assert answer.status_code == 503
        assert "took longer than 0 seconds" in answer.json()["error"]
        assert not any(module._forward_hooks for module in MODEL.hf.modules())


async def _call(made: Starlette, path: str, body: bytes, leave: asyncio.Event) -> list[dict[str, Any]]:
    """A request whose reader leaves when told to."""
    sent: list[dict[str, Any]] = []
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8400),
    }
    await made(scope, receive, send)
    return sent


def test_a_reader_who_leaves_while_waiting_takes_the_text_out_of_the_line(folder: Path) -> None:
    worker = Worker()
    made = app([folder], models=here, worker=worker)
    (source,) = made.state.shelf
    source.live.load(here, source.manifest)
    go = threading.Event()
    worker.submit(lambda _: go.wait(120))
    until(lambda: worker.busy)  # or it counts as one that waits

    async def leaving() -> list[dict[str, Any]]:
        leave = asyncio.Event()
        asked = asyncio.ensure_future(_call(made, f"{AT}/3/test", json.dumps({"text": TEXT}).encode(), leave))
        while worker.waiting != 1:
            await asyncio.sleep(0.005)
        leave.set()
        return await asyncio.wait_for(asked, 5)

    sent = asyncio.run(leaving())
    assert sent[0]["status"] == 499
    assert worker.waiting == 0
    go.set()
    worker.close()
    source.atlas.close()


def test_a_reader_who_leaves_while_the_model_runs_ends_the_pass(folder: Path) -> None:
    worker = Worker()
    made = app([folder], models=here, worker=worker)
    (source,) = made.state.shelf
    source.live.load(here, source.manifest)
    begun, ended = threading.Event(), []

    def read(job: Any, text: str, **_: Any) -> Any:
        begun.set()
        try:
            while True:
                time.sleep(0.005)
                job.check()
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    source.live.read = read

    async def leaving() -> None:
        leave = asyncio.Event()
        asked = asyncio.ensure_future(_call(made, f"{AT}/3/test", json.dumps({"text": TEXT}).encode(), leave))
        while not begun.is_set():
            await asyncio.sleep(0.005)
        leave.set()
        await asyncio.wait_for(asked, 5)

    asyncio.run(leaving())
    until(lambda: ended == ["Cancelled"])
    worker.close()
    source.atlas.close()
