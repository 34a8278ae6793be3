"""Edits that put something else in an activation's place: a reconstruction, a transcoder's output, one vector."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from gemscope.activations.editing import Edit, Positions, positions
from gemscope.activations.site import Site
from gemscope.errors import InputError
from gemscope.features.fit import sites_of
from gemscope.features.sae import SAE
from gemscope.shapes import Float


class _Whole(Edit):
    """What replaces all of an activation."""

    at: Positions
    every_token: bool

    def __init__(self, site: Site, width: int, at: Positions, every_token: bool) -> None:
        self.site = site
        self.width = width
        self.at = positions(at)
        self.every_token = every_token

    @property
    def fixes(self) -> Hashable:
        return "everything"

    def __repr__(self) -> str:
        return f"<{self}>"


class Splice(_Whole):
    """sae(x) in the place of x; with `error`, what the SAE does not explain is added back, which gives x itself.

    Without the error term the model changes even where no feature is edited: `score` says how much. Edits of features
    beside it, in the same block, then act on what the SAE makes of x: dec(edit(enc(x))).
    """

    def __init__(self, sae: SAE, *, error: bool, at: Positions = "all", every_token: bool = False) -> None:
        """Raises InputError for an SAE without a site, or a transcoder."""
        site, site_out = sites_of(sae)
        if site != site_out:
            raise InputError(f"{sae.info.name} is a transcoder ({site} → {site_out}): put it in place with Replace")
        super().__init__(site, sae.d_out, at, every_token)
        self.sae = sae
        self.error = error

    def change(self, x: Float[Tensor, "N D"], read: Float[Tensor, "N I"]) -> Float[Tensor, "N D"]:
        if self.error:
            return torch.zeros_like(x)
        out: Tensor = self.sae(x).to(x.device)
        return out - x

    def __str__(self) -> str:
        kept = "its error term kept" if self.error else "without its error term"
        return f"splice {self.sae.info.name} in at {self.site}, {kept}"


class Replace(_Whole):
    """A transcoder's output in the place of what it stands for: the MLP's output becomes the transcoder's."""

    def __init__(self, sae: SAE, *, at: Positions = "all", every_token: bool = False) -> None:
        """Raises InputError for an SAE that is no transcoder, or has no site."""
        site, site_out = sites_of(sae)
        if site == site_out:
            raise InputError(f"{sae.info.name} reads and writes {site}, it is no transcoder: use Splice")
        super().__init__(site_out, sae.d_out, at, every_token)
        self._reads = site
        self.sae = sae

    @property
    def reads(self) -> Site:
        return self._reads

    @property
    def reads_width(self) -> int:
        return self.sae.d_in

    def change(self, x: Float[Tensor, "N D"], read: Float[Tensor, "N I"]) -> Float[Tensor, "N D"]:
        out: Tensor = self.sae(read).to(x.device)
        return out - x

    def __str__(self) -> str:
        return f"replace {self.site} by what {self.sae.info.name} makes of {self.reads}"


class Constant(_Whole):
    """One vector in the place of every activation: zero- and mean-ablation."""

    def __init__(
        self,
        site: Site | str,
        vector: Float[Tensor, "D"],
        *,
        name: str = "one vector",
        at: Positions = "all",
        every_token: bool = False,
    ) -> None:
        super().__init__(Site.parse(site), len(vector), at, every_token)
        self.name = name
        self._vector = vector.detach().float()

    def change(self, x: Float[Tensor, "N D"], read: Float[Tensor, "N I"]) -> Float[Tensor, "N D"]:
        return self._vector.to(x.device) - x

    def __str__(self) -> str:
        return f"{self.name} in the place of {self.site}"
