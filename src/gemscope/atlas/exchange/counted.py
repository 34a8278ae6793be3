"""How often a feature fired, and its histogram: counts out of what other tools round, or tell as shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gemscope.atlas.entry import Ints
from gemscope.atlas.exchange.intake import Taken


def firings(share: float, tokens: int, heights: Sequence[float], known: int, taken: Taken) -> tuple[int, Ints]:
    """How often a feature fired, and its histogram with as many counts.

    A share of the tokens is told with five digits at best; bars that are whole numbers and agree with it are counts,
    and exact. `known` firings are shown by the examples, which is the least there can be.
    """
    bars = np.nan_to_num(np.asarray(heights, np.float64), posinf=0.0, neginf=0.0).clip(0)
    total = float(bars.sum())
    whole = total > 0 and bool((bars == np.rint(bars)).all())
    if whole and abs(total / max(1, tokens) - share) <= max(5.1e-6, 1e-9 * share):
        taken.exact += 1
        return int(total), bars.astype(np.int64)
    count = max(round(share * tokens), known)
    taken.rounded += count > 0
    if total <= 0 or count == 0:
        return count, np.zeros(0, np.int64)
    # The shape is known, the scale is not: the bars as shares of the count, the largest remainders rounded up.
    shares = bars * (count / total)
    out = np.floor(shares).astype(np.int64)
    short = count - int(out.sum())
    out[np.argsort(out - shares, kind="stable")[:short]] += 1
    return count, out


def from_zero(values: Sequence[float], counts: Ints) -> tuple[float, Ints]:
    """Width of the bins and the counts of a histogram whose bars stand at `values`, on bins that begin at 0.

    A bar moves by half a bin at most. No histogram where the bars do not stand at equal distances.
    """
    middles = np.asarray(values, np.float64)
    none = 0.0, np.zeros(0, np.int64)
    if len(middles) != len(counts) or not len(counts) or not np.isfinite(middles).all():
        return none
    step = float((middles[-1] - middles[0]) / (len(middles) - 1)) if len(middles) > 1 else 2 * float(middles[0])
    if step <= 0 or (len(middles) > 1 and np.abs(np.diff(middles) - step).max() > 0.05 * step):
        return none
    first = round(middles[0] / step - 0.5)
    if not 0 <= first < 1000:
        return none
    return step, np.concatenate([np.zeros(first, np.int64), counts])
