"""What variants of one model write on from a text, in one batch and with the same dice, and how likely each token of it
is under the model with and without edits. What is compared with what, others say.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from gemscope.activations.editing import Edit
from gemscope.activations.generation import Step
from gemscope.activations.model import LanguageModel
from gemscope.errors import EmptyText, InputError
from gemscope.pages.plain import known
from gemscope.shapes import Float, Int
from gemscope.text.chat import OneText
from gemscope.text.tokens import Tokens

_ENTRIES = 1 << 27
"""Logits held at a time: 512 MB in float32."""


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What was written after a prompt, token by token."""

    text: str
    """As a reader sees it: without special tokens."""
    tokens: tuple[str, ...]
    """What each token completes: "" for one that ends within a character. Special tokens are their names."""
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Natural logarithm of each token's probability under the unedited model, after the same text."""
    edited: tuple[float, ...]
    """Of the same tokens after the same text under the edited model."""
    ended: bool
    """Whether the last token is one that ends a text."""

    @property
    def change(self) -> tuple[float, ...]:
        """What the edits add to the log-probability of each token."""
        return tuple(edited - logprob for edited, logprob in zip(self.edited, self.logprobs, strict=True))

    @property
    def perplexity(self) -> float:
        """exp(mean of −logprobs): how odd the text is to the unedited model."""
        return perplexity(self.logprobs)

    @property
    def repetition(self) -> float:
        """See the function `repetition`."""
        return repetition(self.ids)

    def to_dict(self) -> dict[str, object]:
        """For JSON; a figure that does not exist is None."""
        return {
            "text": self.text,
            "tokens": list(self.tokens),
            "ids": list(self.ids),
            "logprobs": [known(value) for value in self.logprobs],
            "edited_logprobs": [known(value) for value in self.edited],
            "change": [known(value) for value in self.change],
            "perplexity": known(self.perplexity),
            "repetition": self.repetition,
            "ended": self.ended,
        }


def perplexity(logprobs: Sequence[float]) -> float:
    """exp of the mean of −logprobs; NaN for no tokens, infinity beyond what a float holds."""
    if not logprobs:
        return math.nan
    mean = -sum(logprobs) / len(logprobs)
    return math.exp(mean) if mean < 700 else math.inf


