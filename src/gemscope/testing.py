"""Tiny models and planted SAEs with known answers, for our tests and for users' tests.

The models are random, so what they say means nothing; that each tensor is where it belongs can be told from them all
the same, because no gain is one, no bias is zero, and the heads together are wider than the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.errors import InputError
from gemscope.features.sae import SAE, SAEInfo
from gemscope.shapes import Float

if TYPE_CHECKING:
    from tokenizers import Tokenizer

D_MODEL = 32
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


def identity_sae(d: int, site: Site | str = "1.res") -> SAE:
    """An SAE that gives back exactly what it reads: features i and d + i are the two signs of x[i]."""
    axes = torch.eye(d)
    sae = SAE(d, 2 * d, gate="relu", site=site, info=SAEInfo(name=f"identity-{d}"))
    sae.W_enc.copy_(torch.cat([axes, -axes], dim=1))
    sae.W_dec.copy_(torch.cat([axes, -axes]))
    return sae


@dataclass(frozen=True, kw_only=True)
class Planted:
    """An SAE, activations made from its features, and which features these are."""

    sae: SAE
    x: Float[Tensor, "N D"]
    """What the SAE reads: `features @ sae.W_dec + sae.b_dec`, and noise where that was asked for."""
    features: Float[Tensor, "N F"]
    """The strengths that were planted, 0 where a feature is off. Without noise `sae.encode(x)` finds exactly these."""


def planted_sae(
    d_in: int = D_MODEL,
    d_sae: int = 2 * D_MODEL,
    *,
    tokens: int = 200,
    active: int = 4,
    noise: float = 0.0,
    site: Site | str = "1.res",
    seed: int = 0,
) -> Planted:
    """A JumpReLU SAE, and `tokens` activations of which `active` planted features each are on.

    Features 0 to d_in - 1 write along random orthonormal directions, the others along the opposite ones, so that up to
    2 * d_in features can be told apart exactly; opposite ones are never on together. Thresholds lie between 0.5 and 1,
    strengths between 1.5 and 4; `noise` is the standard deviation of what is added to each number of x.
    Raises InputError for a d_sae or an `active` that does not fit.
    """
    if not 0 < d_sae <= 2 * d_in:
        raise InputError(
            f"d_sae={d_sae} with d_in={d_in}: planted features are exact up to twice the width, {2 * d_in}"
        )
    if not 0 <= active <= min(d_in, d_sae):
        raise InputError(f"active={active}: between 0 and {min(d_in, d_sae)} features can be on together")
    random = torch.Generator().manual_seed(seed)
    draw, uniform = partial(torch.randn, generator=random), partial(torch.rand, generator=random)
    axes = torch.linalg.qr(draw(d_in, d_in, dtype=torch.float64)).Q.float()
    sae = SAE(d_in, d_sae, site=site, info=SAEInfo(name=f"planted-{d_in}-{d_sae}", declared_l0=float(active)))
    assert sae.threshold is not None
    sae.W_dec.copy_(torch.cat([axes, -axes])[:d_sae])
    sae.W_enc.copy_(sae.W_dec.T)
    sae.b_dec.copy_(draw(d_in))
    sae.b_enc.copy_(-sae.b_dec @ sae.W_enc)
    sae.threshold.copy_(0.5 + 0.5 * uniform(d_sae))

    axis = uniform(tokens, min(d_in, d_sae)).argsort(dim=-1)[:, :active]
    other = axis + d_in  # the opposite direction, where the SAE has it
    chosen = torch.where((uniform(tokens, active) < 0.5) & (other < d_sae), other, axis)
    features = torch.zeros(tokens, d_sae).scatter(1, chosen, 1.5 + 2.5 * uniform(tokens, active))
    x = features @ sae.W_dec + sae.b_dec + noise * draw(tokens, d_in)
    return Planted(sae=sae, x=x, features=features)


# --- the models ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Recipe:
    """How the tiny model of one family is made."""

    model: str
    """Name of its class in transformers."""
    config: Callable[[Any, int, Mapping[str, Any]], Any]
    tokenizer: Callable[[], Tokenizer]
    special: Mapping[str, str]
    """Special tokens by role, as the published models have them."""


def _rotary(kind: str, heads: Mapping[str, Any], transformers: Any, layers: int, special: Mapping[str, Any]) -> Any:
    """A configuration in Llama's words, which Mistral, Qwen and Gemma share."""
    return getattr(transformers, kind)(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        **heads,
        **special,
    )


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
        text_config=_rotary("Gemma3TextConfig", _GEMMA_HEADS, transformers, layers, special).to_dict(),
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=VOCAB - 3,
        eoi_token_index=VOCAB - 2,
        image_token_index=VOCAB - 1,
        **special,
    )


