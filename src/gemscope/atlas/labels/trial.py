"""What came of running an explanation's rule on text that it was not made from: counts, and what they tell.

Text is cut into windows of 32 tokens. In a strong one the feature fires at half its largest activation or more, in a
firing one anywhere; in a silent one nowhere. A rule says yes to a window where it holds on any of its counted tokens.
Beside each count is that of a control: another feature's rule, on the same windows. What it gets is what windows and
formula give to any rule.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from gemscope.features.intervals import Interval, balanced_accuracy

On = Literal["strong", "firing"]
WORDS: dict[On, str] = {"strong": "where it fires strongly", "firing": "wherever it fires"}
GOOD = 0.8
"""Balanced accuracy above which a label is called good."""
LEAST = 5
"""Windows of each kind below which nothing is said."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One explanation on one text."""

    text: str = ""
    """Which; "" for the rows that the atlas itself holds out."""
    strong: int
    """Windows."""
    strong_hits: int
    """Of them, those to which the rule says yes."""
    strong_control: int
    """And to which the control does."""
    firing: int
    firing_hits: int
    firing_control: int
    silent: int
    silent_hits: int
    silent_control: int
    strong_tokens: int
    """Tokens on which it fires at half its largest activation or more."""
    strong_named: int
    """Of them, those on which the rule holds."""
    strong_borrowed: int
    """And on which the control does."""
    firing_tokens: int
    firing_named: int
    firing_borrowed: int
    named: int
    """Counted tokens on which the rule holds."""
    borrowed: int
    """And the control."""

    def accuracy(self, on: On = "strong") -> Interval | None:
        """Balanced accuracy (detection): the mean of the share of windows in which the feature fires that the rule says
        yes to, and of silent ones that it says no to. None for fewer than five of either.
        """
        return self._accuracy(getattr(self, on), getattr(self, f"{on}_hits"), self.silent_hits)

    def control(self, on: On = "strong") -> float | None:
        """The same of the control."""
        found = self._accuracy(getattr(self, on), getattr(self, f"{on}_control"), self.silent_control)
        return None if found is None else found.value

    def _accuracy(self, windows: int, hits: int, alarms: int) -> Interval | None:
        if min(windows, self.silent) < LEAST:
            return None
        return balanced_accuracy(hits, windows, self.silent - alarms, self.silent)

    @property
    def precision(self) -> float | None:
        """Share of the tokens on which the rule holds that the feature fires on; None where it holds on none."""
        return self.firing_named / self.named if self.named else None

    def recall(self, on: On = "strong") -> float | None:
        """Share of the tokens on which the feature fires (so) on which the rule holds; None where it does on none."""
        tokens = getattr(self, f"{on}_tokens")
        return getattr(self, f"{on}_named") / tokens if tokens else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the counts, and what they tell."""
        told: dict[str, Any] = {"text": self.text or None}
        for on in get_args(On):
            found = self.accuracy(on)
            told[on] = {
                "windows": getattr(self, on),
                "balanced_accuracy": found and found.value,
                "interval": found and [found.low, found.high],
                "control": self.control(on),
                "recall": self.recall(on),
            }
        return told | {"precision": self.precision, "counts": {name: getattr(self, name) for name in COUNTS}}

    def __str__(self) -> str:
        parts = []
        for on, words in WORDS.items():
            if found := self.accuracy(on):
                parts.append(
                    f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f}) {words}, on {getattr(self, on):,} "
                    f"windows and {self.silent:,} silent ones; shuffled {self.control(on):.2f}"
                )
        where = f"on {self.text}" if self.text else "on text held out"
        return f"{where}: " + ("; ".join(parts) or "it fires too seldom to tell")


COUNTS = tuple(field.name for field in fields(Trial) if field.name != "text")
