"""Tokens of hostile text as HTML: escaped, odd characters spelt out, the active ones marked by how strong they are.

Only active tokens get an element; what lies between them is one run of text. Shades are the classes `a0` to `a9`.
"""

from __future__ import annotations

import math
import re
from bisect import bisect, bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import compress
from typing import Protocol, runtime_checkable

from markupsafe import Markup, escape

from gemscope.pages.numbers import figure
from gemscope.text.pieces import Piece, bytes_of, like, told
from gemscope.text.printable import LONG, ODD, clipped, readable, sign, visible

NEAR = 16
"""Tokens on either side of an example's own that a snippet shows."""

_SHORT = 4 * LONG
"""Characters of a text in which no token is looked at for being too long."""

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
    @property
    def source(self) -> str: ...
    @property
    def license(self) -> str: ...


def groups(headed: Iterable[tuple[str, Iterable[Example]]], maximum: float) -> Markup:
    """Lists of examples, each below a heading that is HTML already: their activations, their texts, where these are
    from.
    """
    woven = _Woven(maximum)
    for heading, ones in headed:
        woven.tag(f'{heading}<ol class="strips">')
        for one in ones:
            woven.example(one, f'<li><b class="value">{figure(one.value)}</b>', f"{_place(one)}</li>")
        woven.tag("</ol>")
    return Markup(woven.html())


def example(one: Example, maximum: float) -> Markup:
    """An example as a strip in two halves: what comes before its token, and from there on.

    What is further than `NEAR` tokens away is in elements of its own, for the style sheet to leave out.
    """
    woven = _Woven(maximum)
    woven.example(one)
    return Markup(woven.html())


def strip(
    tokens: Sequence[str], values: Sequence[float], maximum: float, *, counted: Sequence[bool] | None = None
) -> Markup:
    """A whole text; shades are relative to `maximum`. Tokens that are not `counted` are set apart."""
    woven = _Woven(maximum)
    woven.tag('<token-strip class="whole" dir="auto">')
    woven.whole(tokens, values, counted)
    woven.tag("</token-strip>")
    return Markup(woven.html())


def token(text: str) -> Markup:
    """One token for a table or a sentence. A piece of a character has one beside it that begins so."""
    shown = visible(clipped(text, 60))
    if (raw := bytes_of(shown)) is None:
        return Markup(f'<code class="t" dir="auto">{escape(shown)}</code>')
    beside = Markup(" <small>{}…</small>").format(letter) if (letter := like(raw)) else ""
    return Markup('<code class="t" dir="auto" title="{}">{}{}</code>').format(told(shown), shown, beside)


def shade(share: float) -> int:
    """Which of the ten shades stands for a share of the maximum: they grow with its logarithm."""
    return bisect(_BOUNDS, share)


PART = "◦"
"""Stands for a token that ends within a character and has no text of its own."""
_CUT = "␞"
"""Stands where a tag goes."""
_END = "␟"
"""Stands where a mark ends."""
_HELD = {"\x1e": _CUT, "\x1f": _END}
"""What stands for these signs where they are text. Itself it is spelt out, like all odd characters."""
_HOLD = str.maketrans({held: sign(held) for held in _HELD} | {ours: held for held, ours in _HELD.items()})
_OPEN = [f"<mark class=a{step} title=" for step in range(len(_BOUNDS) + 1)]
_HEAD, _MIDDLE, _TAIL = "<token-strip dir=auto><span class=b>", "</span><span class=e>", "</span></token-strip>"
_FAR, _NEAR = "<span class=f>", "</span>"


