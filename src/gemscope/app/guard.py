"""Who may ask, from where, and how much: stands before everything else the server does, and signs every answer.

A page on the web can make a browser send requests to this machine. What keeps it out: the Host header (a foreign name
that was made to point here), Origin and Sec-Fetch-Site (a foreign page that posts or loads), and the token where there
is one. Whoever gets through may look; what sets a model to work asks `is_ours` besides. The content security policy
keeps out what got into a page's text.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import html
import re
from collections.abc import Collection, Mapping
from urllib.parse import parse_qsl, urlencode

from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""The names of this machine that nobody else can give to another."""

BODY = 4_000_000
"""Bytes that a request may bring: a text of 128,000 tokens, of whatever script, as a form writes it."""

_POLICY = (
    "default-src 'self'; style-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors {ancestors}"
)
FRAMED = {
    # The star stands for the web alone: a file on the disk and the notebooks of an editor have schemes of their own.
    "content-security-policy": _POLICY.format(ancestors="* file: vscode-file: vscode-webview:"),
    "cross-origin-resource-policy": "cross-origin",
}
"""Headers of a page that others may put into a frame."""

_SIGNED = {
    "content-security-policy": _POLICY.format(ancestors="'self'"),
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-content-type-options": "nosniff",
    # "no-referrer" would make a browser send `Origin: null` with our own forms.
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-cache, private",
}
_SIGNATURE = [(name.encode(), value.encode()) for name, value in _SIGNED.items()]
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]/\\@\s]+)(?::[0-9]{1,5})?")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """Lets through what passes: see the module. `hosts` are the names it may be called by, None for any (with a token:
    whoever brings it is no foreign page). Any port passes, since a tunnel may end at another.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str] | None = LOOPBACK,
        token: str | None = None,
        body: int = BODY,
        seconds: float = 20.0,
    ) -> None:
        self.app = app
        self.hosts = None if hosts is None else frozenset(name.lower() for name in hosts)
        self.token = token
        self.body = body
        self.seconds = seconds
        """How long a request's body may take to arrive."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no websockets here; the server then refuses the connection
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        first = {name: values[0] for name, values in headers.items()}
        signed = _signed(send)
        answer = self._refusal(scope, headers, first) or self._login(scope, first)
        if answer is not None:
            await answer(scope, receive, signed)
            return
        await self.app(scope, self._measured(receive), signed)

    # --- who asks ---------------------------------------------------------------------------------------------

    def _refusal(self, scope: Scope, headers: Mapping[str, list[str]], first: Mapping[str, str]) -> Response | None:
        hosts = headers.get("host", [])
        found = _HOST.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
        if found is None:
            return _refuse(first, 400, "a request names one host")
        if self.hosts is not None and found[1] not in self.hosts:
            return _refuse(first, 421, f"this server is not called {found[1]!r}: use {', '.join(sorted(self.hosts))}")
        if _is_foreign(scope["method"], hosts[0].lower(), first):
            return _refuse(first, 403, "this request comes from another site's page")
        length = first.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return _refuse(first, 400, "Content-Length is a whole number")
        if len(length) > 15 or int(length) > self.body:
            return _refuse(first, 413, _too_large(self.body))
        return None

    def _login(self, scope: Scope, first: Mapping[str, str]) -> Response | None:
        """None for those who bring the token."""
        if self.token is None:
            return None
        cookie = f"gemscope-{(scope.get('server') or ('', 0))[1]}"  # cookies do not know ports
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if scope["method"] in _SAFE and any(name == "token" and _same(value, self.token) for name, value in query):
            return _admitted(scope, query, cookie, self.token, first)
        scheme, _, bearer = first.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else first.get("x-api-key", "")
        if _same(given, self.token) or _same(cookie_parser(first.get("cookie", "")).get(cookie, ""), _pass(self.token)):
            return None
        refused = _refuse(
            first, 401, "this server asks for its token: add ?token=... to the address, or send Authorization: Bearer"
        )
        refused.headers["www-authenticate"] = 'Bearer realm="gemscope"'
        return refused

    # --- how much ---------------------------------------------------------------------------------------------

    def _measured(self, receive: Receive) -> Receive:
        """The request's body, as far as it is neither too long nor too slow."""
        left, until, whole = self.body, float("inf"), False

        async def measured() -> Message:
            nonlocal left, until, whole
            if whole:
                return await receive()  # waits for the reader to leave
            loop = asyncio.get_running_loop()
            until = min(until, loop.time() + self.seconds)
            try:
                message = await asyncio.wait_for(receive(), until - loop.time())
            except TimeoutError:
                raise HTTPException(408, "the request did not arrive in time") from None
            whole = not message.get("more_body", False)
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, _too_large(self.body))
            return message

        return measured


