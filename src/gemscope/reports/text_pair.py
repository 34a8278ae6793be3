"""Two texts through one SAE: which features fire in one and not in the other, and where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import numpy as np

from gemscope.activations.model import LanguageModel
from gemscope.atlas.meaning import Given, Meanings, meanings
from gemscope.errors import EmptyText, InputError
from gemscope.features.activations import FeatureActivations
from gemscope.features.fit import require_fit
from gemscope.features.sae import SAE
from gemscope.pages.labels import STANDS, said, short_label
from gemscope.pages.numbers import many
from gemscope.pages.plain import Shown, known
from gemscope.pages.tables import Cell, Table
from gemscope.text.chat import OneText
from gemscope.text.printable import visible

if TYPE_CHECKING:
    from rich.console import RenderableType

_EACH = 3
"""Features shown beside a pair of tokens."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the texts: its T tokens, and which of them count."""

    tokens: tuple[str, ...]
    counted: tuple[bool, ...]
    l0: float
    """Features a counted token, behind what both texts begin with; NaN where none counts."""
    features: int
    """Different features that fire there."""


@dataclass(frozen=True, kw_only=True)
class Differing:
    """A feature that tells two texts apart: its largest activation in each behind what both begin with, and where."""

    feature: int
    one: float
    """0 where it fires nowhere."""
    other: float
    at_one: int | None
    """Index of that token."""
    at_other: int | None
    telling: float
    """How much more it says of one text than of the other: in nats by an atlas (`atlas/meaning.py`), else the
    difference of activations. Below 0 where it says more of the second.
    """
    label: str | None = None
    values: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    """Its activations on every token of both, 0 where one does not count."""


