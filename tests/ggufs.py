"""A tiny llama in a GGUF file, by llama.cpp's own writer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from gemscope.activations.model import LanguageModel
from gemscope.testing import VOCAB, tiny_model

NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def side_by_side(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a rotary pair next to one another, as llama.cpp keeps them; half a head apart in transformers."""
    count, width = rows.shape
    return rows.reshape(heads, 2, count // heads // 2, width).swapaxes(1, 2).reshape(count, width)


def written(path: Path, *, bos: bool | None, half: bool = False) -> LanguageModel:
    """A tiny llama's weights, configuration and tokenizer in a GGUF file; and the model."""
    import gguf

    model = tiny_model("llama")
    config = model.hf.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(VOCAB)
    state = json.loads(model.tokenizer.backend_tokenizer.to_str())
    tokens = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
    tokens += [f"<unused{index}>" for index in range(VOCAB - len(tokens))]
    control = set(model.tokenizer.all_special_tokens) | {"<|endoftext|>"}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in control or token.startswith("<unused") else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_unk_token_id(0)
    if bos is not None:
        writer.add_add_bos_token(bos)
    for name, weight in model.hf.state_dict().items():
        rows = weight.float().numpy()
        parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
        if parts[0] == "layers":
            if parts[2] in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = config.num_attention_heads if "q_proj" in parts[2] else config.num_key_value_heads
                rows = side_by_side(rows, heads)
            called = f"blk.{parts[1]}.{NAMES[parts[2]]}.weight"
        else:
            called = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[parts[0]] + ".weight"
        rows = rows.astype(np.float16) if half and rows.ndim > 1 else rows
        writer.add_tensor(called, np.ascontiguousarray(rows))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
