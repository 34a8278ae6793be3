"""What attribution found: which features, at which tokens, cause a logit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from gemscope.pages import signs
from gemscope.pages.labels import STANDS, clipped_label, short_label
from gemscope.pages.plain import Shown, harmless, known
from gemscope.pages.signs import signed
from gemscope.pages.tables import Cell, Table
from gemscope.text.printable import visible

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, kw_only=True)
class Target:
    """A token whose logit is looked into, as the model predicts it at the chosen position."""

    id: int
    token: str
    logit: float
    probability: float

    @property
    def quoted(self) -> str:
        """The token as a reader sees it."""
        return f"“{visible(self.token)}”"

    @property
    def likely(self) -> str:
        """The probability as people write it."""
        return f"{self.probability:.1%}" if self.probability >= 0.001 else f"{self.probability:.1e}"


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One feature on one token, and what it adds to the logit there. Positive: it speaks for the target, as in every
    other figure of an `Attribution`."""

    feature: int
    position: int
    token: str
    activation: float
    predicted: float
    """f · (∇ · d), gradient × activation: to first order, by how much the logit falls when the feature is ablated
    there."""
    measured: float | None
    """By how much it falls when the feature really is ablated there and nowhere else; None where that was not asked
    for."""
    label: str | None = None
    """What the feature stands for, by the atlas that was at hand."""


@dataclass(frozen=True, kw_only=True)
class Total:
    """One feature over all tokens."""

    feature: int
    tokens: int
    """Counted tokens on which it is active and the gradient is not zero."""
    predicted: float
    """Sum of gradient × activation."""
    label: str | None = None
    """What it stands for."""


