"""A server on the loopback that answers as OpenAI's chat completions do, or goes wrong on purpose, as its script says.

with answering(lambda asked: good("of after a number")) as server:
    Endpoint(server.url, "m") ...
    server.asked        # what was asked, in order
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Said:
    """What goes out."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Bytes after which the connection ends, though more are promised."""
    hangs: bool = False
    """Says nothing until the server ends; where it is `cut`, nothing more."""
    trickles: bool = False
    """A blank every few milliseconds until the server ends."""


@dataclass(frozen=True)
class Question:
    """What came in."""

    text: str
    """Of the one turn."""
    body: dict[str, Any]
    headers: dict[str, str]
    path: str
    before: int
    """How often the same was asked before."""


Script = Callable[[Question], Said]


def completion(content: object, **choice: object) -> Said:
    """A whole answer with a model's text."""
    made = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"} | choice
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return plain({"id": "1", "object": "chat.completion", "choices": [made], "usage": usage})


def good(text: str, rule: str = "") -> Said:
    """A label."""
    return completion(json.dumps({"text": text, "rule": rule}))


def plain(value: object, status: int = 200, **headers: str) -> Said:
    return Said(json.dumps(value).encode(), status, headers)


@dataclass
class Server:
    url: str
    asked: list[Question] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    """Texts whose whole answer went out."""


@contextmanager
def answering(script: Script, context: ssl.SSLContext | None = None) -> Iterator[Server]:
    """`context` has it speak TLS, as localhost."""
    over, lock = threading.Event(), threading.Lock()
    times: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][-1]["content"]
            with lock:
                question = Question(text, body, dict(self.headers), self.path, times[text])
                times[text] += 1
                server.asked.append(question)
            said = script(question)
            self.close_connection = True
            if said.hangs and said.cut is None:
                over.wait()
                return
            try:
                self._send(said)
            except OSError:  # whoever asked has gone
                return
            with lock:
                server.answered[text] += said.status == 200 and said.cut is None

        def _send(self, said: Said) -> None:
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name.replace("_", "-"), value)
            if not said.trickles:
                self.send_header("Content-Length", str(len(said.body)))
            self.end_headers()
            while said.trickles and not over.wait(0.005):
                self.wfile.write(b" ")
            self.wfile.write(said.body[: said.cut])
            if said.hangs:
                over.wait()

    class Threads(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that was killed

    with Threads(("127.0.0.1", 0), Handler) as listening:
        server = Server(f"http://127.0.0.1:{listening.server_port}/v1")
        if context is not None:
            server.url = f"https://localhost:{listening.server_port}/v1"
            listening.socket = context.wrap_socket(listening.socket, server_side=True)
        thread = threading.Thread(target=lambda: listening.serve_forever(0.01))
        thread.start()
        try:
            yield server
        finally:
            over.set()
            listening.shutdown()
            thread.join()


def nobody() -> str:
    """An address where nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}/v1"
