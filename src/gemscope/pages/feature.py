"""A feature's page in lines, for a terminal or a pipe, in the order in which a person reads: what it stands for and how
far that goes, where it fires and how strongly, what it promotes, what is near it, where all that is from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gemscope.activations.site import described
from gemscope.pages.blocks import bars, spark
from gemscope.pages.chips import shade
from gemscope.pages.labels import STANDS, said, short_label
from gemscope.pages.links import Links, NoLinks, neuronpedia
from gemscope.pages.numbers import figure, often, percent, signed
from gemscope.pages.plain import Shown
from gemscope.pages.strips import PART
from gemscope.pages.tables import Cell, Table
from gemscope.text.pieces import whole
from gemscope.text.printable import clipped, readable, visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.text import Text

_EXAMPLES, _LOGITS, _NEAR = 8, 8, 5
"""How many of each are shown."""
_PICTURE = 64
"""Characters of a histogram at most."""


@dataclass(frozen=True)
class Printed(Shown):
    """A feature of an atlas, with links to where its page and those of its relatives lie, and where all is from."""

    feature: Any
    """A `Dashboard`."""
    manifest: Any
    links: Links = field(default_factory=NoLinks)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.padding import Padding
        from rich.text import Text

        yield from lines(self.feature, options.max_width, drawn=console.is_terminal, links=self.links)
        yield Text()
        yield Padding(Text(came_from(self.manifest), style="dim"), (0, 0, 0, 2))
        for name, url in self.ways():
            yield linked(f"  {name:<13}", url)

    def ways(self) -> Iterator[tuple[str, str]]:
        """Where else the feature is shown, and the address."""
        if url := self.links.feature(self.feature.index):
            yield "page", url
        if url := neuronpedia(self.manifest.neuronpedia_id, self.feature.index):
            yield "Neuronpedia", url


def lines(one: Any, width: int, *, drawn: bool = False, links: Links | None = None) -> Iterator[RenderableType]:
    """Of an atlas's `Dashboard`; an example takes one line of `width` characters. With pictures where they are `drawn`
    for eyes, else in figures: whoever reads lines has these.
    """
    from rich.padding import Padding
    from rich.text import Text

    links = links or NoLinks()
    label = one.label or one.meaning
    yield Text(f"feature {one.index} · {said(label) if label else 'no label'}", style="bold")
    standing = _standing(one.explanations[0]) if one.label else ""
    yield Padding(Text(f"of {one.model} · {one.source}{standing}"), (0, 0, 0, 2))
    for best in one.explanations[:1]:
        for name, told in (("rule", readable(best.rule)), *(("score", str(trial)) for trial in best.trials)):
            if told:
                yield Padding(Text(f"{name}  {told}"), (0, 0, 0, 2))
    if one.dead:
        yield Text(f"  fired on none of {one.tokens:,} tokens")
    else:
        fired = f"fires on {percent(one.density)} of tokens ({often(one.density)}; {one.count:,} of {one.tokens:,})"
        yield Padding(Text(f"{fired}, max {figure(one.max)}, mean {figure(one.mean)}"), (0, 0, 0, 2))
    if examples := one.strongest[:_EXAMPLES]:
        yield Text()
        yield from (example_line(example, one.max, width) for example in examples)
    if one.histogram and not one.dead:
        yield Text()
        yield from strengths(one.histogram, width - 2, drawn=drawn)
    yield from _logits(one)
    yield from _relatives("nearest", "cosine", [(near, near.cosine) for near in one.neighbours[:_NEAR]], drawn, links)
    along = [(partner, partner.share) for partner in one.coactive[:_NEAR]]
    yield from _relatives("fires along", "share", along, drawn, links)
    for related in reversed(one.related):
        yield from _kindred(related)
    if one.life is not None and len(one.life.chain) > 2:
        yield Text(f"  there from {readable(one.life.born)} to {readable(one.life.gone)}")


def _logits(one: Any) -> Iterator[RenderableType]:
    """What it promotes and suppresses: by the measured effect first, where its halves agree, and by the direct path."""
    from rich.padding import Padding
    from rich.text import Text

    found = [("promotes", one.promoted), ("suppresses", one.suppressed)]
    if one.writes and one.writes.agreed:
        directly = [(f"directly {name}", some) for name, some in found]
        found = [("promotes", one.writes.promoted), ("suppresses", one.writes.suppressed), *directly]
    if any(some for _, some in found):
        yield Text()
    for name, some in found:
        if some:
            tokens = "  ".join(visible(logit.token) for logit in some[:_LOGITS])
            yield Padding(Text(f"{name}  {tokens}"), (0, 0, 0, 2))
    if one.writes and one.writes.agreed:
        said = f"measured over text, whose halves agree to {one.writes.agreement:.2f}"
        where = f"{percent(one.writes.this)} of it at once, the rest on later positions"
        yield Padding(Text(f"({said}; {where})", style="dim"), (0, 0, 0, 2))
    if one.output:
        told = one.output.measured or one.output
        likely = f"{percent(told.mass)} likely to come next, {percent(told.unedited)} without it"
        odds = f"{likely}, {percent(told.control)} with random features"
        yield Padding(Text(f"turned up to its max  {one.output.verdict}: what it promotes is {odds}"), (0, 0, 0, 2))


def _standing(best: Any) -> str:
    """Who says what a feature stands for, and how far that is right where it was measured."""
    who = f"; label by {readable(best.author or best.method)}"
    return who + (", not scored" if best.score is None else f", score {best.score:.2f}")


def came_from(manifest: Any) -> str:
    """Model, SAE and text of an atlas, in a line."""
    at = described(manifest.site, manifest.site_out)
    parts = ", ".join(part.name for part in manifest.parts)
    return readable(
        f"From {manifest.tokens:,} tokens of {parts or 'no text'}, which {manifest.model} read at {at} through "
        f"{manifest.sae}"
    )


def linked(before: str, url: str) -> Text:
    """An address in full, which a terminal that knows links makes one; it is one line, however long."""
    from rich.text import Text

    return Text.assemble(before, (url, f"link {url}"), no_wrap=True, overflow="ignore")


def number(index: int, links: Links) -> Cell:
    """A feature's number, in a terminal with a link to its page."""
    from rich.text import Text

    url = links.feature(index)
    return Cell(Text.assemble((str(index), f"link {url}")) if url else str(index))


