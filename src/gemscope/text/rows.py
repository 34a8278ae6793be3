"""Which rows of a file or a dataset hold a text, and how many are passed over, for which reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gemscope.errors import InputError

PASSED: Mapping[str, str] = {
    "blank": "blank",
    "null": "null or without the field",
    "other": "a number, a list or another thing than text",
    "broken": "with half a surrogate pair, which no tokenizer reads",
}
"""Why a row is passed over: the key that it is counted under, and words for it."""

_TRIED = 1000
"""Rows of a file or dataset without a single text after which the field is taken to be the wrong one."""

Passed = Counter[str]
"""Rows that were passed over, by reason: a key of `PASSED`."""


def passed_over(passed: Mapping[str, int]) -> str:
    """In words: "3 rows passed over: 2 null or without the field, 1 blank". Empty where none was."""
    count = sum(passed.values())
    if not count:
        return ""
    told = ", ".join(f"{passed[reason]:,} {words}" for reason, words in PASSED.items() if passed.get(reason))
    return f"{count:,} {'row' if count == 1 else 'rows'} passed over: {told}"


class TextField:
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
            if value.strip() and not surrogate(value):
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


def surrogate(text: str) -> str | None:
    """What to say of half a surrogate pair in `text`: JSON can spell one, but no tokenizer can read it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a surrogate pair (\\u{ord(text[error.start]):04x} at character {error.start}), which is not text"
    return None
