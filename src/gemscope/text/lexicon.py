"""Classes of tokens by how they look and by short lists of words: what can be said of a token without a model.

A class has a name, by which rules are written (`features/rules.py`), and words, in which they are read. Every class
looks at the text of one token alone, as it stands in the vocabulary: with its blank in front, or a piece of a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from gemscope.checked import read_toml

Test = Callable[[str], bool]


@dataclass(frozen=True)
class Class:
    """One class of tokens."""

    name: str
    """As rules are written: lower case, digits and hyphens."""
    words: str
    """As rules are read: "a number", "words ending in -ing"."""
    test: Test
    """Of a token's text."""


def folded(text: str) -> str:
    """A token as a word of a list: without blanks around it, in lower case. Blanks alone stay as they are."""
    return text.strip().lower() or text


@dataclass(frozen=True)
class _List:
    name: str
    words: str
    members: str


@dataclass(frozen=True)
class _Lists:
    endings: str
    beginnings: str
    lists: list[_List]


@cache
def classes() -> Mapping[str, Class]:
    """All of them by name, in the order in which they are preferred: the plainer first."""
    said = read_toml(Path(str(files("gemscope") / "data" / "lexicon.toml")), _Lists)
    found = [Class(name, words, _looks(pattern)) for name, words, pattern in _SHAPES]
    found += [Class(one.name, one.words, _one_of(one.members)) for one in said.lists]
    for end in said.endings.split():
        found.append(Class(f"ending-{end}", f"words ending in -{end}", _looks(rf"\s?\w\w+{end}")))
    for start in said.beginnings.split():
        found.append(Class(f"beginning-{start}", f"words beginning with {start}-", _looks(rf"\s?{start}\w{{3,}}")))
    return {one.name: one for one in found}


def _looks(pattern: str) -> Test:
    match = re.compile(pattern, re.DOTALL).fullmatch
    return lambda text: match(text) is not None


def _one_of(members: str) -> Test:
    words = frozenset(members.split())
    return lambda text: text.strip().lower() in words


_LETTER = r"[^\W\d_]"
_SHAPES = (
    ("number", "a number", r"\s?\d+"),
    ("capitalised", "a capitalised word", rf"\s?(?![A-Z]+\Z)[A-ZÀ-ÖØ-Þ]{_LETTER}+"),
    ("capitals", "a word in capitals", r"\s?[A-Z]{2,}"),
    ("letter", "a single letter", rf"\s?{_LETTER}"),
    ("inside", "the rest of a word", rf"{_LETTER}+"),
    ("word", "a word", rf"\s{_LETTER}+"),
    ("line-break", "a line break", r"\s*\n\s*"),
    ("blank", "blanks", r"[^\S\n]+"),
    ("sentence-end", "the end of a sentence", r"[.!?…]+[\"'”’)]*\n?"),
    ("opening", "an opening bracket or quotation mark", r"\s?[(\[{<“‘«]+"),
    ("closing", "a closing bracket or quotation mark", r"[)\]}>”’»]+[.,;:]*"),
    ("quotation-mark", "a quotation mark", r"\s?[\"'“”‘’«»`]+[.,]?|[.,?!][\"'”’]"),
    ("dash", "a dash", r"\s?[-–—]+"),
    ("punctuation", "a punctuation mark", r"\s?[^\w\s]+\n?"),
    ("operator", "an operator", r"\s?(?:[-+*/%=<>!&|^~:]=|[-+*/%=<>&|^~]|&&|\|\||->|=>|::|\+\+|--|<<|>>)"),
    ("dotted", "an abbreviation", rf"\s?{_LETTER}{{1,4}}\."),
    ("contraction", "a contraction", r"['’](?:s|t|re|ve|ll|d|m|S|T|RE|VE|LL|D|M)"),
    ("underscored", "a name with an underscore", r"\s?\w*_\w*"),
    ("accented", "letters with accents", rf"\s?(?=.*[À-ɏ]){_LETTER}+"),
    ("foreign", "letters of another alphabet", r"\s?(?=.*[^\W\d_A-Za-zÀ-ɏ])[^\W\d_]+"),
)
