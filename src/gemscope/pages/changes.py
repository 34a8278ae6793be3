"""Text that a model wrote as HTML, each token marked by how much likelier or unlikelier something has made it.

Green shades are those of activations; unlikelier tokens have shades of their own and an underline, so that nobody has
to tell colours apart. The figures are there on hover and on focus, as everywhere.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup, escape

from gemscope.pages.numbers import figure
from gemscope.text.printable import clipped, readable

STEPS = (0.1, 0.5, 1.5, 4.0)
"""Changes of the log-probability, in nats, where each shade begins: smaller ones are left unmarked."""

_LIKELIER = ("a2", "a4", "a6", "a8")
_UNLIKELIER = ("n1", "n2", "n3", "n4")


def changes(tokens: Sequence[str], before: Sequence[float], after: Sequence[float]) -> Markup:
    """A text; each token's log-probability `before` and `after`. Pieces of a character are one with the token that
    completes it, and as likely as all of them in a row.
    """
    ends = [index + 1 for index, token in enumerate(tokens) if token or index + 1 == len(tokens)]
    whole = [(start, end, sum(before[start:end]), sum(after[start:end])) for start, end in pairwise([0, *ends])]
    out, changed = [], [late - early for _, _, early, late in whole]
    strongest = max(range(len(changed)), key=lambda at: abs(changed[at]), default=-1)
    for at, (start, end, early, late) in enumerate(whole):
        text = str(escape(_shown(tokens[end - 1]))).replace("\n", "↵<br>")
        size = bisect(STEPS, abs(changed[at]))
        if not size:
            out.append(text)
            continue
        pieces = f" ({end - start} tokens)" if end - start > 1 else ""
        shade = (_LIKELIER if changed[at] > 0 else _UNLIKELIER)[size - 1] + (" p" if at == strongest else "")
        out.append(f'<mark class="{shade}" title="{_in_words(early, late)}{pieces}">{text or "◦"}</mark>')
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
