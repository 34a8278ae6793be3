"""A stack: SAEs that belong together, one for each layer's site of one kind. Each is opened when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gemscope.activations.capture import Activations
from gemscope.activations.site import Site
from gemscope.errors import InputError, Mismatch, SAENotFound
from gemscope.features.activations import FeatureActivations
from gemscope.features.sae import SAE
from gemscope.shapes import Float

Read = Mapping[Site, Activations] | Mapping[Site, Tensor] | Mapping[str, Tensor]
"""Activations by site: what `model.capture(text, stack.sites)` gives; or tensors [..., D]."""


@dataclass(frozen=True, eq=False, repr=False)
class Stack:
    """One SAE, or one transcoder, for each layer's site of one kind, by where it reads (`load_stack`, `Scope.stack`).

        stack["12.res"], stack[12]      the SAE of that place, opened when it is first asked for, and kept
        stack.encode(captured)          the active features at every site of it
        stack(captured)                 what they stand for, at every site that is written

    A mapping in all it does; it is no subclass of Mapping, whose values what checks types at run time would open.
    Layers need not be complete. Reading the sites takes one pass of the model: `model.capture(text, stack.sites)`.
    """

    name: str
    """The address that it was opened by."""
    places: Mapping[Site, Site]
    """Where each reads, and where it writes."""
    opener: Callable[[Site], SAE]
    """Opens the SAE that reads at a site."""
    model: str | None = None
    """Hugging Face id, where it is known."""
    _open: dict[Site, SAE] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not self.places:
            raise InputError(f"{self.name} has no SAE for a stack")

    # --- its SAEs -----------------------------------------------------------------------------------------------

    def __getitem__(self, place: Site | str | int) -> SAE:
        """The SAE that reads at a site, or at a layer. Raises SAENotFound where there is none, what opening raises."""
        site = self._known(place)
        if site not in self._open:
            self._open[site] = self.opener(site)
        return self._open[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, place: object) -> bool:
        try:
            return self._known(place) in self.places  # type: ignore[arg-type]
        except LookupError:
            return False

    def keys(self) -> tuple[Site, ...]:
        """`sites`."""
        return self.sites

    def values(self) -> Iterator[SAE]:
        """The SAEs in the model's order, each opened when its turn comes."""
        return (self[site] for site in self.sites)

    def items(self) -> Iterator[tuple[Site, SAE]]:
        """Where each reads, and the SAE."""
        return ((site, self[site]) for site in self.sites)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where it reads, in the model's order."""
        return tuple(sorted(self.places))

    @property
    def sites_out(self) -> tuple[Site, ...]:
        """Where it writes, in the order of `sites`: other places for transcoders alone."""
        return tuple(self.places[site] for site in self.sites)

    @property
    def opened(self) -> tuple[Site, ...]:
        """Those whose SAE has been opened."""
        return tuple(sorted(self._open))

    def close(self) -> None:
        """Lets go of the SAEs that have been opened, and of what was kept beside their weights."""
        self._open.clear()

    # --- what it computes ---------------------------------------------------------------------------------------

    def encode(self, captured: Read) -> dict[Site, FeatureActivations]:
        """The active features of every token, by the site that they were read at.

        Raises Mismatch for a site that is missing or of another width, NotFinite, what opening an SAE raises.
        """
        given = self._given(captured)
        return {site: self[site].encode(given[site]) for site in self.sites}

    def decode(self, features: Mapping[Site, FeatureActivations]) -> dict[Site, Float[Tensor, "... O"]]:
        """The activations that features (by where they were read) stand for, by the site that is written: without what
        goes past the features, as of one SAE. Raises Mismatch.
        """
        return {self.places[self._known(site)]: self[site].decode(found) for site, found in features.items()}

    def __call__(self, captured: Read) -> dict[Site, Float[Tensor, "... O"]]:
        """What all of them make of what they read, skips included, by the site that is written."""
        given = self._given(captured)
        return {self.places[site]: self[site].read(given[site])[1] for site in self.sites}

    def __repr__(self) -> str:
        first, last = self.sites[0], self.sites[-1]
        span = str(first) if len(self) == 1 else f"{first} to {last}"
        to = "" if self.places[first] == first else f", writing {self.places[first]} to {self.places[last]}"
        return f"Stack({self.name}: {len(self)} at {span}{to}; {len(self._open)} open)"

    # --- by place -----------------------------------------------------------------------------------------------

    def _known(self, place: Site | str | int) -> Site:
        if isinstance(place, int):
            found = [site for site in self.sites if site.layer == place]
        else:
            found = [site for site in (Site.parse(place),) if site in self.places]
        if not found:
            raise SAENotFound(f"no SAE for {place} in {self.name}: it has {', '.join(map(str, self.sites))}")
        return found[0]

    def _given(self, captured: Read) -> dict[Site, Any]:
        given = {Site.parse(site): acts for site, acts in captured.items()}
        if missing := [site for site in self.sites if site not in given]:
            raise Mismatch(
                f"no activations of {', '.join(map(str, missing))}: capture all of the stack's, as in "
                "model.capture(text, stack.sites)"
            )
        return given
