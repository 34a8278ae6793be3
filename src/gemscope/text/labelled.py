"""Texts with a label each, from pairs, a corpus or a file. What tells the classes apart is for others to find."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemscope.errors import CorruptFile, EmptyText, FileError, InputError
from gemscope.text.corpus import Corpus
from gemscope.text.files import files_at, rows_of
from gemscope.text.rows import Passed
from gemscope.text.sources import Document

Dataset = str | os.PathLike[str] | Iterable[Any]
"""What labelled texts come from: (text, label) pairs, a `Corpus` or some of its documents, or the path of a file."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Texts and their labels, each text once."""

    name: str
    """Where they are from."""
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    repeated: int
    """How many were left out because the same text stood there before: it could fall among what is learnt from and
    what is tested on."""
    passed: Mapping[str, int]
    """Rows without a text, by reason (`corpus.PASSED`)."""

    @property
    def counts(self) -> Counter[str]:
        """Texts of each label."""
        return Counter(self.labels)


def labelled(
    dataset: Dataset,
    *,
    text: str = "text",
    label: str | None = None,
    labels: Iterable[str] | None = None,
) -> Labelled:
    """(text, label) pairs, a `Corpus` (its documents' sources are the labels), or a .jsonl, .csv or .parquet file.

    `text` and `label` name the fields of a file ("label" unless said) or what of a document is its label ("source").
    `labels` keeps these classes alone. Rows without a text are passed over. Raises InputError for what is not that, for
    a label that is missing, EmptyText for none, NotFound, CorruptFile.
    """
    passed: Passed = Counter()
    if isinstance(dataset, str | os.PathLike):
        name, pairs = Path(dataset).name, _of_files(dataset, text, label or "label", passed)
    elif isinstance(dataset, Corpus):
        name, pairs = dataset.name, _of_documents(dataset.documents(passed), label or "source")
    else:
        name, pairs = "texts", _of_items(dataset, label or "source")
    wanted = None if labels is None else frozenset(labels)
    found: dict[str, str] = {}
    met: set[str] = set()
    repeated = 0
    for one, its in pairs:
        met.add(its)
        if not one.strip():
            passed["blank"] += 1
        if not one.strip() or (wanted is not None and its not in wanted):
            continue
        repeated += one in found
        found.setdefault(one, its)
    if wanted is not None and not wanted <= met:
        missing, there = min(wanted - met), ", ".join(map(repr, sorted(met)[:20])) or "none"
        raise InputError(f"no text of {name} has the label {missing!r}: the labels there are {there}")
    if not found:
        raise EmptyText(f"no labelled texts in {name}: there is nothing to read")
    return Labelled(name=name, texts=tuple(found), labels=tuple(found.values()), repeated=repeated, passed=dict(passed))


def _of_items(items: Iterable[Any], attribute: str) -> Iterator[tuple[str, str]]:
    for number, item in enumerate(items):
        if isinstance(item, Document):
            yield from _of_documents([item], attribute)
            continue
        if not isinstance(item, tuple | list) or len(item) != 2 or not isinstance(item[0], str):
            raise InputError(f"item {number} is {_brief(item)}: expected pairs of a text and its label")
        yield item[0], _word(item[1], f"item {number}")


def _of_documents(documents: Iterable[Document], attribute: str) -> Iterator[tuple[str, str]]:
    if attribute not in ("source", "license"):
        raise InputError(f"label={attribute!r}: a document is labelled by its 'source' or its 'license'")
    for document in documents:
        yield document.text, getattr(document, attribute)


def _of_files(path: str | os.PathLike[str], text: str, label: str, passed: Passed) -> Iterator[tuple[str, str]]:
    files = [Path(path).expanduser()]
    if not (files[0].is_file() and files[0].suffix.lower() == ".csv"):
        files = files_at(path)
    for file in files:
        if ".txt" in [suffix.lower() for suffix in file.suffixes]:
            raise InputError(f"{file} has no labels: expected a .jsonl, .csv or .parquet file with a field for them")
        comma = file.suffix.lower() == ".csv"
        found = _csv_rows(file, text) if comma else rows_of(file, text, (label,), passed=passed)
        for number, (one, row) in enumerate(found, 1):
            if label not in row:
                there = ", ".join(map(repr, row)) or "none"
                raise InputError(
                    f"no field {label!r} in {file}: the fields there are {there}; name the labels' with label="
                )
            yield one, _word(row[label], f"text {number} of {file}")


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            table = csv.DictReader(stream, strict=True)
            there = table.fieldnames or ()
            if text not in there:
                names = ", ".join(map(repr, there)) or "none"
                raise InputError(
                    f"no field {text!r} in {path}: the fields there are {names}; name the texts' with text="
                )
            for row in table:
                if row[text] is None or None in row:
                    raise CorruptFile(
                        f"{path} line {table.line_num} has not as many fields as the first: mend that line"
                    )
                yield row[text], row
    except PermissionError as error:
        raise FileError(f"{path} may not be read: permission denied") from error
    except UnicodeDecodeError as error:
        raise CorruptFile(f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x}): convert it first") from error
    except csv.Error as error:
        raise CorruptFile(f"{path} is not a CSV file as it should be ({error})") from error


def _word(label: object, place: str) -> str:
    if label is None or label == "" or not isinstance(label, str | int | float):
        raise InputError(f"{place} has {_brief(label)} for a label: expected a word or a number")
    return str(label)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
