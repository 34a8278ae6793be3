"""Text that can be read again: files, Hugging Face datasets, the bundled sample. Knows where documents come from and
how to read them one at a time; leaves their tokens to `tokens.py`.
"""

from __future__ import annotations

import dataclasses
import glob
import gzip
import hashlib
import importlib.resources
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from types import CodeType
from typing import IO, Any, Protocol, cast

from gemscope.checked import LARGE, existing, row_of, size_of
from gemscope.errors import (
    CorruptFile,
    EmptyText,
    FileError,
    GatedRepository,
    GemscopeError,
    HubUnreachable,
    InputError,
    MissingDependency,
    NotFound,
)

_PACKED = 20
"""A text unpacks to at most so many times its file: real ones to three or ten times, a bomb to a thousand."""
SUFFIXES = (".txt", ".jsonl", ".json", ".parquet", ".txt.gz", ".jsonl.gz", ".json.gz")
"""What `Corpus.read` reads. A .txt is one document; .jsonl and .json hold one JSON object a line."""

PASSED: Mapping[str, str] = {
    "blank": "blank",
    "null": "null or without the field",
    "other": "a number, a list or another thing than text",
    "broken": "with half a surrogate pair, which no tokenizer reads",
}
"""Why a row is passed over: the key that it is counted under, and words for it."""
_TRIED = 1000
"""Rows of a file or dataset without a single text after which the field is taken to be the wrong one."""


@dataclass(frozen=True)
class Document:
    """One piece of text and where it is from."""

    text: str
    source: str = ""
    """What its row calls its source, else the name of its file."""
    license: str = ""
    index: int = 0
    """Its position in the corpus as read, from 0; `take`, `skip`, `where`, `only` and `split` keep it."""


