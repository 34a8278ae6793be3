"""Rules: what a feature fires on, said so that it can be run on any text.

    "of" after <number> or <ending-ing>

A rule is some clauses with `or` between them; a clause says what a token is, and what the one or two before it are. A
word in quotation marks is meant in any case and with or without a blank in front; ="…" is a token exactly as it
stands; <name> is a class of `text/lexicon.py`; `any` is anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from gemscope.checked import json_of
from gemscope.errors import CorruptFile, InputError, one_line
from gemscope.text.lexicon import classes, folded
from gemscope.text.pieces import told
from gemscope.text.printable import visible

Ids = np.ndarray[Any, np.dtype[np.integer[Any]]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Kind = Literal["word", "token", "class"]

BACK = 2
"""Tokens before the one that is spoken of, at most."""
CLAUSES = 16
"""At most, in a rule that comes from outside."""


@dataclass(frozen=True, order=True)
class Part:
    """What one token is: the one spoken of, or the one `back` before it."""

    back: int
    kind: Kind
    value: str

    def __str__(self) -> str:
        match self.kind:
            case "word":
                return json.dumps(self.value, ensure_ascii=False)
            case "token":
                return f"={json.dumps(self.value, ensure_ascii=False)}"
        return f"<{self.value}>"


@dataclass(frozen=True)
class Rule:
    """Any of some clauses, each of them all of its parts. `str(rule)` is read again by `Rule.parse`."""

    clauses: tuple[tuple[Part, ...], ...]

    @staticmethod
    def parse(text: str) -> Rule:
        """Raises InputError, which says where."""
        return _Reader(text).rule()

    def __str__(self) -> str:
        return " or ".join(_written(clause) for clause in self.clauses)

    def words(self) -> str:
        """As a person would say it: "“of” after a number, words ending in -ing"."""
        return _said(self.clauses)

    def matches(self, ids: Ids, vocabulary: Vocabulary) -> Mask:
        """[..., T] where the rule holds in rows of token ids. Before a row is nothing; an id below 0 is no token."""
        found = np.zeros(ids.shape, np.bool_)
        for clause in self.clauses:
            holds = ids >= 0
            for part in clause:
                there = vocabulary.mask(part.kind, part.value)[ids]
                holds[..., part.back :] &= there[..., : ids.shape[-1] - part.back]
                holds[..., : part.back] = False
            found |= holds
        return found


class Vocabulary:
    """The tokens of a tokenizer by what rules say of them."""

    def __init__(self, texts: Sequence[str]) -> None:
        """`texts[id]` is what a token stands for alone."""
        self.texts = list(texts)
        self._masks: dict[tuple[str, str], Mask] = {}

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def words(self) -> list[str]:
        """[V] Each token as a word."""
        return [folded(text) for text in self.texts]

    @cached_property
    def _ids(self) -> tuple[Mapping[str, list[int]], Mapping[str, list[int]]]:
        by_word: dict[str, list[int]] = {}
        by_text: dict[str, list[int]] = {}
        for id_, (word, text) in enumerate(zip(self.words, self.texts, strict=True)):
            by_word.setdefault(word, []).append(id_)
            by_text.setdefault(text, []).append(id_)
        return by_word, by_text

    def mask(self, kind: Kind, value: str) -> Mask:
        """[V + 1] The tokens that are so; the last, which is -1 as well, stands for no token and never is."""
        found = self._masks.get((kind, value))
        if found is None:
            found = np.zeros(len(self) + 1, np.bool_)
            if kind == "class":
                test = classes()[value].test
                found[:-1] = [test(text) for text in self.texts]
            else:
                found[self._ids[kind == "token"].get(value, [])] = True
            self._masks[kind, value] = found
        return found


# --- written and read -----------------------------------------------------------------------------------------------

_TOKEN = re.compile(r'\s*(?:(?P<text>=?"(?:[^"\\]|\\.)*")|<(?P<class>[a-z0-9-]+)>|(?P<word>[a-z]+))')


def _written(clause: Sequence[Part]) -> str:
    deepest = max(part.back for part in clause)
    places = [[str(part) for part in clause if part.back == back] for back in range(deepest + 1)]
    return " after ".join(" and ".join(parts) or "any" for parts in places)


class _Reader:
    """A rule from its text."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def rule(self) -> Rule:
        clauses = [self.clause()]
        while self.taken("or"):
            clauses.append(self.clause())
        if self.text[self.at :].strip():
            raise self.wrong("expected “or”, “and”, “after” or the end")
        if len(clauses) > CLAUSES:
            raise InputError(f"a rule of {len(clauses)} clauses, expected at most {CLAUSES}")
        return Rule(tuple(clauses))

    def clause(self) -> tuple[Part, ...]:
        parts = list(self.place(0))
        for back in range(1, BACK + 1):
            if not self.taken("after"):
                break
            parts += self.place(back)
        if not parts:
            raise self.wrong("a clause that says “any” of every token holds everywhere")
        return tuple(parts)

    def place(self, back: int) -> Iterator[Part]:
        if self.taken("any"):
            return
        yield self.part(back)
        while self.taken("and"):
            yield self.part(back)

    def part(self, back: int) -> Part:
        found = _TOKEN.match(self.text, self.at)
        if found is None or found["word"]:
            raise self.wrong('expected "a word", ="a token", <a class> or any')
        if found["class"]:
            if found["class"] not in classes():
                raise InputError(f"no class <{one_line(found['class'], 40)}>: there are {', '.join(classes())}")
            self.at = found.end()
            return Part(back, "class", found["class"])
        exact = found["text"].startswith("=")
        try:
            value = json_of(found["text"].removeprefix("="), str, where="the text")
        except CorruptFile:
            raise self.wrong("expected text in quotation marks, as JSON writes it") from None
        self.at = found.end()
        return Part(back, "token", value) if exact else Part(back, "word", folded(value))

    def taken(self, word: str) -> bool:
        found = _TOKEN.match(self.text, self.at)
        if found is None or found["word"] != word:
            return False
        self.at = found.end()
        return True

    def wrong(self, expected: str) -> InputError:
        return InputError(f"rule {one_line(self.text, 80)!r}, at character {self.at}: {expected}")


