"""The whole dictionary as a table for spreadsheets, a row a feature."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from gemscope.atlas.dashboard import Dashboard, Example
from gemscope.atlas.exchange.folder import chosen
from gemscope.atlas.reader import Atlas
from gemscope.disk import written_aside

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes a cell for a formula by."""
_COLUMNS: Mapping[str, Callable[[Dashboard], Any]] = {
    "index": lambda page: page.index,
    "label": lambda page: guarded(page.label or ""),
    **{
        name: attrgetter(name)
        for name in ("density", "count", "tokens", "max", "mean", "encoder_cosine", "decoder_norm")
    },
    "token": lambda page: guarded(_own(page.strongest[0])) if page.strongest else "",
    "example": lambda page: guarded("".join(page.strongest[0].tokens)) if page.strongest else "",
    "promoted_tokens": lambda page: _json([one.token for one in page.promoted]),
    "promoted_logits": lambda page: _json([one.value for one in page.promoted]),
    "effect_promotes": lambda page: guarded(page.promotes or ""),
    "effect_tokens": lambda page: _json([one.token for one in page.writes.promoted] if page.writes else []),
    "suppressed_tokens": lambda page: _json([one.token for one in page.suppressed]),
    "suppressed_logits": lambda page: _json([one.value for one in page.suppressed]),
    "neighbours": lambda page: _json([one.feature for one in page.neighbours]),
    "cosines": lambda page: _json([one.cosine for one in page.neighbours]),
    "partners": lambda page: _json([one.feature for one in page.coactive]),
    "jaccards": lambda page: _json([one.jaccard for one in page.coactive]),
    "model": lambda page: page.model,
    "source": lambda page: page.source,
}


def export(atlas: Atlas, to: Path, *, features: Iterable[int] | None = None) -> Path:
    """UTF-8, as RFC 4180 has it; lists are JSON within their cell.

    A cell of text that a spreadsheet would take for a formula has an apostrophe put before it. Raises NotFound,
    FileError, StorageFull.
    """
    wanted = chosen(features, len(atlas))
    with written_aside(to) as aside, aside.open("w", encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(_COLUMNS)
        for index in wanted:
            page = atlas[index]
            rows.writerow([_cell(column(page)) for column in _COLUMNS.values()])
    return to


def guarded(text: str) -> str:
    """The text, with an apostrophe before it where a spreadsheet would run it as a formula."""
    return f"'{text}" if text.startswith(_FORMULA) or text.lstrip().startswith(_FORMULA[:4]) else text


def _cell(value: Any) -> Any:
    return "" if value is None else value


def _json(values: list[Any]) -> str:
    return json.dumps(values, ensure_ascii=False)


def _own(example: Example) -> str:
    return example.tokens[example.peak]
