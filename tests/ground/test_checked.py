"""What comes in is what was declared, or one line says why not."""

import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

from gemscope.checked import (
    DEEP,
    Count,
    Form,
    Positive,
    as_read,
    json_of,
    quoted,
    read_json,
    read_toml,
    read_yaml,
    require_forms,
    shown,
)
from gemscope.errors import AccessError, CorruptFile, GemscopeError, NotFound


@dataclass(frozen=True, kw_only=True)
class Part:
    rows: Positive
    digest: Annotated[str, Meta(max_length=8)] = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    name: str
    width: Positive
    share: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    kind: Literal["relu", "topk"] = "relu"
    parts: tuple[Part, ...] = ()
    masked: Mapping[str, Count] = field(default_factory=dict)
    shards: Mapping[str, list[Part]] = field(default_factory=dict)
    k: Positive | None = None
    start: tuple[Count, str] | None = None
    anything: Any = None

    def __post_init__(self) -> None:
        if self.k is not None and self.k > self.width:
            raise ValueError(f"k={self.k} and width={self.width}: fewer must fire than there are")


WHOLE = {"name": "a", "width": 4}

SAID = {
    "a list": ({"width": [1]}, 'field "width" is a list, expected a whole number from 1'),
    "yes": ({"width": True}, 'field "width" is true, expected a whole number from 1'),
    "a fraction": ({"width": 5.5}, 'field "width" is 5.5, expected a whole number from 1'),
    "text": ({"width": "5"}, 'field "width" is "5", expected a whole number from 1'),
    "nothing": ({"width": None}, 'field "width" is null, expected a whole number from 1'),
    "too small": ({"width": 0}, 'field "width" is 0, expected a whole number from 1'),
    "too large": ({"width": 10**30}, 'field "width" is a number of many digits, expected a whole number from 1'),
    "beyond floats": ({"width": 10**400}, 'field "width" is a number of many digits, expected a whole number from 1'),
    "within": ({"parts": [{"rows": 1}, {"rows": {}}]}, 'field "parts[1].rows" is an empty object, expected a whole'),
    "absent": ({"parts": [{}]}, 'field "parts[0].rows" is missing'),
    "a map": ({"masked": {"first": -1}}, 'a value within field "masked[...]" is not a whole number from 0'),
    "maps": ({"shards": {"1.res": [{"rows": "1"}]}}, 'field "shards[...][0].rows" is not a whole number from 1'),
    "a word": ({"kind": "gelu"}, 'field "kind" is "gelu", expected "relu" or "topk"'),
    "no word": ({"kind": 3}, 'field "kind" is 3, expected "relu" or "topk"'),
    "a share": ({"share": 1}, 'field "share" is 1, expected a number from 0 and below 1'),
    "either": ({"k": "2"}, 'field "k" is "2", expected a whole number from 1 or null'),
    "a pair": ({"start": [1]}, 'field "start" has length 1, expected a list of 2 or null'),
    "in a pair": ({"start": ["a", "b"]}, 'field "start[0]" is "a", expected a whole number from 0'),
    "long": ({"parts": [{"rows": 1, "digest": "x" * 900}]}, "has length 900, expected text of at most 8 characters"),
    "no sense": ({"k": 9}, "k=9 and width=4: fewer must fire than there are"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_is_there_and_what_was_expected_are_said_in_one_line(case: str, tmp_path: Path) -> None:
    changed, said = SAID[case]
    (tmp_path / "facts.json").write_text(json.dumps(WHOLE | changed))
    with pytest.raises(CorruptFile) as error:
        read_json(tmp_path / "facts.json", Facts)
    assert said in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "facts.json"))
    assert "\n" not in str(error.value)


