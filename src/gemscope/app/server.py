"""`serve`: atlases in a browser, on one's own machine."""

from __future__ import annotations

import html
import ipaddress
import os
import socket
import sys
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import uvicorn
from starlette.applications import Starlette

from gemscope.app.application import app
from gemscope.app.bundled import bundled
from gemscope.app.connection import Connection
from gemscope.app.guard import LOOPBACK
from gemscope.app.live import Finder
from gemscope.app.running import noted
from gemscope.atlas.reader import Atlas
from gemscope.errors import GemscopeError, InputError

_HEAD = 128_000
"""Bytes of a request's address and headers: programs may put a text of 10,000 characters into an address."""
_CONNECTIONS = 512

_EVERYWHERE = ("0.0.0.0", "::", "")


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
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gemscope-server", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)
        if not self._server.started:
            raise GemscopeError(f"the server at {self.url} did not start: its log says why")
        self._note = noted(self.url, [source.manifest for source in made.state.shelf])

    @property
    def address(self) -> str:
        """Where a browser goes first: with the token, where there is one."""
        return f"{self.url}/?{urlencode({'token': self._token})}" if self._token else f"{self.url}/"

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._over.set()

    @property
    def running(self) -> bool:
        """Whether it still answers."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Returns when it has ended: with `close`, or with an interrupt from the keyboard."""
        try:
            # Not by joining: Python takes a thread for ended when a signal raises while it is joined.
            while not self._over.wait(0.5):
                pass
        except KeyboardInterrupt:
            self.close()

    def close(self) -> None:
        """Ends it; what is being read then is cut off after two seconds."""
        if self._note is not None:
            with suppress(OSError):
                self._note.unlink(missing_ok=True)
        self._server.should_exit = True
        self._over.wait(10)
        self._thread.join(10)
        self._socket.close()
        self.app.state.shelf.close()

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
    made = app(atlases or [bundled()], models=_finder(model, sae) if live else None, token=token, hosts=hosts)
    server = Server(made, _listening(host, port), "127.0.0.1" if host in _EVERYWHERE else host, token)
    if block:
        sys.stderr.write(f"gemscope at {server.address} (ctrl-c ends it)\n")
        server.wait()
    return server


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
