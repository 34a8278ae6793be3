"""How good an SAE is on a corpus: the figures, and what each of them is. docs/score.md defines them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from gemscope.features.histogram import Histogram
from gemscope.pages.plain import Paged, known
from gemscope.pages.tables import Table
from gemscope.reports.replaced import Replaced
from gemscope.text.rows import passed_over

if TYPE_CHECKING:
    from rich.console import RenderableType


FORMULAS = {
    "l0": "features with f ≠ 0 per token: mean, standard deviation, 95th percentile over tokens",
    "fvu": "Σ‖x − x̂‖² / Σ‖x − μ‖², μ the mean over all counted tokens; explained_variance = 1 − fvu",
    "cosine": "mean of cos(x, x̂)",
    "l2_ratio": "mean of ‖x̂‖ / ‖x‖",
    "relative_bias": "E‖x̂‖² / E[x·x̂] (arXiv 2404.16014, eq. 10)",
    "dead": "share of features that fired on no token",
    "dense": "share of features that fired on more than a tenth of the tokens",
    "delta_loss": "spliced_loss − loss, nats per next token of a counted token",
    "kl": "KL(clean ‖ spliced), nats per next token of a counted token",
    "zero_loss, mean_loss": "the site's counted activations replaced by 0, by their mean over `tokens`",
    "loss_recovered_*": "(ablated − spliced) / (ablated − clean)",
    "kl_score_*": "(KL ablated − KL spliced) / KL ablated",
}
"""What each figure is, in one line each; docs/score.md says more."""


@dataclass(frozen=True, kw_only=True)
class Score(Paged):
    """Figures over `tokens` counted tokens (special tokens, first positions and attention sinks apart).

    Losses are in nats per token, over the next tokens of counted tokens; in a changed model the SAE's output, zero or
    the mean stands in for the counted tokens' activations alone. Gemma Scope (arXiv 2408.05147) calls delta_loss its
    main measure. A transcoder is compared with the MLP's output, its skip connection included.
    """

    model: str
    revision: str | None
    """Commit of the model."""
    sae: str
    digest: str
    """SHA-256 of the SAE's weights."""
    site: str
    corpus: str
    every_token: bool
    """Whether special tokens, first positions and sinks were counted: such figures flatter or mislead."""
    tokens: int
    masked: int
    """Tokens read that did not count."""
    sinks: int
    """How many of these are attention sinks."""
    passed: Mapping[str, int] = field(default_factory=dict)
    """Rows of the corpus that had no text, by reason (`text.rows.PASSED`)."""
    features: int
    """d_sae."""
    l0: float
    l0_std: float
    l0_p95: int
    """95 % of tokens have no more active features."""
    fvu: float
    """Σ‖x − x̂‖² / Σ‖x − μ‖², one ratio over all tokens."""
    explained_variance: float
    cosine: float
    l2_ratio: float
    """Mean ‖x̂‖ / ‖x‖."""
    relative_bias: float
    """E‖x̂‖² / E[x·x̂]: below 1 is shrinkage."""
    dead: float
    """Share of features that never fired on these tokens."""
    dense: float
    """Share of features that fired on more than a tenth of them."""
    densities: Histogram
    """Living features by log10 of the share of tokens they fire on."""
    l0s: Histogram
    """Tokens by L0."""
    loss: float | None = None
    spliced_loss: float | None = None
    delta_loss: float | None = None
    kl: float | None = None
    """KL(clean ‖ spliced)."""
    zero_loss: float | None = None
    """With zero in the place of what the SAE stands for."""
    zero_kl: float | None = None
    mean_loss: float | None = None
    """With its mean over the `tokens` counted tokens in its place."""
    mean_kl: float | None = None
    loss_recovered_zero: float | None = None
    """(ablated − spliced) / (ablated − clean), from zero ablation. Near 1 for anything on a residual stream."""
    loss_recovered_mean: float | None = None
    kl_score_zero: float | None = None
    """(KL ablated − KL spliced) / KL ablated."""
    kl_score_mean: float | None = None
    loss_tokens: int = 0
    """Tokens that the losses are means over."""
    no_losses: str | None = None
    """Why there are none, where they were asked for."""
    computed: str = ""
    """Number format and device, and why where they were chosen."""
    declared_l0: float | None = None
    """What the SAE's card says."""
    unlike: Score | None = None
    """The same on another text, unlike what the SAE learned from; None where none was given."""

    @property
    def far(self) -> str | None:
        """What to say where L0 is far from the card's; None where it is near."""
        if self.every_token:
            return None
        return far(self.l0, self.declared_l0, self.tokens)

    def to_dict(self) -> dict[str, object]:
        """For JSON; a figure that does not exist is None."""
        own = {key: known(value) for key, value in asdict(replace(self, unlike=None)).items()}
        if self.unlike is not None:
            own["unlike"] = {key: value for key, value in self.unlike.to_dict().items() if key != "formulas"}
        return own | {"formulas": FORMULAS}

    def to_html(self) -> str:
        """One HTML file with the figures and plots; nothing in it is fetched."""
        from gemscope.pages.scores import score_document

        told = conditions(self), "" if self.unlike is None else conditions(self.unlike)
        return score_document(self, loss_rows(self), beside(self), *told)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        figures = [
            ("L0", f"{self.l0:.1f}", f"± {self.l0_std:.1f} per token, 95 % of tokens ≤ {self.l0_p95:,}"),
            (
                "explained variance",
                f"{self.explained_variance:.4f}",
                f"FVU {self.fvu:.4f}, one mean over all tokens",
            ),
            ("cosine", f"{self.cosine:.4f}", f"l2 ratio {self.l2_ratio:.4f}, relative bias {self.relative_bias:.4f}"),
            ("dead", f"{self.dead:.2%}", f"of {self.features:,} features; dense {self.dense:.2%}"),
        ]
        parts: list[RenderableType] = [
            Text(self.sae, style="bold"),
            Text(f"  read at {self.site} of {self.model}, on {self.corpus}"),
            Text(f"  {conditions(self)}"),
            *([Text(f"  {MISLEADING}", style="bold yellow")] if self.every_token else []),
            *([Text(f"  {self.far}", style="bold yellow")] if self.far else []),
            Table((), figures, indent=2),
        ]
        if self.no_losses:
            parts.append(Text(f"  no losses: {self.no_losses}"))
        elif self.loss is not None:
            parts += [Text(f"\n  nats per token, over {self.loss_tokens:,} tokens", style="dim"), loss_table(self)]
        if (other := self.unlike) is not None:
            parts += [
                Text(f"\n  On unlike text, {other.corpus}", style="bold"),
                Text(f"  {conditions(other)}"),
                Table(("", "here", "on unlike text"), beside(self), left=("",), bold=False, indent=2),
            ]
        return Group(*parts)


