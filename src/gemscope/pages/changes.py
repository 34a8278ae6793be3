"""Text that a model wrote as HTML, each token marked by how much likelier or unlikelier something has made it.

Green shades are those of activations; unlikelier tokens have shades of their own and an underline, so that nobody has
to tell colours apart. The figures are there on hover and on focus, as everywhere.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence

from markupsafe import Markup, escape

from gemscope.pages.numbers import figure
from gemscope.text.printable import clipped, readable

STEPS = (0.1, 0.5, 1.5, 4.0)
"""Changes of the log-probability, in nats, where each shade begins: smaller ones are left unmarked."""

_LIKELIER = ("a2", "a4", "a6", "a8")
_UNLIKELIER = ("n1", "n2", "n3", "n4")


def changes(tokens: Sequence[str], before: Sequence[float], after: Sequence[float]) -> Markup:
    """A text; each token's log-probability `before` and `after`."""
    out, changed = [], [late - early for early, late in zip(before, after, strict=True)]
    strongest = max(range(len(changed)), key=lambda at: abs(changed[at]), default=-1)
    for at, (token, early, late) in enumerate(zip(tokens, before, after, strict=True)):
        text = str(escape(_shown(token))).replace("\n", "↵<br>")
        size = bisect(STEPS, abs(changed[at]))
        if not size:
            out.append(text)
            continue
        shade = (_LIKELIER if changed[at] > 0 else _UNLIKELIER)[size - 1] + (" p" if at == strongest else "")
        out.append(f'<mark class="{shade}" title="{_in_words(early, late)}">{text or "◦"}</mark>')
    return Markup(f'<token-strip class="whole" dir="auto">{"".join(out)}</token-strip>')


def _shown(token: str) -> str:
    """Line breaks stay; whatever else could hide or rearrange text is spelt out."""
    return "\n".join(map(readable, clipped(token).split("\n")))


def _in_words(early: float, late: float) -> str:
    change = late - early
    sign = "+" if change > 0 else ""
    return f"{sign}{figure(change)} nats: {_chance(early)} → {_chance(late)}"


def _chance(logprob: float) -> str:
    return f"{figure(100 * math.exp(min(logprob, 0.0)))} %"
