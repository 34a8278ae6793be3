"""One value as the length of a line."""

from __future__ import annotations

from functools import cache

from markupsafe import Markup


def bar(share: float, *, both: bool = False) -> Markup:
    """A value as the length of a line; the number stands beside it, so screen readers are spared it.

    Above 0 it grows to the right, below 0 to the left and in another colour: from the ends, or for values of `both`
    signs from the middle.
    """
    return _drawn(round(100 * min(1.0, abs(share))), share < 0, both)


@cache
def _drawn(long: int, minus: bool, both: bool) -> Markup:
    """One of the few hundred that there are."""
    left, wide, zero = (-100, 200, '<rect class="zero" x="-2" width="4" height="4"/>') if both else (0, 100, "")
    start = (0 if both else 100) - long if minus else 0
    return Markup(
        f'<svg class="bar" viewBox="{left} 0 {wide} 4" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect{" class=minus" if minus else ""} x="{start}" width="{long}" height="4"/>{zero}</svg>'
    )
