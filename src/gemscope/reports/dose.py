"""Dose and response: the same edit at several strengths, and what each does to a token's logit and to the text."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemscope.activations.editing import Edit
from gemscope.activations.model import LanguageModel
from gemscope.edits.strength import Strength
from gemscope.errors import InputError, TokenOutOfRange
from gemscope.pages.charts.lines import Line, lines
from gemscope.pages.plain import plain
from gemscope.progress import Progress, silent
from gemscope.reports.writing import Writing, known, perplexity, positions_of, repetition, strength_dict
from gemscope.shapes import Int
from gemscope.text.chat import OneText
from gemscope.text.printable import clipped, readable, visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

_ROWS = 16
"""Texts written in one batch, about: more are no faster on a processor."""
_BAR = 12
"""Characters of the longest bar in a terminal."""
_UNITS = ("raw", "× max", "× norm")


@dataclass(frozen=True, kw_only=True)
class Response:
    """What one strength does."""

    strength: float | None
    """As it was asked for; None for the model as it is."""
    edits: tuple[str, ...]
    strengths: tuple[Strength | None, ...]
    logit: float
    """The target's, after the prompt. Of several target tokens: log Σ exp."""
    logit_change: float
    """From what it is in the unedited model."""
    logprob: float
    """Natural logarithm of the target's probability after the prompt."""
    logprob_change: float
    perplexity: float
    """Of the texts written, under the unedited model."""
    repetition: float
    """Share of 3-grams of tokens that occurred before in the same text, mean over the texts."""
    written: float
    """Share of target tokens among those written."""
    texts: tuple[str, ...]
    """One of each sample."""

    def to_dict(self) -> dict[str, object]:
        """For JSON; a figure that does not exist is None."""
        return {
            "strength": self.strength,
            "edits": list(self.edits),
            "strengths": [strength_dict(one) for one in self.strengths],
            "target_logit": known(self.logit),
            "target_logit_change": known(self.logit_change),
            "target_logprob": known(self.logprob),
            "target_logprob_change": known(self.logprob_change),
            "perplexity": known(self.perplexity),
            "repetition": self.repetition,
            "target_written": self.written,
            "texts": list(self.texts),
        }


