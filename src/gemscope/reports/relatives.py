"""Which features of several SAEs are related across sites: found, told in tables, and written out."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemscope.activations.model import LanguageModel
from gemscope.atlas.exchange.csv import guarded
from gemscope.atlas.meaning import meanings
from gemscope.atlas.reader import Atlas
from gemscope.disk import written_aside
from gemscope.errors import InputError, NotFound
from gemscope.features.effect import Effect
from gemscope.features.relating import relate
from gemscope.features.relatives import Kin, Relation, Relative
from gemscope.features.sae import SAE
from gemscope.pages.labels import STANDS, short_label
from gemscope.pages.numbers import figure, percent, signed
from gemscope.pages.plain import Shown
from gemscope.pages.tables import Table
from gemscope.progress import Progress, silent
from gemscope.text.corpus import Corpus

if TYPE_CHECKING:
    from rich.console import RenderableType

_COLUMNS = ("site", "sae", "feature", "label", "of_site", "of_sae", "relative", "of_label", "cosine", "correlation",
            "both", "effect", "nearest")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Relatives(Shown):
    """What `relatives` found. `str` gives tables, `to_dict` what `--json` prints, `save` all pairs."""

    kin: tuple[Kin, ...]
    """Of each SAE, in the model's order."""
    labels: Mapping[str, Mapping[int, str]]
    """What features stand for, by their SAE's digest, as far as atlases were at hand."""
    features: tuple[int, ...]
    """Of the SAE `of`, those that are told one by one; none: the nearest pairs of each two SAEs are."""
    of: int
    k: int
    """Pairs told."""

    width = 160

    def related(self, feature: int, of: int | str = 0) -> dict[str, tuple[Relative, ...]]:
        """Relatives of one feature of an SAE (its place, its site or its name), by the other's site; those that
        correlate most first. Raises NotFound.
        """
        kin = self.kin[self._place(of)]
        return {one.other.place: one.of(kin.require(feature)) for one in kin.relations}

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Every pair of features, of each SAE with the one before it and the next, as `save` writes them."""
        for kin in self.kin:
            own = self.labels.get(kin.own.digest, {})
            for relation in kin.relations:
                nearest, _ = relation.nearest()
                there = self.labels.get(relation.other.digest, {})
                for feature in range(kin.own.d_sae):
                    for one in relation.of(feature):
                        yield (
                            kin.own.place,
                            kin.own.name,
                            feature,
                            own.get(feature),
                            relation.other.place,
                            relation.other.name,
                            one.feature,
                            there.get(one.feature),
                            one.cosine,
                            one.correlation,
                            one.both,
                            one.effect,
                            bool(one.feature == nearest[feature]),
                        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Every pair, as .csv or .json by the file's name. Raises InputError for another, FileError, StorageFull."""
        target = Path(path)
        if target.suffix not in (".csv", ".json"):
            raise InputError(f"{target.name}: relatives are written as .csv or .json")
        with written_aside(target) as aside, aside.open("w", encoding="utf-8", errors="replace", newline="") as file:
            if target.suffix == ".csv":
                lines = csv.writer(file)
                lines.writerow(_COLUMNS)
                lines.writerows([guarded(one) if isinstance(one, str) else one for one in row] for row in self.rows())
            else:
                pairs = [dict(zip(_COLUMNS, row, strict=True)) for row in self.rows()]
                json.dump({**self.to_dict(), "pairs": pairs}, file, ensure_ascii=False, allow_nan=False)
        return target

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what was compared, how many features go on, and the features that were asked for."""
        said: dict[str, Any] = {
            "model": self.kin[0].model,
            "saes": [
                {
                    **asdict(kin.own),
                    "born_here": self._begin(at),
                    "gone_here": self._end(at),
                    "relations": [
                        {**asdict(one.about), "go_on": int((one.nearest()[0] >= 0).sum())} for one in kin.relations
                    ],
                }
                for at, kin in enumerate(self.kin)
            ],
        }
        if self.features:
            kin = self.kin[self.of]
            said["features"] = [self._told(kin, feature) for feature in self.features]
        return said

    def _told(self, kin: Kin, feature: int) -> dict[str, Any]:
        life = None
        if kin.lives is not None:
            born, gone = kin.lives.of(feature)
            life = {"born": born.place, "gone": gone.place}
        return {
            "index": feature,
            "label": self.labels.get(kin.own.digest, {}).get(feature),
            "life": life,
            "relatives": {
                one.other.place: [
                    {**two._asdict(), "label": self.labels.get(one.other.digest, {}).get(two.feature)}
                    for two in one.of(feature)
                ]
                for one in kin.relations
            },
        }

    # --- how it shows itself ----------------------------------------------------------------------------------

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = [Text(f"Relatives across sites of {self.kin[0].model}", style="bold")]
        parts += [Text(), self._summary()]
        if self.features:
            for feature in self.features:
                parts += [Text(), *self._of(feature)]
        else:
            for one in self.kin[:-1]:
                for relation in one.relations:
                    if relation.about.later:
                        head = f"{one.own.place} and {relation.other.place}: the pairs that correlate most"
                        parts += [Text(), Text(head, style="bold"), self._pairs(one, relation)]
        parts += [Text(), Text(self._words(), style="dim")]
        return Group(*parts)

    def _summary(self) -> Table:
        heads = ("site", "SAE", "features", "go back", "go on", "born here", "gone here")
        rows = []
        for at, kin in enumerate(self.kin):
            on = {one.about.later: percent(float((one.nearest()[0] >= 0).mean())) for one in kin.relations}
            cells = (f"{kin.own.d_sae:,}", on.get(False, "—"), on.get(True, "—"))
            rows.append((kin.own.place, kin.own.name, *cells, f"{self._begin(at):,}", f"{self._end(at):,}"))
        return Table(heads, rows, left=heads[:2], wraps=("SAE",))

    def _pairs(self, kin: Kin, relation: Relation) -> Table:
        feature = np.repeat(np.arange(kin.own.d_sae), np.diff(relation.starts))
        order = np.argsort(-relation.correlation, kind="stable")[: self.k]
        pairs = [
            (int(feature[at]), next(one for one in relation.of(int(feature[at])) if one.feature == relation.ids[at]))
            for at in order.tolist()
        ]
        return self._table(kin, relation, pairs)

    def _of(self, feature: int) -> list[RenderableType]:
        from rich.text import Text

        kin = self.kin[self.of]
        label = self.labels.get(kin.own.digest, {}).get(feature)
        said = f"feature {feature} of {kin.own.place}"
        life = ""
        if kin.lives is not None:
            born, gone = kin.lives.of(feature)
            life = f"; there from {born.place} to {gone.place}"
        parts: list[RenderableType] = [Text(f"{said} · {short_label(label).text}{life}", style="bold")]
        for relation in kin.relations:
            found = relation.of(feature)
            parts.append(
                self._table(kin, relation, [(feature, one) for one in found[: self.k]])
                if found
                else Text(f"none at {relation.other.place}")
            )
        return parts

    def _table(self, kin: Kin, relation: Relation, pairs: Sequence[tuple[int, Relative]]) -> Table:
        here, there = kin.own.place, relation.other.place
        words = (f"{STANDS} at {here}", f"{STANDS} at {there}")
        heads = (here, words[0], there, words[1], "cosine", "correlation", "both fire", "effect")
        labels = [self.labels.get(one.digest, {}) for one in (kin.own, relation.other)]
        rows = [
            (
                str(feature),
                short_label(labels[0].get(feature)),
                str(one.feature),
                short_label(labels[1].get(one.feature)),
                "—" if one.cosine is None else figure(one.cosine),
                figure(one.correlation),
                f"{one.both:,}",
                "—" if one.effect is None else signed(one.effect),
            )
            for feature, one in pairs
        ]
        return Table(heads, rows, left=words, wraps=words)

    def _words(self) -> str:
        relation = next(one for kin in self.kin for one in kin.relations)
        about, bounds = relation.about, relation.about.bounds
        beyond = " and ".join(figure(one) for one in (bounds.correlation, bounds.cosine) if one is not None)
        return (
            "Correlation of activations, and tokens on which both fire, over "
            f"{about.text.tokens:,} counted tokens of {about.text.corpus}. Effect: what a mean firing of the earlier "
            "feature adds to the later one on average, in mean firings of that one, by the mean Jacobian between "
            "the sites. A feature goes on as the one that correlates with it most, where correlation and cosine are "
            f"beyond what 1 in 100 reach by chance ({beyond} between {self.kin[0].own.place} and "
            f"{relation.other.place})"
        )

    def _begin(self, at: int) -> int:
        lives = self.kin[at].lives
        return 0 if lives is None else int((lives.born == lives.own).sum())

    def _end(self, at: int) -> int:
        lives = self.kin[at].lives
        return 0 if lives is None else int((lives.gone == lives.own).sum())

    def _place(self, of: int | str) -> int:
        for at, kin in enumerate(self.kin):
            if of in (at, kin.own.site, kin.own.place, kin.own.name):
                return at
        there = ", ".join(kin.own.place for kin in self.kin)
        raise NotFound(f"no SAE {of!r} among these: there are {there}")


def relatives(
    model: LanguageModel,
    saes: Sequence[SAE],
    corpus: Corpus,
    *,
    features: Sequence[int] = (),
    of: str | None = None,
    atlases: Sequence[Atlas | str | Path] = (),
    tokens: int = 100_000,
    length: int = 128,
    batch: int = 16,
    k: int = 4,
    shown: int = 12,
    effects: Sequence[Effect] = (),
    effect_tokens: int = 160,
    to: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Relatives:
    """For each feature of each of several SAEs of one model its nearest among those of the next SAE and the one before,
    in the model's order: by the cosine of decoder directions, by how their activations correlate over `tokens` counted
    tokens of the text, and by what writing the earlier one does to the later one on average (`features/relating.py` has
    the formulas); and where along the SAEs each feature begins and ends.

    `features` of the SAE whose site or name is `of` (the first one given) are told one by one. Labels are those of
    `atlases` of the SAEs, or of the bundled one. `k` relatives are kept by each figure. `effects` are mean Jacobians
    measured before (`gs.effect(..., until=...)`); what is missing is measured over `effect_tokens` tokens. `to` is a
    folder in which what was read and measured stays, to go on from; `add_relatives` puts what was found into atlases.

    Raises InputError for fewer than two SAEs or one twice, NotFound for features that there are not, Mismatch for
    another model's SAE and for an atlas of none of the SAEs, and what `effect` and `capture` raise.
    """
    first = saes[0].digest if saes else ""
    kin = relate(
        model,
        saes,
        corpus,
        tokens=tokens,
        length=length,
        batch=batch,
        k=k,
        effects=effects,
        effect_tokens=effect_tokens,
        to=to,
        progress=progress,
    )
    found = Relatives(kin=kin, labels=_labels(saes, atlases), features=tuple(features), of=0, k=shown)
    place = found._place(of) if of is not None else next(at for at, one in enumerate(kin) if one.own.digest == first)
    for feature in features:
        kin[place].require(feature)
    return Relatives(kin=kin, labels=found.labels, features=found.features, of=place, k=shown)


def _labels(saes: Sequence[SAE], atlases: Sequence[Atlas | str | Path]) -> dict[str, dict[int, str]]:
    """What all features stand for that is known, by their SAE's digest."""
    found: dict[str, dict[int, str]] = {}
    with ExitStack() as stack:
        opened = [one if isinstance(one, Atlas) else stack.enter_context(Atlas(one)) for one in atlases]
        by_digest = {one.manifest.sae_digest: one for one in opened}
        for sae in saes:
            with meanings(sae, by_digest.get(sae.digest)) as known:
                if known is not None:
                    found[sae.digest] = known.atlas.meanings(range(len(known.atlas)))
    return found
