"""A feature's page in lines, for a terminal: what it stands for and how far that goes, what it promotes, where it
fires, what is near it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gemscope.pages.labels import STANDS, short_label
from gemscope.pages.tables import Table
from gemscope.text.printable import clipped, readable, visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_EXAMPLES, _LOGITS, _NEAR = 5, 8, 3
"""How many of each are shown."""


def lines(one: Any, width: int) -> Iterator[RenderableType]:
    """Of an atlas's `Dashboard`; an example takes one line of `width` characters."""
    from rich.padding import Padding
    from rich.text import Text

    said = f": {readable(one.label)}" if one.label else ""
    yield Text(f"{one.model} · {one.source} · feature {one.index}{said}", style="bold")
    if one.dead:
        yield Text(f"  fired on none of {one.tokens:,} tokens")
    else:
        figures = f"({one.density:.3%}), max {one.max:.4g}, mean {one.mean:.4g}"
        yield Padding(Text(f"fired on {one.count:,} of {one.tokens:,} tokens {figures}"), (0, 0, 0, 2))
    for best in one.explanations[:1]:
        for name, told in (("rule", readable(best.rule)), *(("score", str(trial)) for trial in best.trials)):
            if told:
                yield Padding(Text(f"{name}  {told}"), (0, 0, 0, 2))
    for name, logits in (("promotes", one.promoted), ("suppresses", one.suppressed)):
        if logits:
            tokens = "  ".join(visible(logit.token) for logit in logits[:_LOGITS])
            yield Padding(Text(f"{name}  {tokens}"), (0, 0, 0, 2))
    for example in one.strongest[:_EXAMPLES]:
        value = f"  {example.value:8.3f}  "
        yield Text.assemble(value, _snippet(example.tokens, example.peak, width - len(value)))
    if near := one.neighbours[:_NEAR]:
        heads = ("nearest", "cosine", STANDS)
        rows = [(str(other.feature), f"{other.cosine:.2f}", short_label(other.label)) for other in near]
        yield Text()
        yield Padding(Table(heads, rows, left=heads[2:], wraps=heads[2:], bold=False), (0, 0, 0, 2))


def _snippet(tokens: Sequence[str], peak: int, room: int) -> Text:
    """The token on which a feature fires, in double brackets, and as much around it as there is room for: two thirds of
    that before it, where there is enough on both sides.
    """
    from rich.cells import cell_len
    from rich.text import Text

    at = f"[[{readable(clipped(tokens[peak], 40))}]]"
    left = max(0, room - cell_len(at))
    before, after = (readable("".join(some)) for some in (tokens[:peak], tokens[peak + 1 :]))
    before = _cut(before, max(left * 2 // 3, left - len(after)), first=1)
    return Text.assemble(before, (at, "bold"), _cut(after, left - cell_len(before), last=1))


def _cut(text: str, room: int, *, first: int = 0, last: int = 0) -> str:
    """As much of a text as fits, without its first or its last characters."""
    from rich.cells import cell_len

    text = text[max(0, len(text) - room) if first else 0 : None if first else room]
    while cell_len(text) > room:  # signs that are two characters wide
        text = text[first : len(text) - last]
    return text