# --- said -----------------------------------------------------------------------------------------------------------


def _said(clauses: Sequence[tuple[Part, ...]]) -> str:
    """Clauses with the same before them are said as one: “of”, “in” or “at” after a number. What follows a word that is
    named itself goes without its name: “of” and what follows.
    """
    alone = {clause[0] for clause in clauses if len(clause) == 1 and clause[0].back == 0}
    groups: dict[tuple[str, ...], list[str]] = {}
    followed = False
    for clause in clauses:
        if _follows(clause, alone):
            followed = True
            continue
        here, *behind = (
            " and ".join(map(_named, _telling([part for part in clause if part.back == back]))) or "any token"
            for back in range(1 + max(part.back for part in clause))
        )
        groups.setdefault(tuple(behind), []).append(here)
    if followed:
        groups[()][-1] += ", and what follows"
    return "; ".join(_listed(heres) + "".join(f" after {what}" for what in behind) for behind, heres in groups.items())


def _telling(parts: list[Part]) -> list[Part]:
    """Without what goes without saying beside the others."""
    return [part for part in parts if part.value != "word" or part.kind != "class"] or parts


def _follows(clause: Sequence[Part], alone: Collection[Part]) -> bool:
    """Whether it holds of nearly anything behind a word that is named itself."""
    here, behind = [part for part in clause if not part.back], [part for part in clause if part.back]
    return (
        all(part.kind == "class" and part.value in _ANYTHING for part in here)
        and len(behind) == 1
        and replace(behind[0], back=0) in alone
    )


_ANYTHING = {"word", "inside", "punctuation"}
"""Classes that say next to nothing of a token."""


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _named(part: Part) -> str:
    if part.kind == "class":
        return classes()[part.value].words
    if piece := told(part.value):
        return piece
    text = visible(part.value)
    return f"“{text}”" if part.kind == "word" else f"“{text}” exactly"
