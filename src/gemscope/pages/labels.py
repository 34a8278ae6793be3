"""What features stand for, beside other things in a table or a sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gemscope.pages.tables import Cell
from gemscope.text.pieces import told
from gemscope.text.printable import readable

_RESERVE = re.compile(r" \([^()]{1,20}\)$")

STANDS = "what it stands for"
SHORT, SHORTER = 56, 24
"""Characters of a label in a table that has others, and in a sentence."""


_PROMOTES = "promotes "


def meaning(label: str | None, promotes: str | None) -> str | None:
    """What a feature stands for and, as a second clause, what it promotes; None where neither is known."""
    if not promotes:
        return label
    return f"{label}; {_PROMOTES}{promotes}" if label else _PROMOTES + promotes


_QUOTED = re.compile(r"“[^”]*”+|(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
"""A text in curly quotes, which may hold a backtick; or in as many backticks before it as behind it."""


def said(label: str) -> str:
    """A label as one line, as it is shown everywhere: tokens in “…”, however who made the label wrote them (language
    models put them into backticks); a token of bytes that are no character by themselves in words.
    """
    text = readable(label)
    return _QUOTED.sub(_quoted, text) if "`" in text or "\\x" in text else text


def _quoted(found: re.Match[str]) -> str:
    curly, inner = found[1] is None, found[2] or found[0][1:-1]
    if words := told(inner.strip("·")):
        return words
    if curly or "“" in inner or "”" in inner:  # there it would be hard to tell which quotes are whose
        return inner if not curly and re.fullmatch("“[^“”]*”", inner) else found[0]
    return f"“{inner}”"


def short_label(label: str | None) -> Cell:
    """A label in a cell, cut where it is long; that there is none is said too."""
    return Cell(clipped_label(label, SHORT)) if label else Cell("no label", "dim")


def headline(label: str | None, feature: int) -> str:
    """A feature as the title of a document."""
    return f"{clipped_label(label, SHORT)} · {feature}" if label else f"Feature {feature}"


def said_of(things: Sequence[str], labels: Sequence[str | None]) -> list[str]:
    """Things that features do, each followed by what the feature stands for where that is known."""
    beside = [*labels, *[None] * (len(things) - len(labels))]
    return [
        readable(thing) + (f" · {STANDS}: {said(label)}" if label else "")
        for thing, label in zip(things, beside, strict=True)
    ]


def clipped_label(label: str, most: int = SHORTER) -> str:
    """A label as one line of so many characters at most. What it says of itself at its end, such as (when strong), is
    not cut where there is room for it and more; of what the feature promotes as many words are told as there is room
    for beside the whole label.
    """
    text = said(label)
    if len(text) <= most:
        return text
    text, clause, words = text.rpartition(f"; {_PROMOTES}") if f"; {_PROMOTES}" in text else (text, "", "")
    if len(text) <= most:
        told = words.split(", ")
        while told and len(text) + len(clause) + len(", ".join(told)) > most:
            told.pop()
        return text + (clause + ", ".join(told) if told else "")
    reserve = _RESERVE.search(text)
    end = reserve.group() if reserve and 2 * len(reserve.group()) < most else ""
    return f"{text[: most - 1 - len(end)].rstrip()}…{end}"