@dataclass(frozen=True)
class Aligned:
    """Tokens that stand beside one another, by index; None beside none. And the features that fire on one of them and
    not on the other, the most telling ones.
    """

    one: int | None
    other: int | None
    only_one: tuple[int, ...] = ()
    only_other: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TextPair(Shown):
    """What `compare_texts` found. `str` gives tables, `to_dict` what `--json` prints."""

    model: str
    sae: str
    site: str
    one: Side
    other: Side
    same: int
    """Tokens that both texts begin with: there a causal model cannot tell them apart."""
    only_one: tuple[Differing, ...]
    """Features that fire in the first text and not in the second, the most telling first."""
    only_other: tuple[Differing, ...]
    both: tuple[Differing, ...]
    """Those that fire in both, by how far they differ."""
    shared: int
    """How many fire in both."""
    aligned: tuple[Aligned, ...]
    labels: dict[int, str]
    """Of all features that are named."""
    order: str
    """`telling` where an atlas was at hand, else `activation`."""

    width = 160

    @property
    def named(self) -> tuple[int, ...]:
        """The features that tell most, of either text."""
        every = sorted((*self.only_one, *self.only_other), key=lambda one: -abs(one.telling))
        return tuple(one.feature for one in every)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a figure that does not exist is None."""
        found = asdict(self) | {"labels": {str(feature): label for feature, label in self.labels.items()}}
        for side in ("one", "other"):
            found[side]["l0"] = known(found[side]["l0"])
        return found

    # --- how it shows itself ----------------------------------------------------------------------------------

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = [
            Text(f"Two texts in {self.model} at {self.site}, read through {self.sae}", style="bold"),
            Text(self.summary()),
        ]
        for title, some, which in self.lists():
            if some:
                parts += [Text(), Text(title, style="bold"), self._table(some, which)]
        if rows := [row for row in self.aligned if row.only_one or row.only_other]:
            parts += [Text(), Text("Token by token", style="bold"), self._beside(rows)]
        return Group(*parts)

    def summary(self) -> str:
        """How alike they are, in a sentence."""
        if not self.one.features and not self.other.features:
            return "no token that counts sets the texts apart"
        begin = f"after the {many(self.same, 'token')} that both begin with, " if self.same else ""
        return (
            f"{begin}{many(self.one.features, 'feature')} fire in the first and {self.other.features:,} in the second, "
            f"{self.shared:,} of them in both"
        )

    def lists(self) -> Iterator[tuple[str, tuple[Differing, ...], tuple[bool, bool]]]:
        """What there is, below what it is, and of which texts there are activations."""
        yield "In the first text alone", self.only_one, (True, False)
        yield "In the second text alone", self.only_other, (False, True)
        yield "In both, most differently", self.both, (True, True)

    def _table(self, some: Sequence[Differing], which: tuple[bool, bool]) -> Table:
        heads, columns = ["feature"], [[Cell(str(one.feature)) for one in some]]
        for side, name, shown in zip((self.one, self.other), ("first", "second"), which, strict=True):
            if shown:
                of = [(one.one, one.at_one) if side is self.one else (one.other, one.at_other) for one in some]
                heads += [f"{name}" if all(which) else "activation", f"on{' ' * (name == 'second')}"]
                columns += [[Cell(f"{value:.1f}") for value, _ in of]]
                columns += [[Cell("" if at is None else visible(side.tokens[at])) for _, at in of]]
        heads.append(STANDS)
        columns.append([Cell(said(one.label)) if one.label else Cell("no label", "dim") for one in some])
        left = ("on", "on ", STANDS)
        return Table(heads, list(zip(*columns, strict=True)), left=left, wraps=(STANDS,))

    def _beside(self, rows: Sequence[Aligned]) -> Table:
        heads = ("first", "alone there", "second", "alone there ")
        out = []
        for row in rows:
            cells = []
            for side, at, only in ((self.one, row.one, row.only_one), (self.other, row.other, row.only_other)):
                cells += ["" if at is None else visible(side.tokens[at]), self._said(only)]
            out.append(cells)
        return Table(heads, out, left=heads, wraps=(heads[1], heads[3]))

    def _said(self, features: Sequence[int]) -> str:
        """The most telling one."""
        named = [
            f"{one} {short_label(label).text}" if (label := self.labels.get(one)) else str(one) for one in features
        ]
        return next(iter(named), "")


def compare_texts(
    model: LanguageModel,
    sae: SAE,
    one: OneText,
    other: OneText,
    *,
    k: int = 12,
    atlas: Given = None,
) -> TextPair:
    """Two texts, or two chats, through one SAE; `k` features of each kind are kept.

    What both begin with is left out: a causal model sees the same there. Which features are telling is told by an atlas
    of the SAE (None: the bundled one, where it is this SAE's), whose labels come along. Raises what `look` raises.
    """
    if k < 1:
        raise InputError(f"k={k}: at least one feature must be asked for")
    read = [_Read(model, sae, text) for text in (one, other)]
    same = _same(read[0].ids, read[1].ids)
    with meanings(sae, atlas) as known_of:
        tops = [some.tops(sae.d_sae, same) for some in read]
        weights = [_weights(known_of, top) for top, _ in tops]
        told = weights[0] - weights[1]
        fires = [top > 0 for top, _ in tops]

        def differing(which: Any) -> list[int]:
            there = np.flatnonzero(which)
            found: list[int] = there[np.lexsort((there, -np.abs(told[there])))][:k].tolist()
            return found

        chosen = [differing(fires[0] & ~fires[1]), differing(fires[1] & ~fires[0]), differing(fires[0] & fires[1])]
        aligned = tuple(_aligned(read, same, known_of))
        beside = {feature for row in aligned for feature in (*row.only_one, *row.only_other)}
        labels = {} if known_of is None else known_of.atlas.meanings(beside.union(*chosen))

        def described(feature: int) -> Differing:
            at = [int(places[feature]) if top[feature] > 0 else None for top, places in tops]
            return Differing(
                feature=feature,
                one=float(tops[0][0][feature]),
                other=float(tops[1][0][feature]),
                at_one=at[0],
                at_other=at[1],
                telling=float(told[feature]),
                label=labels.get(feature),
                values=(read[0].of(feature), read[1].of(feature)),
            )

        sides = [
            Side(
                tokens=tuple(some.tokens),
                counted=tuple(some.counted.tolist()),
                l0=some.l0(same),
                features=int(mask.sum()),
            )
            for some, mask in zip(read, fires, strict=True)
        ]
        only_one, only_other, both = (tuple(map(described, some)) for some in chosen)
        return TextPair(
            model=model.name,
            sae=sae.info.name,
            site=str(sae.site),
            one=sides[0],
            other=sides[1],
            same=same,
            only_one=only_one,
            only_other=only_other,
            both=both,
            shared=int((fires[0] & fires[1]).sum()),
            aligned=aligned,
            labels=labels,
            order="activation" if known_of is None else "telling",
        )


class _Read:
    """A text, and the features on its tokens: cells (token, feature, value) of those that count."""

    def __init__(self, model: LanguageModel, sae: SAE, text: OneText) -> None:
        if isinstance(text, str) and not text:
            raise EmptyText("one of the texts is empty: there is nothing to compare")
        site = require_fit(model, sae)
        acts = model.capture(text, [site])[site]
        found: FeatureActivations = sae.encode(acts).to("cpu")
        self.ids: list[int] = acts.tokens.ids[0].tolist()
        self.tokens = model.strings(self.ids)
        self.counted = acts.counted[0].cpu().numpy()
        at = found.tokens.numpy()
        kept = self.counted[at]
        self.at, self.features = at[kept], found.features.long().numpy()[kept]
        self.values = found.values.detach().double().numpy()[kept]

    def tops(self, d_sae: int, first: int) -> tuple[Any, Any]:
        """[d_sae] Each feature's largest activation from token `first` on, and where."""
        top, place = np.zeros(d_sae), np.zeros(d_sae, np.int64)
        behind = self.at >= first
        order = np.argsort(self.values[behind], kind="stable")
        features = self.features[behind][order]
        top[features], place[features] = self.values[behind][order], self.at[behind][order]
        return top, place

    def on(self, token: int) -> dict[int, float]:
        """Features on one token."""
        here = slice(*np.searchsorted(self.at, [token, token + 1]))
        return dict(zip(self.features[here].tolist(), self.values[here].tolist(), strict=True))

    def of(self, feature: int) -> tuple[float, ...]:
        """One feature on all tokens."""
        values, mine = np.zeros(len(self.ids)), self.features == feature
        values[self.at[mine]] = self.values[mine]
        return tuple(values.tolist())

    def l0(self, first: int) -> float:
        """Features a counted token from `first` on."""
        counted = int(self.counted[first:].sum())
        return int((self.at >= first).sum()) / counted if counted else float("nan")


def _same(one: Sequence[int], other: Sequence[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _weights(known_of: Meanings | None, values: Any) -> Any:
    """[d_sae] How telling each feature's activation is."""
    return values if known_of is None else known_of.telling(np.arange(len(values)), values)


def _aligned(read: Sequence[_Read], same: int, known_of: Meanings | None) -> Iterator[Aligned]:
    """The tokens behind what both begin with: the same ones beside one another in order, what lies between them by
    turns.
    """
    one, other = read
    rest = one.ids[same:], other.ids[same:]
    for _, low, high, low_other, high_other in SequenceMatcher(None, *rest, autojunk=False).get_opcodes():
        for step in range(max(high - low, high_other - low_other)):
            here = same + low + step if low + step < high else None
            there = same + low_other + step if low_other + step < high_other else None
            found = [{} if at is None else some.on(at) for some, at in zip(read, (here, there), strict=True)]
            only = [
                _foremost({name: value for name, value in mine.items() if name not in theirs}, known_of)
                for mine, theirs in (found, found[::-1])
            ]
            yield Aligned(here, there, *only)


def _foremost(found: dict[int, float], known_of: Meanings | None) -> tuple[int, ...]:
    features, values = np.array([*found], np.int64), np.array([*found.values()], np.float64)
    told = values if known_of is None else known_of.telling(features, values)
    return tuple(features[np.lexsort((features, -told))][:_EACH].tolist())
