"""How strong an edit is: a number in the units that mean something, and as people write it. A number alone is an
activation (raw), in Python, in the shell, in an address and in Neuronpedia's call alike; other units are named.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from gemscope.errors import InputError

Unit = Literal["raw", "max", "norm"]
"""Activations, multiples of the feature's largest activation, shares of the site's median norm."""

_WRITTEN = re.compile(rf"(?P<value>.+?) *(?P<unit>{'|'.join(get_args(Unit))})?")


@dataclass(frozen=True)
class Strength:
    """One strength in three units; those that are not known are None.

    raw      in units of the feature's activation: it adds raw · d, with d the decoder row (times the token's scale,
             where the SAE has a norm)
    of_max   raw / the feature's largest activation on some text
    of_norm  raw · ‖d‖ / median ‖x‖ of counted tokens at the site that is written to
    """

    raw: float
    of_max: float | None = None
    of_norm: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.raw):
            raise InputError(f"strength {self.raw}: expected a finite number")

    @classmethod
    def of(cls, value: Strength | float) -> Strength:
        """A plain number is in raw units."""
        return value if isinstance(value, Strength) else cls(float(value))

    def __str__(self) -> str:
        parts = [f"{self.raw:.4g} raw"]
        if self.of_max is not None:
            parts.append(f"{self.of_max:.3g} × max")
        if self.of_norm is not None:
            parts.append(f"{self.of_norm:.3g} × median norm")
        return " = ".join(parts)


@dataclass(frozen=True)
class Amount:
    """How strongly, before anybody knows what it is measured against."""

    value: float
    unit: Unit = "raw"

    @classmethod
    def read(cls, given: str) -> Amount:
        """`2max`, `0.5norm`, `30raw`, `30`: the last two are the same. Raises InputError."""
        found = _WRITTEN.fullmatch(given.strip())
        try:
            value = float(found["value"]) if found else math.nan
        except ValueError:
            value = math.nan
        if found is None or not math.isfinite(value):
            raise InputError(f"{given[:40]!r} is no strength: expected such as 2max, 0.5norm or 30 (raw)")
        unit: Unit = found["unit"] or "raw"  # type: ignore[assignment]
        return cls(value, unit)

    def __str__(self) -> str:
        return f"{self.value:g}{'' if self.unit == 'raw' else self.unit}"

    def __mul__(self, times: float) -> Amount:
        return replace(self, value=self.value * times)
