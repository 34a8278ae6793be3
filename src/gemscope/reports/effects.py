"""What features do to the logits by the measured effect of their site, beside what the direct path says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from gemscope.activations.model import LanguageModel
from gemscope.atlas.meaning import Given, labels
from gemscope.features import logit_lens
from gemscope.features.effect import Effect, Part, Promoted
from gemscope.features.effect import effect as measure
from gemscope.features.fit import sites_of
from gemscope.features.sae import SAE
from gemscope.pages.labels import STANDS, short_label
from gemscope.pages.numbers import figure
from gemscope.pages.plain import Shown, known
from gemscope.pages.tables import Row, Table
from gemscope.progress import Progress, silent
from gemscope.text.corpus import Corpus
from gemscope.text.printable import visible

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, kw_only=True)
class OfFeature:
    """One feature: what the effect says of it, and what the direct path does."""

    effect: Promoted
    direct: tuple[str, ...] | None
    """Tokens that it promotes by the direct path, most promoted first; None where there is no such path."""
    label: str | None
    """What the feature stands for, by the atlas that was at hand."""


@dataclass(frozen=True, kw_only=True)
class Effects(Shown):
    """What `effects` found. `str` gives a table, `to_dict` what `--json` prints."""

    effect: Effect
    part: Part
    sae: str
    features: tuple[OfFeature, ...]
    no_direct: str | None
    """Why the direct path says nothing, where it does not."""

    width = 160

    @property
    def named(self) -> bool:
        """Whether any feature has a label here."""
        return any(one.label for one in self.features)

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "effect": self.effect.to_dict(),
            "part": self.part,
            "sae": self.sae,
            "features": [
                {
                    "label": one.label,
                    **asdict(one.effect),
                    "agreement": known(one.effect.agreement),
                    "direct_tokens": None if one.direct is None else list(one.direct),
                }
                for one in self.features
            ],
            "no_direct": self.no_direct,
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        where = {"all": "this position and later ones", "this": "this position", "later": "later positions"}[self.part]
        return Group(
            Text(f"What {self.sae} writes, on {where}", style="bold"),
            Text(str(self.effect)),
            Text(),
            self._table(),
            Text(),
            Text(
                "Promoted and suppressed: tokens whose logits rise and fall most with the feature, by the mean "
                "Jacobian over text; halves: correlation over the vocabulary of what the two halves of that text say; "
                "direct: " + (self.no_direct or "promoted where no later attention or MLP answers"),
                style="dim",
            ),
        )

    def _table(self) -> Table:
        heads = ("feature", STANDS, "promoted", "suppressed", "halves", "direct")
        rows = [
            Row(
                (
                    str(one.effect.feature),
                    short_label(one.label),
                    _listed(one.effect.promoted_tokens),
                    _listed(one.effect.suppressed_tokens),
                    figure(one.effect.agreement),
                    "—" if one.direct is None else _listed(one.direct),
                )
            )
            for one in self.features
        ]
        words = (STANDS, "promoted", "suppressed", "direct")
        return Table(heads, rows, left=words, wraps=words)


def effects(
    model: LanguageModel,
    sae: SAE,
    effect: Effect | Corpus,
    features: Sequence[int],
    *,
    k: int = 8,
    part: Part = "all",
    atlas: Given = None,
    tokens: int = 160,
    length: int = 32,
    progress: Progress = silent,
) -> Effects:
    """Reads some features by an effect of the site at which the SAE writes, `k` tokens each way. With text in its place
    theirs alone is measured, over about `tokens` tokens in rows of `length`: forward passes for each feature, where the
    whole effect takes backward ones for each coordinate of the model. Labels are those of an atlas of the SAE (None:
    the bundled one, where it is this SAE's). Raises what `Effect.promoted` and `effect` raise, and what opening an
    atlas raises.
    """
    if isinstance(effect, Corpus):
        directions = torch.stack([sae.direction(feature).detach().float().cpu() for feature in features])
        site = sites_of(sae)[1]
        effect = measure(model, site, effect, tokens=tokens, length=length, directions=directions, progress=progress)
    found = effect.promoted(model, sae, features, k=k, part=part)
    obstacle = logit_lens.no_logits(sae)
    direct = [
        None if obstacle else tuple(model.strings(logit_lens.promoted(model, sae, one.feature, k=k).tolist()))
        for one in found
    ]
    names = labels(sae, features, atlas)
    return Effects(
        effect=effect,
        part=part,
        sae=sae.info.name,
        features=tuple(
            OfFeature(effect=one, direct=tokens, label=names.get(one.feature))
            for one, tokens in zip(found, direct, strict=True)
        ),
        no_direct=obstacle,
    )


def _listed(tokens: Sequence[str]) -> str:
    return ", ".join(map(visible, tokens))