def _opt(transformers: Any, layers: int, special: Mapping[str, Any]) -> Any:
    return transformers.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        word_embed_proj_dim=D_MODEL,
        ffn_dim=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        **special,
    )


def _gptj(transformers: Any, layers: int, special: Mapping[str, Any]) -> Any:
    return transformers.GPTJConfig(
        vocab_size=VOCAB,
        n_positions=CONTEXT,
        n_embd=D_MODEL,
        n_layer=layers,
        n_head=4,
        n_inner=48,
        rotary_dim=4,
        tie_word_embeddings=False,
        **special,
    )


def _bloom(transformers: Any, layers: int, special: Mapping[str, Any]) -> Any:
    return transformers.BloomConfig(vocab_size=VOCAB, hidden_size=D_MODEL, n_layer=layers, n_head=4, **special)


def _falcon(options: Mapping[str, Any], transformers: Any, layers: int, special: Mapping[str, Any]) -> Any:
    return transformers.FalconConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        ffn_hidden_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        **options,
        **special,
    )


def _gpt2(transformers: Any, layers: int, special: Mapping[str, Any]) -> Any:
    return transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=CONTEXT, n_embd=D_MODEL, n_layer=layers, n_head=4, n_inner=48, **special
    )


def _neox(parallel: bool, transformers: Any, layers: int, special: Mapping[str, Any]) -> Any:
    return transformers.GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        use_parallel_residual=parallel,
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


# --- the tokenizers -----------------------------------------------------------------------------------------------

_MERGES = ("t h", "th e", "i n", "a n", "an d", "e r", "o u", "in g")
_BLANK = "▁"


