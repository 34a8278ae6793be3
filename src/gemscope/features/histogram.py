"""Counts of values by their size, as reports and dashboards hold them and charts draw them."""

from collections.abc import Sequence
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

    @property
    def logarithmic(self) -> bool:
        """Whether a picture shows the logarithm of its counts: else the smallest bins could not be seen."""
        return is_logarithmic(self.counts)

    def below(self, share: float) -> float:
        """The upper end of the bin in which so large a share of all values ends; `low` where there are none."""
        total, seen = sum(self.counts), 0
        for index, count in enumerate(self.counts, 1):
            seen += count
            if count and seen >= share * total:
                return self.low + index * self.step
        return self.low


def is_logarithmic(counts: Sequence[int]) -> bool:
    """Whether the fullest bin holds more than 50 times what the emptiest holds that is not empty."""
    return max(counts, default=0) > 50 * min((count for count in counts if count), default=0)
