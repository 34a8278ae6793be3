"""Tokens that are pieces of characters: bytes that are no text by themselves. Where they follow one another the last
one completes the character; one alone is written as `\\xe2\\x94`.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

_SPELT = re.compile(r"(?:\\x[89a-f][0-9a-f])+")
_LENGTHS = ((0xC2, 0xE0, 2), (0xE0, 0xF0, 3), (0xF0, 0xF1, 4))
"""First bytes of UTF-8's characters, from and to, and how many bytes these have; beyond U+3FFFF none can be printed."""


class Piece(str):
    """What a token completes of a text, most often nothing, that ends within a character: the bytes that it has of that
    are known to who shows it.
    """

    __slots__ = ("raw",)
    raw: bytes

    def __new__(cls, text: str, raw: bytes) -> Piece:
        made = super().__new__(cls, text)
        made.raw = raw
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return str(self), self.raw

    @property
    def spelt(self) -> str:
        """As it is written alone."""
        return self + spelt(self.raw)


def completed(tokens: Iterable[bytes]) -> list[str]:
    """Tokens of one text, each as what it completes of it: a `Piece` where it ends within a character. Bytes that are
    no text become U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    found: list[str] = []
    for token in tokens:
        text, begun = decoder.decode(token), decoder.getstate()[0]
        found.append(Piece(text, begun if text else token) if begun and token else text)
    return found


def whole(tokens: Sequence[str], at: int) -> int:
    """Which token completes the character within which token `at` ends, if one does; else `at`."""
    end = at
    while end + 1 < len(tokens) and isinstance(tokens[end], Piece):
        end += 1
        if tokens[end]:
            return end
    return at


def spelt(token: bytes) -> str:
    """A token by itself: text, and what is none as `\\xe2`."""
    return token.decode(errors="backslashreplace")


def bytes_of(text: str) -> bytes | None:
    """The bytes of a piece, from what `spelt` wrote; None for any other text."""
    if not text.startswith("\\x") or not _SPELT.fullmatch(text):
        return None
    return bytes.fromhex(text.replace("\\x", ""))


@lru_cache(4096)
def like(raw: bytes) -> str | None:
    """A character that begins with these bytes, the first that can be printed; None where none does."""
    size = next((size for low, high, size in _LENGTHS if raw and low <= raw[0] < high), 0)
    missing = size - len(raw)
    if missing < 1 or any(not 0x80 <= byte < 0xC0 for byte in raw[1:]):
        return None
    for code in range(64**missing):
        rest = bytes(0x80 | code >> 6 * place & 0x3F for place in reversed(range(missing)))
        try:
            letter = (raw + rest).decode()
        except UnicodeDecodeError:  # longer than need be, or half a surrogate pair
            continue
        if letter.isprintable() and not letter.isspace():
            return letter
    return None


def told(text: str) -> str | None:
    """A piece, as `spelt` wrote it, in words; None for any other text."""
    raw = bytes_of(text)
    if raw is None:
        return None
    whose = like(raw)
    if whose is None:
        return f"bytes within a character ({raw.hex(' ')})"
    return f"the first byte of “{whose}”" if len(raw) == 1 else f"the first {len(raw)} bytes of “{whose}”"
