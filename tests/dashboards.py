"""Dashboards by hand: what the page of a feature should show, worked out slowly, and whether two show the same."""

from __future__ import annotations

import codecs

import numpy as np
import pytest

from gemscope.atlas.dashboard import Dashboard, Example
from gemscope.atlas.entry import Entry
from gemscope.atlas.files.manifest import Manifest


def decoded(ids: list[int], texts: dict[int, bytes]) -> list[str]:
    """A row as text, token by token, the obvious way."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(texts.get(id_, "\ufffd".encode())) for id_ in ids]


def expected(entry: Entry, ids: np.ndarray, texts: dict[int, bytes], made: Manifest) -> dict[str, object]:
    """A dashboard's examples, in plain Python."""
    examples = []
    for number, position in enumerate(entry.positions.tolist()):
        if entry.intervals[number] >= 0 and position in entry.positions[entry.intervals < 0]:
            continue  # shown among the strongest
        row, column = divmod(position, made.length)
        whole = ids[row].tolist()
        start, stop = column, column + 1
        while start > 0 and start > column - made.before and whole[start - 1] >= 0:
            start -= 1
        while stop < made.length and stop <= column + made.after and whole[stop] >= 0:
            stop += 1
        cells = dict(zip(entry.columns[entry.owners == number], entry.values[entry.owners == number], strict=True))
        peak = cells[column]
        values = []
        for place in range(start, stop):
            if place not in cells:
                values.append(0.0)
            elif place == column:
                values.append(float(peak))
            else:
                values.append(float(np.float32(np.float16(cells[place] / peak)) * peak))
        interval = int(entry.intervals[number])
        examples.append(
            {
                "ids": whole[start:stop],
                "tokens": decoded(whole, texts)[start:stop],
                "values": values,
                "peak": column - start,
                "interval": None if interval < 0 else interval,
            }
        )
    return {"examples": examples}


def shown(dashboard: Dashboard) -> dict[str, object]:
    kept = ("ids", "tokens", "values", "peak", "interval")
    return {"examples": [{name: getattr(one, name) for name in kept} for one in dashboard.examples]}


def by_text(page: Dashboard) -> dict[tuple[str, ...], Example]:
    """Examples by what they read, each once: an import shows the same window once."""
    out: dict[tuple[str, ...], Example] = {}
    for one in page.examples:
        out.setdefault(tuple(one.tokens), one)
    return out


def same_figures(page: Dashboard, back: Dashboard) -> None:
    assert (back.count, back.tokens, back.density) == (page.count, page.tokens, page.density)
    assert back.max == pytest.approx(page.max, rel=1e-7)
    assert (back.histogram is None) == (page.histogram is None or page.dead)
    if back.histogram is not None and page.histogram is not None:
        assert back.histogram.counts == page.histogram.counts
        assert back.histogram.step == pytest.approx(page.histogram.step)
    for mine, theirs in ((back.promoted, page.promoted), (back.suppressed, page.suppressed)):
        assert [one.token for one in mine] == [one.token for one in theirs]
        assert [one.value for one in mine] == pytest.approx([one.value for one in theirs], rel=1e-3)
    assert [one.feature for one in back.neighbours] == [one.feature for one in page.neighbours]
    said = [(one.text, one.method, one.author) for one in page.explanations]
    assert [(one.text, one.method, one.author) for one in back.explanations] == said


def same_examples(page: Dashboard, back: Dashboard) -> None:
    """Peaks exactly, the rest of a window to 11 bits of its largest value."""
    mine, theirs = by_text(back), by_text(page)
    assert set(mine) == set(theirs)
    for tokens, one in mine.items():
        other = theirs[tokens]
        assert (one.peak, one.interval is None) == (other.peak, other.interval is None)
        assert one.value == other.value
        assert one.values == pytest.approx(other.values, abs=2**-11 * page.max)
        if one.interval is not None and other.interval is not None:
            found, told = back.intervals[one.interval], page.intervals[other.interval]
            assert found.low <= one.value < found.high
            assert (found.low, found.high, found.count) == pytest.approx((told.low, told.high, told.count), rel=1e-6)
