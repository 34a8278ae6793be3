"""What the tests of edits compare against: an SAE's arithmetic in float64, written out slowly, and the rest of a block
and of a model recomputed from what flows through one site. None of it knows how edits are done.
"""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor, nn

from gemscope.activations.model import LanguageModel
from gemscope.activations.site import KINDS, Site
from gemscope.features.cross_layer import CrossLayerTranscoder, Written
from gemscope.features.sae import SAE, SAEInfo
from gemscope.testing import tiny_model

MAIN = (
    "gemma2", "gemma3_text", "gemma3", "llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "gpt_neox_sequential",
)  # fmt: skip
"""The families on which everything is tried; the others are variations on these, held by test_families.py."""
GEMMA = {"gemma2", "gemma3_text", "gemma3"}
TEXT = "The theory and the thing: it was a morning in the other country"
EDITABLE = tuple(kind for kind in KINDS if kind not in {"embed", "transcoder_nogain"})
"""The kinds of site that the model itself reads again, so that a change there reaches it."""


@cache
def model_of(family: str) -> LanguageModel:
    return tiny_model(family)


def kinds_of(family: str) -> list[str]:
    """The editable kinds that the family has."""
    missing = (set() if family in GEMMA else {"mlp_raw"}) | ({"mid"} if family == "gpt_neox" else set())
    return [kind for kind in EDITABLE if kind not in missing]


def hooks(model: LanguageModel) -> int:
    """Hooks of torch's on any module of the model."""
    every = (
        (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        for module in model.hf.modules()
    )
    return sum(len(kind) for kinds in every for kind in kinds)


def random_sae(model: LanguageModel, site: str = "1.res", *, seed: int = 0, d_sae: int = 48, **options: object) -> SAE:
    """Features of every length and sign, biases away from zero, about half of them active on a token."""
    site_out = options.pop("site_out", site)
    sae = SAE(
        model.width(site), d_sae, model.width(str(site_out)), site=site, site_out=str(site_out),
        info=SAEInfo(name="random"), **options,
    )  # type: ignore[arg-type]  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sae.named_parameters():
        drawn = torch.randn(weight.shape, generator=generator) * (0.3 if weight.ndim == 1 else sae.d_in**-0.5)
        lengths = torch.rand(len(weight), 1, generator=generator) + 0.5 if name == "W_dec" else 1.0
        weight.copy_(drawn * lengths)
    if sae.threshold is not None:
        sae.threshold.abs_()
    return sae


def planted_clt(d: int, features: int, *, layers: int) -> CrossLayerTranscoder:
    random = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=random)
    encoders = []
    for layer in range(layers):
        sae = SAE(d, features, 0, gate="relu", site=f"{layer}.mid", site_out=f"{layer}.mlp")
        sae.W_enc.copy_(draw(d, features) / d**0.5)
        sae.b_enc.copy_(0.1 * draw(features))
        encoders.append(sae)
    rows = [0.1 * draw(features, layers - layer, d) for layer in range(layers)]
    return CrossLayerTranscoder(
        encoders=tuple(encoders),
        written=tuple(Written(f"layer {layer}", lambda one=one: one) for layer, one in enumerate(rows)),
        b_dec=tuple(0.1 * draw(d) for _ in range(layers)),
        sites_out=tuple(Site(layer, "mlp") for layer in range(layers)),
        skips=tuple(0.1 * draw(d, d) for _ in range(layers)),
        info=SAEInfo(name="planted"),
    )


# --- in float64, one step after the other ---------------------------------------------------------------------------


def features64(sae: SAE, x: Tensor) -> Tensor:
    """[..., d_sae]: the activations by the definition of the gate."""
    pre = x.double() @ sae.W_enc.double() + sae.b_enc.double()
    if sae.gate == "jumprelu":
        return torch.where((pre > sae.threshold.double()) & (pre > 0), pre, 0.0)
    if sae.gate == "topk":
        floor = pre.topk(sae.k, dim=-1).values[..., -1:]
        return torch.where((pre >= floor) & (pre > 0), pre, 0.0)
    return pre.clamp(min=0)


def undecided(sae: SAE, x: Tensor, by: float = 1e-4) -> bool:
    """Whether rounding may decide which features are active: a pre-activation lies next to where its gate opens."""
    pre = x.double() @ sae.W_enc.double() + sae.b_enc.double()
    if sae.gate == "topk":
        top = pre.topk(sae.k + 1, dim=-1).values
        return bool((top[..., -2] - top[..., -1]).min() < by or pre.abs().min() < by)
    floor = sae.threshold.double() if sae.gate == "jumprelu" else torch.zeros(sae.d_sae, dtype=torch.float64)
    return bool((pre - floor).abs().min() < by)


def decoded64(sae: SAE, features: Tensor, x: Tensor | None = None) -> Tensor:
    """The decoder's output, the skip's part included where there is one."""
    out = features.double() @ sae.W_dec.double() + sae.b_dec.double()
    return out if sae.W_skip is None or x is None else out + x.double() @ sae.W_skip.double().T


# --- the rest of a block --------------------------------------------------------------------------------------------


def block(model: LanguageModel, layer: int) -> nn.Module:
    path = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "gemma3": "model.language_model.layers"}
    family = model.name.removeprefix("tiny-").removesuffix("_sequential")
    return model.hf.get_submodule(f"{path.get(family, 'model.layers')}.{layer}")


def mlp_norm(family: str) -> str:
    """Name of the norm in front of a block's MLP."""
    return (
        "pre_feedforward_layernorm" if family in GEMMA else "ln_2" if family == "gpt2" else "post_attention_layernorm"
    )


def output_by_hand(model: LanguageModel, layer: int, clean: dict[str, Tensor], kind: str, new: Tensor) -> Tensor:
    """The residual stream behind a block, with `new` in the place of what flowed through its site `kind`. `clean` has
    the unedited values by kind, and `before`: what came into the block.
    """
    family = model.name.removeprefix("tiny-")
    this = block(model, layer)
    added = clean["att_out"]
    if kind == "att":
        projection = {"gpt2": "attn.c_proj"}.get(family, "attention.dense" if "neox" in family else "self_attn.o_proj")
        added = this.get_submodule(projection)(new)
        added = this.post_attention_layernorm(added) if family in GEMMA else added
    elif kind == "att_out":
        added = new
    mid = new if kind == "mid" else clean["before"] + added
    read = clean["before"] if family == "gpt_neox" else mid
    normed = new if kind == "transcoder" else this.get_submodule(mlp_norm(family))(read)
    out = new if kind == "mlp_raw" else this.mlp(normed)
    out = this.post_feedforward_layernorm(out) if family in GEMMA else out
    out = new if kind == "mlp" else out
    return new if kind == "res" else mid + out


def blockwise(model: LanguageModel, layer: int, text: object) -> dict[str, Tensor]:
    """Every kind of site of a block, and what comes `before` it."""
    kinds = [*kinds_of(model.name.removeprefix("tiny-")), "transcoder_nogain"]
    captured = model.capture(text, [f"{layer - 1}.res", *(f"{layer}.{kind}" for kind in kinds)])
    values = {Site.parse(site).kind: acts.values for site, acts in captured.items() if Site.parse(site).layer == layer}
    return values | {"before": captured[f"{layer - 1}.res"].values}
