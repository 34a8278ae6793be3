"""What comes in from outside becomes the types that were declared for it here, or one line says why not: JSON and TOML
of bounded size and depth, without NaN, Infinity or a name given twice. Nothing else in the package parses either.

A type is declared once, as a dataclass with bounds, beside whoever owns it:

    @dataclass(frozen=True, kw_only=True)
    class Part:
        name: str
        rows: Count

    read_json(path, Part)     # CorruptFile: PATH: field "rows" is a list, expected a whole number from 0
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import sys
import tomllib
import zlib
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import msgspec
from msgspec import Meta, inspect

from gemscope.errors import AccessError, CorruptFile, InputError, NotFound, one_line

T = TypeVar("T")

if TYPE_CHECKING:
    from builtins import type as Kind
else:

    class Kind:  # what mypy takes for a type, `dict[str, int]` among them, is no class while a program runs
        def __class_getitem__(cls, item: object) -> object:
            return object


LARGE = 64 << 20
"""Bytes of a file that is parsed as a whole."""
SMALL = 1 << 16
"""Bytes of a file whose parser is slow."""
DEEP = 64
"""Lists and objects within one another. Whoever walks a value later needs no more of the stack than that."""
EXACT = 2**53
"""Whole numbers up to here are the same in everybody's JSON."""

Count = Annotated[int, Meta(ge=0, le=EXACT)]
Positive = Annotated[int, Meta(ge=1, le=EXACT)]
Length = Annotated[float, Meta(ge=1e-30, le=1e30)]
Finite = Annotated[float, Meta(ge=-1e30, le=1e30)]
"""With room to be squared. A number without bounds may be NaN."""


@dataclass(frozen=True)
class Numbered:
    """What every file of ours begins with: the number of its format, to be looked at before all else."""

    format: Count


def read_json(path: Path, kind: Kind[T], *, closed: bool = False, remedy: str = "") -> T:
    """The contents of a JSON file. `closed` refuses what the declaration does not name, as fits a file of our own;
    others say more than we need. `remedy` is what to do about a damaged one.

    Raises NotFound, AccessError, CorruptFile.
    """
    data = bytes_of(path, most=LARGE)
    where, behind = shown(path), f"; {remedy}" if remedy else ""
    try:
        value = json_of(data, kind, where=where)
        said = json.loads(data, object_pairs_hook=_once)
    except _Twice as twice:
        raise CorruptFile(f"{where} says {quoted(twice.args[0])} twice in one object{behind}") from None
    except ValueError as error:  # in what the declaration passes over
        raise CorruptFile(f"{where} is not JSON: {shown(error)}{behind}") from error
    except CorruptFile as error:
        raise CorruptFile(f"{error}{behind}") from error
    if closed and (unknown := _unknown(said, msgspec.to_builtins(value))):
        raise CorruptFile(f"{where}: {_field(unknown)} is not known{behind}")
    return value


def row_of(data: bytes | str, *, where: str) -> dict[str, Any]:
    """One object of somebody else's many, as loosely as Python itself writes them: NaN and half a surrogate pair may be
    among what nobody looks at. Raises CorruptFile.
    """
    try:
        return json_of(data, dict[str, Any], where=where)
    except CorruptFile as strict:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            raise strict from None
        if not isinstance(found, dict):
            raise
        _require_shallow(found, where)
        return found


def json_of(data: bytes | str, kind: Kind[T], *, where: str) -> T:
    """One JSON document, such as a line of a file; `where` names it in messages. Raises CorruptFile."""
    try:
        if isinstance(data, str):
            data = data.encode()
        data = data.removeprefix(b"\xef\xbb\xbf")  # some editors begin a file with this
        value: T = _decoder(kind).decode(data)  # type: ignore[arg-type]
    except msgspec.ValidationError as error:
        raise CorruptFile(f"{where}: {_worded(error, kind, data)}") from error
    except msgspec.DecodeError as error:
        raise CorruptFile(f"{where} is not JSON: {_plainly(error)}") from error
    except UnicodeError as error:
        raise CorruptFile(f"{where} is not JSON: it is not text in UTF-8") from error
    except RecursionError as error:
        raise CorruptFile(f"{where} is nested deeper than {DEEP} levels") from error
    if _is_deep(data):
        raise CorruptFile(f"{where} is nested deeper than {DEEP} levels")
    return value