class Corpus:
    """Documents that can be read again: each `for document in corpus` starts afresh and holds one document at a time.

    Made by `read`, `dataset`, `sample` and `of`; narrowed by `take`, `skip`, `where`, `only` and `split`, each of
    which returns a new corpus and reads nothing. Rows without a text (`PASSED`) are passed over. Iterating raises
    EmptyText where there is nothing to read, CorruptFile where a file is damaged, InputError where the field asked for
    is not there or holds no text.
    """

    def __init__(self, source: Source, steps: tuple[tuple[str, Step], ...] = ()) -> None:
        self._source = source
        self._steps = steps

    @classmethod
    def read(cls, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, field: str = "text") -> Corpus:
        """The documents of a file, a folder (with the folders in it), a glob such as `pile/*.jsonl.gz`, or several.

        One .txt file is one document. Rows of .jsonl (or .json, one object a line) and .parquet give their text in
        `field`, and may name their `source` and `license`. Files are read in the order given, those of a folder or a
        glob by name. Raises NotFound for a path that is not there, InputError for a suffix not in `SUFFIXES`,
        EmptyText for a folder without such files.
        """
        given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        if not given:
            raise EmptyText("no files given: Corpus.read wants a path, a glob or a list of them")
        files = tuple(file for path in given for file in files_at(path))
        return cls(_Files(_title(given, files), files, field))

    @classmethod
    def dataset(
        cls,
        repo: str,
        /,
        *,
        split: str | None = "train",
        field: str = "text",
        revision: str | None = None,
        token: str | bool | None = None,
        streaming: bool = True,
        **kwargs: Any,
    ) -> Corpus:
        """A Hugging Face dataset, streamed: rows arrive as they are read. `streaming=False` downloads it first, into
        the cache of the datasets package. `kwargs` go to `datasets.load_dataset`: `name` is the configuration.

        The digest knows a dataset by what was asked for; give `revision` where it should also say which commit.
        Raises MissingDependency without the datasets package, InputError for split=None (all of them, which
        are no rows). Iterating raises NotFound, GatedRepository or HubUnreachable where the dataset cannot be had.
        """
        try:
            import datasets  # noqa: F401
        except ImportError as error:
            raise MissingDependency(
                f'dataset {repo!r} needs the datasets package: pip install "gemscope[datasets]"'
            ) from error
        if split is None:
            raise InputError("split=None: the name of one split is wanted, such as 'train' or 'train[:1%]'")
        if "path" in kwargs:
            raise InputError(
                f"path={kwargs['path']!r} beside the dataset {repo!r}: name it once, as the first argument"
            )
        return cls(_Dataset(repo, split, field, revision, token, streaming, kwargs))

    @classmethod
    def sample(cls) -> Corpus:
        """The bundled sample: 2.5 MB of public-domain and permissive English (its SOURCES.md lies beside it)."""
        path = Path(str(importlib.resources.files("gemscope"))) / "data" / "sample" / "corpus.jsonl.gz"
        if not path.is_file():
            raise NotFound(f"the bundled sample {path.name} is missing from this installation: install gemscope again")
        return cls(_Files("sample", (path,), "text"))

    @classmethod
    def of(cls, texts: str | Iterable[str]) -> Corpus:
        """Texts at hand, kept in memory, one document each. Raises EmptyText for none, InputError for other things."""
        held = (texts,) if isinstance(texts, str) else tuple(texts)
        for number, text in enumerate(held):
            if not isinstance(text, str):
                raise InputError(f"text {number} is of type {type(text).__name__}: Corpus.of wants strings")
            if flaw := _surrogate(text):
                raise InputError(f"text {number} holds {flaw}")
        if not any(text.strip() for text in held):
            raise EmptyText("there is no text here: Corpus.of wants at least one text that is not blank")
        return cls(_Texts(held))

    def __iter__(self) -> Iterator[Document]:
        return self.documents()

    def documents(self, passed: Passed | None = None) -> Iterator[Document]:
        """What iterating gives; `passed` counts, as the text is read, the rows that were passed over, by reason."""
        passed = Counter() if passed is None else passed
        documents = self._source.documents(passed)
        for _, step in self._steps:
            documents = step(documents)
        found = False
        for document in documents:
            found = True
            yield document
        if not found:
            told = f" ({passed_over(passed)})" if passed.total() else ""
            raise EmptyText(f"no documents in {self.name}: there is nothing to read{told}")

    def take(self, n: int) -> Corpus:
        """The first `n` documents; reads no further than the last of them."""
        if n < 1:
            raise InputError(f"take({n}): the number of documents must be 1 or more")
        return self._then(f"take({n})", partial(_slice, start=0, stop=n))

    def skip(self, n: int) -> Corpus:
        """All but the first `n` documents."""
        if n < 0:
            raise InputError(f"skip({n}): the number of documents must be 0 or more")
        return self._then(f"skip({n})", partial(_slice, start=n, stop=None))

    def where(self, predicate: Callable[[Document], bool], *, name: str | None = None) -> Corpus:
        """The documents for which `predicate(document)` is true.

        The digest knows a predicate by `name`; without one by its code, which another Python may compile differently.
        """
        label = name or getattr(predicate, "__qualname__", type(predicate).__name__)
        mark = "" if name else f" {_code_mark(predicate)}"
        return self._then(f"where({label}{mark})", partial(_filter, predicate=predicate))

    def only(self, sources: str | Iterable[str]) -> Corpus:
        """The documents of the sources named. Iterating raises EmptyText, naming the sources met, if there are none."""
        names = frozenset([sources] if isinstance(sources, str) else sources)
        if not names:
            raise InputError("only([]): name at least one source to keep")
        return self._then(f"only({', '.join(sorted(names))})", partial(_only, names=names))

    def split(self, held_out: float = 0.02, seed: int = 0) -> tuple[Corpus, Corpus]:
        """(train, held out): about `held_out` of the documents set aside, chosen by a hash of each text and `seed`.

        The same text always falls on the same side, wherever and however often it stands in the corpus.
        """
        if not 0 < held_out < 1:
            raise InputError(f"held_out={held_out}: a share of the documents between 0 and 1 is wanted, such as 0.02")
        label = f"split({held_out}, seed={seed})"
        # a split of a split must draw anew: by the same draw, all that is left would fall on one side
        earlier = sum(step.startswith("split(") for step, _ in self._steps)
        side = partial(_side, held_out=held_out, salt=f"{seed}:{earlier}".encode())
        return (
            self._then(f"{label}.train", partial(side, wanted=False)),
            self._then(f"{label}.held_out", partial(side, wanted=True)),
        )

    @property
    def name(self) -> str:
        """Where the text is from and how it was narrowed, for people: `sample.take(200)`."""
        return ".".join([self._source.name, *(label for label, _ in self._steps)])

    @property
    def streamed(self) -> bool:
        """Whether reading it means downloading it."""
        return isinstance(self._source, _Dataset)

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex that tells this corpus from others in a manifest, wherever its files lie.

        Files up to 2 MiB count in full (one such file of field `text` has its own SHA-256), longer ones by their size
        and the 64 KiB at either end, so that it stays cheap.
        """
        return _sha(self._source.digest, *(label for label, _ in self._steps)) if self._steps else self._source.digest

    def __repr__(self) -> str:
        return f"Corpus({self.name!r})"

    def _then(self, label: str, step: Step) -> Corpus:
        return Corpus(self._source, (*self._steps, (label, step)))


Passed = Counter[str]
"""Rows that were passed over, by reason: a key of `PASSED`."""


def passed_over(passed: Mapping[str, int]) -> str:
    """In words: "3 rows passed over: 2 null or without the field, 1 blank". Empty where none was."""
    count = sum(passed.values())
    if not count:
        return ""
    told = ", ".join(f"{passed[reason]:,} {words}" for reason, words in PASSED.items() if passed.get(reason))
    return f"{count:,} {'row' if count == 1 else 'rows'} passed over: {told}"


class Source(Protocol):
    """Where a corpus starts: each call of `documents` reads it again."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    def documents(self, passed: Passed) -> Iterator[Document]: ...


