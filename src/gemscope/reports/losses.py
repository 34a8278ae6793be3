"""What a model loses when a site says something else: next-token losses and KL beside the unchanged model's, over the
next tokens of counted tokens. Which changes are worth making is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from gemscope.activations.editing import Edit
from gemscope.activations.fetch import together
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.activations.suited import with_float64
from gemscope.features.metrics import Predictions
from gemscope.progress import Progress, silent
from gemscope.shapes import Bool
from gemscope.text.tokens import Tokens

_LOGITS = 1 << 28
"""Bytes of logits in float32 that one pass may make, as far as a single row allows: two passes are held at a time."""


@dataclass(frozen=True)
class Kept:
    """Rows to be read again, and which of their tokens count at each site."""

    tokens: Tokens
    counted: Mapping[Site, Bool[Tensor, "B T"]]

    def __len__(self) -> int:
        return len(self.tokens)

    def parts(self, rows: int) -> Iterator[Kept]:
        """The same, at most so many rows at a time."""
        for start in range(0, len(self), rows):
            part = slice(start, start + rows)
            tokens = replace(
                self.tokens,
                ids=self.tokens.ids[part],
                real=self.tokens.real[part],
                counted=self.tokens.counted[part],
                document=None,
                offset=None,
            )
            yield Kept(tokens, {site: counted[part] for site, counted in self.counted.items()})


@dataclass(frozen=True)
class Change:
    """A change to the model on the tokens that count at `site`: `edits` is given their mask."""

    site: Site
    edits: Callable[[Bool[Tensor, "B T"]], Sequence[Edit]]


@dataclass
class Losses:
    """Running sums over tokens, in float64: of the loss, and of KL(clean ‖ changed)."""

    n: int = 0
    total: float = 0.0
    divergence: float = 0.0

    def add(self, losses: Tensor, divergences: Tensor | None = None) -> None:
        """Of some more tokens."""
        self.n += len(losses)
        self.total += with_float64(losses).double().sum().item()
        self.divergence += 0.0 if divergences is None else with_float64(divergences).double().sum().item()

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats per token."""
        return self.total / self.n

    @property
    def kl(self) -> float:
        """Mean KL(clean ‖ changed), nats per token."""
        return self.divergence / self.n


def losses(
    model: LanguageModel, kept: Sequence[Kept], changes: Sequence[Change], *, progress: Progress = silent
) -> tuple[dict[Site, Losses], list[Losses]]:
    """The clean model's losses on each site's counted tokens, and those of each change on its own site's.

    A counted token enters where a real one follows it in its row. The clean pass is made once for all changes.
    """
    clean: dict[Site, Losses] = {change.site: Losses() for change in changes}
    changed = [(change, Losses()) for change in changes]
    tokens = sum(int(one.tokens.real.sum()) for one in kept)
    with progress("losses", tokens * (1 + len(changes)), "tokens") as advance:
        for batch in kept:
            for part in batch.parts(_rows_a_pass(model, batch.tokens)):
                _add(model, part, clean, changed, advance)
    return clean, [sums for _, sums in changed]


def _add(
    model: LanguageModel,
    part: Kept,
    clean: Mapping[Site, Losses],
    changed: Sequence[tuple[Change, Losses]],
    advance: Callable[[int], None],
) -> None:
    has_next = _has_next(part.tokens.real)
    followed = {site: part.counted[site] & has_next for site in clean}
    chosen = _any(list(followed.values()))
    among = {site: mask[chosen] for site, mask in followed.items()}
    following = part.tokens.ids.roll(-1, dims=1)[chosen]
    size = int(part.tokens.real.sum())
    plain = Predictions(model.logits(part.tokens), chosen)
    losses = plain.loss(following).cpu()
    for site, sums in clean.items():
        sums.add(losses[among[site]])
    advance(size)
    for change, sums in changed:
        with model.edited(*change.edits(part.counted[change.site])):
            other = Predictions(model.logits(part.tokens), chosen)
        mask = among[change.site]
        lost, divergences = together([other.loss(following), plain.divergence(other)])
        sums.add(lost[mask], divergences[mask])
        advance(size)


def _rows_a_pass(model: LanguageModel, tokens: Tokens) -> int:
    return max(1, _LOGITS // (4 * tokens.ids.shape[1] * model.vocab))


def _has_next(real: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Where a real token follows."""
    following = real.roll(-1, dims=1)
    following[:, -1] = False
    return following


def _any(masks: Sequence[Bool[Tensor, "B T"]]) -> Bool[Tensor, "B T"]:
    out = masks[0]
    for mask in masks[1:]:
        out = out | mask
    return out
