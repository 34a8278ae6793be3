"""Where documents come from: texts at hand, files, Hugging Face datasets. Each can be read again, one at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from gemscope.errors import GatedRepository, HubUnreachable, InputError, NotFound
from gemscope.text.files import fingerprint, first_line, rows_of
from gemscope.text.rows import Passed, TextField


@dataclass(frozen=True)
class Document:
    """One piece of text and where it is from."""

    text: str
    source: str = ""
    """What its row calls its source, else the name of its file."""
    license: str = ""
    index: int = 0
    """Its position in the corpus as read, from 0; `take`, `skip`, `where`, `only` and `split` keep it."""


@runtime_checkable
class Source(Protocol):
    """Where a corpus starts: each call of `documents` reads it again."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    def documents(self, passed: Passed) -> Iterator[Document]: ...


@dataclass(frozen=True)
class Texts:
    """At hand, in memory."""

    texts: tuple[str, ...]
    name: str = "texts"

    @property
    def digest(self) -> str:
        return sha("texts", *self.texts)

    def documents(self, passed: Passed) -> Iterator[Document]:
        reader = TextField("text", passed)
        return _documents((text, {}) for text in self.texts if reader.text({"text": text}, "texts") is not None)


@dataclass(frozen=True)
class Dataset:
    """Of the Hub, by its name there."""

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
        return sha("dataset", self.name, self.split, self.field, str(self.revision), options)

    def documents(self, passed: Passed) -> Iterator[Document]:
        return _documents(self._rows(TextField(self.field, passed)), self.name)

    def _rows(self, reader: TextField) -> Iterator[tuple[str, Mapping[str, Any]]]:
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
            raise NotFound(f"dataset {self.name}: {first_line(error)}") from error
        except ConnectionError as error:
            raise HubUnreachable(f"dataset {self.name} cannot be reached: no network, or offline mode") from error
        except InputError:
            raise
        except ValueError as error:  # no such split, no such configuration: the message names those there are
            raise InputError(f"dataset {self.name}: {first_line(error)}") from error


@dataclass(frozen=True)
class Files:
    """On this disk."""

    name: str
    paths: tuple[Path, ...]
    field: str

    @property
    def digest(self) -> str:
        prints = [fingerprint(path) for path in self.paths]
        return prints[0] if len(prints) == 1 and self.field == "text" else sha("files", self.field, *prints)

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


def sha(*parts: str) -> str:
    """SHA-256 in hex over texts, of which each counts by itself."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()
