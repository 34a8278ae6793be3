"""HookedTransformers of tiny models, which TransformerLens has no names for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers


def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def hooked_of(folder: Path, family: str, **processing: bool) -> Any:
    """Made as `from_pretrained` makes one, which knows published models alone."""
    import transformer_lens
    from transformer_lens.pretrained import weight_conversions

    hf, config = loaded(folder), loaded(folder).config
    rope = getattr(config, "rope_parameters", None) or {}
    rotary = {
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": False,
        "rotary_base": rope.get("rope_theta", 10000.0),
    }
    heads = config.num_attention_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    gated = rotary | {
        "rotary_dim": d_head,
        "normalization_type": "RMS",
        "eps": getattr(config, "rms_norm_eps", None),
        "n_key_value_heads": getattr(config, "num_key_value_heads", None),
        "gated_mlp": True,
        "final_rms": True,
    }
    own: dict[str, Any] = {
        "gpt2": {"act_fn": "gelu_new", "normalization_type": "LN", "eps": getattr(config, "layer_norm_epsilon", None)},
        "gpt_neox": rotary | {
            "act_fn": "gelu", "normalization_type": "LN", "eps": getattr(config, "layer_norm_eps", None),
            "rotary_dim": int(d_head * rope.get("partial_rotary_factor", 0.25)), "parallel_attn_mlp": True,
        },
        "llama": gated | {"act_fn": "silu"},
        "qwen2": gated | {"act_fn": "silu"},
        "gemma2": gated | {
            "act_fn": "gelu_pytorch_tanh", "use_normalization_before_and_after": True,
            "attn_scores_soft_cap": getattr(config, "attn_logit_softcapping", None) or -1.0,
            "output_logits_soft_cap": getattr(config, "final_logit_softcapping", None) or -1.0,
            "attn_scale": (getattr(config, "query_pre_attn_scalar", None) or d_head) ** 0.5,
            "use_local_attn": True, "window_size": getattr(config, "sliding_window", None),
            "attn_types": ["local" if kind.startswith("sliding") else "global" for kind in getattr(config, "layer_types", None) or []],
        },
    }[family]  # fmt: skip
    cfg = transformer_lens.HookedTransformerConfig(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=heads,
        d_head=d_head,
        d_mlp=getattr(config, "n_inner", None) or config.intermediate_size,
        d_vocab=config.vocab_size,
        n_ctx=config.max_position_embeddings,
        init_weights=False,
        original_architecture=config.architectures[0],
        model_name=family,
        **own,
    )
    model = transformer_lens.HookedTransformer(cfg, tokenizer=tokenizer(folder))
    cfg.tokenizer_name = str(folder)
    off = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
    convert = getattr(
        weight_conversions, f"convert_{ {'gpt_neox': 'neox', 'gemma2': 'gemma'}.get(family, family) }_weights"
    )
    model.load_and_process_state_dict(convert(hf, cfg), **{**off, **processing})
    return model
