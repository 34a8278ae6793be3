"""What a language model is asked about a feature, and what may come back. Who answers is an `Answerer`: a server
(`endpoint.py`) or a model in this process (`here.py`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from gemscope.atlas.dashboard import Dashboard
from gemscope.atlas.labels.sheet import instructions, sheet

MOST = 400
"""Tokens of an answer."""


@dataclass(frozen=True)
class Reply:
    """Text that a model wrote to its end."""

    text: str
    tokens: tuple[int, int] = (0, 0)
    """Of the question and of the answer, where they were told."""


@dataclass(frozen=True)
class Failure:
    """Why no text came, in a few words. It is never taken for a label."""

    reason: str
    reached: bool = True
    """Whether somebody answered; otherwise the next question will hardly fare better."""
    said: str = ""
    """The beginning of what came instead."""


Answers: TypeAlias = Generator[tuple[int, Reply | Failure], None, None]
"""Each question's number, and what came of it. Closed, it waits for nobody any more."""


@runtime_checkable
class Answerer(Protocol):
    """Somebody who answers questions, in any order."""

    @property
    def model(self) -> str:
        """Its name, which goes beside what it said."""
        ...

    def answers(self, questions: Iterable[tuple[int, str]]) -> Answers:
        """Raises a GemscopeError where asking on makes no sense."""
        ...


def question(feature: Dashboard) -> str:
    """One turn of a user's: how to answer comes first, the same for all, so that servers read it once."""
    return f"""\
{instructions()}

Answer with one JSON object and nothing else: {{"text": WORDS, "rule": RULE}}. Quotation marks within RULE are written \
\\", as in {{"text": "…", "rule": "\\"of\\" after <number>"}}.

{sheet(feature)}"""
