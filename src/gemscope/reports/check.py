"""Whether this is the right model, site, scale and token mask for an SAE: the verdict and its evidence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from gemscope.pages.plain import Shown, known
from gemscope.pages.tables import Table

if TYPE_CHECKING:
    from rich.console import RenderableType


FEW_FOR_A_VERDICT = 200


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How the SAE does on one reading of the model."""

    site: str
    scale: float
    """What the activations were multiplied by before the SAE read them."""
    explained_variance: float
    l0: float
    error: float
    """Median over the tokens of ‖x − x̂‖² / ‖x − m‖², where m is the site's median by coordinate."""
    typical_l0: float
    """L0 without the twentieth of the tokens at either end."""
    better_on: float | None = None
    """Share of the tokens on which the error is smaller than at the given site and scale; None for that itself."""
    clearly: bool = False
    """Whether that share is above one half by more than chance (Wilson's interval, 95 %)."""


@dataclass(frozen=True, kw_only=True)
class Check(Shown):
    """What `check` found. `ok` when the figures are plausible and nothing else fits clearly better."""

    ok: bool
    model: str
    sae: str
    site: str
    tokens: int
    """Counted tokens that all figures are over."""
    explained_variance: float
    """1 − Σ‖x − x̂‖² / Σ‖x − μ‖², one ratio over the counted tokens."""
    error: float
    """Median over the tokens of ‖x − x̂‖² / ‖x − m‖²: the figure that sites are compared by."""
    l0: float
    declared_l0: float | None
    masked_tokens: int
    sinks: int
    """How many of the masked are attention sinks."""
    masked_l0: float | None
    """L0 on the tokens that do not count: thousands mean that they are rightly left out."""
    explained_variance_with_masked: float | None
    """What explained variance would seem to be with them."""
    suggestion: str | None
    """What to do, one sentence, or None."""
    notes: tuple[str, ...]
    trials: tuple[Trial, ...]
    """Everything tried, the given site first, the others best first."""
    computed: str = ""
    """Number format and device, and why where they were chosen."""

    def to_dict(self) -> dict[str, object]:
        """For JSON; a figure that does not exist is None."""
        return {key: known(value) for key, value in asdict(self).items()} | {"fvu": 1 - self.explained_variance}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        verdict = Text("✓ fits  " if self.ok else "✗ does not fit  ", style="bold green" if self.ok else "bold red")
        few = f", judged on {self.tokens} tokens alone" if self.tokens < FEW_FOR_A_VERDICT else ""
        verdict.append(f"{self.sae} at {self.site} of {self.model}{few}", style="default")
        declared = "not declared" if self.declared_l0 is None else f"declared {self.declared_l0:g}"
        masked = f"{self.masked_tokens:,} masked: special, first of a row, {self.sinks:,} attention sinks"
        ev = self.explained_variance
        facts = [
            ("explained variance", f"{ev:.4f}", f"FVU {1 - ev:.4f}, global mean"),
            ("median error", f"{self.error:.4f}", "of a token, ‖x − x̂‖² / ‖x − m‖²"),
            ("L0", f"{self.l0:.1f}", declared),
            ("tokens", f"{self.tokens:,}", masked),
        ]
        if self.masked_l0 is not None:
            facts.append(("L0 on masked tokens", f"{self.masked_l0:,.0f}", "SAEs are not trained on them"))
        if self.computed:
            dtype, where = self.computed.split(" ", 1)
            facts.append(("computed in", dtype, where))
        parts: list[RenderableType] = [verdict, Text(), Table((), facts, indent=2)]
        if len(self.trials) > 1:
            heads = ("tried", "median error", "better on", "explained variance", "L0")
            rows = [
                (
                    trial.site if trial.scale == 1 else f"{trial.site} × {trial.scale:.4g}",
                    f"{trial.error:.4f}",
                    "" if trial.better_on is None else f"{trial.better_on:.0%} of tokens",
                    f"{trial.explained_variance:.4f}",
                    f"{trial.l0:.1f}",
                )
                for trial in self.trials[:6]
            ]
            parts += [Text(), Table(heads, rows, left=heads[:1], bold=False, indent=2)]
        for note in self.notes:
            parts.append(Text(f"note: {note}", style="yellow"))
        if self.suggestion:
            parts += [Text(), Text(self.suggestion, style="bold")]
        return Group(*parts)
