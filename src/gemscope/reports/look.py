"""One prompt read through an SAE: per token its strongest features, L0 and explained variance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from gemscope.activations.capture import Activations
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site, described
from gemscope.atlas.meaning import Given, Meanings, Place, meanings
from gemscope.errors import EmptyText, InputError
from gemscope.features.fit import answered_for, computed_by, require_fit
from gemscope.features.metrics import explained_variance
from gemscope.features.sae import SAE
from gemscope.pages.chips import Chip, chips_of, shade
from gemscope.pages.feature import number
from gemscope.pages.labels import STANDS, said, short_label
from gemscope.pages.links import Links, NoLinks, neuronpedia
from gemscope.pages.plain import Shown, harmless, known
from gemscope.pages.signs import code
from gemscope.pages.tables import Cell, Row, Table
from gemscope.text.chat import OneText
from gemscope.text.printable import visible
from gemscope.text.tokens import Tokens

if TYPE_CHECKING:
    from rich.console import RenderableType

Order = Literal["telling", "activation"]


@dataclass(frozen=True)
class Fired:
    """A feature and how strongly it fired."""

    feature: int
    activation: float
    share: float | None = None
    """Of the feature's largest activation in the atlas that was at hand; None for one that never fired there."""
    label: str | None = None
    """What it stands for, by that atlas."""


@dataclass(frozen=True)
class Foremost(Fired):
    """One of the features that say most about a text, at the token where it says most."""

    position: int = 0


@dataclass(frozen=True)
class Token:
    """One token of the text and the features on it, in the order that was asked for."""

    token: str
    position: int
    counted: bool
    """False for BOS and other special tokens, the first position and attention sinks: SAEs do not know those."""
    l0: int
    features: tuple[Fired, ...]


