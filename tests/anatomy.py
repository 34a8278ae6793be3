"""Whole models of every other family done by hand, from their weights alone: each part of a block, each site, and the logits."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from by_hand import MAIN
from gemscope.activations.model import LanguageModel
from gemscope.testing import TINY, tiny_model

OTHERS = [family for family in TINY if family not in MAIN and hasattr(transformers, TINY[family].model)]
"""Transformers 4 does not have all of them."""


NEWER = [family for family in OTHERS if family == "qwen3_5_text"]


LAYERS = 3


TOKEN = 57


See = Callable[[str, Tensor], Tensor]
"""Told of what flows through a site, it gives back what goes on from there."""


@cache
def model_of(family: str) -> LanguageModel:
    return tiny_model(family, layers=LAYERS)


def linear(module: nn.Module, x: Tensor) -> Tensor:
    return F.linear(x, module.weight.double(), None if module.bias is None else module.bias.double())


def rms(norm: nn.Module, x: Tensor, *, eps: float = 1e-6, gain: bool = True, plus: float = 0.0) -> Tensor:
    bare = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return bare * (norm.weight.double() + plus) if gain else bare


def layer_norm(norm: nn.Module, x: Tensor, *, gain: bool = True) -> Tensor:
    bare = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    return bare * norm.weight.double() + norm.bias.double() if gain else bare


gelu_tanh = partial(F.gelu, approximate="tanh")


def values(attention: nn.Module, x: Tensor) -> Tensor:
    """Two key-value heads serve four; or there are four."""
    found = linear(attention.v_proj, x)
    return shared_by_four(found.reshape(1, 1, 2, -1)) if getattr(attention, "num_key_value_groups", 1) == 2 else found


def shared_by_four(heads: Tensor) -> Tensor:
    return heads.repeat_interleave(4 // heads.shape[2], dim=2).flatten(2)


def gated_values(attention: nn.Module, x: Tensor) -> Tensor:
    """Qwen 3.5: beside the queries lie gates; or a gated delta rule, whose state is empty before the first token."""
    if hasattr(attention, "o_proj"):
        gates = linear(attention.q_proj, x).reshape(1, 1, 4, 2, -1)[..., 1, :]
        return values(attention, x) * gates.flatten(2).sigmoid()
    at_once = linear(attention.in_proj_qkv, x) * attention.conv1d.weight[:, 0, -1].double()  # nothing came before
    query, key, value = F.silu(at_once).split([24, 24, 40], dim=-1)
    query, key = (
        (one := each.reshape(2, 12)) / (one.square().sum(-1, keepdim=True) + 1e-6).sqrt() for each in (query, key)
    )
    overlap = ((query * key).sum(-1) / 12**0.5).repeat_interleave(2) * linear(attention.in_proj_b, x).sigmoid()
    read = rms(attention.norm, overlap[..., None] * value.reshape(1, 1, 4, 10))
    return (read * F.silu(linear(attention.in_proj_z, x).reshape(1, 1, 4, 10))).flatten(2)


def fused_values(start: int, attention: nn.Module, x: Tensor) -> Tensor:
    """Phi 3: queries, keys and values behind one another, the values from `start` on."""
    return shared_by_four(linear(attention.qkv_proj, x)[..., start:].reshape(1, 1, 2, -1))


def woven_values(attention: nn.Module, x: Tensor) -> Tensor:
    """BLOOM and Falcon: queries, keys and values of a head (or of a group of heads) side by side."""
    mixed = linear(attention.query_key_value, x)
    if mixed.shape[-1] == 3 * 32:  # four heads of 8
        return mixed.reshape(1, 1, 4, 3, 8)[..., 2, :].flatten(2)
    if mixed.shape[-1] == 32 + 2 * 16:  # two groups of two
        return shared_by_four(mixed.reshape(1, 1, 2, 4, 8)[..., 3, :])
    return shared_by_four(mixed[..., 40:].reshape(1, 1, 1, 8))  # one key and one value for all


def sink_values(attention: nn.Module, x: Tensor) -> Tensor:
    """gpt_oss: beside the token there is a sink, which takes its part of the attention and writes nothing."""
    query = linear(attention.q_proj, x).reshape(4, 16)
    key = linear(attention.k_proj, x).reshape(2, 16).repeat_interleave(2, dim=0)
    score = (query * key).sum(-1) / 16**0.5
    share = score.exp() / (score.exp() + attention.sinks.double().exp())
    return (values(attention, x).reshape(1, 1, 4, 16) * share[:, None]).flatten(2)


def gated(mlp: nn.Module, x: Tensor, act: Callable[[Tensor], Tensor] = F.silu) -> Tensor:
    return linear(mlp.down_proj, act(linear(mlp.gate_proj, x)) * linear(mlp.up_proj, x))


def gated_in_one(mlp: nn.Module, x: Tensor) -> Tensor:
    gate, up = linear(mlp.gate_up_proj, x).chunk(2, dim=-1)
    return linear(mlp.down_proj, F.silu(gate) * up)


def two_layers(first: str, second: str, act: Callable[[Tensor], Tensor], mlp: nn.Module, x: Tensor) -> Tensor:
    return linear(mlp.get_submodule(second), act(linear(mlp.get_submodule(first), x)))


def expert(mlp: nn.Module, number: int, x: Tensor) -> Tensor:
    """Both ways in which transformers keeps experts: each as a module (4), all in one tensor (5)."""
    if not hasattr(mlp.experts, "gate_up_proj"):
        one = mlp.experts[number]
        if hasattr(one, "w1"):  # Mixtral's names: down is w2, up is w3
            return linear(one.w2, F.silu(linear(one.w1, x)) * linear(one.w3, x))
        return gated(one, x)
    gate, up = F.linear(x, mlp.experts.gate_up_proj[number].double()).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, mlp.experts.down_proj[number].double())


def mixture(renormalised: bool, mlp: nn.Module, x: Tensor) -> Tensor:
    """The two likeliest experts of four."""
    if not hasattr(mlp, "experts"):
        return gated(mlp, x)
    shares, chosen = F.linear(x, mlp.gate.weight.double()).softmax(-1).flatten().topk(2)
    shares = shares / shares.sum() if renormalised else shares
    return sum(share * expert(mlp, int(number), x) for share, number in zip(shares, chosen, strict=True))


def mixture_and_shared(mlp: nn.Module, x: Tensor, renormalised: bool = False) -> Tensor:
    routed = mixture(renormalised, mlp, x)
    if not hasattr(mlp, "experts"):
        return routed
    return routed + linear(mlp.shared_expert_gate, x).sigmoid() * gated(mlp.shared_expert, x)


renormalised_and_shared = partial(mixture_and_shared, renormalised=True)


def clamped_mixture(mlp: nn.Module, x: Tensor) -> Tensor:
    """gpt_oss: biases, gate and up interleaved, both bounded by 7."""
    scores, chosen = linear(mlp.router, x).flatten().topk(2)
    out = torch.zeros_like(x)
    for share, number in zip(scores.softmax(-1), chosen, strict=True):
        up_and_gate = x @ mlp.experts.gate_up_proj[number].double() + mlp.experts.gate_up_proj_bias[number].double()
        gate, up = up_and_gate[..., ::2].clamp(max=7), up_and_gate[..., 1::2].clamp(-7, 7)
        inner = (up + 1) * gate * (1.702 * gate).sigmoid()
        out += share * (inner @ mlp.experts.down_proj[number].double() + mlp.experts.down_proj_bias[number].double())
    return out


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """What is to know of a family to run it by hand. Llama's, unless said otherwise."""

    blocks: str = "model.layers"
    embed: str = "model.embed_tokens"
    attention: str = "self_attn"
    project: str = "o_proj"
    mlp: str | None = "mlp"
    """None: its parts lie in the block itself."""
    first: str = "input_layernorm"
    second: str = "post_attention_layernorm"
    """The norm in front of the MLP: the first, too, where both read the same."""
    final: str = "model.norm"
    norm: Callable[..., Tensor] = rms
    heads: Callable[[nn.Module, Tensor], Tensor] = values
    feed: Callable[[nn.Module, Tensor], Tensor] = gated
    order: str = "sequential"
    embed_scale: float = 1.0
    added_scale: float = 1.0
    logit_divisor: float = 1.0
    stem: Callable[[nn.Module, Tensor], Tensor] = field(default=lambda hf, x: x)
    """What becomes of an embedding before the first block."""