def example_line(one: Any, top: float, width: int) -> Text:
    """An example's activation, and as much of its text around its token as there is room for."""
    from rich.text import Text

    value = f"  {figure(one.value):>6}  "
    return Text.assemble(value, snippet(one.tokens, one.values, one.peak, top, width - len(value)))


def strengths(histogram: Any, room: int, *, drawn: bool) -> Iterator[RenderableType]:
    """How strongly it fires: drawn over an axis, or the figures that say the same."""
    from rich.text import Text

    if not drawn:
        half, most = (figure(histogram.below(share)) for share in (0.5, 0.9))
        yield Text(f"  half of its activations are below {half}, nine in ten below {most}")
        return
    line, high, logarithmic = spark(histogram, min(_PICTURE, room))
    what = f"activation{', counts on a log scale' if logarithmic else ''}"
    yield Text.assemble("  ", (line, "green"))
    yield Text(f"  {axis(histogram.low, high, len(line), what)}", style="dim")


def axis(low: float, high: float, wide: int, what: str) -> str:
    """What stands below a line of `wide` signs: where it begins and ends, and of what it is, between them if there is
    room.
    """
    start, end = figure(low), figure(high)
    between = wide - len(start) - len(end)
    if between >= len(what) + 4:
        return f"{start}{what:^{between}}{end}"
    return f"{start}{' ' * max(1, between)}{end}  {what}"


def _relatives(
    head: str, measure: str, found: Sequence[tuple[Any, float]], drawn: bool, links: Links
) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    if not found:
        return
    drawing = bars([value for _, value in found], [False] * len(found), most=1.0) if drawn else [""] * len(found)
    heads = (head, measure, *([""] if drawn else []), STANDS)
    rows: list[tuple[Cell | str, ...]] = [
        (
            number(other.feature, links),
            f"{value:.2f}",
            *([Cell(bar, "green")] if drawn else []),
            short_label(other.label) if other.label or other.token is None else _on(other.token),
        )
        for (other, value), bar in zip(found, drawing, strict=True)
    ]
    yield Text()
    yield Padding(Table(heads, rows, left=heads[2:], wraps=heads[-1:], bold=False), (0, 0, 0, 2))


def _kindred(related: Any) -> Iterator[RenderableType]:
    """Of an SAE at another site, which has links of its own."""
    from rich.padding import Padding
    from rich.text import Text

    if not related.features:
        return
    heads = (
        f"{'above' if related.later else 'below'} {readable(related.site)}",
        "cosine",
        "correlation",
        "effect",
        STANDS,
    )
    rows = [
        (
            str(other.feature),
            "—" if other.cosine is None else f"{other.cosine:.2f}",
            f"{other.correlation:.2f}",
            "—" if other.effect is None else signed(other.effect),
            short_label(other.label),
        )
        for other in related.shown(1)
    ]
    yield Text()
    yield Padding(Table(heads, rows, left=heads[4:], wraps=heads[-1:], bold=False), (0, 0, 0, 2))


def _on(token: str) -> Cell:
    return Cell(f"no label; strongest on {visible(clipped(token, 40))}", "dim")


def snippet(tokens: Sequence[str], values: Sequence[float], peak: int, top: float, room: int) -> Text:
    """The token on which a feature fires, in double brackets, and as much around it as there is room for: two thirds of
    that before it, where there is enough on both sides. Where it fires is coloured by how strongly.
    """
    from rich.cells import cell_len
    from rich.text import Text

    def ink(index: int) -> str:
        return shade(values[index] / top) if top > 0 and values[index] > 0 else ""

    def text(indices: range) -> Text:
        return Text.assemble(*((readable(clipped(tokens[index])), ink(index)) for index in indices))

    shown = whole(tokens, peak)
    fires = readable(clipped(tokens[shown], 40)) or PART
    at = Text(f"[[{fires}]]", style=f"bold {ink(peak)}".strip())
    before, after = text(range(shown)), text(range(shown + 1, len(tokens)))
    left = max(0, room - cell_len(at.plain))
    before = _cut(before, max(left * 2 // 3, left - cell_len(after.plain)), first=True)
    after = _cut(after, left - cell_len(before.plain), first=False)
    return Text.assemble(before, at, after, no_wrap=True)


def _cut(text: Text, room: int, *, first: bool) -> Text:
    """As much of a text as fits, without its first or its last characters."""
    from rich.cells import cell_len

    wide = [cell_len(letter) for letter in text.plain]
    kept = 0
    for size in reversed(wide) if first else wide:
        room -= size
        if room < 0:
            break
        kept += 1
    return text[len(text) - kept :] if first else text[:kept]
