"""A model's own tokenizer: text, chats and ids to tokens, within what the model can read, and tokens back to text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from gemscope.errors import EmptyText, InputError, TextTooLong, TokenOutOfRange
from gemscope.text.chat import Text, chats_of, written
from gemscope.text.pieces import completed, spelt
from gemscope.text.sources import Document
from gemscope.text.tokens import Side, Tokens, pack


class Reader:
    """What a language model is to text: its tokenizer, and how much and which ids it takes."""

    tokenizer: Any
    name: str

    @property
    def context(self) -> int:
        """The most tokens that one row may have."""
        raise NotImplementedError

    @property
    def vocab(self) -> int:
        """Rows of the embedding matrix: ids are 0 to vocab - 1."""
        raise NotImplementedError

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """BOS, EOS, PAD and every other token that its tokenizer marks as special (chat marks, file marks)."""
        marked = {id_ for id_, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(marked | {id_ for id_ in self.tokenizer.all_special_ids if id_ is not None})

    @cached_property
    def bos(self) -> int | None:
        """The id that its tokenizer puts in front of a text by itself; None where it puts none."""
        plain: list[int] = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole: list[int] = self.tokenizer("a")["input_ids"]
        return int(whole[0]) if whole[: len(plain)] != plain else None  # an EOS behind the text is none of this

    @cached_property
    def separator(self) -> int | None:
        """The id that parts documents: <|endoftext|> where the vocabulary has one, else EOS."""
        end = self.tokenizer.get_vocab().get("<|endoftext|>", self.tokenizer.eos_token_id)
        return None if end is None else int(end)

    @property
    def _pad(self) -> int:
        # A PAD that was added to the tokenizer alone has no row in the embedding; any id does, as padding is masked.
        found = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return int(next(id_ for id_ in found if id_ is not None and id_ < self.vocab))

    def tokens(
        self,
        text: Text,
        *,
        side: Side = "right",
        every_token: bool = False,
        reply: bool = False,
    ) -> Tokens:
        """Text as the model's own tokenizer reads it (its own BOS rule; never two, also where a chat template has
        written one into the text), the turns of a chat (`[{"role": "user", "content": "Hello"}]`) as its chat template
        writes them, or ids as they are.

        Several texts or chats become rows, padded on the given side; a tensor of ids [T] or [B, T] is one row or B.
        `every_token` counts special tokens and the first position too. `reply` has a chat end where the assistant is to
        go on. Raises EmptyText, TextTooLong, TokenOutOfRange, and InputError for what is neither text nor chat nor ids,
        for a chat where there is no template, and for one that the template refuses.
        """
        if isinstance(text, Tokens):
            text = text.here
            self._check_rows(text.ids.tolist())
            return text.every_token if every_token else text
        rows = self._rows(text, reply)
        self._check_rows(rows)
        return Tokens.of(rows, special=self.special_ids, pad=self._pad, side=side, every_token=every_token)

    def ids(self, text: str) -> list[int]:
        """A text's ids, whatever its length: BOS in front where its tokenizer puts one, and never two."""
        return self._one_bos(self.tokenizer(text, verbose=False)["input_ids"])

    def _one_bos(self, ids: list[int]) -> list[int]:
        return [self.bos, *self._without_bos(ids)] if self.bos is not None and ids[:1] == [self.bos] else ids

    def _without_bos(self, ids: list[int]) -> list[int]:
        """Without what a chat template may have put in front of a text that is tokenized once more."""
        brought = next((place for place, id_ in enumerate(ids) if id_ != self.bos), len(ids))
        return ids[brought:]

    def _rows(self, text: Any, reply: bool) -> list[list[int]]:
        if isinstance(text, Tensor):
            return _id_rows(text)
        if (chats := chats_of(text)) is not None:
            return [written(self.tokenizer, chat, model=self.name, reply=reply) for chat in chats]
        if isinstance(text, str):
            text = [text]
        if not isinstance(text, Sequence):
            raise InputError(
                f"a {type(text).__name__} cannot be read: expected text, a list of texts, turns of a chat, or token ids"
            )
        if text and all(isinstance(one, Integral) for one in text):
            return [[int(id_) for id_ in text]]
        for index, one in enumerate(text):
            if not isinstance(one, str):
                raise InputError(f"item {index} is a {type(one).__name__}: expected texts alone, or token ids alone")
            if any("\ud800" <= letter <= "\udfff" for letter in one):
                raise InputError(
                    f"text {index} holds half a surrogate pair, which is not text: decode it properly first"
                )
        return [self._one_bos(row) for row in self.tokenizer(list(text), verbose=False)["input_ids"]] if text else []

    def _check_rows(self, rows: list[list[int]]) -> None:
        for index, row in enumerate(rows):
            if not row:
                which = "the text" if len(rows) == 1 else f"text {index} of {len(rows)} (counted from 0)"
                raise EmptyText(f"{which} is empty: there is nothing to read")
        if not rows:
            raise EmptyText("no texts given: there is nothing to read")
        longest = max(map(len, rows))
        if longest > self.context:
            raise TextTooLong(
                f"a text of {longest} tokens does not fit: {self.name} reads up to {self.context}; shorten it"
            )
        for row in rows:
            if min(row) < 0 or max(row) >= self.vocab:
                wrong = next(id_ for id_ in row if not 0 <= id_ < self.vocab)
                raise TokenOutOfRange(f"no token {wrong}: {self.name} has tokens 0 to {self.vocab - 1}")

    def rows(
        self, corpus: Iterable[Document], *, length: int = 256, batch: int = 16, every_token: bool = False
    ) -> Iterator[Tokens]:
        """A corpus as packed rows of `length` tokens, `batch` rows at a time. Raises TextTooLong."""
        if length > self.context:
            raise TextTooLong(f"rows of {length} tokens do not fit: {self.name} reads up to {self.context}")
        packed = pack(
            self.ids_of(corpus),
            length=length,
            batch=batch,
            special=self.special_ids,
            bos=self.bos,
            separator=self.separator,
            pad=self._pad,
        )
        return (tokens.every_token for tokens in packed) if every_token else packed

    def ids_of(self, corpus: Iterable[Document]) -> Iterator[list[int]]:
        """Each document's ids, without BOS."""
        for document in corpus:
            # A document at a time: handing the tokenizer many at once gains little beside a forward pass.
            ids = self.tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
            yield self._without_bos(ids)  # each row of the packed corpus gets its own

    def strings(self, ids: Iterable[int]) -> list[str]:
        """Each token as the text it stands for by itself, blanks included; what is no text is written `\\xe2`."""
        ids = [int(id_) for id_ in ids]
        found = [self._string(id_) for id_ in ids]
        if any("\ufffd" in one for one in found):
            raw = self.token_bytes(ids)
            found = [spelt(raw[at]) if "\ufffd" in one else one for at, one in enumerate(found)]
        return found

    def texts(self, ids: Iterable[int]) -> list[str]:
        """Tokens of one text, each as what it completes of it: a `Piece`, which is empty, where it ends within a
        character.
        """
        return completed(self.token_bytes(ids))

    def token_bytes(self, ids: Iterable[int]) -> list[bytes]:
        """Each token as the bytes it stands for: a token may end within a character. Special tokens are their names."""
        ids = [int(id_) for id_ in ids]
        pieces = self.tokenizer.convert_ids_to_tokens(ids)
        return [self._bytes(id_, piece) for id_, piece in zip(ids, pieces, strict=True)]

    def _bytes(self, id_: int, piece: str | None) -> bytes:
        if piece is None:  # a row of the embedding that no token of the vocabulary uses
            return b""
        if id_ not in self._added:
            if self._byte_level and all(letter in _BYTES for letter in piece):
                return bytes(_BYTES[letter] for letter in piece)
            if found := _BYTE_PIECE.fullmatch(piece):
                return bytes([int(found[1], 16)])
        return self._string(id_).encode()

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self.tokenizer.added_tokens_decoder)

    @cached_property
    def _byte_level(self) -> bool:
        """Whether its pieces are bytes written as letters, as GPT-2's are."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return backend is not None and "ByteLevel" in repr(backend.decoder)

    def _string(self, id_: int) -> str:
        # Mistral's decoder takes the blank off a text's first token, so the second of two is looked at.
        one, two = (str(self.tokenizer.decode([id_] * n, clean_up_tokenization_spaces=False)) for n in (1, 2))
        return two[len(one) :] if two.startswith(one) else one


def _letters_of_bytes() -> dict[str, int]:
    """GPT-2's letter for each byte: printable Latin-1 stands for itself, the others for letters from 256 up."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTES = _letters_of_bytes()
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def _id_rows(ids: Tensor) -> list[list[int]]:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InputError(f"token ids of type {str(ids.dtype).removeprefix('torch.')} given: expected whole numbers")
    if ids.ndim not in (1, 2):
        raise InputError(f"token ids of shape {tuple(ids.shape)} given: expected one row [T] or rows [B, T]")
    rows: list[list[int]] = (ids[None] if ids.ndim == 1 else ids).tolist()
    return rows