@dataclass(frozen=True, kw_only=True)
class Look(Shown):
    """What `look` saw. `str` gives a table, a notebook shows colours, `to_dict` gives what `--json` prints."""

    model: str
    sae: str
    site: str
    tokens: tuple[Token, ...]
    l0: float
    """Mean over counted tokens; NaN when none counts."""
    explained_variance: float
    """1 − Σ‖x − x̂‖² / Σ‖x − μ‖² over counted tokens, μ their mean; NaN for fewer than two."""
    neuronpedia_id: str | None = None
    order: str = "activation"
    """What the features of a token are ordered by: `activation`, or `telling` (`atlas/meaning.py`)."""
    foremost: tuple[Foremost, ...] = ()
    """The most telling of all features on counted tokens, each once, where it is most so. Empty where no atlas was at
    hand.
    """
    firing: int = 0
    """How many features fire on counted tokens, whether shown or not."""
    sinks: int = 0
    """How many tokens are left out as attention sinks."""
    computed: str = ""
    """Number format and device, and why where they were chosen."""

    @property
    def counted(self) -> int:
        """How many tokens the two figures are over."""
        return sum(token.counted for token in self.tokens)

    def url(self, feature: int) -> str:
        """A feature's page on Neuronpedia. Raises InputError for an SAE that is not there."""
        if self.neuronpedia_id is None:
            raise InputError(f"{self.sae} has no Neuronpedia id: its features have no page there")
        return neuronpedia(self.neuronpedia_id, feature)

    def embed(self, feature: int, *, width: int = 1200, height: int = 600) -> Embed:
        """A feature's Neuronpedia page as a frame: a notebook shows it, `str` gives the HTML."""
        query = "embed=true&embedexplanation=true&embedplots=true&embedtest=true&height=300"
        return Embed(f"{self.url(feature)}?{query}", width, height)

    def to_dict(self) -> dict[str, object]:
        """For JSON; a figure that does not exist is None."""
        facts = {key: known(value) for key, value in asdict(self).items() if key != "sinks"}
        return facts | {"tokens_counted": self.counted}

    # --- how it shows itself ----------------------------------------------------------------------------------

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = [
            Text(self._title(), style="bold"),
            Text(),
            self._table(),
            Text(),
            Text(self._summary()),
        ]
        if self.foremost:
            parts += [Text(), Text("What stands out", style="bold"), self.standing_out()]
        return Group(*parts)

    def _repr_html_(self) -> str:
        return (
            f"<div><p><b>{harmless(self._title())}</b></p>{self._table().html()}"
            f"<p>{harmless(self._summary())}</p>"
            + (f"<p><b>What stands out</b></p>{self.standing_out().html()}" if self.foremost else "")
            + "</div>"
        )

    def _table(self) -> Table:
        return self._named() if self.foremost else self._numbered()

    def _named(self) -> Table:
        """A line for each feature, where it is known what they stand for."""
        heads = ("token", "L0", "feature", "activation", "× max", STANDS)
        rows = []
        for token in self.tokens:
            name = Cell(visible(token.token), "bold" if token.counted else "", code(token.token))
            if not token.counted:
                why = "not counted: special, first or an attention sink"
                rows.append(Row((name, str(token.l0), "", "", "", why), quiet=True, why=why))
                continue
            for nth, one in enumerate(token.features):
                stands = short_label(one.label)
                mine = Cell(str(one.feature), shade(one.share or 0), self._linked(one.feature))
                first = (name, str(token.l0)) if nth == 0 else ("", "")
                rows.append(Row((*first, mine, f"{one.activation:.1f}", _share(one), stands)))
        return Table(heads, rows, left=(heads[0], heads[5]), wraps=heads[5:])

    def _linked(self, feature: int) -> str | None:
        if self.neuronpedia_id is None:
            return None
        return f"<a href='{harmless(self.url(feature))}' target='_blank' rel='noopener'>{feature}</a>"

    def _numbered(self) -> Table:
        """A line for each token."""
        heads = ("token", "L0", "strongest features (feature:activation)")
        # Ids end and numbers start below one another on counted tokens; others are far larger and may stick out.
        shown = [one for token in self.tokens if token.counted for one in token.features]
        wide = max((len(str(one.feature)) for one in shown), default=1)
        long = max((len(f"{one.activation:.1f}") for one in shown), default=1)
        strongest = max((one.activation for one in shown), default=1.0)
        rows = []
        for token in self.tokens:
            chips = [
                Chip(
                    str(one.feature),
                    f"{one.activation:.1f}",
                    one.activation / strongest if token.counted else 0.0,
                    None if self.neuronpedia_id is None else self.url(one.feature),
                )
                for one in token.features
            ]
            name = Cell(visible(token.token), "bold" if token.counted else "", code(token.token))
            aside = "" if token.counted else "(not counted)"
            why = "" if token.counted else "not counted: special, first or an attention sink"
            rows.append(Row((name, str(token.l0), chips_of(chips, wide, long, aside)), not token.counted, why))
        return Table(heads, rows, left=(heads[0], heads[2]), wraps=heads[2:])

    def standing_out(self, links: Links | None = None) -> Table:
        """`foremost` as a table, with links to pages of features."""
        heads = ("feature", "activation", "× max", "on", STANDS)
        rows = [
            (
                number(one.feature, links or NoLinks()),
                f"{one.activation:.1f}",
                _share(one),
                visible(self.tokens[one.position].token),
                said(one.label) if one.label else "no label",
            )
            for one in self.foremost
        ]
        return Table(heads, rows, left=heads[3:], wraps=heads[4:])

    def _title(self) -> str:
        return f"{self.model} at {self.site}, read through {self.sae}"

    def _summary(self) -> str:
        if not self.counted:
            return "no token counts: only special tokens or the first position were given"
        sinks = f": {self.sinks} sink{'s' * (self.sinks > 1)} here" if self.sinks else ""
        ev = "needs two tokens" if math.isnan(self.explained_variance) else f"{self.explained_variance:.4f}"
        return (
            f"L0 {self.l0:.1f} per token · explained variance {ev} · over {self.counted} of {len(self.tokens)} tokens "
            f"(special, first and attention-sink tokens are not counted{sinks})"
            + (f" · {self.computed}" if self.computed else "")
        )


def _share(one: Fired) -> str:
    return "" if one.share is None else f"{one.share:.2f}"


@dataclass(frozen=True)
class Embed:
    """A page in a frame."""

    src: str
    width: int
    height: int

    def __str__(self) -> str:
        src = harmless(self.src)
        return f'<iframe src="{src}" width="{self.width}" height="{self.height}" frameborder="0"></iframe>'

    def _repr_html_(self) -> str:
        return str(self)


