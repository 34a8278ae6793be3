"""Dose and response: what an edit does at several strengths to a token's logit and to the text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from gemscope.edits.strength import Strength
from gemscope.pages.blocks import bars, signed_bars
from gemscope.pages.charts.lines import Line, lines
from gemscope.pages.labels import said_of
from gemscope.pages.plain import Shown, harmless, known
from gemscope.pages.tables import Cell, Row, Table
from gemscope.text.printable import clipped, readable, visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


_UNITS = ("raw", "× max", "× norm")
_FIGURES = 91
"""Characters of a line that figures take, with room for large ones."""
_WIDE = _FIGURES + 30
"""From how many on a line has room for a sample, too."""


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
    labels: tuple[str | None, ...] = ()
    """What each edit's feature stands for, by the atlas that was at hand."""

    def to_dict(self) -> dict[str, object]:
        """For JSON; a figure that does not exist is None."""
        of_target = ("logit", "logit_change", "logprob", "logprob_change", "written")
        return {f"target_{name}" if name in of_target else name: known(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class Dose(Shown):
    """What `dose` saw. `str` gives a table, a terminal shows bars too, a notebook charts; `to_dict` gives what `--json`
    prints.
    """

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
    computed: str = ""
    """Number format and device, and why where they were chosen."""

    @property
    def named(self) -> bool:
        """Whether any feature has a label here."""
        return any(label for one in self.responses for label in one.labels)

    def to_dict(self) -> dict[str, object]:
        """For JSON; a figure that does not exist is None."""
        return asdict(self) | {
            "unedited": self.unedited.to_dict(),
            "responses": [one.to_dict() for one in self.responses],
            "controls": [one.to_dict() for one in self.controls],
        }

    # --- how it shows itself ----------------------------------------------------------------------------------

    width = 160

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield Text(self._title(), style="bold")
        for line in self._conditions():
            yield Text(line)
        yield Text()
        narrow = options.max_width < _WIDE
        yield self._table(None if narrow else options.max_width - _FIGURES, gap=1 + (not narrow))
        yield Text()
        if narrow:
            yield self._samples()
            yield Text()
        if console.is_terminal:  # bars are for eyes: whoever reads lines has the figures above
            yield self._bars(gap=1 + 2 * (not narrow))
            yield Text()
        yield Text(self._legend(), style="dim")

    def _table(self, room: int | None = 120, *, gap: int = 2) -> Table:
        """Figures, and behind them so many characters of a sample, if any."""
        heads = ["strength", *_UNITS, "logit", "change", "log-prob", "perplexity", "repetition"]
        heads += [] if room is None else ["a sample"]
        rows = [
            Row(
                (
                    name,
                    *_measured(one),
                    f"{one.logit:.2f}",
                    "" if one.strength is None else f"{one.logit_change:+.2f}",
                    f"{one.logprob:.2f}",
                    f"{one.perplexity:.3g}",
                    f"{one.repetition:.0%}",
                    *([] if room is None else [_sample(one, room)]),
                ),
                quiet,
            )
            for name, one, quiet in self._ordered()
        ]
        return Table(heads, rows, left=heads[9:], gap=gap)

    def _samples(self) -> Table:
        """What was written, where there is no room behind the figures."""
        heads = ("strength", "a sample")
        rows = [Row((name, _sample(one, _FIGURES)), quiet) for name, one, quiet in self._ordered()]
        return Table(heads, rows, left=heads[1:], wraps=heads[1:])

    def _bars(self, gap: int) -> Table:
        """The plot: a bar for each strength and measure, the control's lighter."""
        heads = ("strength", "logit, change", "log-prob, change", "perplexity (log scale)", "repetition")
        names, every, light = zip(*self._ordered(), strict=True)
        columns = (
            names,
            signed_bars([one.logit_change for one in every], light),
            signed_bars([one.logprob_change for one in every], light),
            bars([math.log(one.perplexity) if one.perplexity > 0 else 0.0 for one in every], light),
            bars([one.repetition for one in every], light, most=1.0),
        )
        rows = [Row(cells, quiet) for cells, quiet in zip(zip(*columns, strict=True), light, strict=True)]
        return Table(heads, rows, left=heads[1:], gap=gap)

    def _ordered(self) -> list[tuple[str, Response, bool]]:
        """All responses by name, each control below its strength; whether it is one."""
        out = [("unedited", self.unedited, False)]
        for index, one in enumerate(self.responses):
            out.append((f"{one.strength:g}", one, False))
            out += [("control", other, True) for other in self.controls[index : index + 1]]
        return out

    def _repr_html_(self) -> str:
        said = "<br>".join(map(harmless, self._conditions()))
        return (
            f"<div><p><b>{harmless(self._title())}</b><br>{said}</p>{self.charts()}{self._table().html()}"
            f"<p><small>{harmless(self._legend())}</small></p></div>"
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
        last = self.responses[-1]
        return [
            f"prompt: {readable(clipped(self.prompt, 400))}",
            *(f"edit, at its last strength: {line}" for line in said_of(last.edits, last.labels)),
            *([] if self.control is None else said_of([f"control: {self.control}"], [self._control_label()])),
            f"{self.n} samples of each · temperature {self.temperature:g} · seed {self.seed} · "
            f"up to {self.max_new_tokens} new tokens · the same dice for all",
            *([f"computed in {self.computed}"] if self.computed else []),
        ]

    def _control_label(self) -> str | None:
        return "; ".join(dict.fromkeys(label for one in self.controls[-1:] for label in one.labels if label)) or None

    def _legend(self) -> str:
        after = "after the prompt" if self.at != "generated" else "after the prompt, its last token edited too"
        return (
            f"Logit and log-probability (natural) are the target's {after}. Perplexity is the unedited model's, of "
            "what was written; repetition the share of 3-grams of tokens that occurred before in the same text. A "
            "strong edit may raise all logits: the log-probability tells whether the target gains on other tokens."
        )


def _sample(one: Response, room: int) -> Cell:
    return Cell(_beginning(one.texts[0], room), html=harmless(clipped(one.texts[0], 300)))


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
