"""Tiny models of every family that is read here, 32 wide.

They are random, so what they say means nothing; that each tensor is where it belongs can be told from them all
the same, because no gain is one, no bias is zero, and the heads together are wider than the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gemscope.activations.model import LanguageModel
from gemscope.errors import InputError
from gemscope.testing.saes import D_MODEL
from gemscope.testing.tokenizers import byte_level, sentence_piece

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCAB = 320
"""Rows of the embedding; the tokenizers use a few less, as published models' do."""
CONTEXT = 128


def tiny_model(
    family: str = "llama", *, layers: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32
) -> LanguageModel:
    """A random model of a family in `TINY`, 32 wide, with a tokenizer that has the family's rules.

    It loads in milliseconds, reads up to 128 tokens, and is the same for the same `seed` (`tiny_model(...).hf` is a
    transformers model like any other). Raises InputError for a family not in `TINY`.
    """
    if family not in TINY:
        raise InputError(f"no tiny model of family {family!r}: there are {', '.join(TINY)}")
    recipe = TINY[family]
    import transformers

    tokenizer = recipe.tokenizer()
    special = {f"{role}_token_id": tokenizer.token_to_id(token) for role, token in recipe.special.items()}
    config = recipe.config(transformers, layers, {"pad_token_id": None} | special)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = getattr(transformers, recipe.model)(config)
        _randomize(hf)
    hf.requires_grad_(False)
    hf.generation_config.pad_token_id = special.get("pad_token_id", special["eos_token_id"])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": token for role, token in recipe.special.items()},
    )
    return LanguageModel(hf.to(dtype), fast, name=f"tiny-{family}")


# --- the models ---------------------------------------------------------------------------------------------------


_Config = Callable[[Any, int, Mapping[str, Any]], Any]
"""A configuration of transformers (given as a module) with so many layers and these special tokens."""


@dataclass(frozen=True)
class _Recipe:
    """How the tiny model of one family is made."""

    model: str
    """Name of its class in transformers."""
    config: _Config
    tokenizer: Callable[[], Tokenizer]
    special: Mapping[str, str]
    """Special tokens by role, as the published models have them."""