_BLOOM = {
    "blocks": "transformer.h", "embed": "transformer.word_embeddings", "attention": "self_attention",
    "project": "dense", "final": "transformer.ln_f", "norm": layer_norm, "heads": woven_values,
}  # fmt: skip


_falcon_feed = partial(two_layers, "dense_h_to_4h", "dense_4h_to_h", F.gelu)


ANATOMY = {
    "gemma": Anatomy(norm=partial(rms, plus=1.0), feed=partial(gated, act=gelu_tanh), embed_scale=32**0.5),
    "phi3": Anatomy(heads=partial(fused_values, 48), feed=gated_in_one, norm=partial(rms, eps=1e-5)),
    "smollm3": Anatomy(),
    "ministral": Anatomy(),
    "starcoder2": Anatomy(norm=layer_norm, feed=partial(two_layers, "c_fc", "c_proj", gelu_tanh)),
    "stablelm": Anatomy(norm=layer_norm),
    "stablelm_parallel": Anatomy(norm=layer_norm, second="input_layernorm", order="parallel"),
    "mixtral": Anatomy(norm=partial(rms, eps=1e-5), feed=partial(mixture, True)),
    "qwen2_moe": Anatomy(feed=mixture_and_shared),
    "qwen3_moe": Anatomy(feed=partial(mixture, True)),
    "qwen3_5_text": Anatomy(norm=partial(rms, plus=1.0), heads=gated_values),
    "qwen3_5_moe_text": Anatomy(norm=partial(rms, plus=1.0), heads=gated_values, feed=renormalised_and_shared),
    "gpt_oss": Anatomy(norm=partial(rms, eps=1e-5), heads=sink_values, feed=clamped_mixture),
    "granite": Anatomy(embed_scale=3.0, added_scale=0.7, logit_divisor=4.0),
    "olmo2": Anatomy(norm=partial(rms, eps=1e-5), order="norms behind"),
    "phi": Anatomy(
        project="dense", final="model.final_layernorm", norm=layer_norm, second="input_layernorm", order="parallel",
        feed=partial(two_layers, "fc1", "fc2", gelu_tanh),
    ),
    "gptj": Anatomy(
        blocks="transformer.h", embed="transformer.wte", attention="attn", project="out_proj", first="ln_1",
        second="ln_1", final="transformer.ln_f", norm=layer_norm, order="parallel",
        feed=partial(two_layers, "fc_in", "fc_out", gelu_tanh),
    ),
    "falcon": Anatomy(**_BLOOM, feed=_falcon_feed, second="input_layernorm", order="parallel"),
    "falcon_two_norms": Anatomy(**_BLOOM, feed=_falcon_feed, first="ln_attn", second="ln_mlp", order="parallel"),
    "falcon_sequential": Anatomy(**_BLOOM, feed=_falcon_feed),
    "bloom": Anatomy(
        **_BLOOM, feed=partial(two_layers, "dense_h_to_4h", "dense_4h_to_h", gelu_tanh),
        stem=lambda hf, x: layer_norm(hf.transformer.word_embeddings_layernorm, x),
    ),
    "opt": Anatomy(
        blocks="model.decoder.layers", embed="model.decoder.embed_tokens", project="out_proj", mlp=None,
        first="self_attn_layer_norm", second="final_layer_norm", final="model.decoder.final_layer_norm",
        norm=layer_norm, feed=partial(two_layers, "fc1", "fc2", F.relu),
        stem=lambda hf, x: x + hf.model.decoder.embed_positions.weight[2].double(),  # two places are left free
    ),
}  # fmt: skip


