"""What can befall a file: by its kind where it says what it is, by its bytes in any case. Each is decided by a Random
alone, so that a seed tells the case.
"""

from __future__ import annotations

import ast
import gzip
import json
import math
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from broken.tables import sqlite

Random = random.Random


class _Raw(str):
    """Written into JSON as it stands."""


DEEP = "[" * 3_000 + "]" * 3_000
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 5.5, -0.5, 1e308, 1e-308, 2**31, 2**53 + 1, 2**63, 10**30, -(10**30),
    "", "x", "0", "none", "\ud800", "\u202e\x1b[31m\x00\n", "a" * 70_000, "../../etc/passwd", "1.res", "relu",
    [], {}, [None], [0], ["x"], [[]], {"x": 1}, [1, 2, 3], [1e308] * 3, {"site": {}}, [{}], [-1] * 400,
    _Raw("NaN"), _Raw("Infinity"), _Raw("-Infinity"), _Raw("1e999"), _Raw("9" * 5_000), _Raw(DEEP),
    _Raw('{"a":' * 2_000 + "1" + "}" * 2_000), _Raw("1.0"), _Raw("-0"),
]  # fmt: skip
"""What may stand in the place of a value."""


def _dumped(value: Any) -> str:
    """JSON, with what is raw as it stands."""
    if isinstance(value, _Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {_dumped(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_dumped, value)) + "]"
    return json.dumps(value)


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document; of long lists the beginning."""
    found = [at]
    parts = value.items() if isinstance(value, dict) else enumerate(value[:6]) if isinstance(value, list) else ()
    for key, one in parts:
        found += _places(one, (*at, key))
    return found


def _replaced(value: Any, at: tuple[Any, ...], change: Callable[[Any, Any], Any]) -> Any:
    """A copy, with what is at a place changed: `change(parent, key)` does it, on the copy."""
    copy = json.loads(json.dumps(value))
    if not at:
        holder = [copy]
        change(holder, 0)
        return holder[0] if holder else None
    parent = copy
    for key in at[:-1]:
        parent = parent[key]
    change(parent, at[-1])
    return copy


def json_text(document: Any, chance: Random) -> bytes:
    """A document with one thing about it changed, as bytes."""
    places = _places(document)
    at = chance.choice(places)
    kind = chance.choice(
        ("value",) * 6 + ("value2", "less", "more", "rename", "twice", "utf-8", "utf-16", "text", "list")
    )
    if kind in ("value", "value2"):
        for _ in range(1 if kind == "value" else 3):
            put = chance.choice(VALUES)
            try:
                document = _changed(document, chance.choice(places), put)
            except (LookupError, TypeError):
                continue
        return _dumped(document).encode("utf-8", "surrogatepass")
    if kind == "less" and at:
        return _dumped(_replaced(document, at, lambda parent, key: parent.pop(key))).encode()
    if kind == "more":
        return _dumped(_with(document, at, f"odd{chance.randrange(9)}", chance.choice(VALUES))).encode(
            "utf-8", "surrogatepass"
        )
    if kind == "rename" and at and isinstance(at[-1], str):
        return _dumped(
            _replaced(document, at, lambda parent, key: parent.update({key.upper(): parent.pop(key)}))
        ).encode()
    if kind == "twice":
        text = json.dumps(document)
        names = [name for name in (place[-1] for place in places if place) if isinstance(name, str)]
        if names:
            name = json.dumps(chance.choice(names))
            return text.replace(f"{name}:", f"{name}: {json.dumps(chance.choice((1, None, 'x')))}, {name}:", 1).encode()
        return text.encode()
    if kind == "utf-16":
        return json.dumps(document).encode("utf-16")
    raw = json.dumps(document).encode()
    if kind == "utf-8":
        place = chance.randrange(len(raw) + 1)
        return raw[:place] + chance.choice((b"\xff", b"\xed\xa0\x80", b"\x00", b"\x1b")) + raw[place:]
    if kind == "list":
        return b"[" + raw + b"]"
    return chance.choice(
        (b"", b"null", b"3", b'"x"', b"[]", b"{}", b"true", b"NaN", b"[" * 100_000, b'{"a":' * 50_000, raw[::-1])
    )


def _changed(document: Any, at: tuple[Any, ...], put: Any) -> Any:
    if not at:
        return put
    if isinstance(document, dict):
        return {key: _changed(one, at[1:], put) if key == at[0] else one for key, one in document.items()}
    if isinstance(document, list):
        return [_changed(one, at[1:], put) if key == at[0] else one for key, one in enumerate(document)]
    return document


def _with(document: Any, at: tuple[Any, ...], name: str, put: Any) -> Any:
    parent = document
    for key in at:
        parent = parent[key]
    if isinstance(parent, dict):
        return _changed(document, at, {**parent, name: put})
    if isinstance(parent, list):
        return _changed(document, at, [*parent, put])
    return _changed(document, at, [parent])


# --- by kind --------------------------------------------------------------------------------------------------------


def _json(path: Path, chance: Random, others: list[Path]) -> None:
    path.write_bytes(json_text(json.loads(path.read_bytes()), chance))


def _json_lines(path: Path, chance: Random, others: list[Path]) -> None:
    packed = path.suffix == ".gz"
    raw = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    lines = raw.splitlines()
    if lines:
        place = chance.randrange(len(lines))
        lines[place] = json_text(json.loads(lines[place]), chance)
    raw = b"\n".join(lines) + b"\n" * chance.randrange(2)
    path.write_bytes(gzip.compress(raw, 1) if packed else raw)


def _toml(path: Path, chance: Random, others: list[Path]) -> None:
    lines = path.read_text().splitlines()
    place = chance.randrange(len(lines))
    name = lines[place].partition("=")[0].strip()
    values = ("nan", "inf", "-inf", "[nan]", "[inf, 1]", "1979-05-27", "[[1]]", "{a = 1}", '"x"', "true", "-1", "0", "1e400",
              "9" * 30, "9" * 5000, "[" * 5000, '"\\u0000"', "[true]", "5.5", "[]", "", "1_0", "0x10", "'''\n'''")  # fmt: skip
    lines[place] = chance.choice(
        (f"{name} = {chance.choice(values)}",) * 5 + (f"odd = {chance.choice(values)}", "[train]", "", f"{name}")
    )
    path.write_bytes("\n".join(lines).encode())


def _safetensors(path: Path, chance: Random, others: list[Path]) -> None:
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    kind = chance.choice(("header", "value", "values", "dtype", "shape", "drop", "rename", "swap", "length", "format"))
    names = [name for name in header if name != "__metadata__"]
    if not names:  # all that it says stands beside no tensor at all
        header["odd"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        names = ["odd"]
    name = chance.choice(names)
    one = header[name]
    start, end = one["data_offsets"]
    if kind in ("value", "values") and end > start:  # NaN, infinite, huge, negative
        odd = (
            b"\x00\x00\xc0\x7f",
            b"\x00\x00\x80\x7f",
            b"\xff\xff\x7f\x7f",
            b"\xff\xff\xff\xff",
            b"\x00\x00\x80\xff",
            b"\xff\xff\xff\x7f",
        )
        put = chance.choice(odd)
        for _ in range(1 if kind == "value" else 200):
            at = start + 4 * chance.randrange(max(1, (end - start) // 4))
            body[at : at + 4] = put[: max(0, end - at)]
    elif kind == "dtype":
        one["dtype"] = chance.choice(
            (
                "F64",
                "F32",
                "F16",
                "BF16",
                "I64",
                "I32",
                "I16",
                "I8",
                "U8",
                "BOOL",
                "F8_E4M3",
                "F8_E5M2",
                "U16",
                "U32",
                "U64",
                "C64",
            )
        )
        sizes = {
            "F64": 8,
            "I64": 8,
            "U64": 8,
            "C64": 8,
            "F32": 4,
            "I32": 4,
            "U32": 4,
            "F16": 2,
            "BF16": 2,
            "I16": 2,
            "U16": 2,
        }
        if chance.random() < 0.8:  # a file that is sound by itself
            n = math.prod(one["shape"]) * sizes.get(one["dtype"], 1)
            body[start:end] = bytes(body[start:end])[:n].ljust(n, b"\0")
            for other in names:
                o = header[other]["data_offsets"]
                if other != name and o[0] >= end:
                    header[other]["data_offsets"] = [o[0] + n - (end - start), o[1] + n - (end - start)]
            one["data_offsets"] = [start, start + n]
    elif kind == "shape":
        n = math.prod(one["shape"])
        one["shape"] = chance.choice(
            ([n], [1, n], [n, 1], [], [0], list(reversed(one["shape"])), [*one["shape"], 1], [2**40], [-1])
        )
    elif kind == "drop":
        del header[name]
    elif kind == "rename":
        header[chance.choice(("odd", "W_enc", "threshold", "b_dec", ""))] = header.pop(name)
    elif kind == "swap":
        other = chance.choice(names)
        header[name], header[other] = header[other], header[name]
    elif kind == "length":
        lie = chance.choice((0, 1, size + 1, size - 1, len(data), 2**31, 2**62))
        path.write_bytes(struct.pack("<Q", lie) + data[8:])
        return
    elif kind == "format" and "__metadata__" in header:
        header["__metadata__"] = chance.choice(
            ({}, {"progress": "{}"}, {"progress": "[]"}, {"progress": _mutant(header["__metadata__"], chance)})
        )
    text = json_text(header, chance) if kind == "header" else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(body))


def _mutant(metadata: dict[str, str], chance: Random) -> str:
    one = metadata.get("progress")
    return json_text(json.loads(one), chance).decode("utf-8", "replace") if one else "{}"


def _npy_bytes(data: bytes, chance: Random) -> bytes:
    """An array whose header lies."""
    length = struct.unpack("<H", data[8:10])[0]
    facts = ast.literal_eval(data[10 : 10 + length].decode("latin1").strip())
    what = chance.choice(("shape", "descr", "fortran_order", "text", "drop", "length"))
    if what == "shape":
        n = math.prod(facts["shape"])
        facts["shape"] = chance.choice(
            (
                (),
                (n,),
                (1, n),
                (0,),
                (-1, n),
                (2**62,),
                (2**31, 2**31),
                "x",
                (True,),
                [3],
                None,
                tuple(reversed(facts["shape"])),
            )
        )
    elif what == "descr":
        facts["descr"] = chance.choice(
            ("<f2", "<f8", ">f4", "|O", "<U4", "<i8", "<u2", "<i4", "|V7", "c16", [("a", "<f4")], None, "x", "M8[s]", 5)
        )
    elif what == "fortran_order":
        facts["fortran_order"] = chance.choice((True, None, "x", []))
    elif what == "drop":
        facts.pop(chance.choice(list(facts)))
    text = repr(facts).encode("latin1", "replace")
    if what == "text":
        text = chance.choice(
            (b"", b"{", b"__import__('os')", b"(" * 5000, b"{'a': " * 500, b"'" * 7, b"\xff" * 40, b"1" * 6000)
        )
    text = text.ljust(length - 1)[: length - 1] + b"\n" if len(text) < length else text + b"\n"
    said = chance.choice((0, 1, 65535)) if what == "length" else len(text)
    return data[:8] + struct.pack("<H", min(said, 65535)) + text + data[10 + length :]


def _npy(path: Path, chance: Random, others: list[Path]) -> None:
    path.write_bytes(_npy_bytes(path.read_bytes(), chance))


def _npz(path: Path, chance: Random, others: list[Path]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: (archive.read(info), info.compress_type) for info in archive.infolist()}
    name = chance.choice(list(members))
    data, kind = members[name]
    what = chance.choice(("header", "header", "values", "drop", "rename", "bomb", "pickle", "cut", "kind"))
    if what == "header":
        data = _npy_bytes(data, chance)
    elif what == "values":
        body = bytearray(data)
        for _ in range(20):
            at = chance.randrange(128, max(129, len(body) - 4))
            body[at : at + 4] = b"\x00\x00\xc0\x7f"
        data = bytes(body)
    elif what == "bomb":
        data, kind = data[:128] + bytes(8 << 20), zipfile.ZIP_DEFLATED
    elif what == "pickle":
        data = b"\x80\x04cos\nsystem\n."
    elif what == "cut":
        data = data[: chance.randrange(len(data))]
    elif what == "kind":
        kind = chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    if what == "drop":
        del members[name]
    elif what == "rename":
        del members[name]
        members[chance.choice(("odd.npy", "../x.npy", "x.pkl", "", "W_enc.npy", "a" * 3000 + ".npy"))] = data, kind
    else:
        members[name] = data, kind
    with zipfile.ZipFile(path, "w") as archive:
        for one, (content, how) in members.items():
            archive.writestr(zipfile.ZipInfo(one), content, how)


def _pickle(path: Path, chance: Random, others: list[Path]) -> None:
    """A file of torch.save, of which another value or another program is made, or whose zip lies."""
    what = chance.choice(("value", "value", "drop", "rename", "shape", "program", "program", "kind", "bare", "record"))
    if what in ("value", "drop", "rename", "shape", "bare"):
        held = dict(torch.load(path, weights_only=True))
        name = chance.choice(list(held))
        one = held[name] if isinstance(held[name], torch.Tensor) else torch.ones(3)
        if what == "value":
            held[name] = chance.choice(
                (None, 1, -1.5, "x", [], {}, {"a": one}, float("nan"), torch.tensor(3), torch.zeros(0), one != 0,
                 torch.zeros(1).expand(10**12), torch.full_like(one.float(), float("inf")), one.double(), 10**40, True, one * -1)
            )  # fmt: skip
        elif what == "drop":
            del held[name]
        elif what == "rename":
            held[chance.choice(("odd", "W_enc", "encoder.weight", "ae", "sae", "", 3, ("a",), "saes.x.y"))] = held.pop(
                name
            )
        elif what == "shape":
            held[name] = chance.choice(
                (one.reshape(-1), one[None], one.T.contiguous() if one.ndim == 2 else one.reshape(-1)[:1])
            )
        torch.save(held, path, _use_new_zipfile_serialization=what != "bare")
        return
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    how = zipfile.ZIP_STORED
    if what == "program":
        program = bytearray(members[name])
        for _ in range(chance.choice((1, 2, 8))):
            at = chance.randrange(len(program))
            program[at : at + chance.choice((0, 1, 4))] = chance.choice(
                (b"", b".", b"0", b"2", b"(", b"t", b"R", b"b", b"cos\nsystem\n", b"q\xff", b"h\x01", b"\x8a\xff", b"J\xff\xff\xff\x7f",
                 bytes([chance.randrange(256)]), b"}", b"Q", b"B\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f")
            )  # fmt: skip
        members[name] = bytes(program)
    elif what == "kind":
        how = zipfile.ZIP_DEFLATED
    elif what == "record":
        other = chance.choice(list(members))
        members[other] = chance.choice((b"", members[other] * 2, members[other][:-1], bytes(1 << 20)))
    with zipfile.ZipFile(path, "w", how) as archive:
        for one_name, content in members.items():
            archive.writestr(zipfile.ZipInfo(one_name), content, how)


def _yaml(path: Path, chance: Random, others: list[Path]) -> None:
    lines = path.read_text().splitlines()
    place = chance.randrange(len(lines))
    name = lines[place].partition(":")[0]
    values = ("", "x", "[]", "{}", "[a, b]", "{a: b}", "&a [*a]", "*a", "!!python/object/apply:os.system [true]", "null", "3", "|", "'",
              "&a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "[" * 3000, "{a: " * 500, "\x00", "<<: x", "? [a]\n: b", "- a", "\t", "%", "@")  # fmt: skip
    lines[place] = chance.choice(
        (f"{name}: {chance.choice(values)}",) * 5 + ("", name, f"{name}: a\n{name}: b", "odd: 1")
    )
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))


def _parquet(path: Path, chance: Random, others: list[Path]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    n = len(table)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    name = chance.choice(list(columns))
    odd = chance.choice((
        [1] * n, [None] * n, [b"\xff\xfe"] * n, [[1]] * n, [{"a": 1}] * n, [1.5] * n, [True] * n, None, ["x" * 100_000] + ["y"] * (n - 1),
        [pa.scalar(2**62, pa.timestamp("ns"))] * n,
    ))  # fmt: skip
    if odd is None:
        del columns[name]
    else:
        columns[name] = (
            pa.array(odd)
            if not isinstance(odd[0], pa.Scalar)
            else pa.array([one.value for one in odd], pa.timestamp("us"))
        )
    pq.write_table(pa.table(columns or {"odd": [1]}), path)


def _text(path: Path, chance: Random, others: list[Path]) -> None:
    data = path.read_bytes()
    place = chance.randrange(len(data) + 1)
    odd = (b"\xff", b"\x00", b'"', b"\n\n", b",,,,", b"\r", b'"' * 3, b"\xed\xa0\x80", b"\x1b[31m", b"a" * 200_000)
    path.write_bytes(data[:place] + chance.choice(odd) + data[place:])


# --- of any file ----------------------------------------------------------------------------------------------------


def _cut(path: Path, chance: Random, others: list[Path]) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data) + 1)])


def _flip(path: Path, chance: Random, others: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 4, 30)) if data else 0):
        at = chance.randrange(min(len(data), chance.choice((16, 300, 10**9))))
        data[at] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def _flip_end(path: Path, chance: Random, others: list[Path]) -> None:
    """Zips and parquet files say at their end what they are."""
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 3)) if data else 0):
        data[-1 - chance.randrange(min(len(data), 400))] = chance.randrange(256)
    path.write_bytes(data)


def _run(path: Path, chance: Random, others: list[Path]) -> None:
    """A stretch lost, doubled, zeroed or made noise."""
    data = path.read_bytes()
    start = chance.randrange(len(data) + 1)
    stop = min(len(data), start + chance.choice((1, 8, 100, 4096)))
    some = data[start:stop]
    put = chance.choice((b"", some + some, bytes(len(some)), chance.randbytes(len(some)), b"\xff" * len(some)))
    path.write_bytes(data[:start] + put + data[stop:])


def _more(path: Path, chance: Random, others: list[Path]) -> None:
    with path.open("ab") as file:
        file.write(chance.choice((b"\0", b"x" * 100, b"\n{}", chance.randbytes(1000))))


def _nothing(path: Path, chance: Random, others: list[Path]) -> None:
    path.write_bytes(b"")


def _noise(path: Path, chance: Random, others: list[Path]) -> None:
    path.write_bytes(
        chance.choice(
            (
                chance.randbytes(500),
                bytes(500),
                b"<html>404 Not Found</html>",
                b"version https://git-lfs.github.com/spec/v1\n",
            )
        )
    )


def _gone(path: Path, chance: Random, others: list[Path]) -> None:
    path.unlink()


def _another(path: Path, chance: Random, others: list[Path]) -> None:
    other = chance.choice(others)
    if other != path:
        shutil.copyfile(other, path)


def _no_file(path: Path, chance: Random, others: list[Path]) -> None:
    path.unlink()
    match chance.choice(("folder", "pipe", "pipe", "circle", "nowhere", "device")):
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "circle":
            path.symlink_to(path.name)
        case "nowhere":
            path.symlink_to("nowhere")
        case "device":
            path.symlink_to("/dev/zero")


def _locked(path: Path, chance: Random, others: list[Path]) -> None:
    path.chmod(0)


Mutation = Callable[[Path, Random, list[Path]], None]

_ANY: list[Mutation] = [
    _cut,
    _cut,
    _flip,
    _flip,
    _flip_end,
    _run,
    _run,
    _more,
    _nothing,
    _noise,
    _gone,
    _another,
    _no_file,
    _no_file,
    _locked,
]
_KINDS: dict[str, Mutation] = {
    ".pt": _pickle,
    ".pth": _pickle,
    ".yaml": _yaml,
    ".json": _json, ".jsonl": _json_lines, ".jsonl.gz": _json_lines, ".toml": _toml, ".safetensors": _safetensors, ".npz": _npz,
    ".npy": _npy, ".sqlite": sqlite, ".parquet": _parquet, ".txt": _text, ".csv": _text, ".bin": _run, ".gz": _run,
}  # fmt: skip


def mutate(path: Path, chance: Random, others: list[Path]) -> str:
    """Damages a file; returns what was done, in a word."""
    kind = next((_KINDS[suffix] for suffix in _KINDS if path.name.endswith(suffix)), _run)
    chosen = kind if chance.random() < 0.75 else chance.choice(_ANY)
    chosen(path, chance, others)
    return chosen.__name__.removeprefix("_")
