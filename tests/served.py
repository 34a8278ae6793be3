"""A server of planted atlases, a model and an SAE behind it, and somebody in front of it."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from atlases import planted_atlas
from gemscope.app.server import app
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
            worker.submit(lambda _: None, always=True).outcome.result(30)
        yield client
    for atlas in made.state.opened:
        atlas.close()


def until(reached: Callable[[], bool], seconds: float = 120.0) -> None:
    """Patient: a busy machine may take its time, and what never comes is still told."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)
