"""Batches of lines as Neuronpedia publishes them, and what each kind of line says."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gemscope.atlas.exchange.intake import Intake
from gemscope.atlas.exchange.neuronpedia.about import EPOCH
from gemscope.atlas.exchange.numbers import are_numbers, are_texts, as_number, as_whole, object_of
from gemscope.atlas.exchange.provenance import OURS
from gemscope.checked import size_of
from gemscope.errors import CorruptFile, FileError, InputError
from gemscope.features.rules import Rule

_LINE = 1 << 26
"""Bytes of the longest line that is read: a feature's line holds its vector, an explanation's its embedding."""
_BATCH = re.compile(r"batch-(\d+)\.(json|jsonl|jsonl\.gz)")
_METHOD = "neuronpedia"
_FIGURES = (
    "maxActApprox", "frac_nonzero", "pos_str", "pos_values", "neg_str", "neg_values", "topkCosSimIndices",
    "topkCosSimValues", "freq_hist_data_bar_heights", "freq_hist_data_bar_values", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values", OURS,
)  # fmt: skip
"""What a feature's line says that an atlas keeps. `correlated_*` is within a batch of features alone, or blank."""


def batches_in(folder: Path) -> list[Path]:
    found = [(int(match[1]), one) for one in folder.iterdir() if (match := _BATCH.fullmatch(one.name))]
    return [one for _, one in sorted(found)]


def lines_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every line's object, and where it stands. Raises CorruptFile."""
    number = 0
    size_of(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(_LINE):
                number += 1
                if line.isspace():
                    continue
                where = f"{path}, line {number}"
                if len(line) == _LINE:
                    raise CorruptFile(f"{where} is longer than {_LINE >> 20} MB: no such file has one")
                yield where, object_of(line, where)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorruptFile(f"{path} is damaged or cut short behind line {number} ({error}): fetch it again") from error
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def kept(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in _FIGURES if row.get(name) is not None}


def index_of(row: Mapping[str, Any], field: str, where: str) -> int:
    """Theirs is a string."""
    value = row.get(field)
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", str(value)):
        raise CorruptFile(f"{where}: {field} is {value!r}, expected the number of a feature")
    return int(str(value))


def take_activation(intake: Intake, row: dict[str, Any], where: str, owner: object) -> None:
    index = index_of(row, "index", where)
    author = row.get("creatorId")
    if owner is not None and author is not None and author != owner:
        intake.taken.foreign += 1
        return
    tokens, values = row.get("tokens"), row.get("values")
    if not are_texts(tokens):
        raise CorruptFile(f"{where}: tokens is no list of strings")
    if not are_numbers(values) or len(values) != len(tokens):
        raise CorruptFile(f"{where}: values is no list of {len(tokens)} finite numbers, one for each token")
    places = (as_whole(row.get(name)) for name in ("qualifyingTokenIndex", "maxValueTokenIndex"))
    own = next((place for place in places if place is not None), -1)
    low, high, share = (as_number(row.get(name)) for name in ("binMin", "binMax", "binContains"))
    if low is None or high is None or low < 0 or share is None or share < 0:  # -1: among the strongest
        low = high = share = None
    intake.example(index, tokens, values, own, low=low, high=high, share=share)


def take_explanation(intake: Intake, row: dict[str, Any], where: str, owner: object) -> None:
    text = row.get("description")
    if not isinstance(text, str):
        raise CorruptFile(f"{where}: description is {type(text).__name__}, expected text")
    if not text.strip():
        return
    method, explainer, author = row.get("typeName"), row.get("explanationModelName"), row.get("authorId")
    said = {
        "text": text,
        "method": str(method or _METHOD),
        "author": "" if author in (None, owner) else str(author),
        "model": str(explainer or ""),
        "score": as_number(row.get("score") if row.get("scoreV1") is None else row.get("scoreV1")),
        "control": as_number(row.get("control")),
        "confidence": as_number(row.get("confidence")),
        "rule": _rule(row.get("notes")),
        "made": _day(row.get("createdAt")),
    }
    intake.explanation(index_of(row, "index", where), said)


def _rule(notes: object) -> str:
    """What another atlas wrote there, if it is a rule; people write there what they like."""
    try:
        return str(Rule.parse(notes)) if isinstance(notes, str) else ""
    except InputError:
        return ""


def _day(when: object) -> str:
    """The date of a time as others write it; nothing for the one that stands for none."""
    found = re.match(r"\d{4}-\d\d-\d\d", when) if isinstance(when, str) else None
    return found[0] if found and not EPOCH.startswith(found[0]) else ""
