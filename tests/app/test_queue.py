"""Texts wait in a line for the one model, and who leaves is left out."""

import asyncio
import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from gemscope.app.application import app
from gemscope.app.worker import Worker
from served import AT, MODEL, TEXT, Slow, here, planted, reader, until


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


def test_a_measure_that_takes_long_gives_way_within_its_pass_to_whoever_asks_and_is_finished_afterwards(
    folder: Path,
) -> None:
    worker, slow = Worker(), Slow()
    with contextlib.ExitStack() as held, ThreadPoolExecutor() as readers:
        client = held.enter_context(reader(folder, models=here, worker=worker))
        client.get(f"{AT}/5/output-score.json")  # what strengths are measured by is known from now on
        held.enter_context(slow.of(MODEL))
        score = readers.submit(client.get, f"{AT}/3/output-score.json")
        assert slow.begun.wait(120)
        text = readers.submit(client.post, f"{AT}/3/test", json={"text": TEXT}, headers={"x-asked": "mine"})
        until(lambda: worker.waiting == 1)
        assert client.get("/queue/mine.json").json() == {"ahead": 1}
        assert not score.done()
        slow.over.set()  # the model goes on to its second block, and no further
        assert text.result(120).status_code == 200
        assert score.result(120).json()["verdict"]
        assert slow.passes == 3  # broken off, the reader's, anew
        assert client.get("/queue/mine.json").json() == {"ahead": None}


def test_a_text_does_not_wait_until_the_models_of_other_atlases_are_there(tmp_path: Path) -> None:
    """Two of three are on their way or loaded by then: that which was begun, and that which is needed."""
    begun, go, asked = threading.Event(), threading.Event(), []

    def slowly(manifest: Any) -> Any:
        asked.append(manifest.source_id)
        if len(asked) == 1:
            begun.set()
            assert go.wait(120)
        return here(manifest)

    folders = [planted(tmp_path / name, source_id=name) for name in ("a", "b", "c")]
    worker = Worker(seconds=3600)
    with reader(*folders, models=slowly, wait=False, worker=worker) as client, ThreadPoolExecutor() as readers:
        assert begun.wait(120)
        text = readers.submit(client.post, "/tiny-model/c/3/test", json={"text": TEXT})
        until(lambda: worker.waiting == 3)
        go.set()
        assert text.result(120).status_code == 200
        assert asked[:2] == ["a", "c"]
        until(lambda: not worker.busy and not worker.waiting)
        assert sorted(asked) == ["a", "b", "c"]  # each once


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
        return await asyncio.wait_for(asked, 120)

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
        await asyncio.wait_for(asked, 120)

    asyncio.run(leaving())
    until(lambda: ended == ["Cancelled"])
    worker.close()
    source.atlas.close()
