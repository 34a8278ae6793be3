"""Files of text: which there are, how each is read a row at a time, what tells one from another."""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from gemscope.checked import LARGE, existing, row_of, size_of
from gemscope.errors import CorruptFile, EmptyText, FileError, GemscopeError, InputError, MissingDependency, NotFound
from gemscope.text.rows import Passed, TextField

_PACKED = 20
"""A text unpacks to at most so many times its file: real ones to three or ten times, a bomb to a thousand."""

SUFFIXES = (".txt", ".jsonl", ".json", ".parquet", ".txt.gz", ".jsonl.gz", ".json.gz")
"""What `Corpus.read` reads. A .txt is one document; .jsonl and .json hold one JSON object a line."""


def first_line(error: BaseException) -> str:
    """Of what an error says: its name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def files_at(path: str | os.PathLike[str]) -> list[Path]:
    """The files that a path, folder or glob stands for. Raises what `Corpus.read` does."""
    there = existing(path)
    if there is not None and there.is_dir():
        files = [file for file in sorted(there.rglob("*")) if _form(file) and not _hidden(file.relative_to(there))]
        if not files:
            raise EmptyText(f"no text files in folder {path}: {', '.join(SUFFIXES)} are read")
        return files
    if there is not None and there.is_file():
        found = [there]
    else:
        names = sorted(glob.glob(os.path.expanduser(path), recursive=True))
        found = [Path(name) for name in names if Path(name).is_file()]
    if not found:
        raise NotFound(f"no file {path}: give a file, a folder or a glob such as 'texts/*.jsonl.gz'")
    for file in found:
        if not _form(file):
            raise InputError(f"{file} has a suffix that is not read: {', '.join(SUFFIXES)} are")
    return found


def _form(path: Path) -> str:
    """Its suffix without .gz, if the file is of a form that is read, else nothing."""
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")
    return suffix.removesuffix(".gz") if path.is_file() else ""


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def title(given: list[str | os.PathLike[str]], files: tuple[Path, ...]) -> str:
    if len(given) == 1:
        return Path(given[0]).expanduser().name or str(given[0])
    return f"{files[0].name} and {len(files) - 1} more"


def rows_of(
    path: Path, field: str, also: tuple[str, ...] = ("source", "license"), *, passed: Passed
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The texts of one file and the rows that they stood in (of a parquet file, the columns `also` if it has them);
    `passed` counts the rows without a text. Raises what iterating a `Corpus` does.
    """
    reader = TextField(field, passed)
    match _form(path):
        case ".txt":
            return ((text, {}) for text in _whole(path) if reader.text({field: text}, str(path)) is not None)
        case ".parquet":
            return reader.texts(_parquet_rows(path, reader, also))
        case ".jsonl" | ".json":
            return reader.texts(_json_rows(path))
    raise NotFound(f"{path} is no longer there: it was when the corpus was made")


def _whole(path: Path) -> Iterator[str]:
    for line in _opened(path, lambda stream, most: [stream.read(most + 1)]):
        yield _decoded(line, path, 0).replace("\r\n", "\n")


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    offset = 0
    lines = _opened(path, lambda stream, most: iter(lambda: stream.readline(most + 1), b""))
    for number, line in enumerate(lines, 1):
        text = _decoded(line, path, offset)
        offset += len(line)
        if not text.strip():
            continue
        place = f"{path} line {number}"
        try:
            row = row_of(text, where=place)
        except CorruptFile as error:
            raise CorruptFile(f"{error}; one object a line was expected") from error
        yield place, row


def _opened(path: Path, read: Callable[[IO[bytes], int], Iterable[bytes]]) -> Iterator[bytes]:
    """What `read` takes from the file, unpacked where its name ends in .gz: pieces of at most so many bytes."""
    packed = path.name.lower().endswith(".gz")
    size = size_of(path)
    most = max(LARGE, _PACKED * size) if packed else size
    try:
        with open(path, "rb") as stream:
            for piece in read(cast(IO[bytes], gzip.GzipFile(fileobj=stream)) if packed else stream, most):
                if len(piece) > most:
                    raise CorruptFile(f"{path} unpacks to a text or a line of more than {most:,} bytes: no text does")
                yield piece
    except PermissionError as error:
        raise FileError(f"{path} may not be read: permission denied") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorruptFile(f"{path} is cut short or is not gzip ({error}): fetch or write it again") from error


def _decoded(line: bytes, path: Path, offset: int) -> str:
    try:
        return line.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        # utf-8-sig counts from behind the byte order mark
        place = offset + error.start + (3 if offset == 0 and line.startswith(b"\xef\xbb\xbf") else 0)
        where = "byte" if not path.name.lower().endswith(".gz") else "unpacked byte"
        raise CorruptFile(
            f"{path} is not UTF-8 at {where} {place} (0x{error.object[error.start]:02x}): convert it to UTF-8 first"
        ) from error


def _parquet_rows(path: Path, reader: TextField, also: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependency(f'{path} needs the pyarrow package: pip install "gemscope[parquet]"') from error
    size_of(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            there = table.schema_arrow.names
            wanted = [name for name in dict.fromkeys((reader.field, *also)) if name in there]
            if reader.field not in wanted:
                raise reader.missing(there, str(path))
            number = 0
            for batch in table.iter_batches(batch_size=256, columns=wanted):
                for row in batch.to_pylist():
                    yield f"{path} row {number}", row
                    number += 1
    except GemscopeError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError, MemoryError) as error:
        raise CorruptFile(
            f"{path} is not a whole parquet file ({first_line(error)}): fetch or write it again"
        ) from error


def fingerprint(path: Path, whole: int = 2**21, end: int = 2**16) -> str:
    """SHA-256 of a file up to `whole` bytes, else of its size and the `end` bytes at either end."""
    size = size_of(path)
    with open(path, "rb") as stream:
        if size <= whole:
            return hashlib.sha256(stream.read()).hexdigest()
        head = stream.read(end)
        stream.seek(-end, os.SEEK_END)
        return hashlib.sha256(b"%d:%b%b" % (size, head, stream.read())).hexdigest()
