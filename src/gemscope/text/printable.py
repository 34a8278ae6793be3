"""Hostile text as one printable line: characters that could rearrange the text around them are spelt out."""

from __future__ import annotations

import re

from gemscope.text.pieces import Piece

LONG = 200
"""Characters of a token that are shown; of a longer one the beginning is."""

ODD = (
    "\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
"""Control and format characters, surrogates, line and paragraph separators (Unicode's Cc, Cf, Cs, Zl, Zp), as the
inside of a regular expression's class."""

_UNPRINTABLE = re.compile(f"[{ODD}]")
_SIGNS = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def readable(text: str) -> str:
    """Text as one line: line ends and tabs as signs, control characters spelt out."""
    if text.isprintable():  # most is, and this is quick to tell
        return text
    return _UNPRINTABLE.sub(lambda found: sign(found.group()), text)


def visible(token: str) -> str:
    """A token by itself as one line: `readable`, and blanks as ·; a piece of a character as its bytes."""
    return readable(token.spelt if isinstance(token, Piece) else token).replace(" ", "·")


def clipped(text: str, length: int = LONG) -> str:
    """The text, or the beginning of one that is longer than `length`, with its full length said."""
    return text if len(text) <= length else f"{text[: length // 2]}… ({len(text):,} characters)"


def sign(letter: str) -> str:
    """What stands for an odd character."""
    code = ord(letter)
    return _SIGNS.get(letter) or (f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
