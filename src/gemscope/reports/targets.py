"""Which token of a model, at which place of a text, is meant by what a user wrote."""

from __future__ import annotations

from torch import Tensor

from gemscope.activations.model import LanguageModel
from gemscope.activations.suited import with_float64
from gemscope.errors import InputError, TokenOutOfRange
from gemscope.reports.attribution import Target
from gemscope.shapes import Float


def position_of(position: int, length: int) -> int:
    """From 0; -1 is the last. Raises InputError."""
    if not -length <= position < length:
        raise InputError(f"no position {position}: the text has {length} tokens, 0 to {length - 1} (-1 is the last)")
    return position % length


def target_of(model: LanguageModel, given: str | int | None, logits: Float[Tensor, "V"]) -> Target:
    """By its text, its id, or the likeliest. Raises InputError, TokenOutOfRange."""
    if given is None:
        id_ = int(logits.argmax())
    elif isinstance(given, str):
        id_ = token_of(model, given)
    else:
        id_ = int(given)
        if not 0 <= id_ < len(logits):
            raise TokenOutOfRange(f"no token {id_}: {model.name} has tokens 0 to {len(logits) - 1}")
    (token,) = model.strings([id_])
    odds = with_float64(logits).double().softmax(-1)
    return Target(id=id_, token=token, logit=float(logits[id_]), probability=float(odds[id_]))


def token_of(model: LanguageModel, text: str) -> int:
    """The id of the one token that `text` is, or that it names as `id:NUMBER`.

    Raises InputError, saying how it is tokenised, where it is several; TokenOutOfRange.
    """
    if not text:
        raise InputError("an empty target given: expected the text of one token, such as ' time', or an id")
    kind, _, number = text.partition(":")
    if kind == "id" and number.isascii() and number.isdecimal():
        if len(number) > 9 or int(number) >= model.vocab:
            raise TokenOutOfRange(f"no token {number[:40]}: {model.name} has tokens 0 to {model.vocab - 1}")
        return int(number)
    ids = _ids(model, text)
    if len(ids) == 1 and model.strings(ids) == [text]:
        return ids[0]
    # Some tokenizers put a blank in front of a text's first word: behind another word it is read as it is.
    for before in ("a", ".", "\n"):
        head = _ids(model, before)
        both = _ids(model, before + text)
        if both[: len(head)] == head and len(both) == len(head) + 1 and model.strings(both[-1:]) == [text]:
            return both[-1]
    pieces = " ".join(repr(piece) for piece in model.strings(ids))
    raise InputError(
        f"{text!r} is {len(ids)} tokens to {model.name}, {pieces}: give one of them, a leading blank included, or an id"
    )


def _ids(model: LanguageModel, text: str) -> list[int]:
    return [int(id_) for id_ in model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
