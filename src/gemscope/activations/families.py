"""Where each model family keeps its blocks, and where the kinds of site lie inside one block: a table.

A new model family is one more case here. What the kinds mean, and how a case is read for a given model, is `site.py`'s
knowledge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Literal

from gemscope.errors import InputError


@dataclass(frozen=True)
class Point:
    """A site made concrete: a module's input or output, and what happens to the tensor on the way out.

    `transform`: `plain` takes it as it is; `normalized` takes the input of a norm and applies the norm without its
    gain, in float32; `rows` looks token ids up in the module's embedding matrix, whatever scaling the module adds;
    `norm` takes the length of each token's vector alone, in float32 at least.
    """

    module: str
    end: Literal["input", "output"]
    transform: Literal["plain", "normalized", "rows", "norm"] = "plain"
    shared: bool = False
    """Whether the block reads the same tensor again elsewhere (as the stream that it adds to), so that a new value has
    to be written into it: handed to the module alone, it would change what that reads and not the stream."""
    scale: float = 1.0
    """What the block multiplies the tensor by before it adds it to the stream: the site's values are those added. Of
    `rows`, what they are multiplied by."""
    flat: str | None = None
    """Where the tensor is [B T, D], the module whose input tells B and T."""
    heads: bool = False
    """Whether the tensor is [B, T, heads, width of a head]: the site's values are the heads' side by side."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where a model family keeps its blocks, and where the kinds of site lie inside one block."""

    layers: tuple[str, ...]
    """Paths of the list of blocks; the first that exists is taken (wrappers put the text model one level down)."""
    embed: tuple[str, ...]
    points: Mapping[str, Point]
    onward: Mapping[str, tuple[str, ...]]
    """By kind, the modules of a block that what is written there goes through on its way into the residual stream."""
    final_norm: tuple[str, ...]
    absent: Mapping[str, str] = field(default_factory=dict)
    """Why a kind is not there, where that is not plain."""
    fits: Callable[[Any], bool] | None = None
    """Whether a configuration describes a model built like this; that the modules are there is looked at besides."""
    one_plus: bool = False
    """Whether a norm's gain is 1 + its weight."""
    instead: Mapping[str, str] = field(default_factory=dict)
    """Modules of a block that other blocks of the model have in the place of those named, by these."""
    after_embed: tuple[str, ...] = ()
    """Modules between the embedding and the residual stream."""
    embed_scale: Callable[[Any], float] | None = None
    """By the configuration, what embeddings are multiplied by."""
    residual_scale: Callable[[Any], float] | None = None
    """What attention's and the MLP's outputs are multiplied by before they are added to the stream."""
    logit_divisor: Callable[[Any], float] | None = None
    """What logits are divided by."""
    rows_scale: float = 1.0
    """What the rows of the embedding matrix have been multiplied by."""
    att_width: int | None = None
    """Numbers per token at `att`, where no weight tells."""
    context: int | None = None
    """The most tokens of a row, where the configuration does not say."""


_ADDED: Mapping[str, tuple[str, ...]] = {"att_out": (), "mid": (), "mlp": (), "res": ()}
"""What is part of the residual stream, or added to it as it is."""
_BESIDE = {"mid": "this model computes attention and MLP side by side, with nothing between"}


def _one_after_the_other(
    projection: str, mlp_norm: str, *, att_out: str | None = None, mlp: str = "mlp", **more: Point
) -> dict[str, Point]:
    """Attention is added to the stream, and what the MLP makes of the norm of that sum is added to it."""
    return {
        "att": Point(projection, "input"),
        "att_out": Point(att_out or projection, "output"),
        "mid": Point(mlp_norm, "input", shared=True),
        "transcoder": Point(mlp_norm, "output"),
        "transcoder_nogain": Point(mlp_norm, "input", "normalized"),
        "mlp": Point(mlp, "output"),
        "res": Point("", "output"),
        **more,
    }


def _side_by_side(projection: str, norm: str, *, own: bool = False) -> dict[str, Point]:
    """Attention and MLP both read the stream as it comes into the block, through one `norm` or the MLP through its
    `own`. One that attention reads too is left alone where what the MLP reads is changed.
    """
    return {
        "att": Point(projection, "input"),
        "att_out": Point(projection, "output"),
        "transcoder": Point(norm, "output") if own else Point("mlp", "input"),
        "transcoder_nogain": Point(norm, "input", "normalized"),
        "mlp": Point("mlp", "output"),
        "res": Point("", "output"),
    }


