"""Requests: what gets past their declarations is finite and within bounds, and the description says the same bounds."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect
from starlette.requests import Request

from broken.samples import REQUESTS
from gemscope.app import openapi, requests
from gemscope.app.api import CALLS
from gemscope.app.asking import body_of, query_of
from gemscope.errors import InputError

KINDS: dict[str, Any] = {name: getattr(requests, name) for name in REQUESTS}


def request(body: bytes = b"", query: str = "", kind: str = "application/json") -> Request:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", kind.encode())]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "query_string": query.encode()}
    return Request(scope, receive)


def as_json(name: str, said: Any) -> Any:
    return asyncio.run(body_of(request(json.dumps(said).encode()), KINDS[name]))


def leaves(node: inspect.Type, place: str) -> Iterator[tuple[str, inspect.Type]]:
    match node:
        case inspect.StructType():
            for one in node.fields:
                yield from leaves(one.type, f"{place}.{one.encode_name}")
        case inspect.Metadata():
            yield from leaves(node.type, place)
        case inspect.UnionType():
            for kind in node.types:
                yield from leaves(kind, place)
        case inspect.VarTupleType():
            assert node.max_length is not None, place
            yield from leaves(node.item_type, place)
        case _:
            yield place, node


def test_every_number_has_bounds_and_every_text_and_list_a_greatest_length() -> None:
    found = dict(leaf for name, kind in KINDS.items() for leaf in leaves(inspect.type_info(kind), name))
    assert len(found) > 60
    for place, node in found.items():
        if isinstance(node, inspect.IntType | inspect.FloatType):
            assert node.ge is not None, place
            assert node.le is not None, place
        elif isinstance(node, inspect.StrType):
            assert node.max_length is not None, place
        else:
            assert isinstance(node, inspect.BoolType | inspect.LiteralType | inspect.NoneType), place


@pytest.mark.parametrize("name", REQUESTS)
def test_a_program_and_an_address_ask_for_the_same_with_the_same_words(name: str) -> None:
    """A number in quotes is a number, null is nothing said, and what is not known is left alone."""
    said = REQUESTS[name]
    asked = as_json(name, said)
    unsaid = {one.encode_name: None for one in msgspec.structs.fields(KINDS[name]) if not one.required}
    assert asked == as_json(name, unsaid | said | {"other": [1]})
    plain = {key: value for key, value in said.items() if not isinstance(value, dict | list)}
    quoted = {key: str(value) if isinstance(value, int | float) else value for key, value in plain.items()}
    assert asked == as_json(name, said | quoted)
    if name in ("ActivationNew", "ActivationSource", "Steer"):
        return  # objects and lists of texts, which no address can hold
    query = urlencode(said | quoted, doseq=True)
    form = request(query.encode(), kind="application/x-www-form-urlencoded")
    for found in (query_of(request(query=query), KINDS[name]), asyncio.run(body_of(form, KINDS[name]))):
        if isinstance(found, requests.Steering):  # keeps strengths as they were written
            assert (found.rows, found.state) == (asked.rows, asked.state)
        else:
            assert found == asked


HOSTILE = [
    *(
        math.nan,
        math.inf,
        -math.inf,
        1e308,
        10**30,
        10**400,
        -1,
        0,
        1,
        0.5,
        2**63,
        True,
        None,
        "",
        [],
        {},
        [[]],
        [None],
    ),
    *("nan", "NaN", "inf", "-inf", "1e999", "infinity", "1e308", "-1e308", "٣", "1_0", "0x10", " 1", "+1", "1 ", "5.5"),
    *("nanmax", "1e308norm", "9" * 5000, "1" + "0" * 400, "true", "on", "\x00", "\ud800", "a" * 20_000, "null"),
]
"""What JSON, an address or Python's own reading of numbers may let in."""


def places(said: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = said.items() if isinstance(said, dict) else enumerate(said) if isinstance(said, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def with_value(said: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = dict(said) if isinstance(said, dict) else list(said)
    changed[path[0]] = with_value(said[path[0]], path[1:], value)
    return changed


def whole(asked: Any) -> None:
    """All numbers are finite, and all texts are texts."""
    for value in msgspec.to_builtins(asked).values():
        for one in value if isinstance(value, list | tuple) else [value]:
            assert not isinstance(one, float) or math.isfinite(one)
            assert not isinstance(one, int) or abs(one) <= 10**12
            assert not isinstance(one, str) or one.encode().decode() == one
    if isinstance(asked, requests.Steering):
        assert all(abs(amount.value) <= requests.STRONG for _, amount, _ in asked.rows)


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_nothing_hostile_gets_past_a_declaration(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(REQUESTS)))
    path = data.draw(st.sampled_from([place for place in places(REQUESTS[name]) if place]))
    value = data.draw(st.sampled_from(HOSTILE) | st.floats() | st.integers() | st.text())
    said = with_value(REQUESTS[name], path, value)
    posted = request(json.dumps(said).encode())
    typed = {key: one for key, one in said.items() if not isinstance(one, dict)}
    asked_for = request(query=urlencode(typed, doseq=True, errors="replace"))
    for ask in (lambda: asyncio.run(body_of(posted, KINDS[name])), lambda: query_of(asked_for, KINDS[name])):
        refusal = ""
        try:
            whole(ask())
        except InputError as error:
            refusal = str(error)
        assert len(refusal) <= 1000
        assert refusal.isprintable()


def bounds(schema: dict[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """Of an object's schema: field, value, and whether it is to be let in."""
    for field, one in schema["properties"].items():
        if one.get("type") in ("integer", "number"):
            for edge, sign in ((one["minimum"], -1), (one["maximum"], 1)):
                yield field, edge, True
                yield field, edge + sign * max(1, abs(edge) / 100), False
        elif one.get("type") == "string":
            yield field, "a" * one["maxLength"], True
            yield field, "a" * (one["maxLength"] + 1), False
        elif "enum" in one:
            yield from ((field, word, True) for word in one["enum"])
            yield field, "something else", False


def test_the_bounds_that_the_description_says_are_those_that_hold() -> None:
    schemas = openapi.describe(CALLS)["components"]["schemas"]
    tried = 0
    for name in KINDS.keys() & schemas.keys():
        for field, value, lets_in in bounds(schemas[name]):
            said, tried = REQUESTS[name] | {field: value}, tried + 1
            if lets_in:
                as_json(name, said)
            else:
                with pytest.raises(InputError, match=f'"{field}"'):
                    as_json(name, said)
    assert tried > 60


def test_the_description_says_what_fields_mean_and_every_reference_in_it_is_there() -> None:
    found = json.dumps(openapi.describe(CALLS))
    schemas = json.loads(found)["components"]["schemas"]
    assert schemas["SteerFeature"]["properties"]["strength"]["description"] == "times the decoder row"
    assert schemas["Steer"]["properties"]["features"]["items"] == {"$ref": "#/components/schemas/SteerFeature"}
    for piece in found.split('"$ref": "')[1:]:
        assert piece.partition('"')[0].removeprefix("#/components/schemas/") in schemas
