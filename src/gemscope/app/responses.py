"""Answers: pages, data as JSON, and failures in the form that was asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from gemscope.errors import AccessError, GemscopeError, InputError, Mismatch, NotFound
from gemscope.pages.links import ServerLinks
from gemscope.pages.render import render

_STATUS: tuple[tuple[type[GemscopeError], int], ...] = (
    (NotFound, 404),
    (InputError, 400),
    (Mismatch, 400),
    (AccessError, 403),
)


def page(
    request: Request,
    template: str,
    *,
    links: ServerLinks,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **values: Any,
) -> Response:
    """A template, filled in."""
    html = render(template, links=links, **values)
    return document(html, status=status, headers={**_ahead(request), **(headers or {})})


def document(html: str | bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A page, or a part of one, that is made."""
    # A browser shall not take the part of a page that it kept for the whole.
    return HTMLResponse(html, status, {"vary": "hx-request", **(headers or {})})


def data(request: Request, value: Any, *, status: int = 200) -> Response:
    """JSON."""
    return Response(as_json(value), status, _ahead(request), "application/json")


def as_json(value: Any) -> bytes:
    """In one line. Half a surrogate pair, which is no text, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def _ahead(request: Request) -> dict[str, str]:
    """How many waited before this one, where a model was asked."""
    ahead = request.scope.get("state", {}).get("ahead")
    return {} if ahead is None else {"x-queue-ahead": str(ahead)}


SHORT = 2000
"""Characters of an address that can be shared: more are cut off by some of the programs that it goes through."""


def shared(request: Request, url: str) -> Response | None:
    """To the address that says what a form has posted, where that is short: there it can be kept and sent on. None for
    what is longer, for what a script has posted (`moved`), and for data.
    """
    if request.method != "POST" or wants_data(request) or wants_part(request) or len(url) > SHORT:
        return None
    return RedirectResponse(url, 303)


def moved(request: Request, url: str) -> dict[str, str]:
    """Headers that give a page the address which says what its script has posted, as far as it is short."""
    if request.method != "POST" or not wants_part(request):
        return {}
    return {"hx-push-url": url if len(url) <= SHORT else url.partition("?")[0]}


def wants_data(request: Request) -> bool:
    """Whether the reader is a program that asks for JSON."""
    path, accept = request.scope["path"], request.headers.get("accept", "")
    if path.startswith("/api/") or path == "/health" or path.endswith(".json"):
        return True
    if request.headers.get("content-type", "").startswith("application/json"):
        return True
    return "application/json" in accept and "text/html" not in accept


def wants_part(request: Request) -> bool:
    """Whether a page asks for a part of itself."""
    return request.headers.get("hx-request") == "true"


# --- failures ---------------------------------------------------------------------------------------------------------


async def on_http(request: Request, error: Exception) -> Response:
    """What Starlette and our own handlers refuse."""
    assert isinstance(error, HTTPException)
    # Starlette's own word for an address that no route has.
    message = f"nothing at {request.scope['path'][:120]}" if error.detail == "Not Found" else error.detail
    return failure(request, error.status_code, message, error.headers)


async def on_error(request: Request, error: Exception) -> Response:
    """A user's mistake: its line says what was expected."""
    assert isinstance(error, GemscopeError)
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return failure(request, status, " ".join(str(error).split()))


async def on_leaving(request: Request, error: Exception) -> Response:
    """Nobody is there to read it."""
    return Response(status_code=499)


async def on_bug(request: Request, error: Exception) -> Response:
    """Ours. What happened stands in the server's log, not in the answer."""
    return failure(request, 500, "something went wrong in the server; its log says what")


HANDLERS: Mapping[Any, Any] = {
    HTTPException: on_http,
    GemscopeError: on_error,
    ClientDisconnect: on_leaving,
    Exception: on_bug,
}


def failure(request: Request, status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """A failure as a page, a line on a page, or JSON."""
    if wants_data(request):
        answer = data(request, {"error": message}, status=status)
    elif wants_part(request):
        answer = HTMLResponse(render("error_note.html", links=ServerLinks(), message=message), status)
    else:
        # Not through `page`, whose `status` is the answer's alone: the template shows it too.
        text = render(
            "error.html",
            links=_whose(request),
            status=status,
            title=_TITLES.get(status, "That did not work"),
            message=message,
        )
        answer = HTMLResponse(text, status)
    answer.headers.update(headers or {})
    return answer


def _whose(request: Request) -> ServerLinks:
    """The ways within the atlas that the address names, where there is one."""
    at = request.path_params.get("model"), request.path_params.get("source")
    served = getattr(request.app.state, "shelf", ())
    return next((one.links for one in served if one.address == at), ServerLinks())


_TITLES = {
    400: "That cannot be read",
    404: "Not found",
    405: "Not in this way",
    408: "Too slow",
    413: "Too long",
    415: "Another kind of content is expected",
    500: "A mistake of ours",
    503: "Not now",
}
