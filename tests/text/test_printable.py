"""Any text as something to show."""

from __future__ import annotations

import sys
import unicodedata

from gemscope.text.printable import clipped, readable, visible


def test_every_character_that_could_hide_or_rearrange_text_is_spelt_out() -> None:
    hidden = [
        letter
        for letter in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    ]
    assert len(hidden) > 2000
    for letter in hidden:
        assert letter not in visible(letter)
    assert readable(" a\nb\tc\r\u202e\x00\U000e0041") == " a↵b⇥c␍\\u202e\\u0000\\U000e0041"
    assert readable("naïve 的 שלום 😀") == "naïve 的 שלום 😀"


def test_a_text_that_is_too_long_says_how_long_it_is() -> None:
    assert clipped("x" * 200) == "x" * 200
    assert clipped("x" * 100_000) == "x" * 100 + "… (100,000 characters)"