@dataclass(frozen=True, kw_only=True)
class Dose:
    """What `dose` saw. `str` gives a table and bars, a notebook shows charts, `to_dict` gives what `--json` prints."""

    model: str
    prompt: str
    target: tuple[str, ...]
    """The tokens whose logit is followed, as text."""
    target_ids: tuple[int, ...]
    unedited: Response
    responses: tuple[Response, ...]
    """One of each strength, in the order asked for."""
    control: str | None
    """What stands in the feature's place in the control, if there is one."""
    controls: tuple[Response, ...]
    """The control's responses; none without a control."""
    n: int
    """Samples of each strength."""
    temperature: float
    seed: int
    max_new_tokens: int
    at: str
    """The tokens on which the edits act."""

    def to_dict(self) -> dict[str, object]:
        """For JSON; a figure that does not exist is None."""
        return {
            "model": self.model,
            "prompt": self.prompt,
            "target": list(self.target),
            "target_ids": list(self.target_ids),
            "at": self.at,
            "n": self.n,
            "temperature": self.temperature,
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
            "unedited": self.unedited.to_dict(),
            "responses": [one.to_dict() for one in self.responses],
            "control": self.control,
            "controls": [one.to_dict() for one in self.controls],
        }

    # --- how it shows itself ----------------------------------------------------------------------------------

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield Text(self._title(), style="bold")
        for line in self._conditions():
            yield Text(line)
        yield Text()
        yield self._table(options.max_width)
        yield Text()
        yield self._bars()
        yield Text()
        yield Text(self._legend(), style="dim")

    def __str__(self) -> str:
        return plain(self, width=160)

    def _table(self, width: int) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name in ("strength", *_UNITS, "logit", "change", "log-prob", "perplexity", "repetition"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("a sample", no_wrap=True)
        room = max(20, width - 91)
        for one, style in self._ordered():
            table.add_row(
                self._name(one, style),
                *_measured(one),
                f"{one.logit:.2f}",
                "" if one.strength is None else f"{one.logit_change:+.2f}",
                f"{one.logprob:.2f}",
                f"{one.perplexity:.3g}",
                f"{one.repetition:.0%}",
                Text(_beginning(one.texts[0], room)),
                style=style,
            )
        return table

    def _bars(self) -> Table:
        """The plot: a bar for each strength and measure, the control's lighter."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
        for name in ("strength", "logit, change", "log-prob, change", "perplexity (log scale)", "repetition"):
            table.add_column(name, justify="right" if name == "strength" else "left", no_wrap=True)
        every = [one for one, _ in self._ordered()]
        logit = _largest(one.logit_change for one in every)
        logprob = _largest(one.logprob_change for one in every)
        odd = _largest(math.log(one.perplexity) for one in every if one.perplexity > 0)
        for one, style in self._ordered():
            fill = "░" if style else "█"
            table.add_row(
                self._name(one, style),
                _signed(one.logit_change / logit, fill),
                _signed(one.logprob_change / logprob, fill),
                _bar(math.log(one.perplexity) / odd if one.perplexity > 0 else 0.0, fill),
                _bar(one.repetition, fill),
                style=style,
            )
        return table

    def _ordered(self) -> list[tuple[Response, str]]:
        """All responses, each control below its strength, with their styles."""
        out = [(self.unedited, "")]
        for index, one in enumerate(self.responses):
            out.append((one, ""))
            out += [(other, "dim") for other in self.controls[index : index + 1]]
        return out

    def _name(self, one: Response, style: str) -> str:
        if one.strength is None:
            return "unedited"
        return "control" if style else f"{one.strength:g}"

    def _repr_html_(self) -> str:
        heads = ("strength", *_UNITS, "logit", "change", "log-prob", "perplexity", "repetition", "a sample")
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in heads)
        body = "".join(
            f"<tr{' style=opacity:.65' if style else ''}>"
            f"<td>{_html(self._name(one, style))}</td>{''.join(f'<td>{said}</td>' for said in _measured(one))}"
            f"<td>{one.logit:.2f}</td><td>{one.logit_change:+.2f}</td>"
            f"<td>{one.logprob:.2f}</td><td>{one.perplexity:.3g}</td><td>{one.repetition:.0%}</td>"
            f"<td style='text-align:left'>{_html(clipped(one.texts[0], 300))}</td></tr>"
            for one, style in self._ordered()
        )
        lines_ = "<br>".join(map(_html, self._conditions()))
        return (
            f"<div><p><b>{_html(self._title())}</b><br>{lines_}</p>{self.charts()}"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f"<p><small>{_html(self._legend())}</small></p></div>"
        )

    def charts(self) -> str:
        """Three charts over strength as SVG: the target's logit, perplexity and repetition."""
        measures: tuple[tuple[str, Callable[[Response], float], bool], ...] = (
            (f"logit of {self._target()}", lambda one: one.logit, False),
            ("perplexity", lambda one: one.perplexity, True),
            ("repetition", lambda one: one.repetition, False),
        )
        out = []
        for name, read, logarithmic in measures:
            data = [
                Line(title, [(one.strength, read(one)) for one in some if one.strength is not None])
                for title, some in (("feature", self.responses), ("control", self.controls))
                if some
            ]
            out.append(lines(data, title=f"{name} by strength", across="strength", up=name, logarithmic=logarithmic))
        return "".join(out)

    def _target(self) -> str:
        return " ".join(visible(clipped(token, 40)) for token in self.target)

    def _title(self) -> str:
        return f"{self.model}: strength against the logit of {self._target()}, perplexity and repetition"

    def _conditions(self) -> list[str]:
        edit = self.responses[-1].edits
        return [
            f"prompt: {readable(clipped(self.prompt, 400))}",
            *(f"edit, at its last strength: {readable(line)}" for line in edit),
            *([] if self.control is None else [f"control: {readable(self.control)}"]),
            f"{self.n} samples of each · temperature {self.temperature:g} · seed {self.seed} · "
            f"up to {self.max_new_tokens} new tokens · the same dice for all",
        ]

    def _legend(self) -> str:
        after = "after the prompt" if self.at != "generated" else "after the prompt, its last token edited too"
        return (
            f"Logit and log-probability (natural) are the target's {after}. Perplexity is the unedited model's, of "
            "what was written; repetition the share of 3-grams of tokens that occurred before in the same text. A "
            "strong edit may raise all logits: the log-probability tells whether the target gains on other tokens."
        )


def dose(
    model: LanguageModel,
    text: OneText,
    make: Callable[[float], Sequence[Edit]],
    strengths: Sequence[float],
    *,
    target: int | Sequence[int],
    n: int = 3,
    max_new_tokens: int = 40,
    temperature: float = 0.5,
    seed: int = 16,
    control: Callable[[float], Sequence[Edit]] | None = None,
    control_name: str | None = None,
    progress: Progress = silent,
    check: Callable[[], None] = lambda: None,
) -> Dose:
    """What `make(strength)` does for each of some strengths, and what `control(strength)` does beside it.

    All write `n` texts with the same dice. The target's logit is taken after the prompt; where edits act on generated
    tokens alone, the prompt's last token counts as one of these, or nothing would be seen. `check` is called as each
    block of the model runs; what it raises ends the work.

    Raises InputError, EmptyText, TextTooLong, TokenOutOfRange, SiteNotFound, Mismatch, and NotFinite where an edit
    leaves no probabilities.
    """
    if not strengths:
        raise InputError("no strengths given: name at least one")
    for strength in strengths:
        if not math.isfinite(strength):
            raise InputError(f"strength {strength}: expected a finite number")
    ids = _target_ids(model, target)
    asked: list[tuple[float | None, tuple[Edit, ...]]] = [(None, ())]
    asked += [(strength, tuple(make(strength))) for strength in strengths]
    if control is not None:
        asked += [(strength, tuple(control(strength))) for strength in strengths]

    each, found = max(1, _ROWS // max(1, n)), []
    groups = [
        Writing(
            model,
            text,
            [edits for _, edits in asked[first : first + each]],
            n=n,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            check=check,
        )
        for first in range(0, len(asked), each)
    ]
    with progress("write", max_new_tokens * len(groups), "tokens") as advance:
        for writing in groups:
            for _ in writing:
                advance(1)
            found += [_written(writing, variant, ids) for variant in range(len(writing.variants))]
    prompt = groups[0].prompt
    with model.watched(check):
        logits = [_after(model, prompt, ids, edits) for _, edits in asked]
    responses = [
        Response(
            strength=strength,
            edits=tuple(map(str, edits)),
            strengths=tuple(getattr(edit, "strength", None) for edit in edits),
            logit=logit,
            logit_change=logit - logits[0][0],
            logprob=logprob,
            logprob_change=logprob - logits[0][1],
            perplexity=odd,
            repetition=again,
            written=share,
            texts=texts,
        )
        for (strength, edits), (logit, logprob), (odd, again, share, texts) in zip(asked, logits, found, strict=True)
    ]
    last = 1 + len(strengths)
    return Dose(
        model=model.name,
        prompt=text if isinstance(text, str) else "".join(model.strings(prompt[0].tolist())),
        target=tuple(model.strings(ids)),
        target_ids=tuple(ids),
        unedited=responses[0],
        responses=tuple(responses[1:last]),
        control=None if control is None else control_name or "another edit",
        controls=tuple(responses[last:]),
        n=n,
        temperature=float(temperature),
        seed=seed,
        max_new_tokens=max_new_tokens,
        at=positions_of(asked[1][1]),
    )


def _target_ids(model: LanguageModel, target: int | Sequence[int]) -> list[int]:
    ids = [target] if isinstance(target, int) else list(dict.fromkeys(map(int, target)))
    if not ids:
        raise InputError("no target token given: name at least one")
    for id_ in ids:
        if not 0 <= id_ < model.vocab:
            raise TokenOutOfRange(f"no token {id_}: {model.name} has tokens 0 to {model.vocab - 1}")
    return ids


def _written(writing: Writing, variant: int, target: Sequence[int]) -> tuple[float, float, float, tuple[str, ...]]:
    """Perplexity, repetition and share of target tokens of a variant's texts, and the texts."""
    rows = writing.of(variant)
    every = [id_ for row in rows for id_ in row.ids]
    scores = [score for line in writing.scored(variant, ()) for score in line]
    return (
        perplexity(scores),
        sum(repetition(row.ids) for row in rows) / len(rows),
        sum(id_ in target for id_ in every) / len(every),
        tuple(row.text for row in rows),
    )


@torch.no_grad()
def _after(
    model: LanguageModel, prompt: Int[Tensor, "1 T"], target: Sequence[int], edits: Sequence[Edit]
) -> tuple[float, float]:
    """The target's logit and log-probability after the prompt."""
    columns = prompt.shape[-1]
    if edits and all(edit.at == "generated" for edit in edits if isinstance(edit.at, str)):
        columns -= 1
    with ExitStack() as stack:
        if edits:
            stack.enter_context(model.edited(*edits))
        logits = model.logits(prompt, prompt=columns)[0, -1].float().cpu()
    logit = logits[list(target)].logsumexp(0).item()
    logprob = logits.log_softmax(-1)[list(target)].logsumexp(0).item()
    return logit, logprob


def _bar(share: float, fill: str) -> str:
    """A bar of up to `_BAR` characters, in eighths where it is solid."""
    share = min(1.0, max(0.0, share)) if math.isfinite(share) else 1.0
    eighths = round(share * _BAR * 8)
    if fill != "█":
        return fill * round(eighths / 8) or "·"
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()) or "·"


def _beginning(text: str, length: int) -> str:
    line = readable(text)
    return line if len(line) <= length else line[: length - 1] + "…"


def _measured(one: Response) -> list[str]:
    """The strength of the first edit that has one, in each of the `_UNITS`; "" for what is not known."""
    first = next((strength for strength in one.strengths if strength is not None), None)
    if first is None:
        return [""] * len(_UNITS)
    beside = ("" if value is None else f"{value:.2f}" for value in (first.of_max, first.of_norm))
    return [f"{first.raw:.4g}", *beside]


def _signed(share: float, fill: str) -> str:
    return f"{'−' if share < 0 else ' '}{_bar(abs(share), fill)}"


def _largest(values: Iterable[float]) -> float:
    """The size that is the longest bar; 1 where nothing has any."""
    return max((abs(value) for value in values if math.isfinite(value)), default=0.0) or 1.0


def _html(text: str) -> str:
    return html.escape(readable(text))
