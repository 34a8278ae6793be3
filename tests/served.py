"""A server of planted atlases, a model and an SAE behind it, and somebody in front of it."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from atlases import planted_atlas
from gemscope.activations.site import blocks
from gemscope.app.application import app
from gemscope.app.worker import Worker
from gemscope.testing import planted_sae, tiny_model

AT = "/tiny-model/1-res-tiny"

TEXT = "the cat and the sun"

BASE = "http://127.0.0.1:8400"

MODEL = tiny_model()

SAE = planted_sae().sae


def planted(folder: Path, **plan: object) -> Path:
    """An atlas that says it was made with SAE."""
    planted_atlas(folder, **{"features": SAE.d_sae, **plan}).close()
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sae_digest": SAE.digest}))
    return folder


def here(_: Any) -> tuple[Any, Any]:
    """Finds the model and the SAE of these tests."""
    return MODEL, SAE


@contextlib.contextmanager
def reader(*atlases: Any, wait: bool = True, **options: Any) -> Iterator[TestClient]:
    """Somebody in front of a server of these atlases; models are there already unless it is said not to `wait`."""
    made = app(atlases, **options)
    with TestClient(made, base_url=BASE, raise_server_exceptions=False) as client:
        worker: Worker = made.state.worker
        if wait:
            worker.submit(lambda _: None, always=True, patient=True).outcome.result(120)
        yield client
    made.state.shelf.close()


def until(reached: Callable[[], bool], seconds: float = 120.0) -> None:
    """Patient: a busy machine may take its time, and what never comes is still told."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextlib.contextmanager
def spoken_to(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connected:
        yield connected


def said(connected: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while more := connected.recv(65536):
            found += more
    return found


def fetched(url: str, headers: str = "") -> bytes:
    host, _, path = url.removeprefix("http://").partition("/")
    with spoken_to(int(host.rpartition(":")[2])) as connected:
        connected.sendall(f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n".encode())
        return said(connected)


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def told(answer: Any) -> list[tuple[str, Any]]:
    """The events of a stream."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return parsed(answer.text)


def parsed(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines.get("event", ""), json.loads(lines["data"])))
    return found


class Slow:
    """The first pass through the model takes as long as it is let: an event stands for its seconds."""

    def __init__(self) -> None:
        self.begun, self.over = threading.Event(), threading.Event()
        self.passes = 0

    @contextlib.contextmanager
    def of(self, model: Any) -> Iterator[None]:
        hook = blocks(model.hf)[0].register_forward_pre_hook(self._within)
        try:
            yield
        finally:
            self.over.set()
            hook.remove()

    def _within(self, *_: Any) -> None:
        self.passes += 1
        if self.passes == 1:
            self.begun.set()
            assert self.over.wait(120)


STEER = f"{AT}/steer"

PROMPT = "the sea and the"

ASKED: dict[str, Any] = {"feature": [5, 9], "strength": ["2max", "-1.5max"], "prompt": PROMPT, "tokens": 6, "seed": 3}

BODY: dict[str, Any] = {
    "prompt": PROMPT,
    "modelId": "tiny-model",
    "features": [{"modelId": "tiny-model", "layer": "1-res-tiny", "index": 5, "strength": 4.0}],
    "temperature": 0.5,
    "n_tokens": 6,
    "freq_penalty": 1.0,
    "seed": 16,
    "strength_multiplier": 2.0,
    "steer_method": "SIMPLE_ADDITIVE",
}

LINKED = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
"""What a browser says of a link on another site's page."""

HOSTILE = "<script>alert(1)</script> \u202e{{ 7*7 }}"
