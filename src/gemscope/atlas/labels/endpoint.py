"""A server that speaks OpenAI's chat completions: vLLM, Ollama, llama.cpp, OpenAI. Of all that can go wrong on the way,
each has its own reason here, and none becomes an answer.

The standard library's client does, as what matters is ours whatever the client: a deadline that holds, waits that end,
and answers with status 200 that are none. The key is looked up in the environment for each request and stays there.
"""

from __future__ import annotations

import ipaddress
import os
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from itertools import count
from typing import Any, NoReturn
from urllib.parse import SplitResult, urlsplit

import msgspec

from gemscope.atlas.labels.questions import MOST, Answers, Failure, Reply
from gemscope.checked import row_of
from gemscope.errors import AccessError, CorruptFile, GemscopeError, InputError, one_line

KEY = "OPENAI_API_KEY"
TRIES = 8
_AGAIN = {408, 425, 429, 500, 502, 503, 504, 529}
"""Statuses that another try may change."""
_BACKOFF = 0.5
"""Seconds before the second try, twice as many before each further one."""
_LONGEST = 30.0
_SHARE = 0.4
"""Of the deadline, for one try."""
_CONNECT = 10.0
"""Seconds to reach a server that is there."""
_LARGE = 4 << 20
"""Bytes of an answer."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers, and how it is asked. Raises InputError for settings that cannot be meant.

    `Endpoint("http://localhost:8000/v1", "Qwen/Qwen3-8B")` answers as `POST URL/chat/completions` does.
    """

    url: str
    model: str
    key_env: str | None = KEY
    """Variable of the environment that holds the key, if there is one; None: no key is sent."""
    at_once: int = 4
    """Questions under way together."""
    rate: float | None = None
    """Requests a minute at most, tries included."""
    deadline: float = 300.0
    """Seconds for one question, with all its tries and waits."""
    most: int = MOST
    """Tokens of an answer; one that is cut there is none. Models that think first need more."""
    plain_http: bool = False
    """Sends the key over the network unencrypted as well."""

    def __post_init__(self) -> None:
        numbers = {"at_once": self.at_once, "rate": self.rate, "deadline": self.deadline, "most": self.most}
        for name, value in numbers.items():
            if value is not None and not 0 < value < 1e9:
                raise InputError(f"{name}={value}: a number above 0 is expected")
        if not self.model.strip():
            raise InputError("no model is named: name the one that the server offers, as --model NAME")
        parts = self._address()
        if self._key() and parts.scheme == "http" and not _is_loopback(parts.hostname or "") and not self.plain_http:
            raise InputError(
                f"the key in {self.key_env} would go to {parts.hostname} unencrypted: give an address with https, "
                "or send none (--key-env ''), or ask for it (--plain-http)"
            )

    def answers(self, questions: Iterable[tuple[int, str]]) -> Answers:
        """As `Answerer` has it. Raises AccessError for a server that refuses (400, 401, 403, 404, …)."""
        calls, running = _Calls(self), dict[Future[Reply | Failure], int]()
        pool = ThreadPoolExecutor(self.at_once, thread_name_prefix="ask")

        def done() -> Iterator[tuple[int, Reply | Failure]]:
            found = wait(running, return_when=FIRST_COMPLETED).done
            for one in sorted(found, key=lambda one: one.exception() is not None):  # what came, before what went wrong
                yield running.pop(one), one.result()

        try:
            for number, question in questions:
                running[pool.submit(calls.ask, question)] = number
                if len(running) == self.at_once:
                    yield from done()
            while running:
                yield from done()
        finally:
            calls.stop()
            pool.shutdown(cancel_futures=True)

    def _address(self) -> SplitResult:
        """Of chat completions. What is secret does not belong into an address, which is shown."""
        shown = one_line(self.url.split("@")[-1], 200)
        wrong = f"{shown!r} is no address of a server: expected such as http://localhost:8000/v1"
        try:
            parts = urlsplit(self.url)
            named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            (parts.hostname or "").encode("idna")
        except ValueError:
            raise InputError(wrong) from None
        if not named or re.search(r"[^\x21-\x7e]", self.url):
            raise InputError(wrong)
        if parts.username is not None or parts.password is not None:
            raise InputError(f"{wrong}, and a key in the environment alone (--key-env NAME)")
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        return parts._replace(path=f"{path}/chat/completions", fragment="")

    def _key(self) -> str:
        key = os.environ.get(self.key_env, "").strip() if self.key_env else ""
        if re.search(r"[^\x21-\x7e]", key):
            raise InputError(f"{self.key_env} holds what can be no key: expected letters, digits and signs in one line")
        if not key and self.key_env and self.key_env != KEY:
            raise InputError(f"there is no key in {self.key_env}: put it into the environment under that name")
        return key

    def hidden(self, text: str) -> str:
        """Text from outside without the key, which some servers repeat."""
        key = self._key()
        return text.replace(key, "…") if key else text


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


