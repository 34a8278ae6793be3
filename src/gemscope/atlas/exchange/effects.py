"""What features promote by the measured effect of their site, among the fields of other tools: under names of our own,
as theirs are those of the direct path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemscope.atlas.dashboard import Dashboard, Logit
from gemscope.atlas.entry import Written
from gemscope.atlas.exchange.numbers import short
from gemscope.atlas.files.manifest import Measured
from gemscope.checked import declared
from gemscope.errors import CorruptFile


@dataclass(frozen=True, kw_only=True)
class _Said:
    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]
    spread: float
    agreement: float
    this: float
    words: str = ""


def effect_told(page: Dashboard, *, piece: Callable[[str], str] = str, unit: float = 1.0) -> dict[str, Any] | None:
    """Of a feature with a decoder of norm `unit`, as for one of norm 1; tokens as `piece` writes them."""
    one = page.writes
    if one is None:
        return None

    def told(some: list[Logit]) -> list[tuple[str, float]]:
        return [(piece(logit.token), short(logit.value / unit)) for logit in some]

    return {
        "promoted": told(one.promoted),
        "suppressed": told(one.suppressed),
        "spread": one.spread / unit,
        "agreement": one.agreement,
        "this": one.this,
        "words": one.words or "",
    }


def effect_read(said: object, id_of: Callable[[str], int], where: str) -> Written | None:
    """What `effect_told` told; None where there is nothing. Raises CorruptFile."""
    if said is None:
        return None
    one = declared(said, _Said, where=f"{where}: its effect")
    if not one.spread > 0:
        raise CorruptFile(f"{where}: its effect has a spread of {one.spread:g}: above 0 is expected")
    ids = {name: np.array([id_of(token) for token, _ in getattr(one, name)], np.int64) for name in _LISTS}
    values = {name: np.array([value for _, value in getattr(one, name)], np.float32) for name in _LISTS}
    return Written(
        promoted=ids["promoted"],
        promoted_values=values["promoted"],
        suppressed=ids["suppressed"],
        suppressed_values=values["suppressed"],
        spread=one.spread,
        agreement=one.agreement,
        this=one.this,
        words=one.words,
    )


_LISTS = ("promoted", "suppressed")


def measured_read(said: object, where: str) -> Measured | None:
    """What a manifest said of the effect; None where it said nothing. Raises CorruptFile."""
    return None if said is None else declared(said, Measured, where=f"{where}: the effect")
