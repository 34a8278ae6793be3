"""A GGUF file of a tied Llama model as the folder that transformers reads: weights in bfloat16, config, tokenizer."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemscope.errors import CorruptFile
from gemscope.progress import Progress

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[Any, np.dtype[np.float32]]


def convert(gguf: Path, folder: Path, progress: Progress) -> None:
    """Write what transformers reads into `folder`: weights, config, tokenizer, chat template."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    fact = _Facts(reader)
    config = _config(fact)
    _write_weights(folder / "model.safetensors", reader, config, progress)
    write_json(folder / "config.json", config)
    special = {f"{role}_token_id": config[f"{role}_token_id"] for role in ("bos", "eos", "pad")}
    write_json(folder / "generation_config.json", special)
    _write_tokenizer(folder, fact, context=config["max_position_embeddings"])


class _Facts:
    """A GGUF file's metadata, by key."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def __getitem__(self, key: str) -> Any:
        field = self._reader.get_field(key)
        if field is None:
            raise CorruptFile(
                f"the GGUF file of the bundled model has no {key}, expected a llama model with a tokenizer"
            )
        return field.contents()


def _config(fact: _Facts) -> dict[str, Any]:
    """config.json. The rope's base stands there twice: transformers 5 reads `rope_parameters`, 4 reads `rope_theta`
    and would silently take 10000 without it.
    """
    width, heads = fact["llama.embedding_length"], fact["llama.attention.head_count"]
    rope_theta = _shortest(fact["llama.rope.freq_base"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": fact["llama.vocab_size"],
        "hidden_size": width,
        "intermediate_size": fact["llama.feed_forward_length"],
        "num_hidden_layers": fact["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fact["llama.attention.head_count_kv"],
        "head_dim": width // heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": fact["llama.context_length"],
        "rms_norm_eps": _shortest(fact["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "tie_word_embeddings": True,
        "bos_token_id": fact["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fact["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fact["tokenizer.ggml.padding_token_id"],
        "dtype": "bfloat16",
    }


def _shortest(value: float) -> float:
    """A float32 as the shortest decimal that means it: 1e-05, not 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))


_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
"""No `output`: the head is the embedding."""


def _transformers_name(name: str) -> str:
    """`blk.3.attn_q.weight` is called `model.layers.3.self_attn.q_proj.weight`."""
    if (block := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)) and block[2] in _BLOCK_NAMES:
        return f"model.layers.{block[1]}.{_BLOCK_NAMES[block[2]]}.weight"
    if (top := name.removesuffix(".weight")) in _TOP_NAMES:
        return f"{_TOP_NAMES[top]}.weight"
    raise CorruptFile(f"the GGUF file of the bundled model has a tensor {name!r}, expected those of a tied llama model")


def _write_weights(path: Path, reader: Any, config: dict[str, Any], progress: Progress) -> None:
    """Every tensor in bf16, under the name and in the row order of transformers. Written in safetensors' format one
    tensor at a time: its own writer would hold the model in memory three times and hide the reason of a failed write.
    """
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in reader.tensors:
        start, end = end, end + 2 * int(tensor.n_elements)
        shape = [int(size) for size in reversed(tensor.shape)]
        header[_transformers_name(tensor.name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file, progress("convert the bundled model", len(reader.tensors), "tensors") as advance:
        file.write(struct.pack("<Q", len(head)) + head)
        for _, values in _exact_weights(reader, config):
            file.write(
                torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().astype("<i2", copy=False).data
            )
            advance(1)


def _exact_weights(reader: Any, config: dict[str, Any]) -> Iterator[tuple[str, Floats]]:
    """Every tensor in float32, before any rounding, in the order of the file."""
    import numpy as np
    from gguf.quants import dequantize

    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for tensor in reader.tensors:
        name = _transformers_name(tensor.name)
        values = np.array(
            dequantize(tensor.data, tensor.tensor_type), dtype=np.float32
        )  # a copy: the file is read-only
        if n_heads := heads.get(name.split(".")[-2]):
            values = _halves_apart(values, n_heads)
        yield name, values


def _halves_apart(rows: Floats, n_heads: int) -> Floats:
    """The rotary embedding turns pairs of rows of a head. llama.cpp keeps a pair's rows side by side, transformers
    keeps them half a head apart.
    """
    n_rows, n_columns = rows.shape
    pairs = rows.reshape(n_heads, n_rows // n_heads // 2, 2, n_columns)
    return pairs.swapaxes(1, 2).reshape(n_rows, n_columns)  # a copy again, in order


_CONTROL = 3
"""GGUF's mark of a token that no text can spell."""


def _write_tokenizer(folder: Path, fact: _Facts, *, context: int) -> None:
    """tokenizer.json, its config and the chat template. GGUF only names the pre-tokenizer ("smollm"): digits one by
    one, then bytes, no space put in front. No BOS is added.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    if (kind := fact["tokenizer.ggml.pre"]) != "smollm":
        raise CorruptFile(f"the GGUF file of the bundled model splits text the way {kind!r} does, expected 'smollm'")
    tokens: list[str] = fact["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fact["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, mark in zip(tokens, fact["tokenizer.ggml.token_type"], strict=True) if mark == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")

    roles = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    names = {f"{role}_token": tokens[fact[f"tokenizer.ggml.{key}_token_id"]] for role, key in roles.items()}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "model_max_length": context,
            "model_input_names": [
                "input_ids",
                "attention_mask",
            ],  # transformers 4 would add token types, which llama refuses
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
        },
    )
    write_json(folder / "special_tokens_map.json", names)
    (folder / "chat_template.jinja").write_text(fact["tokenizer.chat_template"], encoding="utf-8")


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