class Pace:
    """Turns that are taken at a rate, by many threads."""

    def __init__(self, rate: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`rate` turns a minute; None: as many as there are."""
        self._gap, self._clock = 60 / rate if rate else 0.0, clock
        self._next, self._lock = clock(), threading.Lock()

    def turn(self, wait: Callable[[float], object]) -> None:
        """Returns when it is one's turn."""
        with self._lock:
            now = self._clock()
            mine = max(self._next, now)
            self._next = mine + self._gap
        if mine > now:
            wait(mine - now)

    def hold(self, seconds: float) -> None:
        """No further turn before that."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)


class _Again(Exception):
    """A try that failed as another might not."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class _Stopped(Exception):
    """Nobody waits for the answer any more."""


class _Calls:
    """All that are under way to one server, in several threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._address = endpoint._address()
        self._pace = Pace(endpoint.rate)
        self._over = threading.Event()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._context = ssl.create_default_context() if self._address.scheme == "https" else None
        self._options: dict[str, Any] = {"temperature": 0, "max_tokens": endpoint.most}

    def stop(self) -> None:
        """Ends what is under way."""
        self._over.set()
        with self._lock:
            for one in self._open:
                _cut(one)

    def ask(self, question: str) -> Reply | Failure:
        """Tries until there is an answer, or the deadline."""
        self._wait_turn()
        ends = time.monotonic() + self._endpoint.deadline
        for tried in count(1):
            try:
                return self._once(question, min(ends - time.monotonic(), _SHARE * self._endpoint.deadline))
            except _Again as again:
                wait = max(again.after, min(_LONGEST, _BACKOFF * 2 ** (tried - 1)) * random.uniform(0.5, 1))
                reason = f"{again}, after {tried} tries" if tried > 1 else str(again)
            if tried == TRIES or time.monotonic() + wait >= ends:
                return Failure(reason, reached=False)
            self._wait(wait)
            self._wait_turn()
            if time.monotonic() >= ends:
                return Failure(reason, reached=False)
        raise AssertionError

    def _wait_turn(self) -> None:
        self._pace.turn(self._wait)
        self._wait(0)

    def _wait(self, seconds: float) -> None:
        if self._over.wait(seconds):
            raise _Stopped

    # --- one request ------------------------------------------------------------------------------------------------

    def _once(self, question: str, seconds: float) -> Reply | Failure:
        options = dict(self._options)
        turns = [{"role": "user", "content": question}]
        body = msgspec.json.encode({"model": self._endpoint.model, "messages": turns, **options})
        status, after, data = self._sent(body, seconds)
        if status == 400 and self._adapted(options, data):
            self._wait_turn()
            return self._once(question, seconds)
        if status != 200:
            self._refused(status, after, data)
        return self._read(data)

    def _sent(self, body: bytes, seconds: float) -> tuple[int, str, bytes]:
        """Status, Retry-After and body. Raises _Again, AccessError."""
        connection, late = self._connection(min(seconds, _CONNECT)), threading.Event()
        try:
            self._wait(0)
            connection.connect()
            with self._ending(connection.sock, seconds, late):
                connection.request("POST", self._target(), body, self._headers())
                response = connection.getresponse()
                data = self._body(response)
                if late.is_set():  # where no length is told, what was cut looks whole
                    raise TimeoutError
                return response.status, response.headers.get("Retry-After", ""), data
        except (OSError, HTTPException, ValueError) as error:
            self._wait(0)
            if isinstance(error, ssl.SSLCertVerificationError):
                raise AccessError(f"{self._name} shows no certificate to be trusted: {error.verify_message}") from None
            if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
                raise AccessError(f"no server is named {self._address.hostname}: {error.strerror}") from None
            if late.is_set() or isinstance(error, TimeoutError):
                raise _Again(f"no answer within {seconds:.3g} s") from None
            if isinstance(error, ConnectionRefusedError):
                raise _Again(f"nobody listens at {self._name}") from None
            raise _Again(f"the connection was cut ({self._shown(error) or type(error).__name__})") from None
        finally:
            connection.close()

    @contextmanager
    def _ending(self, sock: socket.socket, seconds: float, late: threading.Event) -> Iterator[None]:
        """Whoever waits at the socket is woken after so many seconds, however busily it trickles, and by `stop`."""

        def end() -> None:
            late.set()
            _cut(sock)

        sock.settimeout(seconds)
        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        with self._lock:
            self._open.add(sock)
        try:
            self._wait(0)  # `stop` may have come just before
            yield
        finally:
            timer.cancel()
            with self._lock:
                self._open.discard(sock)

    def _connection(self, seconds: float) -> HTTPConnection:
        host, port = self._address.hostname or "", self._address.port
        if self._context is None:
            return HTTPConnection(host, port, timeout=seconds)
        return HTTPSConnection(host, port, timeout=seconds, context=self._context)

    def _target(self) -> str:
        return self._address.path + (f"?{self._address.query}" if self._address.query else "")

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        key = self._endpoint._key()
        return headers | ({"Authorization": f"Bearer {key}"} if key else {})

    def _body(self, response: HTTPResponse) -> bytes:
        parts, size = [], 0
        while part := response.read1(1 << 16):
            parts.append(part)
            size += len(part)
            if size > _LARGE:
                break  # whatever it is, it is no answer
        else:
            if response.length:  # the standard library takes a cut body for a whole one
                raise HTTPException(f"{response.length} bytes of the answer are missing")
        return b"".join(parts)

    @property
    def _name(self) -> str:
        return self._address.netloc

    def _shown(self, text: object) -> str:
        return one_line(" ".join(self._endpoint.hidden(str(text)).split()), 200)

    # --- what came --------------------------------------------------------------------------------------------------

    def _adapted(self, options: dict[str, Any], data: bytes) -> bool:
        """Some models know the limit by another name only, and none but their own temperature."""
        said = _error(data)
        with self._lock:
            if "max_completion_tokens" in said and "max_tokens" in options:
                self._options.pop("max_tokens", None)
                self._options["max_completion_tokens"] = self._endpoint.most
                return True
            if "temperature" in said and "temperature" in options:
                self._options.pop("temperature", None)
                return True
        return False

    def _refused(self, status: int, after: str, data: bytes) -> NoReturn:
        said = self._shown(_error(data))
        reason = f"status {status}" + (f" ({said})" if said else "")
        if status in _AGAIN and "insufficient_quota" not in said:
            seconds = _seconds(after)
            if status == 429:
                self._pace.hold(seconds)
            raise _Again(reason + (f", asked to wait {seconds:.0f} s" if seconds else ""), seconds)
        match status:
            case 401 | 403 if self._endpoint._key():
                what = f"the key in {self._endpoint.key_env} is refused"
            case 401 | 403:
                what = f"it wants a key, put one into {self._endpoint.key_env or KEY}"
            case 429:
                what = "the account is used up"
            case 404:
                what = f"no model {self._endpoint.model!r} there, or no {self._address.path}: such addresses end in /v1"
            case status if 300 <= status < 400:
                what = "it sends us elsewhere: give that address"
            case _:
                what = "it does not take our question"
        raise AccessError(f"{self._name} answers with {reason}: {what}")

    def _read(self, data: bytes) -> Reply | Failure:
        """The one thing that is an answer; all else by its name."""
        text = data[:500].decode(errors="replace")

        def failed(reason: str) -> Failure:
            return Failure(reason, said=self._endpoint.hidden(text))

        if len(data) > _LARGE:
            return failed(f"an answer of more than {_LARGE >> 20} MB")
        if re.match(r"\s*<", text):
            return failed("HTML in place of JSON")
        try:
            said = row_of(data, where="the answer")
        except CorruptFile as error:
            return failed(self._shown(error))
        if said.get("error"):
            reason = self._shown(_error(data))
            if _code(said["error"]) in _AGAIN:
                raise _Again(f"an error in an answer with status 200 ({reason})")
            return failed(f"an error in an answer with status 200 ({reason})")
        choices = said.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return failed("an answer without choices")
        message = choice.get("message")
        message = message if isinstance(message, dict) else {}
        if choice.get("finish_reason") == "length":
            return failed(f"an answer that was cut after {self._endpoint.most} tokens")
        if choice.get("finish_reason") == "content_filter" or message.get("refusal"):
            return failed("the model refused to answer")
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            return failed("an answer without content")
        usage = said.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        return Reply(
            self._endpoint.hidden(content),
            (_number(usage.get("prompt_tokens")), _number(usage.get("completion_tokens"))),
        )


def _cut(sock: socket.socket) -> None:
    """Wakes whoever waits for something from it."""
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of TLS too: it shall find an end, not nothing


def _seconds(after: str) -> float:
    """Of Retry-After: a number, or a date."""
    with suppress(ValueError):
        return max(0.0, min(float(after), 1e6))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    return 0.0


def _error(data: bytes) -> str:
    """What an error says of itself, as servers put it in various ways."""
    try:
        said: Any = row_of(data, where="")
    except GemscopeError:
        text = data[:300].decode(errors="replace")
        return "" if text.lstrip().startswith("<") else text
    error = said.get("error", said)
    if isinstance(error, dict):
        return " ".join(str(error[name]) for name in ("message", "detail", "code") if error.get(name))
    return str(error)


def _code(error: Any) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    with suppress(ValueError, TypeError):
        return int(code)  # type: ignore[arg-type]
    return 0


def _number(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 50 else 0
