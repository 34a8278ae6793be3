"""A tiny llama in a package, as the bundled model comes."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch

from gemscope.activations import bundled

gguf = pytest.importorskip("gguf", reason="gguf, which reads the bundled model's weights, is not installed")

transformers = pytest.importorskip("transformers")

N_HEADS, N_KV_HEADS, D_MODEL, D_MLP, N_LAYERS = 4, 2, 32, 64, 2

CONTROL, NORMAL = 3, 1


def byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_alphabet(), "he", "Ġt", "Ġthe", "12"]

MERGES = ["h e", "Ġ t", "Ġt he", "1 2"]


def tiny_llama():
    config = transformers.LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_KV_HEADS,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_theta=100000.0,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():  # large, so that a swapped tensor shows; on bf16's grid, so that none is rounded
        for weight in model.parameters():
            weight.copy_((torch.randn_like(weight) * 0.3).bfloat16())
    return model


def tiny_gguf(path, llama=None):
    """The same llama as llama.cpp keeps it: other names, and the two rows of each rotary pair side by side."""
    llama = llama or tiny_llama()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([CONTROL] * 3 + [NORMAL] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}")
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, weight in llama.named_parameters():
        stem = name.removesuffix(".weight")
        values = weight.detach().numpy()
        if stem.startswith("model.layers."):
            _, _, layer, part = stem.split(".", 3)
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                values = pairs_together(values, N_HEADS if part.endswith("q_proj") else N_KV_HEADS)
            writer.add_tensor(f"blk.{layer}.{names[part]}.weight", values)
        else:
            writer.add_tensor(f"{names[stem]}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def pairs_together(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Row by row: row i of a head's first half, then row i of its second half, and so on."""
    d_head = len(rows) // n_heads
    order = [h * d_head + half * d_head // 2 + i for h in range(n_heads) for i in range(d_head // 2) for half in (0, 1)]
    return np.ascontiguousarray(rows[order])


def source_of(weights):
    """A package `packaged_weights` with these in its `tiny.gguf`."""
    digest = hashlib.sha256(weights).hexdigest()
    return dataclasses.replace(bundled.SMOLLM2, module="packaged_weights", file="tiny.gguf", sha256=digest)
