"""Token strings of other tools: vocabulary pieces, half decoded, and the bytes that they stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

LINE_BREAK = "↵"
"""What Neuronpedia writes for a line break."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A byte by itself in a SentencePiece vocabulary."""
_HEX = re.compile(r"(?:\\x[89A-Fa-f][0-9A-Fa-f])+")
"""Bytes by themselves as circuit-tracer's pages write them."""
_SPECIAL = re.compile(
    r"<(?:bos|eos|pad|unk|mask|s|/s|start_of_turn|end_of_turn|\|[^|<>]+\|)>|\[(?:CLS|SEP|PAD|UNK|MASK)\]"
)
_DECODED = frozenset("‘’“”–—…• \n" + LINE_BREAK)
"""Outside a byte-level vocabulary's letters, and found among its pieces all the same: Neuronpedia decodes these few."""


def piece_of(text: str) -> str:
    """A token's text as Neuronpedia writes it."""
    return text.replace("\n", LINE_BREAK)


def is_special(piece: str) -> bool:
    """Whether it reads like a mark that no text holds: <bos>, <|endoftext|>."""
    return _SPECIAL.fullmatch(piece) is not None


def looks_byte_level(pieces: Iterable[str]) -> bool:
    """Whether these are raw pieces of a byte-level vocabulary (GPT-2's, Llama 3's), where "é" is written "Ã©".

    Such pieces decode as UTF-8 of several bytes again and again; text proper does so by accident alone, and holds
    letters that no such piece has.
    """
    letters, encoded, proper = _letters(), 0, 0
    for piece in pieces:
        if piece.isascii() or is_special(piece):
            continue
        rest = [letter for letter in piece if letter not in _DECODED]
        if any(letter not in letters for letter in rest):
            proper += 1
        elif _is_encoded(bytes(letters[letter] for letter in rest)):
            encoded += 1
    return encoded > proper


def bytes_of(piece: str, *, byte_level: bool = False) -> bytes:
    """The UTF-8 bytes, perhaps of a part of a character, that a piece stands for."""
    if found := _BYTE.fullmatch(piece):
        return bytes([int(found[1], 16)])
    if _HEX.fullmatch(piece):
        return bytes.fromhex(piece.replace("\\x", ""))
    text = piece.replace(LINE_BREAK, "\n").replace("▁", " ")
    letters = _letters()
    if byte_level and all(letter in letters or letter in " \n" for letter in text):
        return _unmapped(text)
    return text.encode("utf-8", errors="replace")


def bytes_in(tokenizer: Any, ids: Iterable[int]) -> dict[int, bytes]:
    """What ids of a model (`token_bytes`) or of a tokenizer stand for; an id that it does not have, for its number."""
    if hasattr(tokenizer, "token_bytes"):
        wanted = list(ids)
        return dict(zip(wanted, tokenizer.token_bytes(wanted), strict=True))
    pieces = {id_: piece for piece, id_ in tokenizer.get_vocab().items()}
    byte_level = sum(piece[0] == "Ġ" for piece in pieces.values() if piece) > sum("▁" in one for one in pieces.values())
    special = set(getattr(tokenizer, "all_special_tokens", ()))
    out = {}
    for id_ in ids:
        piece = pieces.get(id_)
        if piece is None:
            out[id_] = number_of(id_)
        elif piece in special:
            out[id_] = piece.encode()
        else:
            out[id_] = bytes_of(piece, byte_level=byte_level)
    return out


def number_of(id_: int) -> bytes:
    """How a token is shown whose text nobody knows."""
    return f"[{id_}]".encode()


@cache
def _letters() -> dict[str, int]:
    """A letter for every byte: printable Latin-1 for itself, the rest from U+0100 on (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return letters | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _unmapped(text: str) -> bytes:
    letters = _letters()
    return b"".join(
        bytes([letters[letter]]) if letter in letters else letter.encode("utf-8", errors="replace") for letter in text
    )


def _is_encoded(raw: bytes) -> bool:
    """Whether it is UTF-8 with characters of several bytes."""
    try:
        return not raw.decode().isascii()
    except UnicodeDecodeError:
        return False