_SIZES: Mapping[str, Any] = {"hidden_size": D_MODEL, "num_attention_heads": 4, "max_position_embeddings": CONTEXT}
_LLAMA_SIZES = {**_SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
_GPT_SIZES: Mapping[str, Any] = {"n_embd": D_MODEL, "n_head": 4, "n_positions": CONTEXT, "n_inner": 48}


def _sized(
    kind: str,
    sizes: Mapping[str, Any],
    transformers: Any,
    layers: int,
    special: Mapping[str, Any],
    *,
    depth: str = "num_hidden_layers",
) -> Any:
    """A configuration in the words that its class has for sizes."""
    return getattr(transformers, kind)(vocab_size=VOCAB, **sizes, **{depth: layers}, **special)


def _rotary(kind: str, heads: Mapping[str, Any]) -> _Config:
    """In Llama's words, which Mistral, Qwen and Gemma share."""
    return partial(_sized, kind, {**_LLAMA_SIZES, **heads})


def _neox(*, parallel: bool) -> _Config:
    sizes = {**_SIZES, "intermediate_size": 48, "use_parallel_residual": parallel}
    return partial(_sized, "GPTNeoXConfig", sizes)


def _falcon(options: Mapping[str, Any]) -> _Config:
    return partial(_sized, "FalconConfig", {**_SIZES, "ffn_hidden_size": 48, **options})


def _gemma_3(transformers: Any, layers: int, special: Mapping[str, Any]) -> Any:
    """The multimodal wrapper: a text model one level down, and a vision tower that text never enters."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        "vision_use_head": False,
    }
    return transformers.Gemma3Config(
        text_config=_rotary("Gemma3TextConfig", _GEMMA_HEADS)(transformers, layers, special).to_dict(),
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=VOCAB - 3,
        eoi_token_index=VOCAB - 2,
        image_token_index=VOCAB - 1,
        **special,
    )


@torch.no_grad()
def _randomize(model: nn.Module) -> None:
    """Weights large enough that every block matters, gains away from one, biases away from zero."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim > 1:
                # GPT-2's Conv1D keeps its weight as [in, out]. An embedding's rows are as long as the stream is wide.
                # The experts of a mixture lie in one tensor of three axes.
                rows = weight[0] if weight.ndim == 3 else weight
                fan_in = weight.shape[0] if type(module).__name__ == "Conv1D" else rows[0].numel()
                weight.normal_(std=1.0 if isinstance(module, nn.Embedding) else fan_in**-0.5)
            elif name == "weight":  # of a norm; Gemma's adds one to it
                weight.add_(0.5 * torch.randn_like(weight))
            else:
                weight.normal_(std=0.3)


_GEMMA_TOKENS = partial(sentence_piece, "<pad>", "<eos>", "<bos>", "<unk>", bos="<bos>", dummy_blank=False)
_GEMMA_SPECIAL = {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "unk": "<unk>"}
_GEMMA_HEADS: Mapping[str, Any] = {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 16,
    "sliding_window_pattern": 2,
}
_GEMMA_2_HEADS: Mapping[str, Any] = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}
_CHAT_SPECIAL = {"bos": "<|im_start|>", "eos": "<|im_end|>", "pad": "<|im_end|>"}
_QWEN_SPECIAL = {"eos": "<|im_end|>", "pad": "<|endoftext|>"}
_CHAT_TOKENS = partial(byte_level, "<|endoftext|>", "<|im_start|>", "<|im_end|>")
_END = "<|endoftext|>"
_NEOX_SPECIAL = {"bos": _END, "eos": _END, "pad": "<|padding|>"}
_NEOX_TOKENS = partial(byte_level, _END, "<|padding|>")
_MISTRAL_TOKENS = partial(sentence_piece, "<unk>", "<s>", "</s>", bos="<s>", dummy_blank=True)
_ROPE: Mapping[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}


_DELTA: Mapping[str, Any] = {
    "head_dim": 16,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 10,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "full_attention_interval": 3,
}
"""Of three blocks the last has attention; a linear attention of other widths stands in its place in the others."""


def _in_llamas_words(name: str, *, kind: str | None = None, **options: Any) -> _Recipe:
    return _Recipe(f"{name}ForCausalLM", _rotary(kind or f"{name}Config", options), _CHAT_TOKENS, _CHAT_SPECIAL)


