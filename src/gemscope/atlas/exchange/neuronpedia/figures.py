"""What Neuronpedia's line of a feature says, as an entry of an atlas."""

from __future__ import annotations

from typing import Any

import numpy as np

from gemscope.atlas.entry import Entry, Floats, Ints, Written
from gemscope.atlas.exchange.arranged import arranged, highest, with_examples
from gemscope.atlas.exchange.counted import firings, from_zero
from gemscope.atlas.exchange.effects import effect_read
from gemscope.atlas.exchange.intake import Intake, Shown, Taken
from gemscope.atlas.exchange.numbers import as_number
from gemscope.atlas.exchange.provenance import OURS

_MISSING = (-10000.0, -9999.0, 9999.0)
"""Stand for a logit that is missing, or once was NaN or infinite."""


class Figures:
    """Makes entries, and keeps count of what it put right."""

    def __init__(self, intake: Intake, tokens: int) -> None:
        self.intake, self.tokens = intake, tokens
        self.has_logits = False

    def entry(self, index: int, figures: dict[str, Any], examples: list[Shown]) -> Entry:
        """Of one feature."""
        taken = self.intake.taken
        shown = len({(one.window, int(column)) for one in examples for column in one.columns})
        share = as_number(figures.get("frac_nonzero")) or 0.0
        count, heights = firings(share, self.tokens, _numbers(figures, "freq_hist_data_bar_heights"), shown, taken)
        step, histogram = from_zero(_numbers(figures, "freq_hist_data_bar_values"), heights)
        promoted, suppressed = self._logits(figures, "pos", taken), self._logits(figures, "neg", taken)
        self.has_logits |= bool(promoted)
        low, width, logits = _logit_histogram(figures)
        neighbours, cosines = _neighbours(figures)
        entry = Entry(
            index=index,
            count=count,
            # maxActApprox is the maximum of the examples, and so the least that the true one can be.
            max=highest(as_number(figures.get("maxActApprox")), examples),
            mean=_mean(step, histogram),
            decoder_norm=1.0,
            step=step,
            histogram=histogram,
            promoted=np.array([id_ for id_, _ in promoted], np.int64),
            promoted_values=np.array([value for _, value in promoted], np.float32),
            suppressed=np.array([id_ for id_, _ in suppressed], np.int64),
            suppressed_values=np.array([value for _, value in suppressed], np.float32),
            logit_low=low,
            logit_step=width,
            logit_histogram=logits,
            neighbours=neighbours,
            cosines=cosines,
            written=self._written(index, figures),
        )
        return with_examples(entry, arranged(examples, count, taken), self.intake.length)

    def _written(self, index: int, figures: dict[str, Any]) -> Written | None:
        """What our own export says beside."""
        ours = figures.get(OURS)
        said = ours.get("effect") if isinstance(ours, dict) else None
        return effect_read(said, self.intake.id_of, f"feature {index}")

    def _logits(self, figures: dict[str, Any], side: str, taken: Taken) -> list[tuple[int, float]]:
        texts, values = figures.get(f"{side}_str"), figures.get(f"{side}_values")
        if not isinstance(texts, list) or not isinstance(values, list):
            return []
        out = []
        for text, value in zip(texts, map(as_number, values), strict=False):
            if value is None or value in _MISSING or not isinstance(text, str):
                taken.logits += 1
            else:
                out.append((self.intake.id_of(text), value))
        return sorted(out, key=lambda pair: pair[1], reverse=side == "pos")


def _numbers(figures: dict[str, Any], name: str) -> list[float]:
    values = figures.get(name)
    return [as_number(value) or 0.0 for value in values] if isinstance(values, list) else []


def _mean(step: float, histogram: Ints) -> float:
    """Of the histogram's middles: half a bin from the true mean at most."""
    counts = np.asarray(histogram, np.float64)
    total = counts.sum()
    return float(((np.arange(len(counts)) + 0.5) * step * counts).sum() / total) if total else 0.0


def _logit_histogram(figures: dict[str, Any]) -> tuple[float, float, Ints]:
    heights, values = (_numbers(figures, f"logits_hist_data_bar_{name}") for name in ("heights", "values"))
    if len(values) < 2 or len(heights) != len(values):
        return 0.0, 0.0, np.zeros(0, np.int64)
    step = (values[-1] - values[0]) / (len(values) - 1)
    return values[0] - step / 2, step, np.rint(np.array(heights)).clip(0).astype(np.int64)


def _neighbours(figures: dict[str, Any]) -> tuple[Ints, Floats]:
    indices, cosines = figures.get("topkCosSimIndices"), figures.get("topkCosSimValues")
    if not isinstance(indices, list) or not isinstance(cosines, list):
        indices, cosines = [], []
    pairs = [
        (index, cosine)
        for index, cosine in zip(indices, map(as_number, cosines), strict=False)
        if type(index) is int and 0 <= index < 1 << 31 and cosine is not None
    ]
    pairs.sort(key=lambda pair: -pair[1])
    return np.array([one for one, _ in pairs], np.int64), np.array([one for _, one in pairs], np.float32)