_LLAMA = Family(
    layers=("model.layers",),
    embed=("model.embed_tokens",),
    points=_one_after_the_other("self_attn.o_proj", "post_attention_layernorm"),
    onward={**_ADDED, "att": ("self_attn.o_proj",)},
    final_norm=("model.norm",),
)
# transformers 4 calls Mixtral's MLP by another name.
_MIXTRAL_4 = replace(
    _LLAMA, points=_one_after_the_other("self_attn.o_proj", "post_attention_layernorm", mlp="block_sparse_moe")
)
_GEMMA_1 = replace(_LLAMA, one_plus=True, embed_scale=lambda config: float(config.hidden_size**0.5))
# Gemma 2 and 3 put a norm behind attention and MLP too, so what reaches the residual stream is that norm's output.
_GEMMA = replace(
    _GEMMA_1,
    layers=("model.layers", "model.language_model.layers"),
    embed=("model.embed_tokens", "model.language_model.embed_tokens"),
    points=_one_after_the_other(
        "self_attn.o_proj",
        "pre_feedforward_layernorm",
        att_out="post_attention_layernorm",
        mlp="post_feedforward_layernorm",
        mlp_raw=Point("mlp", "output"),
    ),
    onward={
        **_ADDED,
        "att": ("self_attn.o_proj", "post_attention_layernorm"),
        "mlp_raw": ("post_feedforward_layernorm",),
    },
    final_norm=("model.norm", "model.language_model.norm"),
)
# Most blocks of Qwen 3.5 have a gated delta rule, a linear attention, in the place of attention. What stands in its
# multimodal configurations is loaded as the text model alone.
_QWEN_3_5 = replace(_LLAMA, one_plus=True, instead={"self_attn.o_proj": "linear_attn.out_proj"})
_GPT2 = Family(
    layers=("transformer.h",),
    embed=("transformer.wte",),
    points=_one_after_the_other("attn.c_proj", "ln_2"),
    onward={**_ADDED, "att": ("attn.c_proj",)},
    final_norm=("transformer.ln_f",),
)
_NEOX = Family(
    layers=("gpt_neox.layers",),
    embed=("gpt_neox.embed_in",),
    points=_one_after_the_other("attention.dense", "post_attention_layernorm"),
    onward={**_ADDED, "att": ("attention.dense",)},
    final_norm=("gpt_neox.final_layer_norm",),
)
_NEOX_BESIDE = replace(
    _NEOX,
    points=_side_by_side("attention.dense", "post_attention_layernorm", own=True),
    absent=_BESIDE,
    fits=attrgetter("use_parallel_residual"),
)
# Granite multiplies by numbers of its configuration.
_GRANITE = replace(
    _LLAMA,
    embed_scale=attrgetter("embedding_multiplier"),
    residual_scale=attrgetter("residual_multiplier"),
    logit_divisor=attrgetter("logits_scaling"),
)
_STABLELM_BESIDE = replace(_LLAMA, points=_side_by_side("self_attn.o_proj", "input_layernorm"), absent=_BESIDE)
_PHI = replace(
    _STABLELM_BESIDE,
    points=_side_by_side("self_attn.dense", "input_layernorm"),
    onward={**_ADDED, "att": ("self_attn.dense",)},
    final_norm=("model.final_layernorm",),
)
# OLMo 2 has its norms behind attention and MLP alone.
_OLMO_2 = replace(
    _LLAMA,
    points={
        "att": Point("self_attn.o_proj", "input"),
        "att_out": Point("post_attention_layernorm", "output"),
        "mid": Point("mlp", "input", shared=True),
        "mlp_raw": Point("mlp", "output"),
        "mlp": Point("post_feedforward_layernorm", "output"),
        "res": Point("", "output"),
    },
    absent=dict.fromkeys(
        ("transcoder", "transcoder_nogain"), "no norm lies before this model's MLP, which reads the stream itself: mid"
    ),
    onward={
        **_ADDED,
        "att": ("self_attn.o_proj", "post_attention_layernorm"),
        "mlp_raw": ("post_feedforward_layernorm",),
    },
)
_GPTJ = replace(
    _GPT2,
    points=_side_by_side("attn.out_proj", "ln_1"),
    absent=_BESIDE,
    onward={**_ADDED, "att": ("attn.out_proj",)},
)
_FALCON = Family(
    layers=("transformer.h",),
    embed=("transformer.word_embeddings",),
    points=_one_after_the_other("self_attention.dense", "post_attention_layernorm"),
    onward={**_ADDED, "att": ("self_attention.dense",)},
    final_norm=("transformer.ln_f",),
)
_FALCON_BESIDE = replace(
    _FALCON,
    points=_side_by_side("self_attention.dense", "input_layernorm"),
    absent=_BESIDE,
    fits=attrgetter("parallel_attn"),
)
_FALCON_TWO_NORMS = replace(_FALCON_BESIDE, points=_side_by_side("self_attention.dense", "ln_mlp", own=True))
# What BLOOM calls its MLP gives back the sum with the stream. It has no bound on a row: it was trained on 2048.
_BLOOM = replace(
    _FALCON,
    points=_one_after_the_other("self_attention.dense", "post_attention_layernorm", mlp="mlp.dense_4h_to_h"),
    after_embed=("transformer.word_embeddings_layernorm",),
    fits=lambda config: not config.apply_residual_connection_post_layernorm and not config.slow_but_exact,
    context=2048,
)
# OPT has no module for its MLP, and hands the tokens of all rows to the parts of it as one list.
_OPT = Family(
    layers=("model.decoder.layers",),
    embed=("model.decoder.embed_tokens",),
    points={
        kind: replace(point, flat="") if kind in ("mid", "transcoder", "transcoder_nogain", "mlp") else point
        for kind, point in _one_after_the_other("self_attn.out_proj", "final_layer_norm", mlp="fc2").items()
    },
    onward={**_ADDED, "att": ("self_attn.out_proj",)},
    final_norm=("model.decoder.final_layer_norm",),
    fits=lambda config: config.do_layer_norm_before and config.word_embed_proj_dim == config.hidden_size,
)

