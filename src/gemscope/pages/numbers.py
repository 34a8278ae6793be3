"""Numbers and counts in few characters."""

import math


def short(count: float) -> str:
    """A count in few characters: 950, 12k, 3.4M."""
    for bound, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * bound:  # what rounds to a thousand of one is one of the next
            return f"{count / bound:.3g}{letter}"
    return f"{count:.3g}"


def wide(features: int) -> str:
    """How many features an SAE has, as names of SAEs say it: 16k for 16,384, 1m for 1,048,576."""
    for size, letter in ((10**6, "m"), (1000, "k")):
        if features >= size:
            return f"{features // size}{letter}"
    return str(features)


def percent(share: float) -> str:
    """A share in per cent, three significant digits."""
    return f"{figure(100 * share)} %"


def figure(value: float) -> str:
    """A number in three significant digits, with a true minus sign."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "—"
    size = abs(value)
    text = f"{size:,.0f}" if size >= 999.5 else f"{size:.3g}"
    return f"−{text}" if value < 0 and text != "0" else text


def signed(value: float) -> str:
    """A number with its sign, also where it is greater than 0."""
    return f"+{figure(value)}" if value > 0 else figure(value)


def often(density: float) -> str:
    """A density as something to picture: one token in so many."""
    return f"1 token in {1 / density:,.0f}" if density > 0 else "no token"


def many(count: int, noun: str) -> str:
    """A count with its noun: 1 feature, 2,304 features."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
