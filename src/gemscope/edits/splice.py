"""An SAE's reconstruction in place of what it reads, inside the running model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gemscope.activations.site import Site
from gemscope.errors import InputError
from gemscope.features.sae import SAE
from gemscope.shapes import Bool, Float


@dataclass(frozen=True)
class Splice:
    """Puts `sae(x)` where the model had x, on the tokens of `where` [B, T]; the others stay as they are.

    Special tokens and attention sinks belong among the others: an SAE's output there is nonsense by design, and the
    loss would measure that. Transcoders read one site and write another, so a single replacement cannot stand for them.
    """

    sae: SAE
    where: Bool[Tensor, "B T"]

    def __post_init__(self) -> None:
        if self.sae.site is None:
            raise InputError(f"{self.sae.info.name} does not say where it reads: set sae.site")
        if self.sae.is_transcoder:
            raise InputError(
                f"{self.sae.info.name} is a transcoder ({self.sae.site} → {self.sae.site_out}): it cannot be spliced in"
            )

    @property
    def site(self) -> Site:
        """Where it acts."""
        assert self.sae.site is not None
        return self.sae.site

    def __call__(self, values: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        if self.where.shape != values.shape[:2]:
            given, here = tuple(self.where.shape), tuple(values.shape[:2])
            raise InputError(
                f"where has shape {given}, the text has {here} (rows, positions): take where from its tokens"
            )
        where = self.where.to(values.device)
        out = values.clone()
        out[where] = self.sae(values[where]).to(values.device, values.dtype)
        return out
