"""What the score beside an SAE says first, read from its `score.json`. Brings no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from gemscope.checked import Count, Finite, read_json


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Those by which SAEs are chosen, and what they are of."""

    l0: Annotated[float, Meta(ge=0, le=1e30)]
    fvu: Finite | None
    dead: Annotated[float, Meta(ge=0, le=1)]
    delta_loss: Finite | None = None
    digest: str = ""
    """Of the SAE's weights."""
    corpus: str = ""
    tokens: Count = 0
    kl: Finite | None = None
    loss_recovered_mean: Finite | None = None
    loss_tokens: Count = 0
    unlike: Figures | None = None
    """On a text unlike what the SAE learned from."""


def figures_of(path: Path) -> Figures:
    """Read anew where the file has changed. Raises NotFound, AccessError, CorruptFile."""
    place = path.stat() if path.is_file() else None
    return _figures(path, place and (place.st_mtime_ns, place.st_size))


@lru_cache(maxsize=4096)
def _figures(path: Path, _: object) -> Figures:
    return read_json(path, Figures, remedy="score the SAE again")
