"""Tokens of hostile text as HTML: escaped, odd characters spelt out, the active ones marked by how strong they are.

Only active tokens get an element; what lies between them is one run of text. Shades are the classes `a0` to `a9`.
"""

from __future__ import annotations

import math
import re
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from markupsafe import Markup, escape

from gemscope.text.printable import LONG, ODD, clipped, readable, sign, visible

NEAR = 16
"""Tokens on either side of an example's own that a snippet shows."""

_BETWEEN = "␞"
"""Stands between tokens while they are escaped together."""

_ODD = re.compile(f"[{ODD}]")
# Opacity is 0.05 + 0.95 · log10(1 + 9 · share), in ten steps: where each but the first begins.
_BOUNDS = [(10 ** ((step + 0.5) / 9) - 1) / 9 for step in range(9)]


@runtime_checkable
class Example(Protocol):
    """What is read of an example."""

    @property
    def tokens(self) -> Sequence[str]: ...
    @property
    def values(self) -> Sequence[float]: ...
    @property
    def peak(self) -> int: ...
    @property
    def value(self) -> float: ...
    @property
    def document(self) -> int: ...
    @property
    def position(self) -> int: ...


def examples(ones: Iterable[Example], maximum: float, documents: Mapping[int, Sequence[str]]) -> Markup:
    """Examples as a list: each with its activation, its text, and where that is from (`documents`: words by index)."""
    return Markup(f'<ol class="strips">{"".join([_item(one, maximum, documents) for one in ones])}</ol>')


def example(one: Example, maximum: float) -> Markup:
    """An example as a strip in two halves: what comes before its token, and from there on.

    What is further than `NEAR` tokens away is in elements of its own, for the style sheet to leave out.
    """
    return Markup(_halves(one, maximum))


def strip(
    tokens: Sequence[str], values: Sequence[float], maximum: float, *, counted: Sequence[bool] | None = None
) -> Markup:
    """A whole text; shades are relative to `maximum`. Tokens that are not `counted` are set apart."""
    peak = max(range(len(values)), key=values.__getitem__, default=-1)
    out = _marked(tokens, values, maximum, peak)
    for index, counts in enumerate(counted or ()):
        if not counts:
            out[index] = f'<span class="u" title="not counted">{_escaped(clipped(tokens[index])) or _PART}</span>'
    return Markup(f'<token-strip class="whole" dir="auto">{"".join(out)}</token-strip>')


def token(text: str) -> Markup:
    """One token for a table or a sentence."""
    return Markup(f'<code class="t" dir="auto">{escape(visible(clipped(text, 60)))}</code>')


def shade(share: float) -> int:
    """Which of the ten shades stands for a share of the maximum: they grow with its logarithm."""
    return bisect(_BOUNDS, share)


def figure(value: float) -> str:
    """A number in three significant digits, with a true minus sign."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "—"
    size = abs(value)
    text = f"{size:,.0f}" if size >= 999.5 else f"{size:.3g}"
    return f"−{text}" if value < 0 and text != "0" else text


_PART = "◦"
"""Stands for a token that ends within a character and has no text of its own."""


def _item(one: Example, maximum: float, documents: Mapping[int, Sequence[str]]) -> str:
    place = ""
    if one.document >= 0:
        source = documents.get(one.document)
        title = f' title="{escape(readable(", ".join(source)))}"' if source else ""
        place = (
            f'<small class="at"{title}>{one.document}<span class="unseen">, token </span>'
            f'<span aria-hidden="true">:</span>{one.position}</small>'
        )
    return f'<li><b class="value">{figure(one.value)}</b>{_halves(one, maximum)}{place}</li>'


def _halves(one: Example, maximum: float) -> str:
    peak = one.peak
    out = _marked(one.tokens, one.values, maximum, peak)
    near = max(0, peak - NEAR)
    before, after = "".join(out[near:peak]), "".join(out[peak : peak + NEAR + 1])
    if near:
        before = f'<span class="f">{"".join(out[:near])}</span>{before}'
    if len(out) > peak + NEAR + 1:
        after = f'{after}<span class="f">{"".join(out[peak + NEAR + 1 :])}</span>'
    return f'<token-strip dir="auto"><span class="b">{before}</span><span class="e">{after}</span></token-strip>'


def _marked(tokens: Sequence[str], values: Sequence[float], maximum: float, peak: int) -> list[str]:
    """Each token as HTML: text, or a mark where it is active."""
    out = _escaped(_BETWEEN.join(tokens)).split(_BETWEEN)
    if len(out) != len(tokens) or max(map(len, out)) > LONG:  # a token that is long, or holds the sign
        out = [_escaped(clipped(token)) for token in tokens]
    scale = 1 / maximum if maximum > 0 else math.inf
    for index in [index for index, value in enumerate(values) if value > 0]:
        value = values[index]
        shown = f"{value:.3g}" if value < 999.5 else figure(value)
        place = f"a{bisect(_BOUNDS, value * scale)}{' p' if index == peak else ''}"
        out[index] = f'<mark class="{place}" title="{shown}">{out[index] or _PART}</mark>'
    return out


def _escaped(text: str) -> str:
    html = str(escape(text))
    if html.isprintable():
        return html
    # The line break itself follows its sign; the style sheet hides it unless the reader asks for line breaks.
    html = html.replace("\n", "↵<br>")
    return html if html.isprintable() else _ODD.sub(lambda found: sign(found.group()), html)
