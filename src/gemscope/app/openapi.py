"""The description of the API that programs read, made from the calls themselves: their paths, bodies and docstrings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from msgspec.json import schema, schema_components

from gemscope import __version__
from gemscope.app.requests import Index, Name

H = TypeVar("H")


@dataclass(frozen=True)
class Call(Generic[H]):
    """One call: method, address, who answers it, and the body that it takes."""

    method: str
    path: str
    handler: H
    body: type[Any] | None = None


def describe(calls: Iterable[Call[Any]]) -> dict[str, Any]:
    """As OpenAPI 3.1 has it."""
    calls = list(calls)
    bodies = [call.body for call in calls if call.body is not None]
    references, schemas = schema_components(bodies, ref_template="#/components/schemas/{name}")
    shapes = dict(zip(bodies, references, strict=True))
    return {
        "openapi": "3.1.0",
        "info": {"title": "gemscope", "version": __version__},
        "paths": {call.path: {call.method.lower(): _operation(call, shapes)} for call in calls},
        "components": {"schemas": schemas},
    }


def _operation(call: Call[Any], shapes: Mapping[type[Any], dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": call.handler.__name__,
        "summary": " ".join((call.handler.__doc__ or "").split()),
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": schema(_IN_PATHS[name])}
            for name in re.findall(r"{(\w+)}", call.path)
        ],
        "responses": {
            "200": _answer("what was asked for", {"type": ["object", "array"]}),
            "4XX": _answer("what was wrong with the request", _FAILURE),
            "5XX": _answer("why it cannot be answered now", _FAILURE),
        },
    }
    if call.body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": shapes[call.body]}}}
    return found


_IN_PATHS = {"model": Name, "source": Name, "index": Index}
_FAILURE = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}


def _answer(description: str, shape: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": shape}}}
