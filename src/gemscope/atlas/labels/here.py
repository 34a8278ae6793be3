"""A model in this process as somebody who answers questions about features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gemscope.activations.model import LanguageModel
from gemscope.atlas.labels.questions import MOST, Answers, Failure, Reply
from gemscope.errors import TextTooLong
from gemscope.text.chat import turn_of


@dataclass(frozen=True)
class Here:
    """Its chat template writes the question, and it answers without dice, one question after another."""

    language_model: LanguageModel
    most: int = MOST
    """Tokens of an answer; one that is cut there is none."""

    @property
    def model(self) -> str:
        """Its name, with the revision where there is one."""
        revision = self.language_model.revision
        return self.language_model.name + (f"@{revision}" if revision else "")

    def answers(self, questions: Iterable[tuple[int, str]]) -> Answers:
        """As `Answerer` has it. Raises InputError for a model without a chat template."""
        for number, question in questions:
            yield number, self._answer(question)

    def _answer(self, question: str) -> Reply | Failure:
        model, turns = self.language_model, turn_of(question)
        try:
            asked = model.tokens(turns, reply=True)
            steps = list(model.stream(asked, max_new_tokens=self.most))
        except TextTooLong as error:
            return Failure(str(error), reached=False)
        ids = [int(step.ids[0]) for step in steps]
        text = str(model.tokenizer.decode(ids, skip_special_tokens=True))
        if not steps[-1].ended[0]:
            return Failure(f"an answer that was cut after {self.most} tokens", said=text[:500])
        return Reply(text, (int(asked.real.sum()), len(ids)))
