"""One feature of an SAE inside the running model: its activation on what the model computes, and what it writes."""

from __future__ import annotations

import torch
from torch import Tensor

from gemscope.activations.editing import Edit, Positions, positions
from gemscope.activations.site import Site
from gemscope.edits.strength import Strength
from gemscope.errors import InputError
from gemscope.features.fit import sites_of
from gemscope.features.sae import OF_FEATURES, SAE
from gemscope.shapes import Float


def written(sae: SAE, feature: int) -> tuple[Tensor, Site, str, tuple[SAE, int]]:
    """A feature's direction, where it is written, what to call it, and which it is. Raises InputError."""
    _, site = sites_of(sae)
    return sae.direction(feature), site, f"feature {feature}", (sae, feature)


class Along(Edit):
    """An edit along one direction of a site."""

    def __init__(
        self,
        direction: Float[Tensor, "D"],
        site: Site,
        name: str,
        of: tuple[SAE, int] | None = None,
        *,
        strength: Strength | float | None = None,
        at: Positions = "all",
        every_token: bool = False,
    ) -> None:
        if not direction.isfinite().all():
            raise InputError(f"the direction of {name} holds NaN or Inf: it cannot be added to anything")
        self.site = site
        self.width = len(direction)
        self.name = name
        """What it is along, in words."""
        self.of = of
        """The feature that it is along, and its SAE; None for a vector of one's own."""
        self.strength = None if strength is None else Strength.of(strength)
        self.at = positions(at)
        self.every_token = every_token
        self._direction = direction.detach().float()

    def direction(self, like: Tensor) -> Float[Tensor, "D"]:
        """d, in float32, where the other tensor is."""
        if self._direction.device != like.device:
            self._direction = self._direction.to(like.device)
        return self._direction

    def scale(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N"]:
        """How much of d a unit of the feature writes on each token: 1, or by the norm of its SAE the token's scale."""
        scale = None if self.of is None else self.of[0].scale(x)
        return x.new_ones(len(x)) if scale is None else scale

    def described(self, does: str) -> str:
        """One line: what it does, where, and on which tokens if not on all."""
        at = self.at if isinstance(self.at, str) else "chosen positions"
        where = f"{self.site}" + ("" if at == "all" else f", {at}") + (", every token" if self.every_token else "")
        return f"{does} at {where}"

    def __repr__(self) -> str:
        return f"<{self}>"


class OfFeature(Along):
    """An edit by what one feature does: it reads where the SAE reads, and changes what the SAE writes to."""

    def __init__(
        self,
        sae: SAE,
        feature: int,
        *,
        strength: Strength | float | None = None,
        at: Positions = "all",
        every_token: bool = False,
    ) -> None:
        super().__init__(*written(sae, feature), strength=strength, at=at, every_token=every_token)
        self._reads, _ = sites_of(sae)
        self.sae = sae
        self.feature = feature
        one = slice(feature, feature + 1)
        own = {name: tensor[one][0].float() for name, tensor in sae.tensors.items() if name in OF_FEATURES}
        self._encoder, self._bias = own["W_enc"], own["b_enc"]
        self._threshold = own.get("threshold", torch.zeros(()))

    @property
    def reads(self) -> Site:
        return self._reads

    @property
    def reads_width(self) -> int:
        return self.sae.d_in

    def activation(self, read: Float[Tensor, "N I"]) -> Float[Tensor, "N"]:
        """f of this feature, by the SAE's own gate; only TopK has to look at the others."""
        if self.sae.k is not None:
            return self.sae.encode_dense(read)[:, self.feature].to(read.device)
        if self._encoder.device != read.device:
            self._encoder, self._bias, self._threshold = (
                weight.to(read.device) for weight in (self._encoder, self._bias, self._threshold)
            )
        pre = self.sae.normed(read) @ self._encoder + self._bias
        return pre * ((pre > self._threshold) & (pre > 0))
