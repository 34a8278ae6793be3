"""The sparse autoencoder: its weights, what it is for, and how it encodes and decodes. Files are `files/`'s work."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gemscope.activations.capture import Activations
from gemscope.activations.memory import elsewhere, free_on, most, room, succeeds
from gemscope.activations.site import Site
from gemscope.errors import InputError, Mismatch, NotFinite
from gemscope.features.activations import FeatureActivations
from gemscope.features.decode import decode_sparse
from gemscope.features.encode import encode_rows, encode_subset
from gemscope.features.files.saelens_described import live
from gemscope.features.kernels import Rows
from gemscope.features.kernels.choice import Devices, choose
from gemscope.features.prepared import Prepared
from gemscope.features.sliced import Sliced, shares, together
from gemscope.features.weights import Gate, Norm, Weights, digest
from gemscope.shapes import Float

_EPSILON = 1e-5
"""Added to a standard deviation that is divided by."""
OF_FEATURES: Mapping[str, int] = {"W_enc": 1, "b_enc": 0, "W_dec": 0, "threshold": 0}
"""The weights that are cut into slices, and which of their axes is that of the features."""


@dataclass(frozen=True, kw_only=True)
class SAEInfo:
    """What an SAE is and was made for: facts that travel with the weights, none of which change the arithmetic."""

    name: str = "unnamed"
    """The address that it was loaded by, such as google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71."""
    format: str | None = None
    """Whose files it was read from, as docs/formats.md names the formats."""
    model: str | None = None
    """Hugging Face id of the model whose activations it was trained on."""
    revision: str | None = None
    """Commit of the repository that it came from."""
    declared_l0: float | None = None
    """The L0 that its authors state."""
    neuronpedia_id: str | None = None
    """Such as gemma-2-2b/20-gemmascope-res-16k; each feature has a page there."""
    prepend_bos: bool | None = None
    """Whether its training text began with BOS, where that is known."""
    context_size: int | None = None
    """Tokens per row of its training text, where that is known."""
    metadata: Mapping[str, object] = field(default_factory=dict)
    """Whatever else its file said; kept on saving."""


class SAE(nn.Module):
    """A sparse autoencoder, or a transcoder when it writes to another site than it reads.

    Weights, with the tutorial's names and shapes: `W_enc` [d_in, d_sae], `b_enc` [d_sae], `W_dec` [d_sae, d_out],
    `b_dec` [d_out]; `threshold` [d_sae] for JumpReLU; `W_skip` [d_out, d_in] for affine transcoders.

        z = x @ W_enc + b_enc                                    pre-activations
        f = z where z > threshold and z > 0, else 0              jumprelu (Rajamanoharan et al. 2024, eq. 2; strict >)
            max(z, 0)                                            relu
            max(z, 0) where z is among the k largest, else 0     topk
        x̂ = f @ W_dec + b_dec (+ W_skip @ x) (+ mean(x))

    With a `norm` each token is read divided by its own scale s, and what is decoded is multiplied by it again: features
    are in units of s. It is "deviation" (the token's standard deviation over the width) or "length" (‖x‖ / √d_in).

        z = (x / s) @ W_enc + b_enc,    x̂ = (f @ W_dec + b_dec) · s (+ mean(x))

    The mean for one that is `centred`: it was made for activations less their mean over the width, as TransformerLens
    has those of models with LayerNorm (which does not see that mean). W_enc does not see it either, and x̂ leaves it be.

    One that is too wide for a device lies on several: each holds a slice of the features, their columns of W_enc, rows
    of W_dec, biases and thresholds, as an SAE of its own (`slices`; itself where there is one), and the first `b_dec`
    and `W_skip`. What is computed is the same, and comes out on the first. Its `W_enc` and `W_dec` are nowhere whole:
    `encoder[...]` and `decoder[...]` give the rows of some features, of any SAE.
    """

    threshold: nn.Parameter | None
    W_skip: nn.Parameter | None

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        d_out: int | None = None,
        *,
        gate: Gate = "jumprelu",
        k: int | None = None,
        skip: bool = False,
        centred: bool = False,
        norm: Norm | None = None,
        site: Site | str | None = None,
        site_out: Site | str | None = None,
        info: SAEInfo | None = None,
        dtype: torch.dtype = torch.float32,
        device: Devices = None,
    ) -> None:
        """All weights zero, gradients off. `site_out` is `site` unless given; `k` goes with `gate="topk"` alone. Each
        `device` of several holds as many features, or one more. Raises InputError for what does not go together.
        """
        super().__init__()
        if (gate == "topk") != (k is not None):
            raise InputError(f"gate={gate!r} with k={k}: k belongs to 'topk', and 'topk' needs it")
        d_out = d_in if d_out is None else d_out
        if centred and d_in != d_out:
            raise InputError(f"centred with d_in={d_in} and d_out={d_out}: a mean is left where it is read")
        if norm is not None and (d_in != d_out or skip or d_in < 2):
            raise InputError(
                f"norm={norm!r} with d_in={d_in}, d_out={d_out}, skip={skip}: a scale is put back where it is read"
            )
        self.d_in, self.d_sae, self.d_out = d_in, d_sae, d_out
        self.gate: Gate = gate
        self.k = k
        self.centred = centred
        self.norm: Norm | None = norm
        self.site = None if site is None else Site.parse(site)
        self.site_out = self.site if site_out is None else Site.parse(site_out)
        self.info = info or SAEInfo()
        self._digested: tuple[Hashable, str] = (None, "")
        self.prepared: Prepared | None = None

        places = [device] if device is None or isinstance(device, str | torch.device) else list(device)
        if not 0 < len(places) <= d_sae:
            raise InputError(f"{len(places)} devices for {d_sae} features: expected 1 to {d_sae}")

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape, dtype=dtype, device=places[0]), requires_grad=False)

        self.parts = nn.ModuleList(
            SAE(d_in, width, d_out, gate=gate, k=k, info=self.info, dtype=dtype, device=place)
            for width, place in zip(shares(d_sae, len(places)), places, strict=True)
            if len(places) > 1
        )
        if not self.parts:
            # A feature's encoder weights lie side by side in memory: they are read by feature.
            self.W_enc = nn.Parameter(zeros(d_sae, d_in).T, requires_grad=False)
            self.b_enc = zeros(d_sae)
            self.W_dec = zeros(d_sae, d_out)
        self.b_dec = zeros(d_out)
        if gate != "jumprelu" or not self.parts:
            self.register_parameter("threshold", zeros(d_sae) if gate == "jumprelu" else None)
        self.register_parameter("W_skip", zeros(d_out, d_in) if skip else None)

    # --- what it computes -------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self, x: Activations | Float[Tensor, "... D"], *, features: Sequence[int] | None = None
    ) -> FeatureActivations:
        """The active features of every token, sparse. In float32, on the SAE's device, whatever `x` comes in.

        These are the features and values of `encode_dense`, up to the order in which float32 sums are taken: every
        feature whose pre-activation exceeds its threshold by more than `kernels.tie_bound` is there, none that falls
        short by more. With `features`, only those are looked at, at their cost alone (a topk gate asks for all).

        Raises Mismatch when `x` has another width, NotFinite when it holds NaN or Inf, InputError for features that
        there are not, OutOfMemory.
        """
        values = self._input(x)
        normed = self.normed(values)
        if features is None:
            rows = self._roomy(lambda flat: encode_rows(self._ready(), flat), normed)
        else:
            ids = self._ids(features)
            rows = self._roomy(lambda flat: encode_subset(self._ready(), flat, ids), normed)
        return self._found(rows, x, self.scale(values))

    def encode_dense(self, x: Activations | Float[Tensor, "... D"]) -> Float[Tensor, "... F"]:
        """[..., d_sae] with the zeros, differentiable in `x` and the weights. The tutorial's own arithmetic.

        The gate passes no gradient of its own: where a feature is active the derivative is W_enc's, elsewhere 0.
        """
        read = self.normed(self._input(x))
        pre = [read.to(part.device) @ part.W_enc.float() + part.b_enc.float() for part in self.slices]
        return self.gated(together([part.to(self.device) for part in pre], dim=-1))

    def gated(self, pre: Float[Tensor, "... F"]) -> Float[Tensor, "... F"]:
        """Pre-activations to activations."""
        pre = pre.to(self.device)
        positive = torch.relu(pre)
        if self.threshold is not None:
            return positive * (pre > self.threshold.float())
        if self.k is not None:
            kept = pre.topk(self.k, dim=-1)
            return torch.zeros_like(pre).scatter(-1, kept.indices, torch.relu(kept.values))
        return positive

    def decode(
        self,
        features: FeatureActivations | Float[Tensor, "... F"],
        *,
        scale: Float[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "... O"]:
        """The activations that the features stand for, without what goes past them (`forward` adds it).

        An SAE with a norm needs the `scale` of what was read, one number a token; what `encode` gives carries it.
        Raises InputError where it is not there, Mismatch.
        """
        if isinstance(features, FeatureActivations):
            scale = features.scale if scale is None else scale
            with room(self._work(features.n_tokens), self.device, self._narrower):
                out = decode_sparse(self._ready(), self.b_dec, features)
        elif features.shape[-1] != self.d_sae:
            raise Mismatch(f"{features.shape[-1]} features given to an SAE of {self.d_sae}")
        else:
            given = torch.split(features, [part.d_sae for part in self.slices], dim=-1)
            parts = [some.to(part.device) @ part.W_dec.float() for some, part in zip(given, self.slices, strict=True)]
            out = sum((part.to(self.device) for part in parts[1:]), parts[0]) + self.b_dec.float()
        if self.norm is None:
            return out
        if scale is None:
            raise InputError(
                f"features without the scale of what they were read from, which {self.info.name} needs for its norm: "
                "give scale=sae.scale(x), or what encode(x) gives"
            )
        if scale.shape != out.shape[:-1]:
            raise Mismatch(f"a scale of shape {tuple(scale.shape)} for features of {tuple(out.shape[:-1])} tokens")
        return out * scale.to(self.device, torch.float32)[..., None]

    def scale(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "..."] | None:
        """What each token's features are written with, of an SAE with a norm; None for others."""
        if self.norm == "deviation":
            return x.std(-1)
        return x.norm(dim=-1) / math.sqrt(self.d_in) if self.norm == "length" else None

    def normed(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """What the encoder reads: x itself, or divided by each token's scale. A token of zeros stays one."""
        scale = self.scale(x)
        if scale is None:
            return x
        return x / (scale + _EPSILON if self.norm == "deviation" else torch.where(scale > 0, scale, 1.0))[..., None]

    def forward(self, x: Activations | Float[Tensor, "... D"]) -> Float[Tensor, "... O"]:
        """Encode, decode, and what goes past the features where something does. Differentiable where gradients are
        wanted.
        """
        values = self._input(x)
        differentiable = torch.is_grad_enabled() and (
            values.requires_grad or any(weight.requires_grad for weight in self.parameters())
        )
        if not differentiable:
            return self.read(x)[1]
        return self._whole(self.decode(self.encode_dense(values), scale=self.scale(values)), values)

    @torch.no_grad()
    def read(self, x: Activations | Float[Tensor, "... D"]) -> tuple[FeatureActivations, Float[Tensor, "... O"]]:
        """Both at once: the active features, and what `forward` makes of them."""
        values = self._input(x)
        rows = self._roomy(lambda flat: encode_rows(self._ready(), flat), self.normed(values))
        features = self._found(rows, x, self.scale(values))
        return features, self._whole(self.decode(features), values)

    def skipped(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... O"] | None:
        """What of the output goes past the features: W_skip x, and the mean where it is `centred`. None for neither."""
        past = None if self.W_skip is None else x @ self.W_skip.float().T
        if not self.centred:
            return past
        mean = x.mean(-1, keepdim=True)
        return mean.expand_as(x) if past is None else past + mean

    def _whole(self, out: Float[Tensor, "... O"], x: Float[Tensor, "... D"]) -> Float[Tensor, "... O"]:
        past = self.skipped(x)
        return out if past is None else out + past

    def direction(self, feature: int) -> Float[Tensor, "O"]:
        """What one unit of a feature writes: its decoder row, in the units of the site, or of the token's scale."""
        self._ids([feature])
        place = next(place for place, span in enumerate(self.decoder.spans) if feature < span.stop)
        return self.slices[place].W_dec[feature - self.decoder.spans[place].start].float().to(self.device)

    def _ready(self) -> list[Prepared]:
        """Its slices, each ready for the kernels of its device."""
        for part in self.slices:
            weights = part.weights
            kernels = choose(weights.W_enc.device)
            content = (kernels, weights.content)
            if part.prepared is None or part.prepared.content != content:
                part.prepared = Prepared(weights, kernels, content)
        return [part.prepared for part in self.slices if part.prepared is not None]

    def _unready(self) -> None:
        for part in self.slices:
            part.prepared = None

    def _roomy(self, work: Callable[[Tensor], Rows], values: Float[Tensor, "... D"]) -> Rows:
        """Some work on tokens, flattened; of how many at a time would fit where it finds no room."""
        flat = values.reshape(-1, self.d_in)

        def remedy() -> str:
            self._unready()
            found = most(lambda some: succeeds(lambda: work(flat[:some])), len(flat))
            return f"{found:,} tokens at a time fit: take a smaller batch" if found else self._narrower()

        with room(self._work(len(flat)), self.device, remedy):
            return work(flat)

    def _work(self, tokens: int) -> str:
        return f"{tokens:,} tokens through {self.info.name} with its {self.d_sae:,} features"

    def _narrower(self) -> str:
        """What would fit in the place of this one: its weights, and the copies of them that computing keeps."""
        self._unready()
        first = self.slices[0]
        own = sum(weight.nbytes for weight in first.parameters())
        each = own / first.d_sae + 6 * self.d_in + 4 * self.d_out
        free = free_on(first.device)
        fits = "" if free is None else f" (one of up to about {int((free + own) / each * len(self.slices)):,} fits)"
        return f"take an SAE of fewer features{fits}, or put it on {elsewhere(first.device)}"

    def _ids(self, features: Sequence[int]) -> Tensor:
        for feature in features:
            if not 0 <= feature < self.d_sae:
                raise InputError(f"no feature {feature}: this SAE has features 0 to {self.d_sae - 1}")
        return torch.tensor(sorted(set(features)), dtype=torch.int64, device=self.device)

    def _found(
        self, rows: Rows, x: Activations | Float[Tensor, "... D"], scale: Float[Tensor, "..."] | None
    ) -> FeatureActivations:
        values, counted = (x.values, x.counted) if isinstance(x, Activations) else (x, None)
        return FeatureActivations(
            rows.offsets,
            rows.ids,
            rows.values,
            self.d_sae,
            tuple(values.shape[:-1]),
            None if counted is None else counted.to(rows.values.device),
            scale,
        )

    def _input(self, x: Activations | Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        values = x.values if isinstance(x, Activations) else x
        if values.shape[-1] != self.d_in:
            at = f" at {x.site}" if isinstance(x, Activations) else ""
            width = f"{values.shape[-1]}{at}"
            raise Mismatch(f"activations of width {width} given to an SAE that reads {self.d_in}: {self}")
        values = values.to(self.device, torch.float32)
        # A sum is finite where all are, but for overflow: many times cheaper than looking at each.
        if not values.sum().isfinite() and not values.isfinite().all():
            raise NotFinite(f"NaN or Inf in activations given to {self.info.name}: check the model's dtype and weights")
        return values

    # --- what it is -------------------------------------------------------------------------------------------

    @property
    def slices(self) -> list[SAE]:
        """Those whose features lie beside each other in this one, each on its device and without `b_dec`: for most SAEs
        itself.
        """
        return [part for part in self.parts if isinstance(part, SAE)] or [self]

    @property
    def encoder(self) -> Sliced:
        """What each feature reads: `encoder[ids]` and `encoder[start:stop]` are columns of W_enc as rows [f, d_in]."""
        return self.tensors["W_enc"]

    @property
    def decoder(self) -> Sliced:
        """What each feature writes: `decoder[ids]` and `decoder[start:stop]` are rows of W_dec [f, d_out]."""
        return self.tensors["W_dec"]

    @property
    def tensors(self) -> dict[str, Sliced]:
        """Its weights by name, wherever they lie; without gradients."""
        found = {}
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "W_skip"):
            parts = [getattr(part, name) for part in (self.slices if name in OF_FEATURES else [self])]
            if parts[0] is not None:
                found[name] = Sliced([part.detach() for part in parts], OF_FEATURES.get(name, 0))
        return found

    def __getattr__(self, name: str) -> Any:
        if name in OF_FEATURES and name not in self.__dict__.get("_parameters", {}) and self._modules.get("parts"):
            if name in ("W_enc", "W_dec"):
                rows = "encoder" if name == "W_enc" else "decoder"
                raise InputError(
                    f"{name} of {self.info.name} lies in {len(self.slices)} slices, on {self.place}: take rows of it, "
                    f"as in sae.{rows}[:100]"
                )
            return together([getattr(part, name).to(self.device) for part in self.slices])
        return super().__getattr__(name)

    @property
    def weights(self) -> Weights:
        """Those that it has now, as a value. Raises InputError for one in several slices: each has its own."""
        return Weights(
            W_enc=self.W_enc,
            b_enc=self.b_enc,
            W_dec=self.W_dec,
            b_dec=self.b_dec,
            threshold=self.threshold,
            W_skip=self.W_skip,
            gate=self.gate,
            k=self.k,
            centred=self.centred,
            norm=self.norm,
        )

    @property
    def device(self) -> torch.device:
        """Where it computes. Raises Mismatch where its weights lie apart, which moving some by hand does."""
        where = {weight.device for weight in (*self.parameters(recurse=False), *self.slices[0].parameters())}
        if len(where) > 1:
            places = " and ".join(sorted(map(str, where)))
            raise Mismatch(f"the weights of {self.info.name} lie on {places}: move them together, as in sae.to('cpu')")
        return where.pop()

    @property
    def place(self) -> str:
        """In words: its device, or those of its slices."""
        return " and ".join(str(part.device) for part in self.slices)

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes somewhere else than it reads."""
        return self.site_out is not None and self.site != self.site_out

    @property
    def digest(self) -> str:
        """SHA-256 over the weights in float32, the gate, the norm and whether it is centred: the SAE's identity,
        whatever file it came from.
        """
        tensors, facts = self.tensors, (self.gate, self.k, self.centred, self.norm)
        content = (*(tensor.content for tensor in tensors.values()), *facts)
        if content != self._digested[0]:
            self._digested = content, digest(tensors, *facts)
        return self._digested[1]

    def to_saelens(self) -> Any:
        """The same as an `sae_lens.SAE`, with copies of the weights, on the same device. Raises MissingDependency,
        InputError for an SAE without a site and for one that SAELens has no architecture for.
        """
        return live(self)

    def extra_repr(self) -> str:
        sites = str(self.site) if not self.is_transcoder else f"{self.site} → {self.site_out}"
        gate = f"{self.gate}, centred" if self.centred else self.gate
        gate += f", norm={self.norm}" if self.norm else ""
        sliced = f", {len(self.slices)} slices on {self.place}" if self.parts else ""
        return f"{self.info.name}, {sites}, {gate}, d_in={self.d_in}, d_sae={self.d_sae}, d_out={self.d_out}{sliced}"

    def __repr__(self) -> str:
        return f"SAE({self.extra_repr()})"