def look(
    model: LanguageModel,
    sae: SAE,
    text: OneText,
    *,
    k: int = 5,
    every_token: bool = False,
    atlas: Given = None,
    order: Order | None = None,
    max_density: float = 1.0,
    foremost: int = 10,
) -> Look:
    """Reads one text, or one chat, and keeps `k` features of each token, and the `foremost` of all.

    Which ones is told by an atlas of the SAE (None: the bundled one, where it is this SAE's), whose labels come along:
    the most `telling`, by (activation / max) · ln(1 / density) · how far the label is right. `order="activation"` keeps
    the strongest, as is done where there is no atlas. Features that fire on a larger share of tokens than
    `max_density` are left out.

    `every_token` counts special tokens, the first position and attention sinks too. Raises what `model.tokens` and
    `sae.encode` raise, Mismatch where model and SAE do not fit or the atlas is another SAE's, InputError.
    """
    if k < 1:
        raise InputError(f"k={k}: at least one feature per token must be asked for")
    tokens = row_of(model, text, every_token=every_token)
    site = require_fit(model, sae)
    written = sae.site_out or site
    with meanings(sae, atlas) as known_of:
        order = order or ("activation" if known_of is None else "telling")
        if known_of is None and (order == "telling" or max_density < 1):
            raise InputError(f"no atlas of {sae.info.name} is at hand: give one to tell which features are telling")
        captured = model.capture(tokens, [site, written], every_token=every_token)
        return seen(model, sae, captured, known_of, k=k, order=order, max_density=max_density, foremost=foremost)


def row_of(model: LanguageModel, text: OneText, *, every_token: bool) -> Tokens:
    """One text or chat as tokens. Raises EmptyText, InputError, and what `model.tokens` raises."""
    if isinstance(text, str) and not text:
        raise EmptyText("the text is empty: there is nothing to look at")
    tokens = model.tokens(text, every_token=every_token)
    if len(tokens) != 1 or tokens.padded:
        raise InputError(f"{len(tokens)} rows of tokens given: a look is at one text without padding")
    return tokens


def seen(
    model: LanguageModel,
    sae: SAE,
    captured: Mapping[Site, Activations],
    known_of: Meanings | None,
    *,
    k: int,
    order: Order,
    max_density: float,
    foremost: int,
) -> Look:
    """A look at one row of activations that were captured where the SAE reads and where it writes."""
    site = require_fit(model, sae)
    written = sae.site_out or site
    acts = captured[site]
    features, out = sae.read(acts)
    target = captured[written].values.to(sae.device).float()
    counted = acts.counted.to(target.device)
    ranked = [
        _ranked(*features.row(position), known_of, order, max_density) for position in range(acts.tokens.ids.numel())
    ]
    best = [] if known_of is None else known_of.foremost(features, limit=foremost, max_density=max_density)
    named = {one.feature for row in ranked for one in row[:k]}.union(one.feature for one in best)
    labels = {} if known_of is None else known_of.atlas.meanings(named)
    counts = counted[0].tolist()
    shown = [
        Token(
            token=token,
            position=position,
            counted=counts[position],
            l0=int(features.offsets[position + 1] - features.offsets[position]),
            features=tuple(replace(one, label=labels.get(one.feature)) for one in row[:k]),
        )
        for position, (token, row) in enumerate(zip(model.texts(acts.tokens.ids[0].tolist()), ranked, strict=True))
    ]
    return Look(
        model=model.name,
        sae=sae.info.name,
        site=described(site, written),
        tokens=tuple(shown),
        sinks=acts.dropped["sink"],
        l0=features.mean_l0,
        explained_variance=explained_variance(*answered_for(sae, target[counted], out[counted])),
        neuronpedia_id=sae.info.neuronpedia_id,
        computed=computed_by(model, sae),
        order=order,
        foremost=() if known_of is None else _foremost(best, known_of, labels),
        firing=features.firing,
    )


def _ranked(
    active: Tensor, strengths: Tensor, known_of: Meanings | None, order: str, max_density: float
) -> list[Fired]:
    ids, values = active.cpu().numpy(), strengths.detach().double().cpu().numpy()
    if known_of is None:
        return list(map(Fired, ids.tolist(), values.tolist()))
    seldom = known_of.densities(ids) <= max_density
    ids, values = ids[seldom], values[seldom]
    if order == "telling":
        best = np.argsort(-known_of.telling(ids, values), kind="stable")
        ids, values = ids[best], values[best]
    shares = [None if math.isnan(share) else share for share in known_of.shares(ids, values).tolist()]
    return list(map(Fired, ids.tolist(), values.tolist(), shares))


def _foremost(best: Sequence[Place], known_of: Meanings, labels: Mapping[int, str]) -> tuple[Foremost, ...]:
    ids, values = np.array([one.feature for one in best], np.int64), np.array([one.activation for one in best])
    shares = [None if math.isnan(share) else share for share in known_of.shares(ids, values).tolist()]
    return tuple(
        Foremost(one.feature, one.activation, share, labels.get(one.feature), one.position)
        for one, share in zip(best, shares, strict=True)
    )
