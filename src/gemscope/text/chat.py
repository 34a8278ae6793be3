"""Turns of a chat: how they are given, and how a tokenizer's own template writes them. All that may stand for text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from gemscope.errors import InputError
from gemscope.text.tokens import Tokens

Turn: TypeAlias = Mapping[str, Any]
"""What one side says: `{"role": "user", "content": "Hello"}`."""
OneText: TypeAlias = str | Sequence[int] | Sequence[Turn] | Tensor | Tokens
"""A text, its ids, or the turns of a chat."""
Text: TypeAlias = OneText | Sequence[str] | Sequence[Sequence[Turn]]
"""One text or several, in any of these forms."""


def turn_of(text: str) -> list[Turn]:
    """A chat of one turn: what a user says."""
    return [{"role": "user", "content": text}]


def history(said: Sequence[str], replies: Sequence[str]) -> list[Turn]:
    """A chat: what a user said, each time with the reply to it, and last what is to be replied to."""
    turns: list[Turn] = []
    for words, reply in zip(said, [*replies, None], strict=True):
        turns += turn_of(words)
        turns += [] if reply is None else [{"role": "assistant", "content": reply}]
    return turns


def chats_of(given: Any) -> list[list[Turn]] | None:
    """Each chat's turns; None for what is no chat. Raises InputError for turns that are none."""
    if is_one_chat(given):
        return [_turns(given, "the chat")]
    if isinstance(given, Sequence) and any(map(is_one_chat, given[:1])):
        return [_turns(chat, f"chat {index}") for index, chat in enumerate(given)]
    return None


def is_one_chat(given: Any) -> bool:
    """Whether this is one chat, not several, nor text or ids."""
    return isinstance(given, Sequence) and any(isinstance(turn, Mapping) for turn in given[:1])


def _turns(chat: Any, which: str) -> list[Turn]:
    if not isinstance(chat, Sequence) or isinstance(chat, str | bytes) or not chat:
        raise InputError(f"{which} is no list of turns: expected such as [{{'role': 'user', 'content': 'Hello'}}]")
    for index, turn in enumerate(chat):
        role, content = (turn.get(key) if isinstance(turn, Mapping) else None for key in ("role", "content"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise InputError(
                f"turn {index} of {which} is not as {{'role': 'user', 'content': 'Hello'}}: expected a role and a "
                "content, both text"
            )
        try:
            (role + content).encode()
        except UnicodeEncodeError:
            raise InputError(
                f"turn {index} of {which} holds half a surrogate pair, which is not text: decode it properly first"
            ) from None
    return list(chat)


def written(tokenizer: Any, chat: Sequence[Turn], *, model: str, reply: bool) -> list[int]:
    """A chat's ids as the tokenizer's template writes it; with `reply` they end where the assistant is to go on: within
    its own turn where that is the last, else behind the mark that opens one. `model` is its name, for messages.

    Raises InputError without a template, and for a chat that the template refuses.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"{model} has no chat template, it was not made for chats: give plain text")
    goes_on = reply and chat[-1]["role"] == "assistant"
    try:
        found = tokenizer.apply_chat_template(
            [dict(turn) for turn in chat],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=reply and not goes_on,
            continue_final_message=goes_on,
        )
    except Exception as error:  # a template is a program: it raises what it likes
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"the chat template of {model} does not take these turns: {said}") from error
    return [int(id_) for id_ in found["input_ids"]]