Step = Callable[[Iterator[Document]], Iterator[Document]]
"""One narrowing: documents in, some of them out."""


def _slice(documents: Iterator[Document], *, start: int, stop: int | None) -> Iterator[Document]:
    return islice(documents, start, stop)


def _filter(documents: Iterator[Document], *, predicate: Callable[[Document], bool]) -> Iterator[Document]:
    return filter(predicate, documents)


def _only(documents: Iterator[Document], *, names: Collection[str]) -> Iterator[Document]:
    met: set[str] = set()
    for document in documents:
        met.add(document.source)
        if document.source in names:
            yield document
    if not met & set(names):
        there = ", ".join(repr(source) for source in sorted(met)[:20]) or "none"
        raise EmptyText(f"no document from {' or '.join(map(repr, sorted(names)))}: the sources here are {there}")


def _side(documents: Iterator[Document], *, held_out: float, salt: bytes, wanted: bool) -> Iterator[Document]:
    for document in documents:
        hashed = hashlib.blake2b(document.text.encode(), digest_size=8, key=salt).digest()
        if (int.from_bytes(hashed, "little") < held_out * 2**64) is wanted:
            yield document


@dataclass(frozen=True)
class _Texts:
    texts: tuple[str, ...]
    name: str = "texts"

    @property
    def digest(self) -> str:
        return _sha("texts", *self.texts)

    def documents(self, passed: Passed) -> Iterator[Document]:
        reader = _Reader("text", passed)
        return _documents((text, {}) for text in self.texts if reader.text({"text": text}, "texts") is not None)