def _is_foreign(method: str, host: str, first: Mapping[str, str]) -> bool:
    """Whether a page of another origin makes the browser ask. Programs send none of these headers, browsers all."""
    site = first.get("sec-fetch-site", "none")
    safe = method in _SAFE
    if site not in ("same-origin", "none"):
        # Links to a page, and pages in frames, are welcome; a foreign page's scripts, images and forms are not. Which
        # pages may be framed is the policy's matter.
        looks = first.get("sec-fetch-mode") == "navigate" and first.get("sec-fetch-dest") in ("document", "iframe")
        return not (safe and looks)
    origin = first.get("origin")
    # https may end at a tunnel before this server, which leaves the name as it was.
    return not safe and origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}")


def is_ours(headers: Mapping[str, str]) -> bool:
    """Whether a page of ours asks, or a program: for what costs work.

    A link from elsewhere, a frame, a bookmark, an address that is typed or fetched ahead shows what it carries; its
    reader then says whether the model shall run. A browser, which its name tells, has to say that a page of ours made
    it ask: by Sec-Fetch-Site, or where it sends none (over plain HTTP to another machine) by Origin or Referer.
    """
    if any("prefetch" in headers.get(name, "") for name in ("sec-purpose", "purpose")):
        return False
    host = headers.get("host", "").lower()
    said = [headers[name].lower() for name in ("origin", "referer") if name in headers]
    if not all(_origin(one) in (f"http://{host}", f"https://{host}") for one in said):
        return False
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return bool(said) or "mozilla/" not in headers.get("user-agent", "").lower()


def _origin(address: str) -> str:
    return "/".join(address.split("/")[:3])


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode("utf-8", "replace"))


def _pass(token: str) -> str:
    """What the cookie holds: other servers on this machine are sent it too, and shall not learn the token."""
    return hmac.new(token.encode(), b"gemscope cookie", hashlib.sha256).hexdigest()


def _admitted(
    scope: Scope, query: list[tuple[str, str]], cookie: str, token: str, first: Mapping[str, str]
) -> Response:
    """To the same page without the token in its address, and a cookie instead."""
    rest = urlencode([(name, value) for name, value in query if name != "token"])
    path = scope.get("raw_path", scope["path"].encode()).decode("latin-1").partition("?")[0]
    # Two slashes in front would name another host.
    place = "/" + path.lstrip("/\\") + (f"?{rest}" if rest else "")
    answer: Response
    if first.get("sec-fetch-site", "none") in ("same-origin", "none"):
        answer = RedirectResponse(place, 303)
    else:
        # Who follows a link from elsewhere is not sent the cookie back on a redirect, but from a page of ours.
        answer = HTMLResponse(f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(place)}">')
    answer.set_cookie(cookie, _pass(token), httponly=True, samesite="strict")
    return answer


def _refuse(first: Mapping[str, str], status: int, message: str) -> Response:
    """Plain, and without a template: it may be a stranger who asks."""
    if "application/json" in first.get("accept", ""):
        return JSONResponse({"error": message}, status)
    return PlainTextResponse(f"{message}\n", status)


def _too_large(most: int) -> str:
    return f"the request is longer than {most:,} bytes"


def _signed(send: Send) -> Send:
    """Adds the headers that every answer has, unless it set them itself."""

    async def signed(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.setdefault("headers", [])
            there = {name for name, _ in headers}
            headers.extend(pair for pair in _SIGNATURE if pair[0] not in there)
        await send(message)

    return signed
