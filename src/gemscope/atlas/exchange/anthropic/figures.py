"""What the object of one feature says, as an entry of an atlas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gemscope.atlas.entry import Entry
from gemscope.atlas.exchange.arranged import arranged, highest, with_examples
from gemscope.atlas.exchange.counted import from_zero
from gemscope.atlas.exchange.effects import effect_read
from gemscope.atlas.exchange.intake import Intake, Shown
from gemscope.atlas.exchange.numbers import as_number
from gemscope.atlas.exchange.provenance import OURS
from gemscope.checked import Count, declared
from gemscope.errors import CorruptFile

_INTERVALS = 5
"""Equal parts of 0 to the maximum, for examples of groups that do not say what their bounds are."""


@dataclass(frozen=True)
class _Bars:
    low: float = 0.0
    step: float = 0.0
    counts: tuple[Count, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Ours:
    """What our own export says of a feature beside what the format has."""

    count: Count | None = None
    mean: float | None = None
    encoder_cosine: float | None = None
    decoder_norm: float | None = None
    histogram_step: float | None = None
    logit_histogram: _Bars | None = None
    top_logits: Any = None
    bottom_logits: Any = None
    effect: Any = None
    neighbours: list[tuple[Count, float]] | None = None
    coactive: list[tuple[Count, float, float]] | None = None
    intervals: list[tuple[float, float, Count]] | None = None
    explanations: list[Any] | None = None


def ours_of(said: dict[str, Any], where: str) -> _Ours:
    """What stands in a record. Raises CorruptFile."""
    return declared(said, _Ours, where=f"{where}: what stands under {OURS!r}")


def _positive(value: object) -> float:
    return max(as_number(value) or 0.0, 0.0)


class Figures:
    """Makes entries, and remembers whether there were logits, and values of them."""

    def __init__(self, intake: Intake, tokens: int, path: Path) -> None:
        self.intake, self.tokens, self._path = intake, tokens, path
        self.has_logits = self.has_values = False

    def entry(self, index: int, figures: Mapping[str, Any], examples: list[Shown]) -> Entry:
        """Of one feature. Raises CorruptFile."""
        where = f"{self._path}, feature {index}"
        ours = ours_of(figures.get(OURS) or {}, where)
        try:
            return self._entry(index, figures, ours, examples)
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
            raise CorruptFile(f"{where}: its figures are damaged ({error})") from error

    def _entry(self, index: int, figures: Mapping[str, Any], ours: _Ours, examples: list[Shown]) -> Entry:
        top = highest(_positive(figures.get("act_max")), examples)
        heights = np.array([round(_positive(bar)) for bar in figures.get("histogram") or ()], np.int64)
        shown = len({(one.window, int(column)) for one in examples for column in one.columns})
        share = _positive(figures.get("activation_frequency"))
        count = ours.count
        if count is None:
            # Bars may count examples instead of firings: the frequency is what counts here.
            count = max(round(share * self.tokens), shown)
        low, step = _positive(figures.get("act_min")), ours.histogram_step
        width = _positive(step) or ((top - low) / len(heights) if len(heights) else 0.0)
        width, histogram = from_zero([low + (n + 0.5) * width for n in range(len(heights))], heights)
        if histogram.sum() != count:
            width, histogram = 0.0, np.zeros(0, np.int64)
        logits = ours.logit_histogram or _Bars()
        promoted, promoted_values = self._logits(figures.get("top_logits"), ours.top_logits)
        suppressed, suppressed_values = self._logits(figures.get("bottom_logits"), ours.bottom_logits)
        neighbours, partners = ours.neighbours or [], ours.coactive or []
        entry = Entry(
            index=index,
            count=count,
            max=top,
            mean=_positive(ours.mean),
            encoder_cosine=ours.encoder_cosine,
            decoder_norm=ours.decoder_norm,
            step=width,
            histogram=histogram,
            promoted=promoted,
            promoted_values=promoted_values,
            suppressed=suppressed,
            suppressed_values=suppressed_values,
            logit_low=logits.low,
            logit_step=logits.step,
            logit_histogram=np.array(logits.counts, np.int64),
            neighbours=np.array([one[0] for one in neighbours], np.int64),
            cosines=np.array([one[1] for one in neighbours], np.float32),
            partners=np.array([one[0] for one in partners], np.int64),
            jaccards=np.array([one[1] for one in partners], np.float32),
            shares=np.array([one[2] for one in partners], np.float32),
            written=effect_read(ours.effect, self.intake.id_of, f"{self._path}, feature {index}"),
        )
        bounds = ours.intervals or []
        edges = np.array([low for low, _, _ in bounds] + [high for _, high, _ in bounds[-1:]], np.float32)
        if not bounds and top > 0:
            edges = np.linspace(0, top, _INTERVALS + 1, dtype=np.float32)
        found = arranged(examples, count, self.intake.taken, edges)
        if bounds:
            found = replace(found, edges=edges, counts=[number for _, _, number in bounds])
        return with_examples(entry, found, self.intake.length)

    def _logits(self, texts: object, values: object) -> tuple[Any, Any]:
        """Some tools write [text, value] pairs."""
        pairs = [one if isinstance(one, list) and len(one) == 2 else (one, None) for one in texts or ()]  # type: ignore[attr-defined]
        given = list(values) if isinstance(values, list) and len(values) == len(pairs) else [one[1] for one in pairs]
        ids = [self.intake.id_of(str(text)) for text, _ in pairs]
        self.has_logits |= bool(ids)
        self.has_values |= any(as_number(value) is not None for value in given)
        numbers = [as_number(value) or 0.0 for value in given]
        return np.array(ids, np.int64), np.array(numbers, np.float32)
