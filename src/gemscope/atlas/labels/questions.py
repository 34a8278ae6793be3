"""Questions to a language model, and what may come back. Who answers is an `Answerer`: a server (`endpoint.py`) or a
model in this process (`here.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from gemscope.errors import AccessError

MOST = 400
"""Tokens of an answer."""
GIVE_UP = 8
"""Questions in a row that reached nobody, after which no more are asked."""


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


def heard(
    answerer: Answerer,
    questions: Iterable[tuple[int, str]],
    keep: Callable[[int, Reply | Failure], None],
    *,
    kept: str,
) -> None:
    """Asks, and gives each answer on to be kept. A failure that reached nobody counts once somebody is reached, or in
    the end: where nobody is there at all, it was not for the question.

    Raises AccessError where so many in a row reach nobody: `kept` says what is not lost.
    """
    silence: list[tuple[int, Failure]] = []
    with closing(answerer.answers(questions)) as answers:
        for number, came in answers:
            if isinstance(came, Failure) and not came.reached:
                silence.append((number, came))
                if len(silence) == GIVE_UP:
                    raise AccessError(f"{GIVE_UP} questions in a row reached nobody ({came.reason}): {kept}")
                continue
            for one in (*silence, (number, came)):
                keep(*one)
            silence.clear()
    for one in silence:
        keep(*one)
