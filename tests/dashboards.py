"""What the page of a feature should show, worked out slowly from what was written."""

from __future__ import annotations

import codecs

import numpy as np

from gemscope.atlas.dashboard import Dashboard
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
