"""A score that stays: `score.json` beside the SAE that it is of, and its figures in the card there."""

from __future__ import annotations

import json
from pathlib import Path

from gemscope.checked import bytes_of, declared, existing, shown
from gemscope.disk import written_aside
from gemscope.errors import InputError
from gemscope.features.scope_manifest import SCORE
from gemscope.features.scored import Figures
from gemscope.reports import cards
from gemscope.reports.score import Score

CARD = "README.md"
LARGE = 1 << 24
"""Bytes that a card has at most."""


def keep(score: Score, folder: str | Path, *, way: str | None = None) -> None:
    """Writes `score.json` into an SAE's folder, in place of one that was there, and before it the figures into the
    card, if it has a place for them: all else of a card is whoever's who wrote it. `way` is the command that measures
    on unlike text, which a card without such figures names.

    Raises InputError for no folder, StorageFull, FileError, AccessError.
    """
    place = existing(str(folder))
    if place is None or not place.is_dir():
        raise InputError(f"{shown(folder)} is no folder here: figures can be kept beside an SAE that lies in one")
    card = place / CARD
    if card.is_file():
        before = bytes_of(card, most=LARGE).decode("utf-8", "replace")
        after = cards.with_figures(before, declared(score.to_dict(), Figures, where=SCORE), way=way)
        if after != before:
            with written_aside(card) as aside:
                aside.write_text(after, encoding="utf-8", errors="replace")
    with written_aside(place / SCORE) as aside:
        text = json.dumps(score.to_dict(), indent=1, allow_nan=False)
        aside.write_text(text + "\n", encoding="utf-8")
