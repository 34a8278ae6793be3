"""`serve`: atlases in a browser, on one's own machine."""

from __future__ import annotations

import hashlib
import html
import ipaddress
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from gemscope.activations.bundled import cache_dir
from gemscope.app.connection import Connection
from gemscope.app.guard import LOOPBACK, Guard
from gemscope.app.live import Finder
from gemscope.app.responses import HANDLERS
from gemscope.app.routes import ROUTES
from gemscope.app.shelf import Shelf, folders, shelf
from gemscope.app.worker import Worker
from gemscope.atlas.reader import Atlas
from gemscope.disk import claimed
from gemscope.errors import GemscopeError, InputError, NotFound
from gemscope.pages.render import warm

BUNDLED = Path(__file__).parent.parent / "data" / "atlas"
"""The atlas of the default model and SAE."""

_NO_MODEL = "this server was started without a model"
_HEAD = 128_000
"""Bytes of a request's address and headers: a text of 10,000 characters may stand in an address."""
_CONNECTIONS = 512
_EVERYWHERE = ("0.0.0.0", "::", "")


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
) -> Starlette:
    """The pages of these atlases as an ASGI application.

    `models` finds the model and the SAE of a manifest, in the worker's thread, once the application runs; None: no
    live reading. `hosts` are the names that the server may be called by; None: any, which asks for a `token`.

    Raises InputError, NotFound, and what `Atlas` raises.
    """
    if hosts is None and not token:
        raise InputError("hosts=None lets any name in: give a token=... with it")
    opened: list[Atlas] = []
    served = shelf(_opened(atlases, opened), off=None if models else _NO_MODEL)
    made = _App(routes=ROUTES, exception_handlers=dict(HANDLERS), lifespan=_lifespan)
    made.guard = {"hosts": hosts, "token": token}
    made.state.shelf, made.state.worker, made.state.models = served, worker or Worker(), models
    made.state.opened = opened
    return made


def _opened(given: Iterable[Atlas | str | os.PathLike[str]], opened: list[Atlas]) -> Iterator[Atlas]:
    """All of them; those that are opened here are noted, for whoever closes them."""
    try:
        for one in given:
            if isinstance(one, Atlas):
                yield one
                continue
            for folder in folders(one):
                opened.append(Atlas(folder))
                yield opened[-1]
    except BaseException:
        for atlas in opened:
            atlas.close()
        raise


@asynccontextmanager
async def _lifespan(made: Starlette) -> AsyncIterator[None]:
    """Models are loaded while the first pages are read; texts that come meanwhile wait in the same line."""
    worker: Worker = made.state.worker
    if made.state.models is not None:
        for source in made.state.shelf:
            load = _loading(source.live, made.state.models, source.manifest)
            worker.submit(load, seconds=float("inf"), always=True)
    warming = threading.Thread(target=_warm, args=(made.state.shelf,), name="gemscope-warming", daemon=True)
    warming.start()
    yield
    worker.close()
    warming.join()


def _warm(served: Shelf) -> None:
    warm()
    for source in served:
        with suppress(GemscopeError):  # whoever asks for what cannot be read is told
            source.warm()


def _loading(live: Any, models: Finder, manifest: Any) -> Any:
    return lambda job: live.load(models, manifest)


class Server:
    """A server that runs in a thread of its own, until `close` or the end of the program."""

    def __init__(self, made: Starlette, listening: socket.socket, host: str, token: str | None = None) -> None:
        self.app = made
        self._token = token
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{listening.getsockname()[1]}"
        self._socket = listening
        self._server = uvicorn.Server(
            uvicorn.Config(
                made,
                http=Connection,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,  # a token may stand in an address
                server_header=False,
                proxy_headers=False,  # nobody stands before this server whose word would count
                h11_max_incomplete_event_size=_HEAD,
                limit_concurrency=_CONNECTIONS,
                timeout_keep_alive=10,
                timeout_graceful_shutdown=2,
            )
        )
        self._thread = threading.Thread(target=self._run, name="gemscope-server", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)
        if not self._server.started:
            raise GemscopeError(f"the server at {self.url} did not start: its log says why")

    @property
    def address(self) -> str:
        """Where a browser goes first: with the token, where there is one."""
        return f"{self.url}/?{urlencode({'token': self._token})}" if self._token else f"{self.url}/"

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    @property
    def running(self) -> bool:
        """Whether it still answers."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Returns when it has ended: with `close`, or with an interrupt from the keyboard."""
        try:
            while self._thread.is_alive():
                self._thread.join(0.5)
        except KeyboardInterrupt:
            self.close()

    def close(self) -> None:
        """Ends it; what is being read then is cut off after two seconds."""
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()
        for atlas in self.app.state.opened:
            atlas.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Server({self.url}{'' if self.running else ', closed'})"

    def _repr_html_(self) -> str:
        if not self.running:
            return "<p>this server is closed</p>"
        url = html.escape(self.url)
        return f'<p>gemscope at <a href="{url}" target="_blank" rel="noopener">{url}</a></p>'