RAW = {
    "NaN": (b'{"name": "a", "width": 4, "anything": NaN}', "is not JSON"),
    "Infinity": (b'{"name": "a", "width": 4, "share": Infinity}', "is not JSON"),
    "a number beyond all": (b'{"name": "a", "width": 4, "anything": 1e400}', "is not something"),
    "too many digits": (b'{"name": "a", "width": 4, "anything": ' + b"9" * 9999 + b"}", "is not something"),
    "deep": (b'{"name": "a", "width": 4, "anything": ' + b"[" * 70 + b"]" * 70 + b"}", "deeper than 64"),
    "very deep": (b'{"name": "a", "width": 4, "anything": ' + b'{"a":' * 200_000, "deeper than 64"),
    "deep where nobody looks": (
        b'{"name": "a", "width": 4, "other": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        "deeper than 64",
    ),
    "half a letter": (b'{"name": "a\xff", "width": 4}', "not text in UTF-8"),
    "half a pair": (b'{"name": "\\ud800", "width": 4}', "is not JSON"),
    "twice": (b'{"name": "a", "width": 4, "width": 5}', 'says "width" twice'),
    "twice within": (b'{"name": "a", "width": 4, "anything": [{"b": 1, "b": 1}]}', 'says "b" twice'),
    "empty": (b"", "it ends in the middle"),
    "cut off": (b'{"name": "a", "wid', "it ends in the middle"),
    "more behind": (b'{"name": "a", "width": 4} 5', "trailing characters"),
    "another kind": (b"[3]", "it is a list, expected an object"),
    "in UTF-16": (json.dumps(WHOLE).encode("utf-16"), "is not JSON"),
}


@pytest.mark.parametrize("case", RAW)
def test_what_is_no_plain_json_is_refused(case: str, tmp_path: Path) -> None:
    data, said = RAW[case]
    (tmp_path / "facts.json").write_bytes(data)
    with pytest.raises(CorruptFile, match=said) as error:
        read_json(tmp_path / "facts.json", Facts)
    assert len(str(error.value)) < 500


def test_what_fits_is_read_and_what_is_not_declared_only_where_a_file_is_anybodys(tmp_path: Path) -> None:
    at = tmp_path / "facts.json"
    at.write_bytes(b"\xef\xbb\xbf" + json.dumps(WHOLE | {"parts": [{"rows": 2}], "share": 0, "more": 1}).encode())
    assert read_json(at, Facts) == Facts(name="a", width=4, parts=(Part(rows=2),), share=0.0)
    with pytest.raises(CorruptFile, match='field "more" is not known; make it anew'):
        read_json(at, Facts, closed=True, remedy="make it anew")
    at.write_text(json.dumps(WHOLE | {"parts": [{"rows": 2, "colour": 3}]}))
    with pytest.raises(CorruptFile, match=r'field "parts\[0\].colour" is not known'):
        read_json(at, Facts, closed=True)
    at.write_text(json.dumps(WHOLE | {"anything": json.loads("[" * (DEEP - 1) + "]" * (DEEP - 1))}))
    assert read_json(at, Facts, closed=True).width == 4


def test_only_files_are_read_and_only_so_much_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AccessError, match="is a pipe, a socket or a device, expected a file"):  # and does not wait
        read_json(tmp_path / "pipe", Facts)
    with pytest.raises(AccessError, match="is a folder, expected a file"):
        read_json(tmp_path, Facts)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for none in (tmp_path / "circle", tmp_path / ("a" * 100_000), tmp_path / "nothing", tmp_path / "a\0b"):
        with pytest.raises(NotFound, match="no file") as error:
            read_json(none, Facts)
        assert len(str(error.value)) < 600
    monkeypatch.setattr("gemscope.checked.LARGE", 20)
    (tmp_path / "large.json").write_text(json.dumps(WHOLE))
    with pytest.raises(CorruptFile, match="has 25 bytes, expected at most 20"):
        read_json(tmp_path / "large.json", Facts)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text(json.dumps(WHOLE))
    (tmp_path / "facts.json").chmod(0)
    with pytest.raises(AccessError, match="cannot be read: Permission denied"):
        read_json(tmp_path / "facts.json", Facts)


TOML = {
    "a list": ('name = "a"\nwidth = [4]', 'field "width" is a list'),
    "nan": ('name = "a"\nwidth = 4\nanything = nan', "holds nan, expected numbers"),
    "inf within": ('name = "a"\nwidth = 4\nanything = {a = [1, -inf]}', "holds -inf, expected numbers"),
    "a day": ("name = 2020-01-01\nwidth = 4", 'field "name" is a date, expected text'),
    "deep": ("anything = " + "[" * 70 + "]" * 70, "deeper than 64"),
    "very deep": ("anything = " + "[" * 100_000, "deeper than 64"),
    "twice": ("width = 4\nwidth = 4", "is not TOML"),
    "no TOML": ("width", "is not TOML"),
    "no text": (b"width = \xff", "not text in UTF-8"),
    "many digits": ("width = " + "9" * 9999, "is not TOML"),
}


@pytest.mark.parametrize("case", TOML)
def test_toml_is_held_to_the_same(case: str, tmp_path: Path) -> None:
    data, said = TOML[case]
    (tmp_path / "facts.toml").write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(CorruptFile, match=said) as error:
        read_toml(tmp_path / "facts.toml", Facts)
    assert "\n" not in str(error.value)