def repetition(ids: Sequence[int]) -> float:
    """Share of a text's 3-grams of tokens that occurred before in it; 0 for fewer than two 3-grams."""
    grams = list(zip(ids, ids[1:], ids[2:], strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


# --- writing ------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One text that is being written."""

    ids: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    ended: bool = False
    _shown: list[str] = field(default_factory=list)
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def add(self, id_: int, raw: bytes, *, special: bool, last: bool) -> None:
        """One more token, given as the bytes that it stands for."""
        token = self._decoder.decode(b"" if special else raw, final=last or special)
        if token:
            self._shown.append(token)
        self.ids.append(id_)
        self.tokens.append(token + raw.decode("utf-8", "replace") if special else token)
        self.ended = last

    def close(self) -> None:
        """No token follows: a character that was begun stays incomplete."""
        if rest := self._decoder.decode(b"", final=True):
            self._shown.append(rest)
            self.tokens[-1] += rest

    @property
    def text(self) -> str:
        """Complete characters so far."""
        return "".join(self._shown)


class Writing:
    """Variants of a model (each a list of edits, none for the model as it is) that write `n` texts each.

    All are rows of one batch, and sample number i of every variant is drawn with the same noise: variants that agree in
    what they predict write the same. While it is iterated the model is edited: finish it, or close the iterator, before
    the model does anything else.
    """

    def __init__(
        self,
        model: LanguageModel,
        text: OneText,
        variants: Sequence[Sequence[Edit]],
        *,
        n: int,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        check: Callable[[], None],
        own: Mapping[int, OneText] = MappingProxyType({}),
    ) -> None:
        """`own` are the texts of those variants, by number, that go on from another than the others.

        Raises InputError, EmptyText, TextTooLong, TokenOutOfRange, SiteNotFound, Mismatch: everything that can be known
        to be wrong before the first token.
        """
        if n < 1:
            raise InputError(f"n={n}: at least 1 sample must be asked for")
        self.model, self.n, self._check = model, n, check
        self.variants = [tuple(edits) for edits in variants]
        for edits in self.variants:
            require_text_edits(edits)
            with model.edited(*edits):  # what is wrong with the edits shows here
                pass
        first = one_text(model, text)
        self.prompts = [one_text(model, own[place]) if place in own else first for place in range(len(variants))]
        """[1, T] each: what a variant goes on from."""
        self._options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        self.rows = [Row() for _ in range(n * len(self.variants))]
        self._steps = self._begun()

    def _begun(self) -> Iterator[Step]:
        rows = [ids for prompt in self.prompts for ids in prompt.tolist() * self.n]
        tokens = Tokens.of(rows, special=self.model.special_ids, pad=rows[0][-1], side="left")
        return self.model.stream(tokens, draws=list(range(self.n)) * len(self.variants), **self._options)  # type: ignore[arg-type]

    def of(self, variant: int) -> list[Row]:
        """A variant's texts."""
        return self.rows[variant * self.n : (variant + 1) * self.n]

    def __iter__(self) -> Iterator[int]:
        """Writes; after each token gives how many there are."""
        special, ends = self.model.special_ids, self.model.ends
        with self.model.watched(self._check), ExitStack() as stack:
            for index, edits in enumerate(self.variants):
                if edits:
                    rows = range(index * self.n, (index + 1) * self.n)
                    stack.enter_context(self.model.edited(*edits, rows=rows))
            for count, step in enumerate(self._steps, 1):
                ids = step.ids.tolist()
                for row, id_, raw in zip(self.rows, ids, self.model.token_bytes(ids), strict=True):
                    if not row.ended:
                        row.add(id_, raw, special=id_ in special, last=id_ in ends)
                yield count
        for row in self.rows:
            row.close()

    def scored(self, variant: int, edits: Sequence[Edit]) -> list[tuple[float, ...]]:
        """Log-probabilities of the tokens of a variant's texts, in one pass over each whole text under these edits.

        Under the same edits the same text gets the same figures to the last bit. Raises NotFinite where there are none.
        """
        rows = self.of(variant)
        with self.model.watched(self._check):
            scores = logprobs(self.model, self.prompts[variant], [row.ids for row in rows], edits)
        return [tuple(line[: len(row.ids)]) for row, line in zip(rows, scores.tolist(), strict=True)]


@torch.no_grad()
def logprobs(
    model: LanguageModel, prompt: Int[Tensor, "1 T"], written: Sequence[Sequence[int]], edits: Sequence[Edit]
) -> Float[Tensor, "B S"]:
    """Log-probability of each written token after all that is before it, edits in force; what is beyond the end of a
    shorter text says nothing. float32. Raises NotFinite where the edits leave the model without probabilities.
    """
    longest = max(map(len, written))
    # What follows a text's end is never looked at by what precedes it, so any token will do there.
    new = torch.tensor([[*ids, *[int(prompt[0, -1])] * (longest - len(ids))] for ids in written])
    whole = torch.cat([prompt.expand(len(new), -1), new], dim=1)
    columns, found = prompt.shape[-1], []
    with model.edited(*edits):
        for some in torch.split(whole, max(1, _ENTRIES // (whole.shape[1] * model.vocab))):
            logits = model.logits(some, prompt=columns)[:, columns - 1 : -1].float()
            chosen = some[:, columns:, None].to(logits.device)
            found.append(logits.log_softmax(-1).gather(-1, chosen)[..., 0].cpu())
    return torch.cat(found)


def one_text(model: LanguageModel, text: OneText) -> Int[Tensor, "1 T"]:
    """The ids of one prompt. Raises EmptyText, InputError, TextTooLong, TokenOutOfRange."""
    if isinstance(text, str) and not text:
        raise EmptyText("the prompt is empty: there is nothing to write on from")
    ids = model.tokens(text, reply=True).ids
    if len(ids) != 1:
        raise InputError(f"{len(ids)} prompts given: expected one")
    return ids


def require_text_edits(edits: Sequence[Edit]) -> None:
    """Raises InputError for an edit whose positions only fit a text that is already there."""
    for edit in edits:
        if isinstance(edit.at, Tensor):
            raise InputError(
                f"{edit}: a mask fits no text that is still being written; "
                "use 'all', 'prompt', 'generated' or positions"
            )


def positions_of(edits: Sequence[Edit]) -> str:
    """Where edits act, in words: `all`, `prompt`, `generated`, or places."""
    found = dict.fromkeys(
        (edit.at if isinstance(edit.at, str) else f"positions {', '.join(map(str, edit.at))}")
        + (", every token" if edit.every_token else "")
        for edit in edits
        if not isinstance(edit.at, Tensor)
    )
    return "; ".join(found) or "nowhere"