def serve(
    *atlases: Atlas | str | os.PathLike[str],
    model: Any = None,
    sae: Any = None,
    live: bool = True,
    host: str = "127.0.0.1",
    port: int = 8400,
    token: str | None = None,
    block: bool = True,
) -> Server:
    """Serves atlases (or the folders of some; none: the one that ships with this package) as pages in a browser.

    Texts of the reader's are read with the model and the SAE that an atlas names, where this machine has them: the
    bundled ones, a local path, the Hub's cache; or with `model` and `sae`, given as what `load_model` and `load_sae`
    return or take. A model that is given is the server's while it runs: do not edit it meanwhile. `live=False`: never.

    `port=0` takes a free one. A `host` that others can reach needs a `token`, which each of their requests then has to
    bring. With `block=False` it returns at once, and the server runs on beside the program.

    Raises InputError for what cannot be served, NotFound, CorruptFile.
    """
    hosts = _names(host, token)
    made = app(_or_bundled(atlases), models=_finder(model, sae) if live else None, token=token, hosts=hosts)
    server = Server(made, _listening(host, port), "127.0.0.1" if host in _EVERYWHERE else host, token)
    if block:
        sys.stderr.write(f"gemscope at {server.address} (ctrl-c ends it)\n")
        server.wait()
    return server


def _or_bundled(
    atlases: Sequence[Atlas | str | os.PathLike[str]],
) -> Sequence[Atlas | str | os.PathLike[str]]:
    if atlases:
        return atlases
    if not BUNDLED.is_dir():
        raise NotFound("no atlas ships with this installation: name the folder that `gemscope describe` made")
    return [_own_copy(BUNDLED)]


def _own_copy(bundled: Path) -> Path:
    """A copy for the reader to label: what belongs to the package stays as it came. The package's own where none can
    be made.
    """
    digest = hashlib.sha256((bundled / "atlas.sqlite").read_bytes()).hexdigest()
    try:
        copy = cache_dir() / "atlases" / f"bundled-{digest[:12]}"
        if not (copy / "manifest.json").is_file():
            _copied(bundled, copy)
    except (OSError, RuntimeError):  # no place that can be written, or no home at all
        return bundled
    return copy


def _copied(folder: Path, to: Path) -> None:
    """The files of a folder, without what it says of who may write them, under a new name. Raises OSError."""
    with claimed(to, wait=True) as place:
        if (to / "manifest.json").is_file():  # another process was at it
            return
        aside = place / to.name
        aside.mkdir()
        for path in folder.iterdir():
            shutil.copyfile(path, aside / path.name)
        if to.exists():  # not whole
            os.replace(to, place / "damaged")
        os.replace(aside, to)


def _finder(model: Any, sae: Any) -> Finder:
    def find(manifest: Any) -> tuple[Any, Any]:
        nonlocal nearby
        if nearby is None:
            from gemscope.app.nearby import Nearby  # brings torch and transformers: seconds, after the first page

            nearby = Nearby(model, sae)
        found: tuple[Any, Any] = nearby(manifest)
        return found

    nearby: Any = None
    return find


def _names(host: str, token: str | None) -> Collection[str] | None:
    """What the server may be called. Raises InputError where others could reach it without a token."""
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
        raise InputError("the token can be letters, digits and signs of ASCII, with no blanks around them")
    if not _is_loopback(host) and token is None:
        raise InputError(
            f"{host or 'an empty host'} can be reached by others: give a token (--token), or use 127.0.0.1"
        )
    if host in _EVERYWHERE:
        return None
    return LOOPBACK | {f"[{host}]" if ":" in host else host}


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _listening(host: str, port: int) -> socket.socket:
    """Bound here, so that the address is known before the server runs. Raises InputError for one that cannot be."""
    if not 0 <= port < 1 << 16:
        raise InputError(f"port={port}: expected 0 (any that is free) to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, or asyncio does not know that it may switch off the waiting for fuller packets (40 ms).
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise InputError(
            f"cannot listen on {host} port {port} ({error.strerror}): choose another port, or 0 for any that is free"
        ) from error
    return listening
