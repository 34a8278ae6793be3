"""Which rows hold a text, when a field is taken to be the wrong one, and the hash by which texts are known again."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from gemscope.errors import InputError
from gemscope.text import rows
from gemscope.text.rows import PASSED, TextField, passed_over
from gemscope.text.sources import sha


def read(*given: Mapping[str, Any]) -> tuple[list[str], Counter[str], int]:
    """The texts, what was passed over, and how many rows were looked at."""
    looked = 0

    def pairs() -> Iterator[tuple[str, Mapping[str, Any]]]:
        nonlocal looked
        for looked, row in enumerate(given, 1):
            yield f"row {looked}", row

    passed: Counter[str] = Counter()
    try:
        return [text for text, _ in TextField("text", passed).texts(pairs())], passed, looked
    except InputError as error:
        return [str(error)], passed, looked


def test_a_row_without_a_text_is_passed_over_by_its_reason() -> None:
    texts, passed, _ = read(
        {"text": "a"}, {"text": " \n"}, {"text": None}, {"text": 3}, {}, {"text": "\ud800"}, {"text": "b"}
    )
    assert texts == ["a", "b"]
    assert passed == {"blank": 1, "null": 2, "other": 1, "broken": 1}
    assert set(passed) == set(PASSED)


def test_a_field_that_never_holds_a_text_is_refused_after_so_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_TRIED", 4)
    for wrong, said in (({"txt": "a"}, "no field 'text' in row 1: .*'txt'"), ({"text": 3}, "row 1 is of type int")):
        (told,), _, looked = read(*9 * [wrong])
        assert looked == 4
        with pytest.raises(InputError, match=said):
            raise InputError(told)
        assert read(*3 * [wrong])[0] == [told]  # fewer rows than that, and none with a text
        assert read(*3 * [wrong], {"text": "a"}, *9 * [wrong])[0] == ["a"]
    # Nulls say nothing against a field, but they count: the first row that does ends it.
    (told,), _, looked = read(*6 * [{"text": None}], {"text": 3}, {"text": 3})
    assert (looked, "row 7 is of type int" in told) == (7, True)
    assert read(*9 * [{"text": None}])[0] == []


def test_what_was_passed_over_is_told_in_words() -> None:
    assert passed_over({}) == passed_over({"null": 0}) == ""
    assert passed_over({"blank": 1}) == "1 row passed over: 1 blank"
    assert passed_over({"other": 1, "blank": 1200}).startswith("1,201 rows passed over: 1,200 blank, 1 a number")


def test_texts_are_hashed_with_their_lengths_so_that_each_counts_by_itself() -> None:
    """Corpora are known by it in atlases and stores on disk: it may not change."""
    assert sha("ab", "ü", "") == hashlib.sha256(b"2:ab2:\xc3\xbc0:").hexdigest()
    assert sha() == hashlib.sha256(b"").hexdigest()
