"""Token ids and text against what Python says of the same bytes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from gemscope.atlas.files.packing import pack
from gemscope.atlas.files.vocabulary import MOST, UNKNOWN, Vocabulary, known, packed
from gemscope.errors import CorruptFile, InputError


def vocabulary(*tokens: bytes, at: Iterable[int] | None = None, special: Iterable[int] = ()) -> Vocabulary:
    return Vocabulary(packed(dict(zip(at or range(len(tokens)), tokens, strict=True)), set(special)))


def test_tokens_of_many_records_come_back_and_so_does_which_are_special() -> None:
    texts = {3 * id_: b"x" * (id_ % 5) for id_ in range(2500)}  # three records; every fifth token is empty
    records = list(packed(texts, {0, 3072, 7497}))
    assert [first for first, _ in records] == [0, 3 * 1024, 3 * 2048]
    found = Vocabulary(records)
    assert found.tokens == texts
    assert found.special == {0, 3072, 7497}
    assert found.size == 3 * 2499 + 1


def test_ids_are_kept_from_zero_to_the_most_that_there_is_room_for() -> None:
    assert vocabulary(b"a", b"b", at=[0, MOST - 1]).tokens == {0: b"a", MOST - 1: b"b"}
    assert vocabulary().size == 0
    for ids, named in (([-1, 5, 7], "token -1"), ([0, 5, MOST], f"token {MOST:,}")):
        with pytest.raises(InputError, match=named):
            list(packed(dict.fromkeys(ids, b"a"), ()))


def test_a_token_alone_is_its_text_or_its_bytes_and_what_is_none_is_unknown() -> None:
    found = vocabulary(b" a", "é".encode()[:1], "é".encode(), b"", at=[0, 2, 3, 5])
    assert [found.alone(id_) for id_ in range(-1, 8)] == [
        UNKNOWN,
        " a",
        UNKNOWN,
        "\\xc3",
        "é",
        UNKNOWN,
        "",
        *2 * UNKNOWN,
    ]
    assert found.broken.tolist() == [False, False, True, False, False, False, False]
    assert found.plain(known(np.array([[0, 3], [5, -1], [6, 99]]), found.size)) == [
        [" a", "é"],
        ["", UNKNOWN],
        [UNKNOWN, UNKNOWN],
    ]


def test_text_is_completed_by_the_token_that_ends_a_character() -> None:
    first, second = "€".encode()[:2], "€".encode()[2:]
    found = vocabulary(b"a", first, second)
    assert found.text([0, 1, 2, 0, 2, 7]) == ["a", "", "€", "a", UNKNOWN, UNKNOWN]


def test_tokens_like_a_text_are_those_that_are_it_nearly_are_it_or_begin_so() -> None:
    words = [b"cat", b" Cat", b"cats", b"CATS ", b"concat", b" ", "ß".encode(), b"SS", b"ssh"]
    found = vocabulary(*words)
    assert found.like("cat") == [[0], [1], [2, 3]]
    assert found.like(" Cat") == [[1], [0], [2, 3]]
    assert found.like(" ") == [[5], [], []]
    assert found.like("") == [[], [], []]
    assert found.like("\t") == [[], [], []]
    assert found.like("SS") == [[7], [6], [8]]  # casefold, not lower
    assert found.like("dog") == [[], [], []]


def test_a_record_that_is_no_vocabularys_is_refused() -> None:
    """Each breaks one rule alone."""
    sound = {"steps": [1, 4], "lengths": [1, 0, 2], "marked": [0, 2], "content": [97, 98, 99]}

    def read(first: int = 5, **changes: object) -> Vocabulary:
        parts = {name: np.array(value, np.int64) for name, value in (sound | changes).items()}
        return Vocabulary([(first, pack([*list(parts.values())[:3], parts["content"].astype(np.uint8)]))])

    assert read().tokens == {5: b"a", 6: b"", 10: b"bc"}
    assert read(MOST - 6).size == MOST
    assert read(0).special == {0, 5}
    for first, changes in (
        *((first, {}) for first in (-1, MOST - 5)),
        *((5, {"steps": steps}) for steps in ([0, 4], [-1, 4], [1], [1, 4, 1], [1, MOST])),
        *((5, {"lengths": lengths}) for lengths in ([1, -1, 3], [1, 0, 1], [1, 0, 3], [1, 2])),
        *((5, {"marked": marked}) for marked in ([-1], [0, 3])),
    ):
        with pytest.raises(CorruptFile, match="a packed record is damaged: it"):
            read(first, **changes)
    with pytest.raises(CorruptFile, match="no vocabulary's"):
        Vocabulary([(0, pack([np.array([1]), np.array([1, 1]), np.array([0]), np.array([97, 300])]))])
