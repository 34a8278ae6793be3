"""A histogram that is as small as a word, for lists of many."""

from __future__ import annotations

import math
from itertools import groupby

from markupsafe import Markup

from gemscope.features.histogram import Histogram
from gemscope.pages.numbers import figure

BINS, HIGH = 20, 10


def spark(data: Histogram | None) -> Markup:
    """Bars by the logarithm of their counts, as a picture of `BINS` by `HIGH` in one path; nothing without counts."""
    if data is None or not any(data.counts):
        return Markup("")
    each = math.ceil(len(data.counts) / BINS)
    counts = [sum(data.counts[start : start + each]) for start in range(0, len(data.counts), each)]
    unit = HIGH / math.log1p(max(counts))
    heights = [math.ceil(unit * math.log1p(count) - 1e-9) for count in counts]
    while not heights[-1]:
        heights.pop()
    path = "".join(f"V{HIGH - height}h{len([*same])}" for height, same in groupby(heights))
    return Markup(
        f'<svg class="spark" viewBox="0 0 {BINS} {HIGH}" role="img" aria-label="{_in_words(data)}">'
        f'<path d="M0 {HIGH}{path}V{HIGH}"/></svg>'
    )


def _in_words(data: Histogram) -> str:
    half, seen = sum(data.counts) / 2, 0
    middle = data.low
    for index, count in enumerate(data.counts):
        seen += count
        if seen >= half:
            middle = data.low + (index + 0.5) * data.step
            break
    last = max(index for index, count in enumerate(data.counts) if count)
    return f"half below about {figure(middle)}, all below {figure(data.low + (last + 1) * data.step)}"