def _byte_level(*special: str) -> Tokenizer:
    """GPT-2's rules (and SmolLM2's, Qwen's, Pythia's): bytes, a blank belongs to the word after it, no BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(*_vocabulary(pieces, "Ġ")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def _sentence_piece(*special: str, bos: str, dummy_blank: bool) -> Tokenizer:
    """Gemma's and Mistral's rules: `▁` for blanks, unknown characters as bytes, BOS in front. Mistral puts a blank
    before the first word, and takes it off again when decoding.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    letters = [_BLANK, *map(chr, range(33, 127))]
    vocabulary, merges = _vocabulary(
        [*special, *(f"<0x{byte:02X}>" for byte in range(128, 256)), "\n", *letters], _BLANK
    )
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    blank = normalizers.Replace(" ", _BLANK)
    undo = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if dummy_blank:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_BLANK), blank])
        tokenizer.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer, tokenizer.decoder = blank, decoders.Sequence(undo)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
    )
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def _vocabulary(pieces: list[str], blank: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces by id, the merges' results after them. A word may carry its blank: `Ġ the`."""
    merges = [(left, right) for left, right in (merge.split() for merge in (*_MERGES, f"{blank} the", f"{blank} and"))]
    pieces = [*pieces, *(left + right for left, right in merges)]
    return {piece: index for index, piece in enumerate(pieces)}, merges


_GEMMA_TOKENS = partial(_sentence_piece, "<pad>", "<eos>", "<bos>", "<unk>", bos="<bos>", dummy_blank=False)
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
_CHAT_TOKENS = partial(_byte_level, "<|endoftext|>", "<|im_start|>", "<|im_end|>")
_END = "<|endoftext|>"
_NEOX_SPECIAL = {"bos": _END, "eos": _END, "pad": "<|padding|>"}
_NEOX_TOKENS = partial(_byte_level, _END, "<|padding|>")
_MISTRAL_TOKENS = partial(_sentence_piece, "<unk>", "<s>", "</s>", bos="<s>", dummy_blank=True)
_ROPE: Mapping[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}


def _in_llamas_words(name: str, **options: Any) -> _Recipe:
    return _Recipe(f"{name}ForCausalLM", partial(_rotary, f"{name}Config", options), _CHAT_TOKENS, _CHAT_SPECIAL)


TINY: Mapping[str, _Recipe] = {
    "gemma": _Recipe(
        "GemmaForCausalLM", partial(_rotary, "GemmaConfig", {"head_dim": 16}), _GEMMA_TOKENS, _GEMMA_SPECIAL
    ),
    "gemma2": _Recipe(
        "Gemma2ForCausalLM", partial(_rotary, "Gemma2Config", _GEMMA_2_HEADS), _GEMMA_TOKENS, _GEMMA_SPECIAL
    ),
    "gemma3_text": _Recipe(
        "Gemma3ForCausalLM", partial(_rotary, "Gemma3TextConfig", _GEMMA_HEADS), _GEMMA_TOKENS, _GEMMA_SPECIAL
    ),
    "gemma3": _Recipe("Gemma3ForConditionalGeneration", _gemma_3, _GEMMA_TOKENS, _GEMMA_SPECIAL),
    "llama": _Recipe(
        "LlamaForCausalLM", partial(_rotary, "LlamaConfig", {"head_dim": 16}), _CHAT_TOKENS, _CHAT_SPECIAL
    ),
    "mistral": _Recipe(
        "MistralForCausalLM",
        partial(_rotary, "MistralConfig", {"head_dim": 16, "sliding_window": 16}),
        _MISTRAL_TOKENS,
        {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
    ),
    "qwen2": _Recipe("Qwen2ForCausalLM", partial(_rotary, "Qwen2Config", {}), _CHAT_TOKENS, _QWEN_SPECIAL),
    "qwen3": _Recipe(
        "Qwen3ForCausalLM", partial(_rotary, "Qwen3Config", {"head_dim": 16}), _CHAT_TOKENS, _QWEN_SPECIAL
    ),
    "gpt2": _Recipe("GPT2LMHeadModel", _gpt2, partial(_byte_level, _END), {"bos": _END, "eos": _END, "unk": _END}),
    "gpt_neox": _Recipe("GPTNeoXForCausalLM", partial(_neox, True), _NEOX_TOKENS, _NEOX_SPECIAL),
    "gpt_neox_sequential": _Recipe("GPTNeoXForCausalLM", partial(_neox, False), _NEOX_TOKENS, _NEOX_SPECIAL),
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
    "gptj": _Recipe("GPTJForCausalLM", _gptj, partial(_byte_level, _END), {"bos": _END, "eos": _END, "unk": _END}),
    "falcon": _Recipe("FalconForCausalLM", partial(_falcon, {}), partial(_byte_level, _END), {"eos": _END}),
    "falcon_two_norms": _Recipe(
        "FalconForCausalLM",
        partial(_falcon, {"new_decoder_architecture": True, "num_kv_heads": 2}),
        partial(_byte_level, _END),
        {"eos": _END},
    ),
    "falcon_sequential": _Recipe(
        "FalconForCausalLM",
        partial(_falcon, {"parallel_attn": False, "multi_query": False, "alibi": True, "bias": True}),
        partial(_byte_level, _END),
        {"eos": _END},
    ),
    "bloom": _Recipe("BloomForCausalLM", _bloom, _CHAT_TOKENS, _CHAT_SPECIAL),
    "opt": _Recipe("OPTForCausalLM", _opt, _MISTRAL_TOKENS, {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}),
}
"""The tiny models by family. `gpt_neox` computes attention and MLP side by side, as Pythia does, and so does
`stablelm_parallel`; `falcon` is built like the 7B model, `falcon_two_norms` like the 40B one, `falcon_sequential` like
those of RefinedWeb; `gemma3` is the multimodal wrapper of the larger Gemma 3 models.
"""