@dataclass(frozen=True)
class _Dataset:
    name: str
    split: str
    field: str
    revision: str | None
    token: str | bool | None = dataclasses.field(repr=False)
    streaming: bool
    options: Mapping[str, Any]

    @property
    def digest(self) -> str:
        options = json.dumps(self.options, sort_keys=True, default=repr)
        return _sha("dataset", self.name, self.split, self.field, str(self.revision), options)

    def documents(self, passed: Passed) -> Iterator[Document]:
        return _documents(self._rows(_Reader(self.field, passed)), self.name)

    def _rows(self, reader: _Reader) -> Iterator[tuple[str, Mapping[str, Any]]]:
        import datasets

        try:
            rows = datasets.load_dataset(
                self.name,
                split=self.split,
                revision=self.revision,
                token=self.token,
                streaming=self.streaming,
                **self.options,
            )
            yield from reader.texts((f"row {number} of dataset {self.name}", row) for number, row in enumerate(rows))
        except datasets.exceptions.DatasetNotFoundError as error:
            if "gated" in str(error):
                raise GatedRepository(
                    f"dataset {self.name} is gated: accept its terms on its page, then `hf auth login` or give token="
                ) from error
            revision = self.revision or "main"
            raise NotFound(f"no dataset {self.name} (revision {revision}) that this login can see") from error
        except FileNotFoundError as error:
            raise NotFound(f"dataset {self.name}: {_first_line(error)}") from error
        except ConnectionError as error:
            raise HubUnreachable(f"dataset {self.name} cannot be reached: no network, or offline mode") from error
        except InputError:
            raise
        except ValueError as error:  # no such split, no such configuration: the message names those there are
            raise InputError(f"dataset {self.name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@dataclass(frozen=True)
class _Files:
    name: str
    paths: tuple[Path, ...]
    field: str

    @property
    def digest(self) -> str:
        prints = [_fingerprint(path) for path in self.paths]
        return prints[0] if len(prints) == 1 and self.field == "text" else _sha("files", self.field, *prints)

    def documents(self, passed: Passed) -> Iterator[Document]:
        index = 0
        for path in self.paths:
            for document in _documents(rows_of(path, self.field, passed=passed), path.name, index):
                yield document
                index = document.index + 1


def _documents(rows: Iterable[tuple[str, Mapping[str, Any]]], place: str = "", start: int = 0) -> Iterator[Document]:
    """Documents out of (text, row) pairs, numbered from `start`; a row may name its source and its license."""
    for index, (text, row) in enumerate(rows, start):
        yield Document(text, _word(row, "source") or place, _word(row, "license"), index)


def _word(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return value if isinstance(value, str) else ""


class _Reader:
    """The texts of a file or dataset: what stands in one field of its rows. A row without a text is passed over and
    counted; a field that is in none of the rows, or never a text, is refused.
    """

    def __init__(self, field: str, passed: Passed) -> None:
        self.field, self.passed = field, passed
        self._met = False
        self._tried = 0
        self._complaint: InputError | None = None

    def texts(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The texts of (place, row) pairs, with their rows. Raises InputError."""
        for place, row in rows:
            if (text := self.text(row, place)) is not None:
                yield text, row
        if self._complaint is not None and not self._met:
            raise self._complaint

    def text(self, row: Mapping[str, Any], place: str) -> str | None:
        """The row's text, if it has one. Raises InputError where it is time to say that no row has."""
        value = row.get(self.field)
        if isinstance(value, str):
            self._met = True
            if value.strip() and not _surrogate(value):
                return value
            self.passed["broken" if value.strip() else "blank"] += 1
            return None
        self.passed["null" if value is None else "other"] += 1
        if not self._met:
            self._complaint = self._complaint or self._of(row, place)
            self._tried += 1
            if self._complaint is not None and self._tried >= _TRIED:
                raise self._complaint
        return None

    def _of(self, row: Mapping[str, Any], place: str) -> InputError | None:
        if self.field not in row:
            return self.missing(row, place)
        if (value := row[self.field]) is None:
            return None
        kind = type(value).__name__
        return InputError(f"field {self.field!r} in {place} is of type {kind}: text was expected")

    def missing(self, there: Iterable[str], place: str) -> InputError:
        """What to say where the field is not among those that are there."""
        names = ", ".join(map(repr, there)) or "none"
        return InputError(
            f"no field {self.field!r} in {place}: the fields there are {names}; name the one to read with field="
        )


def _surrogate(text: str) -> str | None:
    """What to say of half a surrogate pair in `text`: JSON can spell one, but no tokenizer can read it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a surrogate pair (\\u{ord(text[error.start]):04x} at character {error.start}), which is not text"
    return None


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


def _title(given: list[str | os.PathLike[str]], files: tuple[Path, ...]) -> str:
    if len(given) == 1:
        return Path(given[0]).expanduser().name or str(given[0])
    return f"{files[0].name} and {len(files) - 1} more"


def rows_of(
    path: Path, field: str, also: tuple[str, ...] = ("source", "license"), *, passed: Passed
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The texts of one file and the rows that they stood in (of a parquet file, the columns `also` if it has them);
    `passed` counts the rows without a text. Raises what iterating a `Corpus` does.
    """
    reader = _Reader(field, passed)
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


def _parquet_rows(path: Path, reader: _Reader, also: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, Any]]]:
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
            f"{path} is not a whole parquet file ({_first_line(error)}): fetch or write it again"
        ) from error


def _fingerprint(path: Path, whole: int = 2**21, end: int = 2**16) -> str:
    """SHA-256 of a file up to `whole` bytes, else of its size and the `end` bytes at either end."""
    size = size_of(path)
    with open(path, "rb") as stream:
        if size <= whole:
            return hashlib.sha256(stream.read()).hexdigest()
        head = stream.read(end)
        stream.seek(-end, os.SEEK_END)
        return hashlib.sha256(b"%d:%b%b" % (size, head, stream.read())).hexdigest()


def _sha(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()


def _code_mark(predicate: Callable[..., object]) -> str:
    """A short hash of what a function does: its code, constants, names, and the values that it closes over."""
    function = getattr(predicate, "__func__", predicate)
    code: CodeType | None = getattr(function, "__code__", None)
    if code is None:
        return _sha(repr(predicate))[:8]
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return _sha(*_code_parts(code), repr(cells), repr(getattr(function, "__defaults__", None)))[:8]


def _code_parts(code: CodeType) -> list[str]:
    parts = [code.co_code.hex(), repr(code.co_names)]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            parts += _code_parts(constant)
        else:  # a frozenset has another order in each process
            parts.append(repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant))
    return parts
