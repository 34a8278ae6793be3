"""Several SAEs beside one another on the same text: which of them buy their sparsity cheaply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from gemscope.activations.model import LanguageModel
from gemscope.errors import InputError
from gemscope.features.cross_layer import CrossLayerTranscoder
from gemscope.features.sae import SAE
from gemscope.features.stack import Stack
from gemscope.pages.plain import Paged
from gemscope.pages.tables import Table
from gemscope.progress import Progress, silent
from gemscope.reports.front import Front, on_front
from gemscope.reports.replaced import Replaced
from gemscope.reports.score import FORMULAS, MISLEADING, Score, conditions, loss_rows, loss_table, number
from gemscope.reports.scoring import PIECE, scores
from gemscope.text.corpus import Corpus
from gemscope.world import ALONE, World

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Comparison(Paged):
    """Scores of several SAEs from one reading of one text, ordered as they were given."""

    width = 160

    scores: tuple[Score, ...]
    replaced: tuple[Replaced, ...] = ()
    """What the model loses with all of a stack in place at once."""

    @property
    def fronts(self) -> tuple[Front, ...]:
        """The Pareto fronts of L0 against delta loss (where it was measured) and against FVU."""
        known = (("delta_loss", "delta loss"), ("fvu", "FVU"))
        fronts = (Front(figure, name, self._front(figure)) for figure, name in known)
        return tuple(front for front in fronts if front.places)

    @property
    def names(self) -> tuple[str, ...]:
        """What tells the SAEs apart: their names without the folders that all share."""
        full = [one.sae for one in self.scores]
        parts = [PurePosixPath(name).parts for name in full]
        shared = 0
        while all(len(each) > shared + 1 for each in parts) and len({each[shared] for each in parts}) == 1:
            shared += 1
        return tuple(
            str(PurePosixPath(*each[shared:])) if each[shared:] else name
            for each, name in zip(parts, full, strict=True)
        )

    def to_dict(self) -> dict[str, object]:
        """For JSON: the scores, and by figure the places in that list of those on the front."""
        each = [{key: value for key, value in one.to_dict().items() if key != "formulas"} for one in self.scores]
        return {
            "scores": each,
            "pareto": {front.figure: list(front.places) for front in self.fronts},
            "replaced": [one.to_dict() for one in self.replaced],
            "formulas": FORMULAS,
        }

    def to_html(self) -> str:
        """One HTML file with a table, and a plot for each front; nothing in it is fetched."""
        from gemscope.pages.scores import comparison_document

        return comparison_document(
            self.scores, self.names, self.fronts, self._conditions(), [(one, loss_rows(one)) for one in self.replaced]
        )

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        first, fronts = self.scores[0], self.fronts
        others = [one.unlike for one in self.scores if one.unlike is not None]
        heads: tuple[str, ...] = (
            "SAE",
            "L0",
            "FVU",
            "cosine",
            "delta loss",
            "KL",
            "recovered",
            "dead",
            "dense",
            "features",
        )
        rows = []
        for place, (name, one) in enumerate(zip(self.names, self.scores, strict=True)):
            marks = {front.figure: " ●" if place in front.places else "  " for front in fronts}
            rows.append(
                (
                    name,
                    f"{one.l0:.1f}",
                    f"{one.fvu:.4f}{marks.get('fvu', '')}",
                    f"{one.cosine:.4f}",
                    number(one.delta_loss, "+.4f") + marks.get("delta_loss", ""),
                    number(one.kl, ".4f"),
                    number(one.loss_recovered_mean, ".4f"),
                    f"{one.dead:.2%}",
                    f"{one.dense:.2%}",
                    f"{one.features:,}",
                    *([] if one.unlike is None else [f"{one.unlike.fvu:.4f}", number(one.unlike.delta_loss, "+.4f")]),
                )
            )
        if others:
            heads = (*heads, "FVU, unlike", "delta loss")
        return Group(
            Text(f"{len(self.scores)} SAEs in {first.model}, on {first.corpus}", style="bold"),
            Text(f"  {self._conditions()}"),
            *([Text(f"  {MISLEADING}", style="bold yellow")] if first.every_token else []),
            *([Text(f"  on unlike text: {others[0].corpus}; {conditions(others[0])}")] if others else []),
            Text(),
            Table(heads, rows, left=heads[:1], bold=False),
            Text("● Pareto front: no other SAE has both this figure and L0 lower; recovered: of mean ablation", "dim"),
            *(part for one in self.replaced for part in self._replaced(one)),
        )

    @staticmethod
    def _replaced(one: Replaced) -> list[RenderableType]:
        from rich.text import Text

        head = f"\nAll {one.layers} in place at once: {one.name}; nats per token, over {one.loss_tokens:,} tokens"
        return [Text(head, style="bold"), Text(f"  {one.no_losses}") if one.no_losses else loss_table(one)]

    def _conditions(self) -> str:
        sites = sorted({one.site for one in self.scores})
        losses = self.scores[0].loss_tokens
        counted = {(one.tokens, one.masked) for one in self.scores}
        tokens = conditions(self.scores[0]) + ("" if len(counted) == 1 else ", a few more or less at other sites")
        return f"At {', '.join(sites)}; {tokens}; losses over {losses:,}"

    def _front(self, figure: str) -> tuple[int, ...]:
        points = [
            (place, one.l0, value)
            for place, one in enumerate(self.scores)
            if isinstance(value := getattr(one, figure), float) and math.isfinite(value)
        ]
        return on_front(points)


def compare(
    model: LanguageModel,
    saes: Sequence[SAE | CrossLayerTranscoder] | Stack | CrossLayerTranscoder,
    corpus: Corpus,
    *,
    tokens: int | None = None,
    loss_tokens: int = 20_000,
    length: int = 256,
    batch: int = 8,
    every_token: bool = False,
    unlike: Corpus | None = None,
    piece: int = PIECE,
    pieces: str | Path | None = None,
    world: World = ALONE,
    progress: Progress = silent,
) -> Comparison:
    """`score` of several SAEs, or of all of a stack, over one reading of the text. The model's passes, clean and
    ablated, are made once for all that read the same site. A cross-layer transcoder has a score for each of its layers,
    how much of what is written there it explains. What the model loses with all layers of it in place, or with all SAEs
    where they are one for each of several sites of a kind, is in `replaced`. Raises what `score` raises, and InputError
    for no SAEs.
    """
    each = (
        [saes] if isinstance(saes, CrossLayerTranscoder) else list(saes.values() if isinstance(saes, Stack) else saes)
    )
    if not each:
        raise InputError("no SAEs given: compare wants at least one")
    found = scores(
        model,
        each,
        corpus,
        tokens=tokens,
        loss_tokens=loss_tokens,
        length=length,
        batch=batch,
        every_token=every_token,
        unlike=unlike,
        piece=piece,
        pieces=pieces,
        world=world,
        progress=progress,
    )
    return Comparison(found.scores, found.replaced)
