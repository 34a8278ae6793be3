"""Tokens that are pieces of characters."""

from __future__ import annotations

import pickle
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemscope.text.pieces import Piece, bytes_of, completed, like, spelt, told, whole
from gemscope.text.printable import readable, visible


@given(st.text(max_size=12), st.lists(st.integers(0, 48), max_size=12))
def test_tokens_of_a_text_are_what_they_complete_of_it_however_it_is_cut(text: str, cuts: list[int]) -> None:
    raw = text.encode(errors="replace")
    places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    tokens = [raw[a:b] for a, b in pairwise(places)]
    found = completed(tokens)
    assert "".join(found) == raw.decode(errors="replace")
    for token, one in zip(tokens, found, strict=True):
        assert one or isinstance(one, Piece)
        if isinstance(one, Piece):
            assert token.endswith(one.raw)
            assert one.spelt.startswith(one)
    # Together the bytes that are no text yet and those that complete them are the text's.
    assert not isinstance(found[-1], Piece) if found else True


def test_a_piece_is_no_text_to_programs_and_its_bytes_to_readers() -> None:
    one, _, last = completed([b"\xf0\x9f", b"\x98", b"\x82!"])
    behind, _ = completed([b" \xf0\x9f", b"\x98\x82"])
    assert behind == " "
    assert visible(behind) == "·\\xf0\\x9f"
    assert (one, last) == ("", "😂!")
    assert visible(one) == "\\xf0\\x9f"
    assert readable(one) == ""  # within a text, where what completes it follows
    again = pickle.loads(pickle.dumps(one))
    assert isinstance(again, Piece)
    assert again.raw == b"\xf0\x9f"


@pytest.mark.parametrize(
    ("raw", "letter", "words"),
    [
        (b"\xe2\x94", "─", "the first 2 bytes of “─”"),
        (b"\xf0\x9f\x98", "😀", "the first 3 bytes of “😀”"),
        (b"\xc3", "À", "the first byte of “À”"),
        (b"\xc2", "¡", "the first byte of “¡”"),
        (b"\xe0", "ࠀ", "the first byte of “ࠀ”"),
        (b"\xd8", "؆", "the first byte of “؆”"),
        (b"\x82", None, "bytes within a character (82)"),
        (b"\x98\x82", None, "bytes within a character (98 82)"),
        (b"\xf3", None, "bytes within a character (f3)"),
        (b"\xff", None, "bytes within a character (ff)"),
        (b"\xed\xa0", None, "bytes within a character (ed a0)"),  # the beginning of half a surrogate pair
    ],
)
def test_a_piece_alone_is_told_by_a_character_that_begins_so(raw: bytes, letter: str | None, words: str) -> None:
    assert bytes_of(spelt(raw)) == raw
    assert like(raw) == letter
    assert told(spelt(raw)) == words
    if letter:
        assert letter.encode().startswith(raw)


@pytest.mark.parametrize("text", ["", "a", "\\xe2 ", "\\x41", "\\xe", "é"])
def test_other_text_is_no_piece(text: str) -> None:
    assert bytes_of(text) is None
    assert told(text) is None


def test_a_character_is_found_from_any_of_its_pieces() -> None:
    tokens = completed([b"a \xf0\x9f", b"\x98", b"\x82", b" b", b"\xe2"])
    assert [whole(tokens, at) for at in range(5)] == [2, 2, 2, 3, 4]
    assert (tokens[2], tokens[4]) == ("😂", "")
