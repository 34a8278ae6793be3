"""The cross-layer transcoder: features that read at one layer and write at that and every later one (Ameisen et al.,
March 2025). What a layer's features write stays in its file: the rows of active ones are read. Files are
`files/cross_layer.py`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gemscope.activations.capture import Activations
from gemscope.activations.site import Site
from gemscope.errors import InputError, Mismatch, NotFinite, SAENotFound
from gemscope.features.activations import FeatureActivations
from gemscope.features.kernels import Rows
from gemscope.features.kernels.choice import choose
from gemscope.features.mapped import Scattered
from gemscope.features.sae import SAE, SAEInfo
from gemscope.shapes import Float, Int

Read = Mapping[Site, Activations] | Mapping[Site, Tensor] | Mapping[str, Tensor]
"""Activations of the same tokens by site: what `model.capture(text, clt.sites)` gives; or tensors [..., D]."""

_TILE = 1 << 24
"""Numbers of decoder rows held at a time: 64 MB in float32."""


_TOLD = 64
"""Rows of a decoder by which it is told from another."""


class Written:
    """What each feature of a layer writes, at its own layer and all later ones: [F, layers, D], left where it lies.

    `opened` gives the whole of it, mapped from the disk; it is called when the first row is asked for.
    """

    def __init__(self, name: str, opened: Callable[[], Float[Tensor, "F J O"]]) -> None:
        self.name, self._opened = name, opened
        self.rows_read = 0
        """So far; a row as often as it was read."""

    @cached_property
    def tensor(self) -> Float[Tensor, "F J O"]:
        """All of it. What is read of it counts as memory until it is let go of."""
        return self._opened()

    @cached_property
    def _rows(self) -> Scattered:
        return Scattered(self.tensor)

    def rows(self, features: Int[Tensor, "f"]) -> Float[Tensor, "f J O"]:
        """Of chosen features, ascending, in float32 in the processor's memory. Raises NotFinite."""
        found = self._rows[features.cpu()].float()
        self.rows_read += len(features)
        if not found.sum().isfinite() and not found.isfinite().all():
            raise NotFinite(f"{self.name} holds NaN or Inf: the file is damaged or comes of a run that failed")
        return found


