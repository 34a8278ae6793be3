"""The crosscoder: one dictionary for several sites of a model together (Lindsey et al., October 2024). Its arithmetic
is the SAE's, on their activations side by side; here is what belongs to which site. Files are `files/crosscoder.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from gemscope.activations.capture import Activations
from gemscope.activations.site import Site
from gemscope.errors import InputError, Mismatch
from gemscope.features.activations import FeatureActivations
from gemscope.features.sae import SAE, SAEInfo
from gemscope.shapes import Float, Int

Read = Mapping[Site, Activations] | Mapping[Site, Tensor] | Mapping[str, Tensor]
"""Activations of the same tokens by site: what `model.capture(text, crosscoder.sites)` gives; or tensors [..., D]."""


@dataclass(frozen=True, eq=False)
class Crosscoder:
    """Features that read several sites of a model at once, and write to each of them.

        f = gate(Σ_s x^s W_enc^s + b_enc),      x̂^s = f W_dec^s + b_dec^s

    A feature that writes to all sites persists from one to the next; one that writes to a single site is that site's
    own: `shares` tells them apart.
    """

    sae: SAE
    """Of the sites side by side, in the order of `sites`; it has no site of its own."""
    sites: tuple[Site, ...]
    widths: tuple[int, ...]
    """Numbers per token at each site."""
    lengths: tuple[float, ...]
    """Of each site's activations in training, the root of the mean squared norm about their mean: what decoder norms
    are measured by, for later sites are longer."""

    def __post_init__(self) -> None:
        if not len(self.sites) == len(self.widths) == len(self.lengths) or len(set(self.sites)) < len(self.sites):
            raise InputError(
                f"{len(self.sites)} sites ({', '.join(map(str, self.sites))}), {len(self.widths)} widths and "
                f"{len(self.lengths)} lengths: expected different sites, and one width and length each"
            )
        if min(self.widths, default=0) < 1 or not all(0 < length < math.inf for length in self.lengths):
            raise InputError(f"widths {self.widths} and lengths {self.lengths}: all must be above 0")
        if not sum(self.widths) == self.sae.d_in == self.sae.d_out:
            raise Mismatch(
                f"sites of widths {' + '.join(map(str, self.widths))} given to an SAE that reads {self.sae.d_in} and "
                f"writes {self.sae.d_out}"
            )

    # --- what it computes -------------------------------------------------------------------------------------

    def encode(self, captured: Read) -> FeatureActivations:
        """The active features of every token, sparse; a token counts where it does at all sites.

        Raises Mismatch for a site that is missing, another width or other tokens, NotFinite.
        """
        x, counted = self._beside(captured)
        found = self.sae.encode(x)
        return replace(found, counted=None if counted is None else counted.to(found.values.device))

    def decode(self, features: FeatureActivations) -> dict[Site, Float[Tensor, "... O"]]:
        """The activations that the features stand for, by site."""
        return self._apart(self.sae.decode(features))

    def __call__(self, captured: Read) -> dict[Site, Float[Tensor, "... O"]]:
        """Encoded and decoded."""
        return self.decode(self.encode(captured))

    def direction(self, feature: int, site: Site | str) -> Float[Tensor, "O"]:
        """What one unit of a feature writes to a site, in the site's units: for `Steer.along`."""
        return self._apart(self.sae.direction(feature))[self._known(site)]

    def to(self, device: torch.device | str) -> Crosscoder:
        """The same on another device."""
        return replace(self, sae=self.sae.to(device))

    # --- which site a feature belongs to ----------------------------------------------------------------------

    @cached_property
    def norms(self) -> Float[Tensor, "F S"]:
        """‖W_dec^s‖ of every feature at every site, in units of the site's `lengths`."""
        parts = self._apart(self.sae.decoder[:].float()).values()
        return torch.stack([part.norm(dim=-1) / length for part, length in zip(parts, self.lengths, strict=True)], -1)

    @property
    def shares(self) -> Float[Tensor, "F S"]:
        """`norms`, each feature's adding up to 1: about 1/S at each of S sites for a feature that all of them share, 1
        at its own for one that is a single site's, 0 everywhere for one that writes nothing.
        """
        return self.norms / self.norms.sum(-1, keepdim=True).clamp(min=1e-12)

    def histogram(self, bins: int = 20) -> Int[Tensor, "S bins"]:
        """How many features have which share at each site: bins of equal width from 0 to 1. Features that write nothing
        are left out.
        """
        shares = self.shares[self.norms.sum(-1) > 0].cpu()
        if bins < 1:
            raise InputError(f"bins={bins}: at least one")
        places = (shares * bins).long().clamp(max=bins - 1)
        return torch.stack([torch.bincount(column, minlength=bins) for column in places.T])

    # --- what it is -------------------------------------------------------------------------------------------

    @property
    def info(self) -> SAEInfo:
        """What it is and was made for."""
        return self.sae.info

    @property
    def d_sae(self) -> int:
        """Features."""
        return self.sae.d_sae

    def __repr__(self) -> str:
        sites = ", ".join(f"{site} ({width})" for site, width in zip(self.sites, self.widths, strict=True))
        return f"Crosscoder({self.info.name}, {sites}, {self.sae.gate}, d_sae={self.d_sae})"

    # --- side by side and apart -------------------------------------------------------------------------------

    def _beside(self, captured: Read) -> tuple[Tensor, Tensor | None]:
        """The sites' activations as the SAE reads them, and which tokens count."""
        given = {Site.parse(site): acts for site, acts in captured.items()}
        values: list[Tensor] = []
        counted: list[Tensor] = []
        for site, width in zip(self.sites, self.widths, strict=True):
            if site not in given:
                raise Mismatch(
                    f"no activations of {site} among {', '.join(map(str, given)) or 'none'}: capture all of "
                    f"{', '.join(map(str, self.sites))}"
                )
            acts = given[site]
            x = acts.values if isinstance(acts, Activations) else acts
            if x.shape[-1] != width or (values and x.shape[:-1] != values[0].shape[:-1]):
                raise Mismatch(
                    f"activations of shape {tuple(x.shape)} at {site}: expected {width} numbers for each of the tokens "
                    f"that {self.sites[0]} has"
                )
            values.append(x.to(self.sae.device, torch.float32))
            if isinstance(acts, Activations):
                counted.append(acts.counted.cpu())
        return torch.cat(values, dim=-1), torch.stack(counted).all(0) if counted else None

    def _apart(self, rows: Tensor) -> dict[Site, Tensor]:
        return dict(zip(self.sites, torch.split(rows, list(self.widths), dim=-1), strict=True))

    def _known(self, site: Site | str) -> Site:
        site = Site.parse(site)
        if site not in self.sites:
            raise Mismatch(f"no site {site} in a crosscoder over {', '.join(map(str, self.sites))}")
        return site