FAMILIES: Mapping[str, tuple[Family, ...]] = {
    "bloom": (_BLOOM,),
    "falcon": (_FALCON_TWO_NORMS, _FALCON_BESIDE, _FALCON),
    "gemma": (_GEMMA_1,),
    "gemma2": (_GEMMA,),
    "gemma3": (_GEMMA,),
    "gemma3_text": (_GEMMA,),
    "gpt2": (_GPT2,),
    "gpt_neox": (_NEOX_BESIDE, _NEOX),
    "gpt_oss": (_LLAMA,),
    "gptj": (_GPTJ,),
    "granite": (_GRANITE,),
    "llama": (_LLAMA,),
    "ministral": (_LLAMA,),
    "mistral": (_LLAMA,),
    "mixtral": (_LLAMA, _MIXTRAL_4),
    "olmo2": (_OLMO_2,),
    "opt": (_OPT,),
    "phi": (_PHI,),
    "phi3": (_LLAMA,),
    "qwen2": (_LLAMA,),
    "qwen2_moe": (_LLAMA,),
    "qwen3": (_LLAMA,),
    "qwen3_5": (_QWEN_3_5,),
    "qwen3_5_moe": (_QWEN_3_5,),
    "qwen3_5_moe_text": (_QWEN_3_5,),
    "qwen3_5_text": (_QWEN_3_5,),
    "qwen3_moe": (_LLAMA,),
    "smollm3": (_LLAMA,),
    "stablelm": (_LLAMA, _STABLELM_BESIDE),
    "starcoder2": (_LLAMA,),
}
"""By the `model_type` of the transformers configuration, the ways in which such models are built; the first that a
model fits is taken."""

UNLIKE: Mapping[str, str] = {
    "bloom": "those keep the stream apart from its norm, in one piece (apply_residual_connection_post_layernorm and "
    "slow_but_exact false)",
    "qwen3_5": "those are the text models alone, as load_model loads them",
    "qwen3_5_moe": "those are the text models alone, as load_model loads them",
    "opt": "those put their norms before attention and MLP and embed at full width (do_layer_norm_before true, "
    "word_embed_proj_dim equal to hidden_size), so that the stream is a sum",
}
"""By `model_type`, what keeps some of its models out."""


_NEEDED: Mapping[str, str] = {
    "mamba mamba2 falcon_mamba rwkv xlstm": "a state space in the place of attention and MLP would need kinds of "
    "site of its own",
    "bamba falcon_h1 granitemoehybrid jamba lfm2 nemotron_h qwen3_next recurrent_gemma zamba2": "layers unlike one "
    "another would need sites layer by layer",
    "t5 mt5 umt5 bart mbart whisper": "an encoder beside the decoder would need sites in two stacks",
    "bert roberta distilbert modernbert": "what reads both ways predicts no next token",
    "gemma3n gemma3n_text": "several streams side by side would need a site for each",
    "gemma4 gemma4_text": "a stream that is scaled as a whole is no sum of what is added to it",
}
"""By some `model_type`s that are not in the table, why they are no further case of it."""


def family(kind: str | None) -> tuple[Family, ...]:
    """The ways in which models of that `model_type` are built. Raises InputError, naming the families known and what
    would be needed, for a type that is not known.
    """
    if kind is None or kind not in FAMILIES:
        why = next((why for kinds, why in _NEEDED.items() if kind in kinds.split()), "a case of its own is needed")
        known = ", ".join(sorted(FAMILIES))
        raise InputError(f"models of type {kind!r} are not known here: {why}; known are {known}")
    return FAMILIES[kind]