TINY: Mapping[str, _Recipe] = {
    "gemma": _Recipe("GemmaForCausalLM", _rotary("GemmaConfig", {"head_dim": 16}), _GEMMA_TOKENS, _GEMMA_SPECIAL),
    "gemma2": _Recipe("Gemma2ForCausalLM", _rotary("Gemma2Config", _GEMMA_2_HEADS), _GEMMA_TOKENS, _GEMMA_SPECIAL),
    "gemma3_text": _Recipe(
        "Gemma3ForCausalLM", _rotary("Gemma3TextConfig", _GEMMA_HEADS), _GEMMA_TOKENS, _GEMMA_SPECIAL
    ),
    "gemma3": _Recipe("Gemma3ForConditionalGeneration", _gemma_3, _GEMMA_TOKENS, _GEMMA_SPECIAL),
    "llama": _Recipe("LlamaForCausalLM", _rotary("LlamaConfig", {"head_dim": 16}), _CHAT_TOKENS, _CHAT_SPECIAL),
    "mistral": _Recipe(
        "MistralForCausalLM",
        _rotary("MistralConfig", {"head_dim": 16, "sliding_window": 16}),
        _MISTRAL_TOKENS,
        {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
    ),
    "qwen2": _Recipe("Qwen2ForCausalLM", _rotary("Qwen2Config", {}), _CHAT_TOKENS, _QWEN_SPECIAL),
    "qwen3": _Recipe("Qwen3ForCausalLM", _rotary("Qwen3Config", {"head_dim": 16}), _CHAT_TOKENS, _QWEN_SPECIAL),
    "gpt2": _Recipe(
        "GPT2LMHeadModel",
        partial(_sized, "GPT2Config", _GPT_SIZES, depth="n_layer"),
        partial(byte_level, _END),
        {"bos": _END, "eos": _END, "unk": _END},
    ),
    "gpt_neox": _Recipe("GPTNeoXForCausalLM", _neox(parallel=True), _NEOX_TOKENS, _NEOX_SPECIAL),
    "gpt_neox_sequential": _Recipe("GPTNeoXForCausalLM", _neox(parallel=False), _NEOX_TOKENS, _NEOX_SPECIAL),
    "phi3": _in_llamas_words("Phi3"),
    "smollm3": _in_llamas_words("SmolLM3", no_rope_layer_interval=2),
    "ministral": _in_llamas_words("Ministral", head_dim=16, sliding_window=16),
    "starcoder2": _in_llamas_words("Starcoder2"),
    "stablelm": _in_llamas_words("StableLm", use_qkv_bias=True),
    "stablelm_parallel": _in_llamas_words("StableLm", use_parallel_residual=True),
    "mixtral": _in_llamas_words("Mixtral", head_dim=16, num_local_experts=4),
    "qwen2_moe": _in_llamas_words(
        "Qwen2Moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
        mlp_only_layers=[2],
    ),
    "qwen3_moe": _in_llamas_words(
        "Qwen3Moe", head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True
    ),
    "qwen3_5_text": _in_llamas_words("Qwen3_5", kind="Qwen3_5TextConfig", **_DELTA),
    "qwen3_5_moe_text": _in_llamas_words(
        "Qwen3_5Moe",
        kind="Qwen3_5MoeTextConfig",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
        **_DELTA,
    ),
    "gpt_oss": _in_llamas_words(
        "GptOss",
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=16,
        rope_scaling=None,
        rope_parameters=_ROPE,
    ),
    "granite": _in_llamas_words(
        "Granite", embedding_multiplier=3.0, residual_multiplier=0.7, attention_multiplier=0.3, logits_scaling=4.0
    ),
    "olmo2": _in_llamas_words("Olmo2"),
    "phi": _in_llamas_words("Phi"),
    "gptj": _Recipe(
        "GPTJForCausalLM",
        partial(_sized, "GPTJConfig", {**_GPT_SIZES, "rotary_dim": 4, "tie_word_embeddings": False}, depth="n_layer"),
        partial(byte_level, _END),
        {"bos": _END, "eos": _END, "unk": _END},
    ),
    "falcon": _Recipe("FalconForCausalLM", _falcon({}), partial(byte_level, _END), {"eos": _END}),
    "falcon_two_norms": _Recipe(
        "FalconForCausalLM",
        _falcon({"new_decoder_architecture": True, "num_kv_heads": 2}),
        partial(byte_level, _END),
        {"eos": _END},
    ),
    "falcon_sequential": _Recipe(
        "FalconForCausalLM",
        _falcon({"parallel_attn": False, "multi_query": False, "alibi": True, "bias": True}),
        partial(byte_level, _END),
        {"eos": _END},
    ),
    "bloom": _Recipe(
        "BloomForCausalLM",
        partial(_sized, "BloomConfig", {"hidden_size": D_MODEL, "n_head": 4}, depth="n_layer"),
        _CHAT_TOKENS,
        _CHAT_SPECIAL,
    ),
    "opt": _Recipe(
        "OPTForCausalLM",
        partial(_sized, "OPTConfig", {**_SIZES, "word_embed_proj_dim": D_MODEL, "ffn_dim": 48}),
        _MISTRAL_TOKENS,
        {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
    ),
}
"""The tiny models by family. `gpt_neox` computes attention and MLP side by side, as Pythia does, and so does
`stablelm_parallel`; `falcon` is built like the 7B model, `falcon_two_norms` like the 40B one, `falcon_sequential` like
those of RefinedWeb; `gemma3` is the multimodal wrapper of the larger Gemma 3 models.
"""