MISLEADING = "every token counted: BOS, special tokens and attention sinks are in these figures, which mislead"

_FAR = 0.2
"""Share of the card's L0. The bundled SAE's (50) is 51 to 57 on held-out documents of its own sources, and 64 on prose
that none of them resembles.
"""
_MANY = 2000
"""Tokens from which an L0 that is so far off is not these tokens' chance: they spread by 31, and those of a document
go together.
"""


def far(l0: float, declared: float | None, tokens: int) -> str | None:
    """What an L0 far from the declared one says of the text; None where it is near, or the tokens are few."""
    if not declared or tokens < _MANY or abs(l0 - declared) <= _FAR * declared:
        return None
    more = "more" if l0 > declared else "less"
    return (
        f"L0 is {abs(l0 / declared - 1):.0%} {more} than the SAE's card says ({declared:g}): this text is unlike what "
        "it learned from, or site or scale are wrong"
    )


_FORMS = (".4f", "+.4f", ".4f", ".4f", ".4f")


@dataclass(frozen=True)
class LossRow:
    """One reading of the model: its loss, the difference to the clean one's, KL, and what the SAE recovers of it."""

    name: str
    values: tuple[float | None, ...]
    """Loss, delta loss, KL, loss recovered, KL score."""


def loss_rows(score: Score | Replaced) -> list[LossRow]:
    """The losses as a table; none where they were left out."""
    if score.loss is None:
        return []
    rows = [
        LossRow("clean", (score.loss, None, None, None, None)),
        LossRow(
            "SAE spliced in" if isinstance(score, Score) else "all in place",
            (score.spliced_loss, score.delta_loss, score.kl, None, None),
        ),
    ]
    for name, loss, kl, loss_recovered, kl_score in (
        ("mean ablation", score.mean_loss, score.mean_kl, score.loss_recovered_mean, score.kl_score_mean),
        ("zero ablation", score.zero_loss, score.zero_kl, score.loss_recovered_zero, score.kl_score_zero),
    ):
        delta = None if loss is None else loss - score.loss
        rows.append(LossRow(name, (loss, delta, kl, loss_recovered, kl_score)))
    return rows


def loss_table(score: Score | Replaced) -> Table:
    """The losses for the shell."""
    heads = ("", "loss", "delta loss", "KL", "loss recovered", "KL score")
    rows = [
        (row.name, *(number(value, form) for value, form in zip(row.values, _FORMS, strict=True)))
        for row in loss_rows(score)
    ]
    return Table(heads, rows, left=heads[:1], bold=False, indent=2)


def beside(score: Score) -> list[tuple[str, ...]]:
    """The main figures, and those on unlike text; none where there is no such text."""
    if score.unlike is None:
        return []
    both = (score, score.unlike)
    rows = [
        ("L0", *(f"{one.l0:.1f}" for one in both)),
        ("FVU", *(f"{one.fvu:.4f}" for one in both)),
        ("cosine", *(f"{one.cosine:.4f}" for one in both)),
        ("dead", *(f"{one.dead:.2%}" for one in both)),
        ("delta loss", *(number(one.delta_loss, "+.4f") for one in both)),
        ("KL", *(number(one.kl, ".4f") for one in both)),
        ("loss recovered, of the mean's", *(number(one.loss_recovered_mean, ".4f") for one in both)),
    ]
    return [row for row in rows if any(row[1:])]


def conditions(score: Score) -> str:
    """What was counted, in one line."""
    what = "padding" if score.every_token else f"special, first of a row, {score.sinks:,} attention sinks"
    counted = f"{score.tokens:,} tokens counted, {score.masked:,} masked ({what})"
    computed = score.computed and f"computed in {score.computed}"
    return "; ".join(filter(None, (counted, passed_over(score.passed), computed)))


def number(value: float | None, form: str) -> str:
    """A figure as text; nothing for one that does not exist."""
    return "" if known(value) is None else format(value, form)