class _Woven:
    """Texts with tags in them.

    A page has thousands of tokens and marks few. So the text of all is escaped in one piece, with signs where the tags
    go, which are woven in at last: no token is touched by itself but those that are marked.
    """

    def __init__(self, maximum: float) -> None:
        self._scale = 1 / maximum if maximum > 0 else math.inf
        self._text: list[str] = []
        self._tags: list[str] = []
        """In the order of the signs."""

    def tag(self, html: str) -> None:
        """Puts it after all that there is."""
        self._text.append(_CUT)
        self._tags.append(html)

    def example(self, one: Example, before: str = "", after: str = "") -> None:
        """Adds a strip in two halves, between tags."""
        tokens = _clean(one.tokens)
        values, peak, hints = _whole_characters(tokens, one.values, one.peak)
        marks, tags = self._marked(tokens, values, peak, hints)
        near, far = peak - NEAR, peak + NEAR + 1
        self._text.append(_CUT)
        self._tags.append(before + _HEAD)
        # From the last to the first: each goes in front of the tags of the token that it stands before.
        if far < len(tokens):
            tokens[far] = _CUT + tokens[far]
            tags.insert(bisect_left(marks, far), _FAR)
            after = _NEAR + _TAIL + after
        else:
            after = _TAIL + after
        tokens[peak] = _CUT + tokens[peak]
        tags.insert(bisect_left(marks, peak), _MIDDLE)
        if near > 0:
            tokens[near] = _CUT + tokens[near]
            tags.insert(bisect_left(marks, near), _NEAR)
            self._tags[-1] += _FAR
        self._text += tokens
        self._text.append(_CUT)
        self._tags += tags
        self._tags.append(after)

    def whole(self, tokens: Sequence[str], values: Sequence[float], counted: Sequence[bool] | None) -> None:
        """Adds a text."""
        shown, peak = _clean(tokens), max(range(len(values)), key=values.__getitem__, default=-1)
        if counted is not None:
            values = [value if counts else 0.0 for value, counts in zip(values, counted, strict=True)]
        values, peak, hints = _whole_characters(shown, values, peak)
        pieces = {index for index, token in enumerate(shown) if isinstance(token, Piece) and not token}
        marks, tags = self._marked(shown, values, peak, hints)
        aside = [index for index, counts in enumerate(counted or ()) if not (counts or index in pieces)]
        for index in [index for index in aside if index not in hints][::-1]:
            shown[index] = f"{_CUT}{shown[index] or PART}{_CUT}"
            place = bisect_left(marks, index)
            tags[place:place] = ('<span class="u" title="not counted">', "</span>")
        self._text += shown
        self._tags += tags

    def html(self) -> str:
        """All of it."""
        html = str(escape("".join(self._text))).replace(_END, "</mark>")
        plain = html.isprintable()
        if not plain:
            # The line break itself follows its sign; the style sheet hides it unless the reader asks for line breaks.
            html = html.replace("\n", "↵<br>")
        pieces = html.split(_CUT)
        if not plain and not html.isprintable():
            pieces = [piece if piece.isprintable() else _ODD.sub(_spelt, piece) for piece in pieces]
        out = [""] * (len(pieces) + len(self._tags))
        out[::2], out[1::2] = pieces, self._tags
        return "".join(out)

    def _marked(
        self, tokens: list[str], values: Sequence[float], peak: int, hints: Mapping[int, str]
    ) -> tuple[list[int], list[str]]:
        """Puts signs around active tokens and those with hints. Which these are, and a tag for each."""
        scale = self._scale
        marks = [*compress(range(len(values)), values)]
        found = [values[index] for index in marks]
        if found and not min(found) > 0:
            marks = [index for index in marks if values[index] > 0]
            found = [values[index] for index in marks]
        if found and max(found) >= 999.5:
            tags = [f"{_OPEN[bisect(_BOUNDS, value * scale)]}{figure(value)}>" for value in found]
        else:  # most are small, and this is quicker
            tags = [f"{_OPEN[bisect(_BOUNDS, value * scale)]}{value:.3g}>" for value in found]
        if hints:
            opened = dict(zip(marks, tags, strict=True))
            for index, hint in hints.items():
                shaded, _, value = opened.get(index, "<mark class=c title=>")[:-1].partition(" title=")
                opened[index] = f'{shaded} title="{value} = {hint}">' if value else f'{shaded} title="{hint}">'
            marks, tags = sorted(opened), [opened[index] for index in sorted(opened)]
        for index in marks:
            tokens[index] = f"{_CUT}{tokens[index] or PART}{_END}"
        if peak in marks and values[peak] > 0:
            tags[marks.index(peak)] = _peak(tags[marks.index(peak)])
        return marks, tags


def _peak(tag: str) -> str:
    """The mark of the token that an example is about."""
    begun, _, rest = tag.partition(" title=")
    return f'{begun[:6]}class="{begun[12:]} p" title={rest}'


def _clean(tokens: Sequence[str]) -> list[str]:
    """Without our own signs in them, and without long tokens. A text that is not long as a whole keeps all of each."""
    whole = "".join(tokens)
    if len(whole) <= _SHORT and not (_CUT in whole or _END in whole or "\x1e" in whole or "\x1f" in whole):
        return [*tokens]
    clean = [clipped(token).translate(_HOLD) for token in tokens]
    return [Piece(text, one.raw) if isinstance(one, Piece) else text for text, one in zip(clean, tokens, strict=True)]


def _whole_characters(
    tokens: Sequence[str], values: Sequence[float], peak: int
) -> tuple[Sequence[float], int, dict[int, str]]:
    """Pieces of a character as one with the token that completes it: that has the greatest of their activations, and
    the hint says which bytes and which activation each of them has. Activations, peak, and hints by token.
    """
    hints: dict[int, str] = {}
    if Piece not in map(type, tokens):
        return values, peak, hints
    found, begun, raw = [*values], -1, list[bytes]()
    for index, token in enumerate(tokens):
        if begun >= 0 and token:
            if token[0] != "\ufffd":
                raw.append(token[0].encode()[sum(map(len, raw)) :])
                hints[index] = " · ".join(map(_byted, raw, values[begun : index + 1]))
                found[index] = max(values[begun : index + 1])
                inside = [one for one in range(begun, index) if not tokens[one]]
                for one in inside:
                    found[one] = 0.0
                peak = index if peak in inside else peak
            begun, raw = -1, []
        if isinstance(token, Piece):
            begun = index if begun < 0 else begun
            raw.append(token.raw)
        elif begun >= 0:
            raw.append(b"")
    return found, peak, hints


def _byted(raw: bytes, value: float) -> str:
    return f"{raw.hex(' ')}: {figure(value)}" if value > 0 else raw.hex(" ")


def _spelt(found: re.Match[str]) -> str:
    letter = found.group()
    return _HELD.get(letter) or sign(letter)


def _place(one: Example) -> str:
    """Where an example is from: the source of its document, which itself is a number."""
    if one.document < 0:
        return ""
    name, license_ = _named(one.source, one.license)
    within = f"document {one.document}, token {one.position}{license_}"
    return f'<small class=at title="{within}">{name or one.document}</small>'


@lru_cache(maxsize=512)
def _named(source: str, license_: str) -> tuple[str, str]:
    """A source and its licence as HTML: few are named again and again."""
    return str(escape(readable(clipped(source, 60)))), str(escape(f" · {readable(license_)}" if license_ else ""))