@dataclass(frozen=True, eq=False, repr=False)
class CrossLayerTranscoder:
    """For each layer features that read there, and write there and at every later layer (`load_clt`).

        f_i = gate(x_i W_enc_i + b_enc_i)                                 the features of layer i
        x̂_j = Σ_{i ≤ j} f_i W_dec_i→j + b_dec_j (+ W_skip_j x_j)              what is written at layer j

    A model's pass over its sites is all that it reads: `clt.encode(model.capture(text, clt.sites))`.
    """

    encoders: tuple[SAE, ...]
    """Of each layer, in order: SAEs that write nothing (d_out is 0). They say where each layer reads."""
    written: tuple[Written, ...]
    """What the features of each layer write: [F, layers from this one on, D]."""
    b_dec: tuple[Float[Tensor, "O"], ...]
    sites_out: tuple[Site, ...]
    """Where each layer is written."""
    skips: tuple[Float[Tensor, "O D"] | None, ...]
    """What goes from a layer's input straight to its output, where there is one."""
    info: SAEInfo

    def __post_init__(self) -> None:
        layers = len(self.encoders)
        others = (self.written, self.b_dec, self.sites_out, self.skips)
        if not layers or any(len(each) != layers for each in others) or len(set(self.sites)) < layers:
            raise InputError(f"{self.info.name}: expected as many of each part as there are layers, {layers}")
        if len({len(bias) for bias in self.b_dec}) > 1:
            raise Mismatch(
                f"{self.info.name} writes {sorted({len(bias) for bias in self.b_dec})} numbers at its layers"
            )

    # --- what it computes ---------------------------------------------------------------------------------------

    def encode(self, captured: Read) -> dict[Site, FeatureActivations]:
        """The active features of every token, sparse, by the site that they were read at.

        Raises Mismatch for a site that is missing, another width or other tokens, NotFinite.
        """
        given = self._given(captured)
        return {site: encoder.encode(given[site]) for site, encoder in zip(self.sites, self.encoders, strict=True)}

    @torch.no_grad()
    def decode(self, features: Mapping[Site, FeatureActivations]) -> dict[Site, Float[Tensor, "... O"]]:
        """The activations that features (of all layers, by where they were read) stand for, by the site that is
        written: without what goes past the features. Decoder rows of active features are read, some at a time.

        Raises Mismatch for a layer that is missing or of other tokens, NotFinite.
        """
        known = {Site.parse(site): found for site, found in features.items()}
        if missing := [str(site) for site in self.sites if site not in known]:
            raise Mismatch(f"no features of {', '.join(missing)}: what is written needs those of every earlier layer")
        of_layers = [known[site].to(self.device) for site in self.sites]
        lead = of_layers[0].lead
        for site, encoder, found in zip(self.sites, self.encoders, of_layers, strict=True):
            if found.lead != lead or found.d_sae != encoder.d_sae:
                raise Mismatch(
                    f"features of {found.d_sae} for tokens of shape {found.lead} at {site}: expected {encoder.d_sae} "
                    f"for tokens of shape {lead}"
                )
        out = [bias.float().repeat(of_layers[0].n_tokens, 1) for bias in self.b_dec]
        for layer, found in enumerate(of_layers):
            self.write(layer, found, out[layer:])
        return {site: rows.reshape(*lead, rows.shape[-1]) for site, rows in zip(self.sites_out, out, strict=True)}

    def __call__(self, captured: Read) -> dict[Site, Float[Tensor, "... O"]]:
        """Encoded and decoded, with what goes past the features, by the site that is written."""
        return self.read(captured)[1]

    @torch.no_grad()
    def read(self, captured: Read) -> tuple[dict[Site, FeatureActivations], dict[Site, Float[Tensor, "... O"]]]:
        """Both at once: the active features by where they were read, and what `clt(captured)` makes of them."""
        given = self._given(captured)
        features = self.encode(captured)
        out = self.decode(features)
        for site, to, skip in zip(self.sites, self.sites_out, self.skips, strict=True):
            if skip is not None:
                acts = given[site]
                x = acts.values if isinstance(acts, Activations) else acts
                out[to] += x.to(self.device, torch.float32) @ skip.T
        return features, out

    def directions(self, layer: int, feature: int) -> dict[Site, Float[Tensor, "O"]]:
        """What one unit of a feature of a layer writes, by site. Raises SAENotFound, InputError."""
        if not 0 <= layer < len(self.encoders):
            raise SAENotFound(f"no layer {layer} in {self.info.name}: it has layers 0 to {len(self.encoders) - 1}")
        d_sae = self.encoders[layer].d_sae
        if not 0 <= feature < d_sae:
            raise InputError(f"no feature {feature}: layer {layer} has features 0 to {d_sae - 1}")
        rows = self.written[layer].rows(torch.tensor([feature]))[0]
        return dict(zip(self.sites_out[layer:], rows, strict=True))

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where each layer reads."""
        return tuple(encoder.site for encoder in self.encoders if encoder.site is not None)

    @property
    def features(self) -> tuple[int, ...]:
        """Of each layer, how many there are."""
        return tuple(encoder.d_sae for encoder in self.encoders)

    @property
    def d_in(self) -> int:
        """Numbers per token that each layer reads."""
        return self.encoders[0].d_in

    @property
    def d_out(self) -> int:
        """Numbers per token that each layer writes."""
        return len(self.b_dec[0])

    @property
    def device(self) -> torch.device:
        """Where it computes; what is written stays in the file, and rows of it come here."""
        return self.encoders[0].device

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """Of each layer, SHA-256 over its encoder, biases, skip and some of the rows that it writes. To read all rows
        would take as long as to copy them.
        """
        return tuple(map(self._digest, range(len(self))))

    def _digest(self, layer: int) -> str:
        some = torch.unique(torch.linspace(0, self.features[layer] - 1, _TOLD).round().long())
        skip = self.skips[layer]
        parts = (self.b_dec[layer], self.written[layer].rows(some), *(() if skip is None else (skip,)))
        hashed = hashlib.sha256(self.encoders[layer].digest.encode())
        for part in parts:
            hashed.update(part.float().cpu().contiguous().numpy().data)
        return hashed.hexdigest()

    def to(self, device: torch.device | str) -> CrossLayerTranscoder:
        """The same on another device."""
        encoders = tuple(encoder.to(device) for encoder in self.encoders)
        skips = tuple(None if skip is None else skip.to(device) for skip in self.skips)
        return replace(self, encoders=encoders, b_dec=tuple(bias.to(device) for bias in self.b_dec), skips=skips)

    def __len__(self) -> int:
        return len(self.encoders)

    def __repr__(self) -> str:
        each = sorted(set(self.features))
        size = f"{each[0]:,}" if len(each) == 1 else f"{each[0]:,} to {each[-1]:,}"
        places = f"{self.sites[0]} to {self.sites[-1]} → {self.sites_out[0]} to {self.sites_out[-1]}"
        gate = self.encoders[0].gate + (", skip" if any(skip is not None for skip in self.skips) else "")
        return f"CrossLayerTranscoder({self.info.name}: {places}, {gate}, {size} features a layer)"

    # --- rows of what is written --------------------------------------------------------------------------------

    def write(self, layer: int, found: FeatureActivations, out: list[Tensor]) -> None:
        """Adds what a layer's features write to `out` [tokens, D] of that layer and each later one."""
        active, places = torch.unique(found.features.long(), return_inverse=True)
        rows = Rows(found.offsets.long(), places.to(torch.int32), found.values.float())
        kernels = choose(self.device)
        each = max(1, _TILE // (len(out) * self.d_out))
        for start in range(0, len(active), each):
            some = active[start : start + each]
            weights = self.written[layer].rows(some).to(self.device)
            part = rows
            if len(some) < len(active):
                part = rows.where((rows.ids >= start) & (rows.ids < start + each))
                part = Rows(part.offsets, part.ids - start, part.values)
            for later, total in enumerate(out):
                total.add_(kernels.sums(part, weights[:, later].contiguous()))

    def _given(self, captured: Read) -> dict[Site, Any]:
        given = {Site.parse(site): acts for site, acts in captured.items()}
        if missing := [str(site) for site in self.sites if site not in given]:
            raise Mismatch(
                f"no activations of {', '.join(missing)}: capture all sites, as in model.capture(text, clt.sites)"
            )
        return given


class Flow:
    """What a cross-layer transcoder writes while a model runs, where what a layer reads may depend on what was written
    before it: layer by layer, from the first.
    """

    def __init__(self, clt: CrossLayerTranscoder) -> None:
        self.clt = clt
        self._ahead: list[Tensor] = []
        """What is written so far at the layers that have not come by."""

    @torch.no_grad()
    def at(self, layer: int, x: Float[Tensor, "N D"]) -> Float[Tensor, "N O"]:
        """What is written at a layer for tokens of which it reads `x`. Raises Mismatch for other tokens, or an earlier
        layer, than those that came by.
        """
        clt, x = self.clt, x.to(self.clt.device, torch.float32)
        if layer == 0:
            self._ahead = [bias.float().repeat(len(x), 1) for bias in clt.b_dec]
        if len(self._ahead) != len(clt) - layer or len(self._ahead[0]) != len(x):
            raise Mismatch(
                f"layer {layer} of {clt.info.name} for {len(x)} tokens, of which not all earlier layers were seen: all "
                "of its layers must be in place, on the same tokens"
            )
        clt.write(layer, clt.encoders[layer].encode(x), self._ahead)
        out, skip = self._ahead.pop(0), clt.skips[layer]
        return out if skip is None else out + x @ skip.T
