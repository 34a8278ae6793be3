"""One text written on twice, by the model as it is and by the edited model, with the same dice: what an edit does to
text, token by token. How edits work is `edits/`'s knowledge; how texts are written and scored is `writing.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from gemscope.activations.editing import Edit
from gemscope.activations.model import LanguageModel
from gemscope.atlas.meaning import Given, labels_of
from gemscope.edits import defaults
from gemscope.edits.strength import Strength
from gemscope.pages.labels import said_of
from gemscope.pages.marked import SHOWN, notebook, terminal
from gemscope.pages.plain import Shown, harmless
from gemscope.reports.writing import Continuation, Writing, positions_of
from gemscope.shapes import Int
from gemscope.text.chat import OneText
from gemscope.text.printable import clipped, readable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What both models wrote with the same noise."""

    default: Continuation
    steered: Continuation


@dataclass(frozen=True)
class Frame:
    """Where writing is: complete characters only."""

    default: tuple[str, ...]
    """Texts so far, one of each sample."""
    steered: tuple[str, ...]
    n: int
    """Tokens so far."""


@dataclass(frozen=True, kw_only=True)
class Steered(Shown):
    """What `steer` saw. `str` gives two columns, a notebook shows colours, `to_dict` gives what `--json` prints."""

    model: str
    prompt: str
    edits: tuple[str, ...]
    """One line each."""
    strengths: tuple[Strength | None, ...]
    """Of each edit; None for one that has no strength."""
    pairs: tuple[Pair, ...]
    """One of each sample."""
    temperature: float
    seed: int
    max_new_tokens: int
    at: str
    """The tokens on which the edits act: `all`, `prompt`, `generated`, or positions."""
    labels: tuple[str | None, ...] = ()
    """What each edit's feature stands for, by the atlas that was at hand."""
    control: str | None = None
    """What stands in a feature's place here, if this run is a control."""
    default_prompt: str | None = None
    """What the model as it is went on from, where that was another text."""
    computed: str = ""
    """Number format and device, and why where they were chosen."""

    @property
    def named(self) -> bool:
        """Whether any feature has a label here."""
        return any(self.labels)

    def to_dict(self) -> dict[str, object]:
        """For JSON; a figure that does not exist is None."""
        pairs = [{"default": pair.default.to_dict(), "steered": pair.steered.to_dict()} for pair in self.pairs]
        return asdict(self) | {"pairs": pairs}

    # --- how it shows itself ----------------------------------------------------------------------------------

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        from rich.text import Text

        figures = console.no_color or console.color_system is None
        yield Text(self._title(), style="bold")
        for line in self._prompts():
            yield Text(line)
        for line in self._conditions():
            yield Text(line)
        yield Text()
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold", expand=True)
        if len(self.pairs) > 1:
            table.add_column("")
        table.add_column("default", ratio=1)
        table.add_column("control" if self.control else "steered", ratio=1)
        for number, pair in enumerate(self.pairs, 1):
            both = (pair.default, pair.steered)
            lead = [[str(number)], [""], [""]] if len(self.pairs) > 1 else [[], [], []]
            table.add_row(*lead[0], *(terminal(one.tokens, one.change, figures=figures) for one in both))
            table.add_row(*lead[1], *(Text(_figures(one), style="dim") for one in both))
            if number < len(self.pairs):
                table.add_row(*lead[2], "", "")
        yield table
        yield Text()
        yield Text(self._legend(figures), style="dim")

    def _repr_html_(self) -> str:
        other = "control" if self.control else "steered"
        cell = "style='text-align:left;vertical-align:top;width:50%;padding:6px 12px 6px 0'"

        def shown(one: Continuation) -> str:
            return f"<td {cell}>{notebook(one.tokens, one.change)}<br><small>{harmless(_figures(one))}</small></td>"

        body = "".join(f"<tr>{shown(pair.default)}{shown(pair.steered)}</tr>" for pair in self.pairs)
        lines = "<br>".join(map(harmless, [*self._prompts(None), *self._conditions()]))
        return (
            f"<div><p><b>{harmless(self._title())}</b><br>{lines}</p>"
            f"<table style='width:100%;table-layout:fixed'><thead><tr><th style='text-align:left'>default</th>"
            f"<th style='text-align:left'>{other}</th></tr></thead><tbody>{body}</tbody></table>"
            f"<p><small>{harmless(self._legend(False))}</small></p></div>"
        )

    def _title(self) -> str:
        return f"{self.model}, as it is and {'with a control' if self.control else 'edited'}"

    def _prompts(self, most: int | None = 400) -> list[str]:
        both = [("prompt", self.prompt)]
        if self.default_prompt is not None:
            both = [("prompt of the default", self.default_prompt), ("prompt of the steered", self.prompt)]
        return [f"{name}: {text if most is None else readable(clipped(text, most))}" for name, text in both]

    def _conditions(self) -> list[str]:
        edits = [f"edit: {line}" for line in said_of(self.edits, self.labels)] or ["edit: none"]
        control = [] if self.control is None else [f"control: {readable(self.control)}"]
        return [
            *edits,
            *control,
            f"temperature {self.temperature:g} · seed {self.seed} · up to {self.max_new_tokens} new tokens · "
            "the same dice for both columns",
            *([f"computed in {self.computed}"] if self.computed else []),
        ]

    def _legend(self, figures: bool) -> str:
        how = f"[in brackets], from ±{SHOWN} nat" if figures else "blue or green up, orange or red down"
        return (
            f"How the edit changes each token's log-probability after the same text: {how}. Perplexity is the unedited "
            "model's; repetition is the share of 3-grams of tokens that occurred before."
        )


