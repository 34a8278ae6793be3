"""What flowed through a site while tokens were read, and which of those tokens count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from gemscope.activations.site import Site
from gemscope.shapes import Bool, Float
from gemscope.text.tokens import Tokens


@dataclass(frozen=True)
class Activations:
    """Activations [B, T, D] at one site, the tokens they belong to, and the model's name.

    `counted` [B, T] is the tokens' own mask without attention sinks: the same at every site of one capture.
    """

    values: Float[Tensor, "B T D"]
    counted: Bool[Tensor, "B T"]
    tokens: Tokens
    site: Site
    model: str
    known: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    """Of a device: `counted`, and the same in the processor's memory. What that chooses makes nobody wait."""

    @property
    def kept(self) -> Bool[Tensor, "B T"]:
        """`counted` in the processor's memory."""
        if self.known is not None and self.known[0] is self.counted:
            return self.known[1]
        return self.counted.cpu()

    @property
    def rows(self) -> Float[Tensor, "N D"]:
        """Only the counted tokens, flattened."""
        return self.values[self.kept]

    @property
    def d(self) -> int:
        """Width of the site."""
        return self.values.shape[-1]

    def every(self, step: int, first: int) -> Activations:
        """Those of every so-manieth row alone, from the first one given on."""
        return replace(
            self,
            values=self.values[first::step],
            counted=self.counted[first::step],
            tokens=self.tokens.every(step, first),
        )

    @property
    def dropped(self) -> dict[str, int]:
        """How many places do not count, by reason: padding, first (of its row), special, sink."""
        tokens, counted = self.tokens, self.kept
        masked = tokens.real & ~tokens.counted
        first = masked & (tokens.positions == 0)
        reasons = {
            "padding": ~tokens.real,
            "first": first,
            "special": masked & ~first,
            "sink": tokens.counted & ~counted,
        }
        return {reason: int(mask.sum()) for reason, mask in reasons.items()}


class Captured(Mapping[Site, Activations]):
    """Activations by site, of one pass. Keys may be written as text: `captured["20.res"]`."""

    def __init__(self, found: Mapping[Site, Activations], logits: Tensor | None = None) -> None:
        self._found = dict(found)
        self.logits = logits

    def __getitem__(self, site: Site | str | None) -> Activations:
        if site is None:
            raise KeyError("no site given: the SAE does not say where it reads (set sae.site)")
        return self._found[Site.parse(site)]

    def __iter__(self) -> Iterator[Site]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
