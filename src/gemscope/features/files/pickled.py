"""Plain tensors out of pickles. A pickle is a program; this is the one place in the package that reads any. The program
is looked through before, and refused where it would call anything but the making of tensors; then PyTorch's reader of
weights alone, which calls nothing else either, makes them.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from gemscope.checked import shown, size_of
from gemscope.errors import AccessError, CorruptFile, UnsafeFile

PICKLES = frozenset({".pt", ".pth"})
"""Suffixes of what PyTorch saves."""
OTHERS = frozenset({".bin", ".pkl", ".pickle", ".ckpt"})
"""Suffixes of other pickles, in which no SAE comes."""

ALLOWED = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        *(f"torch {kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Byte")),
    }
)
"""All that a pickle may call: tensors, parameters, dictionaries in order."""
_NEVER = frozenset({"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID", "EXT1", "EXT2", "EXT4"})
"""Other ways to call something, none of which torch.save takes for tensors."""
_SAFE_SINCE = (2, 10)
"""The PyTorch whose reader of weights alone can no longer be made to write where it should not (CVE-2026-24747)."""
_PROGRAM = 16 << 20
"""Bytes of a pickle without its tensors."""
_DEEP = 8
"""Dictionaries within one another."""


def read_pickled(path: Path) -> dict[str, Any]:
    """The dictionary in a file of `torch.save`: tensors (mapped from the disk, but for files of PyTorch before 1.6),
    numbers, text, and dictionaries of such.

    Raises UnsafeFile for a pickle that asks for anything beside `ALLOWED` (nothing of it is run), or where this PyTorch
    is too old to be trusted with any; CorruptFile, NotFound, AccessError.
    """
    size_of(path)
    where = shown(path)
    if _version(torch.__version__) < _SAFE_SINCE:
        raise UnsafeFile(
            f"{where} is a pickle, which PyTorch {torch.__version__} does not read safely: PyTorch 2.10 or later does"
        )
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise AccessError(f"{where} cannot be read: {error.strerror or error}") from error
    for program in _zipped(path) if is_zip else _bare(path):
        _require_plain(program, where)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UnpicklingError as error:
        raise UnsafeFile(f"{where} is a pickle of more than plain tensors, which can run anything: refused") from error
    except Exception as error:  # whatever becomes of a damaged program
        raise _damaged(where, error) from error
    if not isinstance(found, dict):
        raise CorruptFile(f"{where} is a pickle of a {type(found).__name__}, expected a dictionary of tensors")
    plain: dict[str, Any] = _plain(found, where, {}, _DEEP)
    return plain


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


# --- the program ----------------------------------------------------------------------------------------------------


def _zipped(path: Path) -> Iterator[bytes]:
    where = shown(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            programs = [one for one in members if one.filename.endswith(".pkl")]
            if len(programs) != 1 or not programs[0].filename.endswith("/data.pkl"):
                raise UnsafeFile(f"{where} holds {len(programs)} pickles, expected one, of tensors: refused")
            if any(one.compress_type != zipfile.ZIP_STORED for one in members):
                raise CorruptFile(f"{where} is compressed, as PyTorch writes no file: save it again with torch.save")
            if programs[0].file_size > _PROGRAM:
                raise CorruptFile(
                    f"{where} has a pickle of {programs[0].file_size:,} bytes, expected tensors beside it"
                )
            program = archive.read(programs[0])
    except (CorruptFile, UnsafeFile):
        raise
    except Exception as error:  # zipfile has many words for a damaged zip
        raise _damaged(where, error) from error
    yield program


def _bare(path: Path) -> Iterator[bytes]:
    """PyTorch before 1.6: a number, a version, the system, the program, the tensors' names, and then their bytes."""
    with path.open("rb") as file:
        data = io.BytesIO(file.read(_PROGRAM))
    for _ in range(5):
        start = data.tell()
        try:
            for _ in pickletools.genops(data):
                pass
        except Exception as error:
            raise UnsafeFile(
                f"{shown(path)} may hold a pickle, which can run anything, and is none of plain tensors: refused"
            ) from error
        yield data.getvalue()[start : data.tell()]


def _require_plain(program: bytes, where: str) -> None:
    """Raises UnsafeFile where a pickle calls what it may not, CorruptFile where that cannot be told."""
    try:
        for operation, given, _ in pickletools.genops(program):
            called = str(given) if operation.name == "GLOBAL" else ""
            if operation.name in _NEVER or (called and called not in ALLOWED):
                name = shown(called.replace(" ", ".") or "what it puts together itself", 100)
                raise UnsafeFile(f"{where} is a pickle that calls {name}: refused, only plain tensors are read")
    except UnsafeFile:
        raise
    except Exception as error:
        raise _damaged(where, error) from error


def _damaged(where: str, error: Exception) -> CorruptFile:
    return CorruptFile(f"{where} is no whole file of PyTorch ({shown(error)}): delete it and fetch it again")


# --- what comes of it -----------------------------------------------------------------------------------------------


def _plain(value: Any, where: str, known: dict[int, Any], deep: int) -> Any:
    """The same, of parameters their tensors. What stands in several places is looked at once: `known`, by identity."""
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, dict):
        if not deep:
            raise CorruptFile(f"{where} holds dictionaries nested deeper than {_DEEP} levels")
        known[id(value)] = {}
        for name, one in value.items():
            if deep == _DEEP and not isinstance(name, str):
                raise CorruptFile(f"{where} calls a value {shown(repr(name), 60)}, expected text")
            known[id(value)][name] = _plain(one, where, known, deep - 1)
        return known[id(value)]
    if not isinstance(value, Tensor):
        return value
    if value.layout is not torch.strided or value.device.type != "cpu" or type(value) not in (Tensor, nn.Parameter):
        raise CorruptFile(f"{where} holds a tensor that is no plain one: save its values as they are")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CorruptFile(f"{where} holds a tensor of shape {tuple(value.shape)} and bytes for less: fetch it again")
    return value.detach()
