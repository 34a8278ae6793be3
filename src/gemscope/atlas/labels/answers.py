"""What a reader of a sheet answers, person or model: words and a rule, checked; and where it stands in what a model
wrote around it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from gemscope.checked import json_of
from gemscope.errors import CorruptFile, InputError, one_line
from gemscope.features.rules import Rule
from gemscope.text.printable import readable

LONGEST = 160
"""Characters of the words."""
UNCLEAR = "unclear"
"""The honest answer of whoever sees nothing in common: no label comes of it."""


@dataclass(frozen=True)
class Answer:
    """What a feature stands for."""

    text: str
    rule: str = ""

    @property
    def unclear(self) -> bool:
        """Whether it says that nothing can be said."""
        return self.text.strip(" .()").lower() == UNCLEAR


def answer_of(text: Any, rule: Any = "") -> Answer:
    """Raises InputError for words that are no label, and for a rule that is none."""
    return Answer(words_of(text), rule_of(rule))


def words_of(given: Any) -> str:
    """One short line. Raises InputError."""
    if not isinstance(given, str):
        raise InputError(f"the words are {one_line(given, 40)}, expected text")
    text = " ".join(given.split())
    if not text:
        raise InputError("there are no words: say what it stands for, or “unclear”")
    if len(text) > LONGEST:
        raise InputError(f"{len(text)} characters of words, expected at most {LONGEST}: {one_line(text, 60)}")
    if readable(text) != text:
        raise InputError(f"the words cannot be printed: {one_line(text, 60)}")
    return text


def rule_of(given: Any) -> str:
    """A rule as we write it, or "". Raises InputError."""
    if given is None or given == "":
        return ""
    if not isinstance(given, str):
        raise InputError(f"the rule is {one_line(given, 40)}, expected text")
    return str(Rule.parse(given)) if given.strip() else ""


def object_in(text: str) -> dict[str, Any]:
    """The one JSON object with a "text" that stands in what a model wrote, in a fence or between sentences; what it
    thought before (`<think>`) is passed over. Raises InputError.
    """
    said = text.rpartition("</think>")[2]
    found = []
    for match in _OBJECT.finditer(said[:_LONG]):
        try:
            one = json_of(match[0], dict[str, Any], where="the answer")
        except CorruptFile:
            continue
        if "text" in one and one not in found:
            found.append(one)
    if not found:
        raise InputError(f"no JSON with words in it: {one_line(said.strip() or text.strip(), 80)}")
    if len(found) > 1:
        raise InputError(f"{len(found)} answers in place of one: {one_line(said.strip(), 80)}")
    return found[0]


_LONG = 20_000
"""Characters of an answer that are looked through."""
_OBJECT = re.compile(r'\{(?:[^{}"]|"(?:[^"\\]|\\.)*+")*+\}', re.DOTALL)
"""An object without others in it; braces in its texts are none."""
