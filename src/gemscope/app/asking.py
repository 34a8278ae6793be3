"""From a request to arguments, and from a reader to the worker: the half of a handler that is the same everywhere."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from msgspec.inspect import VarTupleType, type_info
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import ImmutableMultiDict
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gemscope.app.guard import is_ours
from gemscope.app.live import Off
from gemscope.app.responses import wants_data
from gemscope.app.shelf import Shelf, Source
from gemscope.app.worker import Full, Job, Overtime, Worker
from gemscope.checked import declared, json_of
from gemscope.errors import CorruptFile, InputError, NotFound

T = TypeVar("T")

Handler = Callable[[Request], Awaitable[Response]]

_INDEX = re.compile(r"[0-9]{1,12}")  # not \d: that is any script's digits
_FIELDS = 250
"""Of a form: a list takes in up to 200 features at a time."""

MEASURING = 120.0
"""Seconds that causes and effects may take to be measured: more than a text may take to be read."""
ASKED = "x-asked"
"""The header in which a page says by what name it asks for the place in the line (`/queue/NAME.json`)."""
_NAMED = 64
_WHERE = "the request"


_USUAL = 3_000
"""Characters of a text that needs no more time than others."""


def reading_time(text: str) -> float | None:
    """Seconds that a long text may take to be read; None: as much as any."""
    return len(text) / 100 if len(text) > _USUAL else None


def shelf_of(request: Request) -> Shelf:
    """The atlases that are served."""
    found: Shelf = request.app.state.shelf
    return found


def worker_of(request: Request) -> Worker:
    """Who runs models."""
    found: Worker = request.app.state.worker
    return found


async def source_of(request: Request) -> Source:
    """The atlas that the address names, open: others are served while it is opened. Raises NotFound, and what `Atlas`
    raises.
    """
    found = shelf_of(request).get(request.path_params["model"], request.path_params["source"])
    if found.at_hand() is None:
        await run_in_threadpool(found.opened)
    return found


def index_of(request: Request, name: str = "index") -> int:
    """A number in the address. Raises NotFound for what is none."""
    found: str = request.path_params[name]
    if not _INDEX.fullmatch(found):
        raise NotFound(f"no {'feature' if name == 'index' else name} {found[:40]!r}: expected a number")
    return int(found)


def query_of(request: Request, cls: type[T]) -> T:
    """What the address asks for. Raises InputError."""
    return _declared(cls, _said(request.query_params, cls))


async def body_of(request: Request, cls: type[T]) -> T:
    """What a form or JSON asks for. Raises InputError, and HTTPException for other kinds of content."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await request.body()
    if kind == "application/x-www-form-urlencoded":
        try:
            form = ImmutableMultiDict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_FIELDS))
        except ValueError:
            raise InputError(f"the form cannot be read: expected UTF-8 and at most {_FIELDS} fields") from None
        return _declared(cls, _said(form, cls))
    if kind == "application/json":
        try:
            return _declared(cls, json_of(body, dict[str, Any], where=_WHERE))
        except CorruptFile as error:
            raise InputError(str(error)) from None
    raise HTTPException(415, "expected application/json or application/x-www-form-urlencoded")


async def asked_of(request: Request, cls: type[T]) -> T:
    """What is asked for, in the address or posted. Raises what these raise."""
    return await body_of(request, cls) if request.method == "POST" else query_of(request, cls)


def _said(given: ImmutableMultiDict[str, str], cls: Any) -> dict[str, Any]:
    """By name: what may be said several times is a list, and what was left empty is not said."""
    lists = _lists(cls)
    return {name: given.getlist(name) if name in lists else value for name, value in given.items() if value}


@cache
def _lists(cls: Any) -> frozenset[str]:
    declaration: Any = type_info(cls)
    return frozenset(one.encode_name for one in declaration.fields if isinstance(one.type, VarTupleType))


def _declared(cls: type[T], said: Mapping[str, Any]) -> T:
    """null is as good as nothing, and a number as good in quotes: programs write both. Raises InputError."""
    try:
        given = {name: value for name, value in said.items() if value is not None}
        return declared(given, cls, where=_WHERE, strict=False)
    except CorruptFile as error:
        raise InputError(str(error)) from None


_NOT_OURS = "this sets a model to work, which no page here asked for: open its page and press the button there"


def pressed(request: Request) -> bool:
    """Whether somebody asks for work on a page of ours, or by a program; a page that is asked for otherwise shows what
    its address carries, and does none. Raises HTTPException 403 where data is asked for.
    """
    ours = is_ours(request.headers)
    if not ours and wants_data(request):
        raise HTTPException(403, _NOT_OURS)
    return ours


def submitted(
    request: Request,
    work: Callable[[Job[T]], T],
    *,
    seconds: float | None = None,
    patient: bool = False,
    listen: Callable[[Any], None] | None = None,
) -> Job[T]:
    """In the worker's line: the one way there. Raises HTTPException 503 where too many wait, and 403 for what is not
    ours (`guard.is_ours`).
    """
    if not is_ours(request.headers):
        raise HTTPException(403, _NOT_OURS)
    try:
        name = request.headers.get(ASKED, "")[:_NAMED]
        job = worker_of(request).submit(work, seconds=seconds, patient=patient, listen=listen, name=name)
    except Full as full:
        raise HTTPException(503, str(full), {"retry-after": "5"}) from None
    request.state.ahead = job.ahead
    return job


async def ask(
    request: Request, work: Callable[[Job[T]], T], *, seconds: float | None = None, patient: bool = False
) -> T:
    """Has the worker do something for the reader of this request, and stops it when the reader leaves. `patient`: it
    takes long, and gives way to what others ask for.

    Raises what the work raises; HTTPException 503 where too many wait, it takes too long or there is no model, 403 for
    what is not ours; ClientDisconnect.
    """
    job = submitted(request, work, seconds=seconds, patient=patient)
    done = asyncio.wrap_future(job.outcome)
    left = asyncio.ensure_future(leaving(request))
    either: set[asyncio.Future[Any]] = {done, left}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise ClientDisconnect
        return done.result()
    except (Off, Overtime) as error:
        raise refused(error) from None
    finally:
        left.cancel()
        if not done.done():
            done.cancel()
            job.cancel()


def refused(error: Exception) -> Exception:
    """As HTTP says it that there is no model, or no time; anything else as it is."""
    if isinstance(error, Off):
        return HTTPException(503, str(error))
    if isinstance(error, Overtime):
        return HTTPException(503, f"{error}: ask for less at a time")
    return error


async def leaving(request: Request) -> None:
    """Returns when the reader has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
