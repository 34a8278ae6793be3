"""Counts of values by their size, as reports and dashboards hold them and charts draw them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Histogram:
    """Counts in bins of equal width: bin i holds values from `low + i * step` up to, not including, the next."""

    low: float
    step: float
    counts: list[int]

    @property
    def middles(self) -> list[float]:
        """[bins] the value in the middle of each."""
        return [self.low + (index + 0.5) * self.step for index in range(len(self.counts))]
