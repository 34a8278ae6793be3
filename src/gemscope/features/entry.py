"""One published SAE, as its names and the lists of what is published tell it. Knows names, not weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gemscope.activations.site import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One published SAE. `address` loads it."""

    repo: str
    """Repository on the Hub."""
    path: str
    """Folder in the repository, or the file where one file is all of it."""
    file: str | None
    """The weights, in that folder; None where the format has several names for them."""
    layout: str
    """Whose files they are: gemma_scope_1, gemma_scope_2, saelens, dictionary_learning, ..."""
    generation: int | None
    """1 for Gemma Scope (Gemma 2), 2 for Gemma Scope 2 (Gemma 3), None for all others."""
    model: str
    """Hugging Face id of the model that it reads."""
    site: Site | None
    """Where it reads; None for a place that is no site here."""
    site_out: Site | None
    """Where it writes: another place than `site` for transcoders alone."""
    width: int | None
    """How many features, where a name says so."""
    width_label: str | None
    """The same as written in addresses: 16k, 1m."""
    l0: int | None
    """Features active per token, as declared; None where only the file itself would tell."""
    l0_label: str | None = None
    """small, medium or big (Gemma Scope 2)."""
    affine: bool = False
    """Whether a transcoder has an affine skip connection."""
    seed: int | None = None
    """Of SAEs trained again from another seed."""
    canonical: bool = False
    """Whether its L0 is the one closest to 100 of those that differ in L0 alone (Gemma Scope 1)."""
    neuronpedia_id: str | None
    """Such as gemma-2-2b/20-gemmascope-res-16k: feature 5 has its page at neuronpedia.org/{neuronpedia_id}/5."""
    release: str
    """SAELens's name for the collection; canonical SAEs are also in `{release}-canonical`."""
    sae_id: str
    """SAELens's name within the release."""
    factor: float | None = None
    """What activations are multiplied by before they are read, where the files leave it to SAELens's registry."""
    closed: str | None = None
    """Why it cannot be opened here; None where it can."""

    @property
    def address(self) -> str:
        """What `load_sae` takes: `REPO/path`."""
        return f"{self.repo}/{self.path}"

    @property
    def layer(self) -> int | None:
        """The block that it reads at, counted from 0; None for the embedding."""
        return None if self.site is None else self.site.layer

    @property
    def saelens_names(self) -> tuple[str, ...]:
        """Its names in SAELens, as `release sae_id`; the canonical one first."""
        plain = f"{self.release} {self.sae_id}"
        if not self.canonical or self.site != self.site_out:  # SAELens names no canonical transcoders
            return (plain,)
        return (f"{self.release}-canonical {self.sae_id.rsplit('/', 1)[0]}/canonical", plain)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, sites in their text form, address and layer included."""
        sites = {name: None if site is None else str(site) for name, site in self._sites()}
        return {"address": self.address, **asdict(self), **sites, "layer": self.layer}

    def _sites(self) -> tuple[tuple[str, Site | None], ...]:
        return ("site", self.site), ("site_out", self.site_out)