def read_toml(path: Path, kind: Kind[T]) -> T:
    """The contents of a TOML file. Raises NotFound, AccessError, CorruptFile."""
    return toml_of(bytes_of(path, most=LARGE), kind, where=shown(path))


def toml_of(data: bytes | str, kind: Kind[T], *, where: str) -> T:
    """One TOML document. Raises CorruptFile."""
    try:
        text = data if isinstance(data, str) else data.decode()
        value = tomllib.loads(text)
    except UnicodeError as error:
        raise CorruptFile(f"{where} is not TOML: it is not text in UTF-8") from error
    except ValueError as error:
        raise CorruptFile(f"{where} is not TOML: {shown(error)}") from error
    except RecursionError as error:
        raise CorruptFile(f"{where} is nested deeper than {DEEP} levels") from error
    return declared(value, kind, where=where)


def as_read(value: Any) -> Any:
    """Plain values of our own as JSON will give them back: lists for tuples, names for keys. What was read is compared
    with that.
    """
    return json.loads(json.dumps(value))


def read_yaml(path: Path, kind: Kind[T]) -> T:
    """The contents of a small YAML file in its plainest form: objects, lists and text, where numbers and words are read
    as they are declared; nothing that stands for something elsewhere, no types of its own.

    Raises NotFound, AccessError, CorruptFile.
    """
    import yaml

    data, where = bytes_of(path, most=SMALL), shown(path)
    try:
        root = yaml.compose(data.decode("utf-8-sig"), _yaml_loader())
        value = None if root is None else _plain_yaml(root, set())
    except _Twice as twice:
        raise CorruptFile(f"{where} says {quoted(twice.args[0])} twice in one object") from None
    except UnicodeError as error:
        raise CorruptFile(f"{where} is not YAML: it is not text in UTF-8") from error
    except yaml.YAMLError as error:
        raise CorruptFile(f"{where} is not YAML: {shown(error)}") from error
    except RecursionError as error:
        raise CorruptFile(f"{where} is nested deeper than {DEEP} levels") from error
    except ValueError as error:
        raise CorruptFile(f"{where} is YAML of a kind that is not read: {shown(error)}") from error
    return declared(value, kind, where=where, strict=False)


@cache
def _yaml_loader() -> Any:
    """One that gives up where it would go too deep: what it takes to go on grows with the square of the depth."""
    import yaml

    class Shallow(yaml.BaseLoader):
        deep = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.deep += 1
            if self.deep > DEEP:
                raise RecursionError
            node = super().compose_node(parent, index)
            self.deep -= 1
            return node

    return Shallow


def _plain_yaml(node: Any, seen: set[int]) -> Any:
    """Of a parsed document: text, lists, and objects with names of text."""
    if id(node) in seen:  # an alias, through which a few lines may stand for more than fits into memory
        raise ValueError("what is written once may not stand in two places")
    seen.add(id(node))
    if node.id == "scalar":
        return node.value
    if node.id == "sequence":
        return [_plain_yaml(one, seen) for one in node.value]
    found: dict[str, Any] = {}
    for name, value in node.value:
        if name.id != "scalar":
            raise ValueError("a name is no text")
        if name.value in found:
            raise _Twice(name.value)
        found[name.value] = _plain_yaml(value, seen)
    return found


def declared(value: object, kind: Kind[T], *, where: str, strict: bool = True) -> T:
    """The same for plain values that somebody else parsed; where not `strict`, numbers and words may be written as
    text, as addresses and forms have them. Raises CorruptFile.
    """
    _require_shallow(value, where)
    try:
        made: T = msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise CorruptFile(f"{where}: {_worded(error, kind, value)}") from error
    except UnicodeError as error:
        raise CorruptFile(f"{where} holds half a surrogate pair, which is no text") from error
    _require_finite(value, where)
    return made


