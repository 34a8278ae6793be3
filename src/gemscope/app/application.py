"""The pages of some atlases as an ASGI application."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.types import ASGIApp

from gemscope.app import feature
from gemscope.app.guard import LOOPBACK, Guard
from gemscope.app.live import Finder, Live
from gemscope.app.renderers import Renderers, beside
from gemscope.app.responses import HANDLERS
from gemscope.app.routes import ROUTES
from gemscope.app.shelf import Source, folders, shelf
from gemscope.app.unread import unread
from gemscope.app.worker import Job, Worker
from gemscope.atlas.notes.lists import Lists
from gemscope.atlas.reader import Atlas
from gemscope.errors import GemscopeError, InputError
from gemscope.pages.render import warm

_NO_MODEL = "this server was started without a model"


class _App(Starlette):
    """The guard stands before everything, so that what Starlette itself says when all else fails is signed too."""

    guard: dict[str, Any]

    def build_middleware_stack(self) -> ASGIApp:
        return Guard(super().build_middleware_stack(), **self.guard)


def app(
    atlases: Iterable[Atlas | str | os.PathLike[str]],
    *,
    models: Finder | None = None,
    token: str | None = None,
    hosts: Collection[str] | None = LOOPBACK,
    worker: Worker | None = None,
    lists: Lists | None = None,
) -> Starlette:
    """The pages of these atlases as an ASGI application.

    `models` finds the model and the SAE of a manifest, in the worker's thread, once the application runs; None: no
    live reading. `hosts` are the names that the server may be called by; None: any, which asks for a `token`. `lists`
    are the reader's own (None: those of this machine's user).

    Raises InputError, NotFound, and what `Atlas` raises.
    """
    if hosts is None and not token:
        raise InputError("hosts=None lets any name in: give a token=... with it")
    given = list(atlases)
    served = shelf(_each(given), off=None if models else _NO_MODEL)
    served.unread = unread([Path(one).expanduser() for one in given if not isinstance(one, Atlas)], served)
    made = _App(routes=ROUTES, exception_handlers=dict(HANDLERS), lifespan=_lifespan)
    made.guard = {"hosts": hosts, "token": token}
    made.state.compared = {}
    made.state.shelf, made.state.worker, made.state.models = served, worker or Worker(), models
    made.state.lists = Lists() if lists is None else lists
    return made


def _each(given: Iterable[Atlas | str | os.PathLike[str]]) -> Iterator[Atlas | Path]:
    for one in given:
        yield from [one] if isinstance(one, Atlas) else folders(one)


@asynccontextmanager
async def _lifespan(made: Starlette) -> AsyncIterator[None]:
    """Models are loaded while the first pages are read, one after another; a text that comes meanwhile waits for its
    own, which is then loaded next. Of many atlases the first few are seen to, and the others when they are asked for.
    """
    worker: Worker = made.state.worker
    early = made.state.shelf.first
    if made.state.models is not None:
        for source in made.state.shelf:
            source.live.loads = _loading(source.live, made.state.models, source.named)
            if source in early:
                worker.submit(_patiently(source.live.loads), seconds=float("inf"), always=True, patient=True)
            else:
                source.live.rest()
    warming = threading.Thread(target=_warm, args=(early,), name="gemscope-warming", daemon=True)
    warming.start()
    folders = [source.folder for source in made.state.shelf]
    here = partial(feature.made, made.state.shelf)
    renderers = Renderers(here, folders, busy=lambda: worker.busy, processes=beside())
    made.state.renderers = renderers
    yield
    await renderers.close()
    worker.close()
    warming.join()


def _warm(sources: Iterable[Source]) -> None:
    warm()
    for source in sources:
        with suppress(GemscopeError):  # whoever asks for what cannot be read is told
            source.warm()


def _loading(live: Live, models: Finder, manifest: Any) -> Callable[[], None]:
    return lambda: live.load(models, manifest)


def _patiently(loads: Callable[[], None]) -> Callable[[Job[None]], None]:
    return lambda job: loads()