def _figures(one: Continuation) -> str:
    change = sum(one.change) / len(one.change) if one.change else 0.0
    return f"perplexity {one.perplexity:.3g} · repetition {one.repetition:.0%} · change {change:+.2f} a token" + (
        " · ended" if one.ended else ""
    )


def stream(
    model: LanguageModel,
    text: OneText,
    edits: Sequence[Edit],
    *,
    default: OneText | None = None,
    n: int = defaults.SAMPLES,
    max_new_tokens: int = defaults.TOKENS,
    temperature: float = defaults.TEMPERATURE,
    seed: int = defaults.SEED,
    control: str | None = None,
    atlas: Given = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Frame | Steered]:
    """A `Frame` after each token, at last the `Steered`.

    `default` is what the model as it is goes on from, where that is not the same `text`: in a chat each side has
    replied in its own words before (`gemscope.text.chat.history`).

    `n` samples of both models are written in one batch, pairs of them with the same noise. `check` is called as each
    block of the model runs; what it raises ends the work. `control` names what stands in a feature's place, if
    something does. Features are named by an atlas of their SAE (None: the bundled one, where it is that SAE's). Until
    the iterator has ended or is closed the model is edited: let nothing else use it.

    Raises, when called: InputError, EmptyText, TextTooLong, TokenOutOfRange, SiteNotFound, Mismatch. While iterated:
    NotFinite where an edit leaves no probabilities.
    """
    edits, begun = tuple(edits), default
    labels = labels_of(edits, atlas)
    writing = Writing(
        model,
        text,
        [(), edits],
        n=n,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        check=check,
        own={} if begun is None else {0: begun},
    )

    def frames() -> Iterator[Frame | Steered]:
        default, steered = writing.of(0), writing.of(1)
        for count in writing:
            yield Frame(tuple(row.text for row in default), tuple(row.text for row in steered), count)
        wrote = [_continuations(writing, variant, edits) for variant in (0, 1)]
        yield Steered(
            model=model.name,
            prompt=_said(model, text, writing.prompts[1]),
            default_prompt=None if begun is None else _said(model, begun, writing.prompts[0]),
            edits=tuple(map(str, edits)),
            strengths=tuple(getattr(edit, "strength", None) for edit in edits),
            pairs=tuple(Pair(default=one, steered=other) for one, other in zip(*wrote, strict=True)),
            temperature=float(temperature),
            seed=seed,
            max_new_tokens=max_new_tokens,
            at=positions_of(edits),
            labels=labels,
            control=control,
            computed=model.computed,
        )

    return frames()


def steer(
    model: LanguageModel,
    text: OneText,
    edits: Sequence[Edit],
    *,
    default: OneText | None = None,
    n: int = defaults.SAMPLES,
    max_new_tokens: int = defaults.TOKENS,
    temperature: float = defaults.TEMPERATURE,
    seed: int = defaults.SEED,
    control: str | None = None,
    atlas: Given = None,
    check: Callable[[], None] = lambda: None,
) -> Steered:
    """One text written on by the model as it is and by the edited model: `stream`, to its end."""
    *_, last = stream(
        model,
        text,
        edits,
        default=default,
        n=n,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        control=control,
        atlas=atlas,
        check=check,
    )
    assert isinstance(last, Steered)
    return last


def _said(model: LanguageModel, text: OneText, ids: Int[Tensor, "1 T"]) -> str:
    return text if isinstance(text, str) else "".join(model.texts(ids[0].tolist()))


def _continuations(writing: Writing, variant: int, edits: Sequence[Edit]) -> list[Continuation]:
    unedited, edited = writing.scored(variant, ()), writing.scored(variant, edits)
    return [
        Continuation(
            text=row.text,
            tokens=tuple(row.tokens),
            ids=tuple(row.ids),
            logprobs=before,
            edited=after,
            ended=row.ended,
        )
        for row, before, after in zip(writing.of(variant), unedited, edited, strict=True)
    ]