@dataclass(frozen=True, kw_only=True)
class Attribution(Shown):
    """What `attribute` found. `str` gives tables, a notebook shows colours, `to_dict` gives what `--json` prints.

    With ∇ the gradient of the logit (or difference) with respect to the activation y at the site that the SAE writes,
    and y = Σ f·d + b_dec (+ W_skip x) + e on counted tokens, the sum over all tokens of ∇·y falls into five parts,
    which add up to `total`: `features`, `error`, `bias`, `skip` and `uncounted`. It is a first-order account: it says
    what would change in proportion, not how the logit's own value comes about.
    """

    model: str
    sae: str
    site: str
    dtype: str
    """The model's number format: in half precision the measured effects are as coarse as its logits."""
    tokens: tuple[str, ...]
    counted: tuple[bool, ...]
    """False for special tokens, the first position and attention sinks: no feature is read there."""
    position: int
    """The token after which the prediction is made, from 0."""
    target: Target
    against: Target | None
    logit: float
    """The target's logit, less the other's where there is one."""
    rows: tuple[Cause, ...]
    """The strongest, by the size of the predicted effect."""
    by_feature: tuple[Total, ...]
    """Features summed over tokens, the strongest by the size of that sum; as many as `rows`."""
    together_predicted: float
    """Sum of the predicted effects of all `rows`."""
    together_measured: float | None
    """By how much the logit falls when all of them are ablated at once."""
    correlation: float | None
    """Pearson's, of predicted and measured over `rows`; None for fewer than three, or where either does not vary."""
    features: float
    """Σ f · (∇·d) over all active features of counted tokens."""
    error: float
    """Σ ∇·e over counted tokens: what the SAE leaves out of y."""
    bias: float
    """Σ ∇·b_dec over counted tokens."""
    skip: float
    """Σ ∇·(W_skip x) over counted tokens, for transcoders with a skip; else 0."""
    uncounted: float
    """Σ ∇·y over the tokens that do not count."""
    total: float
    """Σ ∇·y over all tokens."""
    features_by_token: tuple[float, ...]
    error_by_token: tuple[float, ...]
    active: int
    """Pairs of a counted token and a feature active there, up to the position: what `rows` is chosen from."""
    notes: tuple[str, ...] = ()
    """What a reader should know, one line each."""
    computed: str = ""
    """Number format and device, and why where they were chosen."""

    @property
    def named(self) -> bool:
        """Whether any feature has a label here."""
        return any(row.label for row in self.rows) or any(one.label for one in self.by_feature)

    @property
    def error_share(self) -> float:
        """Σ|∇·e| / (Σ|∇·e| + Σ|Σ f(∇·d)|), sums over counted tokens: 0 where the features say it all; NaN for none."""
        error, features = (sum(map(abs, part)) for part in (self.error_by_token, self.features_by_token))
        return error / (error + features) if error + features else math.nan

    def to_dict(self) -> dict[str, object]:
        """For JSON; a figure that does not exist is None."""
        return asdict(self) | {"error_share": known(self.error_share)}

    # --- how it shows itself ----------------------------------------------------------------------------------

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        lines: list[RenderableType] = [Text(self._title(), style="bold"), Text(self._question()), Text()]
        if self.rows:
            lines += [Text(self._heading()), self._table()]
        strip = signs.strip(self.tokens, self.counted, self.features_by_token)
        lines += [Text(), *map(Text, self._summary()), Text()]
        return Group(*lines, Text("What all features add, predicted, by token: ").append_text(strip))

    def _repr_html_(self) -> str:
        lines = "".join(f"<li>{harmless(line)}</li>" for line in self._summary())
        strip = signs.html_strip(self.tokens, self.counted, self.features_by_token)
        return (
            f"<div><p><b>{harmless(self._title())}</b><br>{harmless(self._question())}</p><p>{strip}</p>"
            f"<p>{harmless(self._heading())}</p>{self._table().html() if self.rows else ''}<ul>{lines}</ul></div>"
        )

    def _table(self) -> Table:
        named = any(row.label for row in self.rows)
        rows = [
            (
                str(row.feature),
                Cell(
                    f"{visible(row.token)} ({row.position})",
                    html=f"{signs.code(row.token)} <small>({row.position})</small>",
                ),
                f"{row.activation:.2f}",
                signs.cell(row.predicted),
                "" if row.measured is None else signs.cell(row.measured),
                *([short_label(row.label)] if named else []),
            )
            for row in self.rows
        ]
        heads = ("feature", "on token", "activation", "predicted", "measured", *[STANDS] * named)
        return Table(heads, rows, left=("on token", STANDS), wraps=(STANDS,))

    def _title(self) -> str:
        return f"{self.model} at {self.site}, read through {self.sae}"

    def _quantity(self) -> str:
        if self.against is None:
            return f"logit of {self.target.quoted}"
        return f"logit difference {self.target.quoted} − {self.against.quoted}"

    def _heading(self) -> str:
        return (
            f"What one feature on one token adds to the {self._quantity()}, as ablating it there shows: where it is + "
            f"the feature speaks for {self.target.quoted}"
        )

    def _question(self) -> str:
        asked = [self.target] + ([self.against] if self.against is not None else [])
        odds = ", ".join(f"{one.quoted} {one.likely}" for one in asked)
        where = f"after “{visible(self.tokens[self.position])}” (token {self.position})"
        return f"What causes the {self._quantity()} {where}: {self.logit:.3f} (probability: {odds})"

    def _summary(self) -> Iterator[str]:
        if not self.rows:
            yield "no feature is active on a counted token that the prediction can see"
        if self.together_measured is not None:
            alike = (
                "" if self.correlation is None else f", correlation of predicted and measured {self.correlation:.3f}"
            )
            yield (
                f"The {len(self.rows)} strongest of {self.active:,}{alike}; all of them together: "
                f"predicted {signed(self.together_predicted)}, measured {signed(self.together_measured)}"
            )
        if self.by_feature:
            sums = ", ".join(map(_summed, self.by_feature[:5]))
            yield f"Predicted, summed over tokens, feature by feature (on how many): {sums}"
        skip = f"W_skip {signed(self.skip)}, " if self.skip else ""
        apart = self.counted.count(False)
        yield (
            f"Gradient × activation, summed over all tokens: {signed(self.total)} = "
            f"features {signed(self.features)}, error {signed(self.error)}, b_dec {signed(self.bias)}, {skip}"
            f"{apart} {'token' if apart == 1 else 'tokens'} not counted {signed(self.uncounted)}"
        )
        if not math.isnan(self.error_share):
            yield (
                f"Error's share: {self.error_share:.0%} of features and error, by size, token by token: "
                f"that much of the answer lies outside the SAE"
            )
        if self.computed:
            yield f"Computed in {self.computed}"
        yield from self.notes


def _summed(one: Total) -> str:
    named = f" {clipped_label(one.label)}" if one.label else ""
    return f"{one.feature}{named} {signed(one.predicted)} ({one.tokens})"