def test_what_a_file_says_is_quoted_as_part_of_a_line() -> None:
    assert quoted("\x1b[31m red \u202e and \n more") == r'"\x1b[31m red \u202e and \n more"'
    assert quoted("x" * 10_000) == f'"{"x" * 44}…{"x" * 15}"'
    assert quoted([1]) == "a list"
    assert quoted(10**5000) == "a number of many digits"
    assert shown("Größe · α") == "Größe · α"
    assert shown("\ud800") == r"\ud800"


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_NAMES = st.sampled_from([*Facts.__dataclass_fields__, "other"])


@settings(deadline=None, max_examples=300)
@given(value=st.dictionaries(_NAMES, _ANY, max_size=10).map(lambda some: WHOLE | some) | _ANY)
def test_whatever_is_given_is_of_the_declared_types_or_refused_in_one_printable_line(value: object) -> None:
    try:
        found, said = json_of(json.dumps(value), Facts, where="it"), ""
    except GemscopeError as error:
        found, said = Facts(name="", width=1), str(error)
    assert said.isprintable()
    assert len(said) < 500
    assert type(found.width) is int
    assert found.width >= 1
    assert type(found.share) is float
    assert 0 <= found.share < 1
    assert all(type(count) is int and count >= 0 for count in found.masked.values())


# --- tensors --------------------------------------------------------------------------------------------------------

FORMS = {"a": Form((2, None)), "n": Form((), "int64", 0, 9)}


@pytest.mark.parametrize("of", [torch.from_numpy, lambda array: array], ids=["torch", "numpy"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, ""),
        ({"a": np.zeros((2, 0), np.float32)}, ""),
        ({"a": np.zeros((3, 2), np.float32)}, r"a is float32 of shape \[3, 2\], expected float32 of shape \[2, any\]"),
        ({"a": np.zeros(2, np.float32)}, r"a is float32 of shape \[2\]"),
        ({"a": np.zeros((2, 2))}, "a is float64"),
        ({"a": np.full((2, 1), np.nan, np.float32)}, "a holds NaN or Inf"),
        ({"a": np.full((2, 1), -np.inf, np.float32)}, "a holds NaN or Inf"),
        ({"n": np.array(10)}, "n holds numbers that are not from 0 to 9"),
        ({"n": np.array(-(2**63))}, "n holds numbers that are not from 0 to 9"),
        ({"n": np.array(3.0)}, "n is float64"),
        ({"m": np.array(3)}, '"m" is not known'),
    ],
)
def test_a_tensor_is_what_was_declared_or_one_line_says_why_not(of: Any, change: dict[str, Any], told: str) -> None:
    tensors = {"a": np.ones((2, 3), np.float32), "n": np.array(4), **change}
    given = {name: of(value) for name, value in tensors.items()}
    with pytest.raises(CorruptFile, match=f"^there.*{told}") if told else nullcontext():
        require_forms(given, FORMS, where="there")


def test_a_declared_tensor_that_is_missing_is_told() -> None:
    with pytest.raises(CorruptFile, match="there: there is no n"):
        require_forms({"a": np.ones((2, 3), np.float32)}, FORMS, where="there")


def test_what_is_compared_with_what_was_read_is_as_it_is_read(tmp_path: Path) -> None:
    value = {"a": (1, 2.5), "b": {3: None}}
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert as_read(value) == read_json(tmp_path / "a.json", dict[str, Any]) == {"a": [1, 2.5], "b": {"3": None}}


@pytest.mark.parametrize("inside", ["[", "{b: ", "- "])
def test_yaml_that_goes_too_deep_is_given_up_where_it_does(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read on takes the square of the depth: seconds for a few thousand brackets."""
    from yaml.scanner import Scanner

    steps = 0
    original = Scanner.fetch_more_tokens

    def counted(self: Scanner) -> None:
        nonlocal steps
        steps += 1
        original(self)

    monkeypatch.setattr(Scanner, "fetch_more_tokens", counted)
    path = tmp_path / "config.yaml"
    path.write_text(f"{'a: ' if inside != '- ' else ''}{inside * 8000}")
    with pytest.raises(CorruptFile, match="nested deeper than 64 levels"):
        read_yaml(path, dict[str, Any])
    assert steps < 1200  # that far ahead a key is looked for
    path.write_text(f"a: {'[' * 60}{']' * 60}")
    assert read_yaml(path, dict[str, Any])
