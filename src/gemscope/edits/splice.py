"""Edits that put something else in an activation's place: a reconstruction, a transcoder's output, one vector."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor

from gemscope.activations.editing import Edit, Positions, positions
from gemscope.activations.site import Site
from gemscope.errors import InputError
from gemscope.features.cross_layer import CrossLayerTranscoder, Flow
from gemscope.features.fit import sites_of
from gemscope.features.sae import SAE
from gemscope.features.stack import Stack
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


class _Layer(_Whole):
    """One layer of a cross-layer transcoder in the place of what it stands for, the others in theirs."""

    def __init__(self, flow: Flow, layer: int, at: Positions, every_token: bool) -> None:
        clt = flow.clt
        super().__init__(clt.sites_out[layer], clt.d_out, at, every_token)
        self._reads, self.flow, self.layer = clt.sites[layer], flow, layer

    @property
    def reads(self) -> Site:
        return self._reads

    @property
    def reads_width(self) -> int:
        return self.flow.clt.d_in

    def change(self, x: Float[Tensor, "N D"], read: Float[Tensor, "N I"]) -> Float[Tensor, "N D"]:
        return self.flow.at(self.layer, read).to(x.device) - x

    def __str__(self) -> str:
        return f"replace {self.site} by what {self.flow.clt.info.name} makes of {self.reads} and earlier layers"


def replacement(
    saes: Stack | CrossLayerTranscoder | Iterable[SAE], *, at: Positions = "all", every_token: bool = False
) -> tuple[Edit, ...]:
    """All SAEs or transcoders of a stack, or all layers of a cross-layer transcoder, in place at once: with the edits
    in force the model runs on what they make of it (the replacement model of Ameisen et al., March 2025). Each layer
    reads what is left of the model after the earlier ones were replaced.

        with model.edited(*gs.replacement(stack)): ...

    Raises InputError for SAEs without a site, or two that write at one site.
    """
    if isinstance(saes, CrossLayerTranscoder):
        flow = Flow(saes)
        return tuple(_Layer(flow, layer, at, every_token) for layer in range(len(saes)))
    edits: dict[Site, Edit] = {}
    for sae in saes.values() if isinstance(saes, Stack) else saes:
        site, site_out = sites_of(sae)
        if site_out in edits:
            raise InputError(
                f"{sae.info.name} writes at {site_out}, as another one does: a replacement has one for each"
            )
        edits[site_out] = (
            Splice(sae, error=False, at=at, every_token=every_token)
            if site == site_out
            else Replace(sae, at=at, every_token=every_token)
        )
    return tuple(edits.values())


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