def values_of(kind: Any, given: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """What is given for fields of a dataclass, as they are declared: lists become tuples there, whole numbers floats.
    For settings, which programs make as well as files: their `__post_init__` asks this too. Raises InputError.
    """
    try:
        return msgspec.structs.asdict(declared(given, _fields_of(kind, tuple(given)), where=where))
    except CorruptFile as error:
        raise InputError(str(error)) from error


# --- files ----------------------------------------------------------------------------------------------------------


def bytes_of(path: Path, *, most: int) -> bytes:
    """A whole file of at most `most` bytes. Raises NotFound, AccessError, CorruptFile."""
    size = size_of(path)
    if size > most:
        raise CorruptFile(f"{shown(path)} has {size:,} bytes, expected at most {most:,}")
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise AccessError(f"{shown(path)} cannot be read: {error.strerror or error}") from error
    if len(data) > most:
        raise CorruptFile(f"{shown(path)} grows while it is read, expected at most {most:,} bytes")
    return data


def size_of(path: Path) -> int:
    """Bytes of a file that is one, and not a folder, a pipe or a device, whose reading might never end.

    Raises NotFound, AccessError, CorruptFile.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"no file {shown(path)}") from None
    except PermissionError as error:
        raise AccessError(f"{shown(path)} cannot be read: {error.strerror or error}") from error
    except (OSError, ValueError) as error:  # links in a circle, a name that is too long or holds a zero
        raise NotFound(f"no file {shown(path)}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device"
        raise AccessError(f"{shown(path)} cannot be read: it is {what}, expected a file")
    return found.st_size


def read_tensors(path: Path, *, framework: str = "pt") -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors of a safetensors file, mapped from the disk, and what it says beside them.

    Raises NotFound, AccessError, CorruptFile.
    """
    from safetensors import SafetensorError, safe_open

    size_of(path)
    try:
        with safe_open(path, framework=framework) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (
        SafetensorError,
        OSError,
        ValueError,
        TypeError,
        RuntimeError,
        NotImplementedError,
        AttributeError,
    ) as error:
        raise CorruptFile(f"{shown(path)} is no whole safetensors file ({shown(error)})") from error


@dataclass(frozen=True)
class Form:
    """What a tensor of a file of ours is, as a number's type and bounds are declared of plain values."""

    shape: tuple[int | None, ...]
    """None: of any length there."""
    dtype: str = "float32"
    low: float = -math.inf
    """Where its numbers begin; all of them are finite."""
    high: float = math.inf


def require_forms(tensors: Mapping[str, Any], forms: Mapping[str, Form], *, where: str = "") -> None:
    """Of numpy arrays or torch tensors: that they are those declared, no fewer and no more. Raises CorruptFile."""
    lead = f"{where}: " if where else ""
    for name in sorted(forms.keys() | tensors.keys()):
        if name not in tensors:
            raise CorruptFile(f"{lead}there is no {name}")
        if name not in forms:
            raise CorruptFile(f"{lead}{quoted(name)} is not known")
        tensor, form = tensors[name], forms[name]
        shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        fits = len(shape) == len(form.shape) and all(
            size in (there, None) for there, size in zip(shape, form.shape, strict=True)
        )
        if not fits or dtype != form.dtype:
            wanted = ", ".join("any" if size is None else str(size) for size in form.shape)
            raise CorruptFile(
                f"{lead}{name} is {dtype} of shape {list(shape)}, expected {form.dtype} of shape [{wanted}]"
            )
        if not ((tensor > -math.inf) & (tensor < math.inf)).all():
            raise CorruptFile(f"{lead}{name} holds NaN or Inf")
        if not ((tensor >= form.low) & (tensor <= form.high)).all():
            raise CorruptFile(f"{lead}{name} holds numbers that are not from {form.low:g} to {form.high:g}")


def checksum_of(tensors: Mapping[str, Any], also: object = None) -> str:
    """Of numpy arrays or torch tensors, and of plain values beside them: what was written whole is read whole."""
    sum_ = zlib.crc32(json.dumps(also, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sum_ = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), sum_)
        flat = tensor.reshape(-1)
        sum_ = zlib.crc32(_uint8(flat) if hasattr(flat, "numpy") else flat.view("u1"), sum_)
    return f"{sum_:08x}"


def existing(text: str | os.PathLike[str]) -> Path | None:
    """The path that a text from outside is, if something is there: what can be none (too long, with a zero in it, the
    home of somebody unknown) is none.
    """
    path = os.path.expanduser(text)
    return Path(path) if path and os.path.exists(path) else None


def _uint8(flat: Any) -> Any:
    """Of a torch tensor of any number format."""
    import torch

    return flat.view(torch.uint8).numpy()


# --- words ----------------------------------------------------------------------------------------------------------


def shown(text: object, length: int = 300) -> str:
    """Anything as part of a message."""
    return one_line(text, length)


def quoted(value: object) -> str:
    """What a file says, in a few words: a short value as it is, of anything else what kind of thing it is."""
    match value:
        case None | True | False:
            return json.dumps(value)
        case str():
            return f'"{shown(value, 60)}"'
        case float():
            return f"{value:g}"
        case int():
            return str(value) if abs(value) <= 10**20 else "a number of many digits"
        case list() | tuple():
            return "a list" if value else "an empty list"
        case dict():
            return "an object" if value else "an empty object"
    return f"a {type(value).__name__}"


_PLACE = re.compile(r"(?P<what>.*?)(?: - at `(?P<key>key` in `)?\$?(?P<path>.*)`)?", re.DOTALL)
_STEP = re.compile(r"\[\.\.\.\]|\[(?P<index>\d+)\]|\.(?P<name>[^.\[]+)")
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`", re.DOTALL)


def _worded(error: msgspec.ValidationError, kind: Any, given: object) -> str:
    """msgspec's message in our words, with what is there and all that is expected there."""
    found = _PLACE.fullmatch(str(error))
    assert found is not None
    path = found["path"] or ""
    if missing := _MISSING.fullmatch(found["what"]):
        name = missing["name"]
        return f"{_field(f'{path}.{name}')} is missing"
    value = _untyped(given) if isinstance(given, bytes) else given
    node: inspect.Type | None = _node(kind)
    exact = not found["key"]
    for step in _STEP.finditer(path):
        node = _within(node, step, value)
        value, exact = _inside(value, step, exact)
    place = "a name within " if found["key"] else "" if exact else "a value within "
    where = f"{place}{_field(path)}" if path else "it"
    if not found["what"].startswith(("Expected", "Invalid enum", "Number out of", "Integer value out of")):
        return f"{where}: {shown(found['what'])}" if path else shown(found["what"])  # said by a type of ours
    expected = "text" if found["key"] else _described(node)
    if not exact:
        return f"{where} is not {expected}"
    is_ = f"has length {len(value):,}" if " of length " in found["what"] and isinstance(value, Sized) else None
    return f"{where} {is_ or f'is {quoted(value)}'}, expected {expected}"


def _field(path: str) -> str:
    return f'field "{shown(path.removeprefix("."), 80)}"'


def _untyped(data: bytes) -> object:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None


def _inside(value: Any, step: re.Match[str], exact: bool) -> tuple[Any, bool]:
    try:
        if step["name"] is not None:
            return value[step["name"]], exact
        if step["index"] is not None:
            return value[int(step["index"])], exact
    except (LookupError, TypeError):
        pass
    return None, False


def _within(node: inspect.Type | None, step: re.Match[str], value: object) -> inspect.Type | None:
    """What is declared one step further in."""
    match node:
        case inspect.Metadata():
            return _within(node.type, step, value)
        case inspect.UnionType():
            fitting: tuple[type[inspect.Type], ...] = (inspect.CollectionType, inspect.TupleType)
            if step["name"] or isinstance(value, dict):
                fitting = (inspect.DataclassType, inspect.StructType, inspect.DictType)
            one = next((one for one in node.types if isinstance(one, fitting)), None)
            return None if one is None else _within(one, step, value)
        case inspect.DataclassType() | inspect.StructType():
            return next((field.type for field in node.fields if field.encode_name == step["name"]), None)
        case inspect.DictType():
            return node.value_type
        case inspect.TupleType():
            return node.item_types[int(step["index"] or 0)]
        case inspect.CollectionType():
            return node.item_type
    return None


def _described(node: inspect.Type | None) -> str:
    """What a declaration lets in, in words."""
    match node:
        case inspect.Metadata():
            return _described(node.type)
        case inspect.IntType():
            return f"a whole number{_bounds(node)}"
        case inspect.FloatType():
            return f"a number{_bounds(node)}"
        case inspect.StrType():
            return f"text{_sizes(node, ' characters')}"
        case inspect.BoolType():
            return "true or false"
        case inspect.NoneType():
            return "null"
        case inspect.LiteralType():
            return _either([quoted(value) for value in node.values])
        case inspect.TupleType():
            return f"a list of {len(node.item_types)}"
        case inspect.CollectionType():
            return f"a list{_sizes(node)}"
        case inspect.DictType() | inspect.DataclassType() | inspect.StructType():
            return "an object"
        case inspect.UnionType():
            return _either([_described(one) for one in node.types])
    return "something else"


def _bounds(node: inspect.IntType | inspect.FloatType) -> str:
    low, high = node.ge if node.gt is None else node.gt, node.le if node.lt is None else node.lt
    words = "" if low is None or low <= -EXACT else f" {'from' if node.gt is None else 'above'} {_number(low)}"
    if high is None or abs(high) >= EXACT:
        return words
    return words + (f" to {_number(high)}" if node.lt is None else f" and below {_number(high)}")


def _sizes(node: inspect.StrType | inspect.CollectionType, unit: str = "") -> str:
    low, high = node.min_length or 0, node.max_length
    if high is None:
        return f" of at least {low}{unit}" if low else ""
    return f" of {low} to {high:,}{unit}" if low else f" of at most {high:,}{unit}"


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _plainly(error: msgspec.DecodeError) -> str:
    return shown(error).removeprefix("JSON is malformed: ").replace("Input data was truncated", "it ends in the middle")


# --- parsing --------------------------------------------------------------------------------------------------------


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


@cache
def _fields_of(kind: Any, names: tuple[str, ...]) -> Any:
    """Some fields of a dataclass as a type that does nothing else when it is made."""
    hints = get_type_hints(kind, include_extras=True)
    return msgspec.defstruct(kind.__name__, [(name, hints[name]) for name in names])


@cache
def _node(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


class _Twice(Exception):
    """A name."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Twice(name)
        found[name] = value
    return found


def _unknown(said: object, known: object) -> str:
    """Where a document says what became of nothing; "" where it does not."""
    if isinstance(said, dict) and isinstance(known, dict):
        for name, value in said.items():
            if name not in known:
                return f".{name}"
            if found := _unknown(value, known[name]):
                return f".{name}{found}"
    elif isinstance(said, list) and isinstance(known, list | tuple):
        for place, (one, other) in enumerate(zip(said, known, strict=True)):
            if found := _unknown(one, other):
                return f"[{place}]{found}"
    return ""


_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))


def _is_deep(data: bytes) -> bool:
    """Of JSON that has been parsed: whether it is nested deeper than DEEP."""
    if data.count(b"[") + data.count(b"{") <= DEEP:
        return False
    left = _TEXT.sub(b"", data).translate(None, _OTHERS)
    for _ in range(DEEP):
        left = left.replace(b"[]", b"").replace(b"{}", b"")
        if not left:
            return False
    return True


def _require_finite(value: object, where: str) -> None:
    """Of values that another parser let in, and JSON would not, where nothing was declared."""
    for level in _levels(value):
        for one in level:
            if isinstance(one, float) and not (-sys.float_info.max <= one <= sys.float_info.max):
                raise CorruptFile(f"{where} holds {one:g}, expected numbers")


def _require_shallow(value: object, where: str) -> None:
    for depth, level in enumerate(_levels(value)):
        if depth >= DEEP and any(isinstance(one, _HOLDING) for one in level):
            raise CorruptFile(f"{where} is nested deeper than {DEEP} levels")


_HOLDING = (dict, list, tuple)


def _levels(value: object) -> Iterator[list[object]]:
    """A value, what is in it, what is in that, and so on."""
    level: list[Any] = [value]
    while level:
        yield level
        holding = [one for one in level if isinstance(one, _HOLDING)]
        level = [part for one in holding for part in (one.values() if isinstance(one, dict) else one)]
