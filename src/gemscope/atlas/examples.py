"""A feature's examples out of its packed page: each with the text around it, and what fires there."""

from __future__ import annotations

from itertools import islice

import numpy as np

from gemscope.atlas.dashboard import Example
from gemscope.atlas.entry import Ints
from gemscope.atlas.files.page import Page
from gemscope.atlas.files.vocabulary import known
from gemscope.atlas.text import LEAD, Text


def examples_of(page: Page, text: Text, *, ranges: bool = True) -> tuple[list[Example], int]:
    """In the order of the page, and how many are left out: without `ranges` the strongest alone are read. Raises
    CorruptFile.
    """
    positions = page.positions.astype(np.int64)
    strongest = page.intervals < 0
    # What is shown already is not shown again; merging wants it where it was drawn.
    shown_already = set(positions[strongest].tolist())
    drawn = np.array([one not in shown_already for one in positions.tolist()], np.bool_)
    chosen = strongest | drawn if ranges else strongest
    left_out = 0 if ranges else int(drawn.sum())
    if not chosen.any():
        return [], left_out
    cells, positions, sizes = np.repeat(chosen, page.sizes), positions[chosen], page.sizes[chosen]
    before, after = (min(span, text.manifest.length) for span in (text.manifest.before, text.manifest.after))
    ids, starts, stops = windows(text, positions, before, after)
    vocabulary = text.vocabulary
    safe = known(ids, vocabulary.size)
    whole = np.logical_not(vocabulary.broken[safe].any(1))  # a character begun in front of the window ends in it
    ids, safe = ids[:, LEAD:], safe[:, LEAD:]
    documents, offsets = _places(text, positions)
    sources = [text.sources[document] if document >= 0 else ("", "") for document in documents]
    column = page.offsets[cells] + np.repeat(before - starts, sizes)
    shown = (column >= 0) & (column < np.repeat(stops - starts, sizes))
    fired = np.bincount(np.repeat(np.arange(len(positions)), sizes)[shown], minlength=len(positions))
    around = zip(column[shown].tolist(), page.values[cells][shown].tolist(), strict=True)
    examples = []
    for position, row, tokens, start, stop, plain, size, peak, interval, document, offset, source in zip(
        positions.tolist(),
        ids.tolist(),
        vocabulary.plain(safe),
        starts.tolist(),
        stops.tolist(),
        whole.tolist(),
        fired.tolist(),
        page.peaks[chosen].tolist(),
        page.intervals[chosen].tolist(),
        documents,
        offsets,
        sources,
        strict=True,
    ):
        own = before - start
        values = [0.0] * (stop - start)
        for place, value in islice(around, size):
            values[place] = value
        values[own] = peak
        example = object.__new__(Example)  # as its own constructor does, in a quarter of the time
        example.__dict__.update(
            document=document,
            position=offset,
            source=source[0],
            license=source[1],
            peak=own,
            ids=row[start:stop],
            tokens=tokens[start:stop] if plain else text.decoded(position - own, stop - start),
            values=values,
            interval=None if interval < 0 else interval,
        )
        examples.append(example)
    return examples, left_out


def windows(text: Text, positions: Ints, before: int, after: int) -> tuple[Ints, Ints, Ints]:
    """Ids [n, LEAD + before + 1 + after] around positions; where beyond the lead [n] the texts start and stop."""
    length = text.manifest.length
    text.require(int(positions.max()))
    column = positions % length
    places = positions[:, None] + np.arange(-before - LEAD, after + 1)
    ids = text.corpus.at(np.clip(places, 0, len(text.corpus) - 1))
    starts = np.maximum(before - column, 0)
    stops = before + np.minimum(length - column, after + 1)
    if (gaps := ids[:, LEAD:] < 0).any():  # padding, which ends the text as the end of a row does
        reach = np.arange(before + after + 1)
        starts = np.maximum(starts, np.where(gaps & (reach < before), reach + 1, 0).max(1))
        stops = np.minimum(stops, np.where(gaps & (reach > before), reach, before + after + 1).min(1))
    return ids, starts, stops


def _places(text: Text, positions: Ints) -> tuple[list[int], list[int]]:
    """Documents and positions in them; -1 where not known."""
    starts = text.starts
    document = np.searchsorted(starts, positions, "right") - 1
    begun = starts[np.maximum(document, 0)] if len(starts) else positions
    offset = positions - begun
    if text.manifest.bos:  # one at the head of every row since then is no document's
        length = text.manifest.length
        offset = offset - (positions // length - begun // length)
    return document.tolist(), np.where(document < 0, -1, offset).tolist()
