"""What TransformerLens makes of tiny models: activations at its hooks, processed as it does by default and in parts, and
what the processed model says with an SAE in the place of its residual stream.

Runs in SAELens's own environment, which has TransformerLens 3, not in ours: `python processed.py ROOT`. For each
transformers model in ROOT/models/NAME, beside ROOT/sae.safetensors, writes ROOT/answers/NAME.safetensors.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import (
    convert_gpt2_weights,
    convert_neox_weights,
    convert_qwen2_weights,
)
from transformers import AutoModelForCausalLM

CONVERT = {"gpt2": convert_gpt2_weights, "gpt_neox": convert_neox_weights, "qwen2": convert_qwen2_weights}
OPTIONS = {
    "default": {},
    "centred": {"fold_ln": False, "center_unembed": False, "fold_value_biases": False},
    "values": {"fold_ln": False, "center_writing_weights": False, "center_unembed": False},
}
LAYER = 1
HOOKS = ("attn.hook_z", "hook_attn_out", "hook_mlp_out", "hook_resid_post", "ln2.hook_normalized")


def main(root: Path) -> None:
    """Every model, every option: the hooks of one layer and the embedding's."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    (root / "answers").mkdir(exist_ok=True)
    sae = load_file(root / "sae.safetensors")
    for folder in sorted((root / "models").iterdir()):
        hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        ids = torch.arange(1, 9)[None] * 5 % hf.config.vocab_size
        found: dict[str, torch.Tensor] = {"ids": ids}
        for name, options in OPTIONS.items():
            config = config_of(hf.config)
            model = HookedTransformer(config)
            model.load_and_process_state_dict(CONVERT[hf.config.model_type](hf, config), **options)
            _, cache = model.run_with_cache(ids)
            found[f"{name}/hook_embed"] = cache["hook_embed"]
            for hook in HOOKS:
                values = cache[f"blocks.{LAYER}.{hook}"]
                found[f"{name}/{hook}"] = values.flatten(2) if values.ndim == 4 else values
            if name == "default":
                found |= spliced(model, ids, sae)
        save_file(
            {key: value.detach().contiguous() for key, value in found.items()},
            root / "answers" / f"{folder.name}.safetensors",
            {"made by": f"TransformerLens {version('transformer-lens')}, transformers {version('transformers')}"},
        )


def spliced(model: HookedTransformer, ids: torch.Tensor, sae: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The features that an SAE with ReLU finds in the processed residual stream, the share of its variance that it
    leaves, and the log-probabilities with its output in place."""
    found = {}

    def replace(x: torch.Tensor, hook: Any) -> torch.Tensor:
        features = torch.relu(x @ sae["W_enc"] + sae["b_enc"])
        out = features @ sae["W_dec"] + sae["b_dec"]
        rows, back = x[0], out[0]
        fvu = (rows - back).pow(2).sum() / (rows - rows.mean(0)).pow(2).sum()
        found.update(features=features, fvu=fvu)
        return out

    logits = model.run_with_hooks(ids, fwd_hooks=[(f"blocks.{LAYER}.hook_resid_post", replace)])
    return found | {"spliced": logits.log_softmax(-1)}


def config_of(hf: Any) -> HookedTransformerConfig:
    """What TransformerLens's own table makes of such a model, which it looks up by names of published ones alone."""
    plain = {
        "n_layers": hf.num_hidden_layers,
        "d_model": hf.hidden_size,
        "n_heads": hf.num_attention_heads,
        "d_head": hf.hidden_size // hf.num_attention_heads,
        "d_vocab": hf.vocab_size,
        "n_ctx": hf.max_position_embeddings,
        "init_weights": False,
    }
    own = {
        "gpt2": {"d_mlp": 4 * hf.hidden_size, "act_fn": "gelu_new", "normalization_type": "LN"},
        "gpt_neox": {
            "act_fn": "gelu",
            "normalization_type": "LN",
            "positional_embedding_type": "rotary",
            "rotary_adjacent_pairs": False,
            "rotary_dim": plain["d_head"] // 2,
            "parallel_attn_mlp": True,
        },
        "qwen2": {
            "act_fn": "silu",
            "normalization_type": "RMS",
            "eps": getattr(hf, "rms_norm_eps", None),
            "positional_embedding_type": "rotary",
            "rotary_adjacent_pairs": False,
            "rotary_dim": plain["d_head"],
            "n_key_value_heads": getattr(hf, "num_key_value_heads", None),
            "final_rms": True,
            "gated_mlp": True,
        },
    }[hf.model_type]
    return HookedTransformerConfig(**{"d_mlp": getattr(hf, "intermediate_size", None)} | plain | own)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