def block_by_hand(family: str, layer: int, x: Tensor, see: See) -> Tensor:
    a = ANATOMY[family]
    block = model_of(family).hf.get_submodule(f"{a.blocks}.{layer}")
    linearly = hasattr(block, "linear_attn")  # Qwen 3.5
    attention = block.linear_attn if linearly else block.get_submodule(a.attention)
    mlp = block if a.mlp is None else _mlp(block)
    project = partial(linear, attention.out_proj if linearly else attention.get_submodule(a.project))
    if a.order == "norms behind":
        added = a.norm(block.post_attention_layernorm, project(see("att", a.heads(attention, x))))
        mid = see("mid", x + see("att_out", added))
        raw = see("mlp_raw", a.feed(mlp, mid))
        return see("res", mid + see("mlp", a.norm(block.post_feedforward_layernorm, raw)))
    heads = see("att", a.heads(attention, a.norm(block.get_submodule(a.first), x)))
    added = see("att_out", a.added_scale * project(heads))
    second = block.get_submodule(a.second)
    read = x if a.order == "parallel" else see("mid", x + added)
    see("transcoder_nogain", a.norm(second, read, gain=False))
    out = see("mlp", a.added_scale * a.feed(mlp, see("transcoder", a.norm(second, read))))
    return see("res", x + added + out if a.order == "parallel" else read + out)


def _mlp(block: nn.Module) -> nn.Module:
    return block.mlp if hasattr(block, "mlp") else block.block_sparse_moe  # Mixtral's name in transformers 4


def by_hand(family: str, see: Callable[[str, Tensor], Tensor]) -> Tensor:
    """The logits of a text of one token; `see` is told of sites by their whole name."""
    a, hf = ANATOMY[family], model_of(family).hf
    x = see("embed", hf.get_submodule(a.embed).weight[None, [TOKEN]].double())
    x = a.stem(hf, a.embed_scale * x)
    for layer in range(LAYERS):
        x = block_by_hand(family, layer, x, lambda kind, value, layer=layer: see(f"{layer}.{kind}", value))
    return linear(hf.lm_head, a.norm(hf.get_submodule(a.final), x)) / a.logit_divisor


def seen_by_hand(family: str) -> tuple[dict[str, Tensor], Tensor]:
    found: dict[str, Tensor] = {}

    def see(site: str, value: Tensor) -> Tensor:
        found[site] = value
        return value

    return found, by_hand(family, see)


def with_added(family: str, site: str, delta: Tensor) -> Tensor:
    """The logits by hand with something added at a site."""
    return by_hand(family, lambda at, value: value + delta if at == site else value)


@cache
def kinds_of(family: str) -> tuple[str, ...]:
    return tuple(name.partition(".")[2] for name in seen_by_hand(family)[0] if name.startswith("0."))


def editable(family: str) -> list[str]:
    return [kind for kind in kinds_of(family) if kind != "transcoder_nogain"]


def close(actual: Tensor, expected: Tensor, **options: float) -> None:
    torch.testing.assert_close(actual, expected.to(actual.dtype), **({"atol": 3e-5, "rtol": 1e-5} | options))
