"""What a feature's page has many of, examples and rows of tables: made without a template, which would take longer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from markupsafe import Markup, escape

from gemscope.pages.charts.bar import bar
from gemscope.pages.labels import clipped_label
from gemscope.pages.links import Links
from gemscope.pages.numbers import figure, percent, signed
from gemscope.pages.strips import Example, groups, token


@runtime_checkable
class Logit(Protocol):
    """What is read of a token and its logit."""

    @property
    def token(self) -> str: ...
    @property
    def value(self) -> float: ...


@runtime_checkable
class Interval(Protocol):
    """What is read of a range of activations."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def count(self) -> int: ...
    @property
    def share(self) -> float: ...


@runtime_checkable
class Feature(Protocol):
    """What is read of a feature with examples."""

    @property
    def max(self) -> float: ...
    @property
    def strongest(self) -> Sequence[Example]: ...
    @property
    def intervals(self) -> Sequence[Interval]: ...
    def within(self, interval: int) -> Sequence[Example]:
        """The examples drawn from one interval."""


@runtime_checkable
class Relative(Protocol):
    """What is read of a feature that is named in passing."""

    @property
    def feature(self) -> int: ...
    @property
    def label(self) -> str | None: ...
    @property
    def token(self) -> str | None: ...


@runtime_checkable
class Neighbour(Relative, Protocol):
    """What is read of a feature with a direction that is near."""

    @property
    def cosine(self) -> float: ...


@runtime_checkable
class Partner(Relative, Protocol):
    """What is read of a feature that fires along."""

    @property
    def share(self) -> float: ...
    @property
    def jaccard(self) -> float: ...


@runtime_checkable
class Kindred(Protocol):
    """What is read of a feature of an SAE at another site."""

    @property
    def feature(self) -> int: ...
    @property
    def label(self) -> str | None: ...
    @property
    def nearest(self) -> bool: ...
    @property
    def cosine(self) -> float | None: ...
    @property
    def correlation(self) -> float: ...
    @property
    def effect(self) -> float | None: ...


def logits(ones: Sequence[Logit]) -> Markup:
    """Tokens with their logits; bars are relative to the first, and grow to the left where a logit is lowered."""
    strongest = abs(ones[0].value) or 1
    return _rows([(token(one.token), f"{bar(one.value / strongest)}<span>{signed(one.value)}</span>") for one in ones])


def strongest(feature: Feature) -> Markup:
    """Its strongest examples."""
    return groups([("", feature.strongest)], feature.max)


def ranges(feature: Feature) -> Markup:
    """Examples of each interval, from the highest down; nothing where there are none."""
    lists = [(_heading(one), feature.within(number)) for number, one in [*enumerate(feature.intervals)][::-1]]
    found = [(heading, ones) for heading, ones in lists if ones]
    return groups(found, feature.max) if found else Markup("")


def _heading(interval: Interval) -> str:
    return (
        f"<h3>{figure(interval.low)} to {figure(interval.high)} "
        f"<small>{percent(interval.share)} of its firings ({interval.count:,})</small></h3>"
    )


def neighbours(of: int, ones: Iterable[Neighbour], links: Links) -> Markup:
    """Features with their cosines, each with a link to it beside the feature that they are neighbours `of`."""
    return _rows((_named(one, links), figure(one.cosine), *_beside(of, one, links)) for one in ones)


def _beside(of: int, one: Neighbour, links: Links) -> tuple[str, ...]:
    url = links.compare(of, one.feature)
    return (f'<a href="{escape(url)}" aria-label="Compare with {one.feature}">compare</a>',) if url else ()


def partners(ones: Iterable[Partner], links: Links) -> Markup:
    """Features with their share of firings, and Jaccard's index."""
    return _rows((_named(one, links), percent(one.share), figure(one.jaccard)) for one in ones)


def kindred(ones: Iterable[Kindred], pages: str) -> Markup:
    """Features of an SAE whose pages lie at `pages` (nowhere: ""), each with its three figures."""
    return _rows(
        (
            _there(one, pages),
            "—" if one.cosine is None else _two(one.cosine),
            _two(one.correlation),
            "—" if one.effect is None else _two(one.effect, "+"),
        )
        for one in ones
    )


def _two(value: float, sign: str = "") -> str:
    """With two decimals, each: labels beside three figures have little room."""
    return f"{value:{sign}z.2f}".replace("-", "−")


def _there(one: Kindred, pages: str) -> str:
    name = f'<a href="{escape(pages)}/{one.feature}">{one.feature}</a>' if pages else str(one.feature)
    goes_on = " <small>same feature</small>" if one.nearest else ""
    return f"{name}{goes_on} {hint(one.label, None)}"


_HOVERED = 400
"""Characters of a label that are one hover away; its page has all."""


def hint(label: str | None, strongest_on: str | None, length: int = 100) -> Markup:
    """Of a feature named in passing: what is known of it in a few words."""
    if label:
        shown, whole = (escape(clipped_label(label, most)) for most in (length, _HOVERED))
        return Markup(f'<bdi title="{whole}">{shown}</bdi>')
    return Markup("") if strongest_on is None else Markup(f'<span class="muted">on</span> {token(strongest_on)}')


def _named(one: Relative, links: Links) -> str:
    url = links.feature(one.feature)
    name = f'<a href="{escape(url)}">{one.feature}</a>' if url else str(one.feature)
    return f"{name} {hint(one.label, one.token)}"


def _rows(rows: Iterable[tuple[str, ...]]) -> Markup:
    """From cells that are HTML already."""
    return Markup("".join([f"<tr><td>{'</td><td>'.join(cells)}</td></tr>" for cells in rows]))
